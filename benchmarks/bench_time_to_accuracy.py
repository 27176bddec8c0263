"""Seconds from the teacher alone to a student of 95 % and of 97 %, by the demo's recipe; only with --to-accuracy."""

import time

import pytest
import torch

from benchmarks.measure import Bench
from zskd_fast.config.recipe import load_recipe
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.models import LeNet5Half
from zskd_fast.models.loading import ASSETS, load_model
from zskd_fast.real_data.evaluation import accuracy, load_test_set
from zskd_fast.synthesis.synthesizer import Synthesizer

GOALS = [0.95, 0.97]
PROVIDERS = ["zskd_fast"]
TURNS = 1
_EVALUATE_EVERY = 50


class _Watch:
    """A clock that stands still while an accuracy is measured, and notes when each goal is first reached."""

    def __init__(self, test):
        self.test = test
        self.reached = {}
        self._start = time.perf_counter()

    def evaluate(self, student):
        seconds = time.perf_counter() - self._start
        now = accuracy(student, self.test.inputs, self.test.labels)
        for goal in GOALS:
            if now >= goal:
                self.reached.setdefault(goal, seconds)
        self._start = time.perf_counter() - seconds
        return now


def test_time_to_accuracy(provider, threads, bench: Bench, benchmark, request):
    if not request.config.getoption("--to-accuracy"):
        pytest.skip("takes minutes: give --to-accuracy")
    recipe = load_recipe("demo-mnist")
    teacher = load_model("zskd_fast.models:LeNet5", ASSETS / "lenet5-mnist.safetensors").to(bench.device)
    torch.manual_seed(0)
    student = LeNet5Half().to(bench.device)
    test = load_test_set(ASSETS / "mnist-t10k", recipe.input)
    synthesizer = Synthesizer(teacher, recipe.input, recipe.synthesis, seed=0)
    distiller = Distiller(teacher, student, recipe.distillation, recipe.input, seed=0)
    watch = _Watch(test)

    def job():
        impressions = synthesizer.run(range(recipe.synthesis.impressions))
        fit = {"progress": False, "evaluate": watch.evaluate, "evaluate_every": _EVALUATE_EVERY}
        distiller.fit(impressions.x, impressions.teacher_logits, impressions.id, **fit)

    benchmark.pedantic(job, rounds=1, iterations=1)
    assert set(watch.reached) == set(GOALS), f"the student reached only {sorted(watch.reached)}"
    for goal, seconds in watch.reached.items():
        bench.note(
            seconds,
            op="time to accuracy",
            setting=f"{goal:.0%}",
            provider=provider,
            shape="demo-mnist",
            items=1,
        )
