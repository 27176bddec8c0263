"""Seconds from the teacher to accuracies of the student with the recipe `fast`; runs only with --to-accuracy.

The synthesis counts, the evaluations do not; the test images are used for the accuracies alone. A run ends with its
last accuracy. The plain loop runs for one seed on MNIST, to verify the times that `benchmarks.whole_jobs` derives.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import machine
from benchmarks.distillation import plain_loop as plain_distillation
from benchmarks.distillation.jobs import PAIRS
from benchmarks.measure import Bench
from benchmarks.synthesis import plain_loop as plain_synthesis
from benchmarks.whole_jobs import ACCURACIES
from zskd_fast.config.recipe import Recipe
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.distillation.pruned_start import pruned_start
from zskd_fast.models.classifier import Classifier
from zskd_fast.models.user_models import load_classifier, load_model
from zskd_fast.real_data.evaluation import TestSet, accuracy, load_test_set
from zskd_fast.repro.setups import SETUPS, Setup
from zskd_fast.synthesis.synthesizer import Synthesizer

SETTINGS = list(ACCURACIES)
PROVIDERS = ["zskd_fast", "plain loop"]
THREADS = [machine.all_threads()]
TURNS = 1
_SEEDS = {"zskd_fast": (0, 1, 2), "plain loop": (0,)}
_EVALUATE_EVERY = 50


class _AllReached(Exception):
    """Ends a run."""


@dataclass
class _Watch:
    """Keep when each accuracy is first reached, without the time of the evaluations."""

    goals: tuple[float, ...]
    wait: Callable[[], None]
    start: float = field(default_factory=time.perf_counter)
    paused: float = 0.0
    reached: dict[float, tuple[float, int]] = field(default_factory=dict)
    """Accuracy -> seconds and student steps."""

    def look(self, step: int, evaluate: Callable[[], float]) -> float:
        """Evaluate after a step; returns the accuracy. Raises `_AllReached` after the last goal."""
        self.wait()
        before = time.perf_counter()
        now = evaluate()
        for goal in self.goals:
            if now >= goal and goal not in self.reached:
                self.reached[goal] = (before - self.start - self.paused, step)
        if len(self.reached) == len(self.goals):
            raise _AllReached
        self.paused += time.perf_counter() - before
        return now


def _run(setup: Setup, recipe: Recipe, test: TestSet, seed: int, device: str, watch: _Watch) -> None:
    """Make impressions and train a student on them by the package."""
    spec = setup.input_spec
    teacher = load_classifier(setup.teacher, spec, device=device)
    student = load_classifier(setup.student, spec, role="student", device=device, seed=seed)
    synthesizer = Synthesizer(teacher, spec, recipe.synthesis, seed=seed)
    distiller = Distiller(teacher, student, spec, recipe.distillation, seed=seed)
    steps = iter(range(_EVALUATE_EVERY, recipe.distillation.steps + 1, _EVALUATE_EVERY))
    watch.start = time.perf_counter()
    distiller.fit(
        synthesizer.run(range(recipe.synthesis.impressions)),
        progress=False,
        evaluate=lambda _: watch.look(next(steps), lambda: accuracy(student, test.inputs, test.labels)),
        evaluate_every=_EVALUATE_EVERY,
    )


def _run_plain(setup: Setup, recipe: Recipe, test: TestSet, seed: int, device: str, watch: _Watch) -> None:
    """The same by the plain loops."""
    teacher = load_model(setup.teacher.model, setup.teacher.weights).to(device).eval().requires_grad_(False)
    similarity = Synthesizer(teacher, setup.input_spec, recipe.synthesis, seed=seed).similarity
    torch.manual_seed(seed)
    pair = PAIRS["LeNet-5 to LeNet-5-Half"]
    student = pair.student().to(device)
    watch.start = time.perf_counter()
    x, _ = plain_synthesis.make_impressions(
        teacher, similarity, setup.input_spec.shape, recipe.synthesis, count=recipe.synthesis.impressions
    )
    _set_first_weights(teacher, student, setup, x, recipe)
    parts = pair.split_models(teacher, student, seed)
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]

    def after(step: int) -> bool:
        if step % _EVALUATE_EVERY == 0:
            watch.look(step, lambda: _accuracy(parts[1], test))
        return False

    plain_distillation.train(*parts, parameters, x, recipe.distillation, after)


def _set_first_weights(teacher: nn.Module, student: nn.Module, setup: Setup, x: Tensor, recipe: Recipe) -> None:
    """Start as the recipe does, by the package, on batches of the plain loop."""
    spec, distillation = setup.input_spec, recipe.distillation
    start = pruned_start(Classifier(teacher, spec), Classifier(student.train(), spec, role="student"))
    assert start is not None
    count = start.num_inputs // distillation.batch_size
    drawn = [plain_distillation.draw_batch(x, distillation) for _ in range(count)]
    batches = [plain_distillation.augment(batch, distillation.augmentation) for batch in drawn]
    start.set_weights(lambda: batches)


@torch.no_grad()
def _accuracy(student: plain_distillation.Split, test: TestSet) -> float:
    def classes(x: Tensor) -> Tensor:
        return student(x)[1].argmax(1)

    device = next(student.parameters()).device
    found = torch.cat([classes(x.to(device)).cpu() for x in test.inputs.split(1000)])
    return (found == test.labels).float().mean().item()


def test_time_to_accuracy(
    setting: str, provider: str, threads: int, bench: Bench, benchmark: Any, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--to-accuracy"):
        pytest.skip("takes minutes: give --to-accuracy")
    if provider == "plain loop" and setting != SETTINGS[0]:
        pytest.skip("the plain loop is verified on MNIST only")
    setup = SETUPS[setting]
    assert setup.test_data is not None
    recipe, test = load_recipe(setup.recipe), load_test_set(setup.test_data, setup.input_spec)
    run, watches = (_run if provider == "zskd_fast" else _run_plain), []

    def all_seeds() -> None:
        for seed in _SEEDS[provider]:
            watches.append(_Watch(ACCURACIES[setting], bench.wait))
            with contextlib.suppress(_AllReached):
                run(setup, recipe, test, seed, bench.device, watches[-1])

    benchmark.pedantic(all_seeds, rounds=1, iterations=1)
    for goal in ACCURACIES[setting]:
        reached = [watch.reached[goal] for watch in watches if goal in watch.reached]
        assert len(reached) == len(watches), f"{len(reached)} of {len(watches)} students reached {goal:.1%}"
        steps = round(statistics.median(step for _, step in reached))
        for seconds, _ in reached:
            bench.note(
                seconds, op="time to accuracy", setting=f"{goal:.1%}", provider=provider, shape=setting, items=steps
            )
