"""Seconds from the teacher to a student of 95 % and of 97 % with the recipe `demo`; runs only with --to-accuracy."""

import time
from typing import Any

import pytest
from torch import nn

from benchmarks.measure import Bench
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.models.user_models import load_classifier
from zskd_fast.real_data.evaluation import accuracy, load_test_set
from zskd_fast.repro.setups import SETUPS
from zskd_fast.synthesis.synthesizer import Synthesizer

GOALS = [0.95, 0.97]
PROVIDERS = ["zskd_fast"]
TURNS = 1
_EVALUATE_EVERY = 50


def test_time_to_accuracy(
    provider: str, threads: int, bench: Bench, benchmark: Any, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--to-accuracy"):
        pytest.skip("takes minutes: give --to-accuracy")
    recipe, setup = load_recipe("demo"), SETUPS["fast-mnist"]
    spec = setup.input_spec
    teacher = load_classifier(setup.teacher, spec, device=bench.device)
    student = load_classifier(setup.student, spec, role="student", device=bench.device, seed=0)
    synthesizer = Synthesizer(teacher, spec, recipe.synthesis, seed=0)
    distiller = Distiller(teacher, student, spec, recipe.distillation, seed=0)
    assert setup.test_data is not None
    test = load_test_set(setup.test_data, spec)
    reached: dict[float, float] = {}
    paused, start = 0.0, time.perf_counter()

    def evaluate(*_: nn.Module) -> float:
        """Record when each goal is first reached, without the time of the evaluations."""
        nonlocal paused
        bench.wait()
        before = time.perf_counter()
        now = accuracy(student, test.inputs, test.labels)
        reached.update({goal: before - start - paused for goal in GOALS if now >= goal and goal not in reached})
        paused += time.perf_counter() - before
        return now

    def job() -> None:
        impressions = synthesizer.run(range(recipe.synthesis.impressions))
        distiller.fit(impressions, progress=False, evaluate=evaluate, evaluate_every=_EVALUATE_EVERY)

    benchmark.pedantic(job, rounds=1, iterations=1)
    assert set(reached) == set(GOALS), f"the student reached only {sorted(reached)}"
    for goal, seconds in reached.items():
        bench.note(seconds, op="time to accuracy", setting=f"{goal:.0%}", provider=provider, shape="demo", items=1)
