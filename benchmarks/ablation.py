"""One factor at a time from a recipe, on both data sets: python -m benchmarks.ablation

Each run is a row of ablation-<data set>.csv, and what is there is not run again. The base is the small recommended
recipe with fewer impressions and student steps, so that a run takes a minute. The agreements are measured on one probe
for all runs of a set: impressions and start noise of the base recipe, from ids that no run uses.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from zskd_fast.cli.commands import set_up
from zskd_fast.cli.options import Machine
from zskd_fast.config.recipe import Recipe, SynthesisRecipe, load_recipe, recipe_from_dict, recipe_to_dict
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.real_data.evaluation import accuracy, load_test_set
from zskd_fast.repro.probe import Probe
from zskd_fast.repro.results import read_table, upsert
from zskd_fast.repro.setups import SETUPS
from zskd_fast.run.pipeline import load_student, load_teacher, make_synthesizer
from zskd_fast.store.impressions import Impressions
from zskd_fast.synthesis.synthesizer import Synthesizer

BASE = "base"
DATA_SETS = ("fast-mnist", "fast-fashion")
_IMPRESSIONS, _STUDENT_STEPS = 2000, 1000

# Factor -> value as shown -> the keys of the recipe that it changes.
_START, _FRESH, _AUGMENTATION = "synthesis.start.", "distillation.fresh.", "distillation.augmentation."
_RECYCLING = "distillation.recycling."
_WHITE = {f"{_START}leaves": 0, f"{_START}leaf_size": [0.0, 0.0]}
FACTORS: dict[str, dict[str, dict[str, object]]] = {
    # Of the 60,000 training images that the teacher has seen: 1, 5, 10, 20, 40 and 80 %, as in the paper's figure 4.
    "impressions": {f"{n:,}": {"synthesis.impressions": n} for n in (600, 3000, 6000, 12000, 24000, 48000)},
    "steps": {str(n): {"synthesis.steps": n} for n in (0, 15, 30, 120, 240)},
    "synthesis temperature": {str(t): {"synthesis.temperature": t} for t in (1, 5, 10, 40)},
    "distillation temperature": {str(t): {"distillation.temperature": t} for t in (1, 2, 10, 20)},
    "learning rate": {str(rate): {"distillation.max_learning_rate": rate} for rate in (1e-3, 4e-3, 2e-2)},
    "targets": {
        "beta 1": {"synthesis.betas": [1.0]},
        "beta 0.1": {"synthesis.betas": [0.1]},
        "one-hot": {"synthesis.targets": "one_hot"},
    },
    "start noise": {
        "normal": {f"{_START}noise": "normal", **_WHITE},
        "uniform": {f"{_START}noise": "uniform", **_WHITE},
        "0.2 uniform": {f"{_START}noise": "uniform", f"{_START}scale": 0.2, **_WHITE},
    },
    "priors": {
        "none": {"synthesis.l1": 0.0, "synthesis.total_variation": 0.0},
        "L1 alone": {"synthesis.total_variation": 0.0},
        "total variation alone": {"synthesis.l1": 0.0},
        "L1 2e-3": {"synthesis.l1": 2e-3},
        "L2 for L1": {"synthesis.l1": 0.0, "synthesis.l2": 2e-3},
    },
    "fresh noise": {f"{share:.0%}": {f"{_FRESH}fraction": share} for share in (0.0, 0.25, 0.75, 1.0)},
    "augmentation": {
        "no rotation": {f"{_AUGMENTATION}rotation_sigma": 0.0},
        "no scale": {f"{_AUGMENTATION}scale_sigma": 0.0},
        "no shift": {f"{_AUGMENTATION}shift_sigma": 0.0},
        "no mixing": {f"{_AUGMENTATION}mix_probability": 0.0},
        "no noise": {f"{_AUGMENTATION}noise_max": 0.0},
        "mirrored": {f"{_AUGMENTATION}flip_probability": 0.5},
        "none": {
            f"{_AUGMENTATION}{name}": 0.0
            for name in ("rotation_sigma", "scale_sigma", "shift_sigma", "mix_probability", "noise_max")
        },
    },
    "adversary": {
        f"1 step of {size}": {
            "distillation.adversary.steps": 1,
            "distillation.adversary.step_size": size,
            "distillation.adversary.wait_fraction": 0.1,
        }
        for size in (0.02, 0.05)
    },
    "recycling": {
        "never": {f"{_RECYCLING}every": 0},
        "every 25 steps": {f"{_RECYCLING}every": 25},
        "woken to 50%": {f"{_RECYCLING}woken_active": 0.5},
        "woken quietly, 0.01": {f"{_RECYCLING}woken_scale": 0.01},
    },
}


@dataclass(frozen=True)
class Row:
    """One run: what was changed, and what came of it."""

    data_set: str
    factor: str
    value: str
    seed: int
    student_accuracy: float
    """Of the real test images, between 0 and 1; nothing is chosen by it."""
    agreement_impressions: float
    """With the teacher on the probe, between 0 and 1."""
    agreement_noise: float
    synthesis_seconds: float
    distillation_seconds: float
    threads: int

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What names the run."""
        return (self.data_set, self.factor, self.value, self.seed)


@dataclass(frozen=True)
class Ablation:
    """Run what the tables of results lack."""

    data_sets: tuple[str, ...] = DATA_SETS
    """Setups of `zskd-fast repro` whose teacher and test data are used; two processes may take one each."""
    factors: tuple[str, ...] = tuple(FACTORS)
    """Which factors."""
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)


def base_recipe() -> Recipe:
    """What one factor at a time departs from."""
    budget = {"synthesis.impressions": _IMPRESSIONS, "distillation.steps": _STUDENT_STEPS}
    return changed(load_recipe("fast-small"), budget)


def changed(recipe: Recipe, changes: dict[str, object]) -> Recipe:
    """The recipe with the values at some dotted keys changed."""
    values = recipe_to_dict(recipe)
    for path, value in changes.items():
        *tables, key = path.split(".")
        table = values
        for name in tables:
            table = table[name]
        table[key] = value
    return recipe_from_dict(values)


def results_of(data_set: str) -> Path:
    """The file of its rows."""
    return Path(__file__).parent / f"ablation-{data_set}.csv"


def read_results() -> list[Row]:
    """All rows of all data sets."""
    return [row for data_set in DATA_SETS for row in read_table(results_of(data_set), Row)]


def main(order: Ablation) -> None:
    """Run after run, each added to its file when it is done."""
    device = set_up(order.machine)
    done = {row.key for row in read_results()}
    for data_set in order.data_sets:
        judge = _Judge(data_set, device)
        for factor, value, changes in _runs(order.factors):
            if (data_set, factor, value, order.machine.seed) not in done:
                row = judge.row(factor, value, changed(base_recipe(), changes), order.machine.seed)
                upsert(results_of(data_set), [row])
                print(*astuple(row)[:7], flush=True)


def _runs(factors: tuple[str, ...]) -> Iterator[tuple[str, str, dict[str, object]]]:
    yield BASE, BASE, {}
    for factor in factors:
        for value, changes in FACTORS[factor].items():
            yield factor, value, changes


class _Judge:
    """The teacher, the test set and the probe of a data set."""

    def __init__(self, data_set: str, device: torch.device):
        recipe = base_recipe()
        self.data_set, self.setup, self.device = data_set, SETUPS[data_set], device
        self.teacher = load_teacher(self.setup.teacher, device)
        self.test = load_test_set(self.setup.test_data, recipe.input)
        self.probe = Probe(self.teacher, recipe, seed=0)
        self._made: dict[tuple[SynthesisRecipe, int], _Growing] = {}

    def row(self, factor: str, value: str, recipe: Recipe, seed: int) -> Row:
        """One run from the teacher to the student."""
        made, synthesis_seconds = self._impressions(recipe, seed)
        student = load_student(self.setup.student, seed, self.device).module
        distiller = Distiller(self.teacher.module, student, recipe.distillation, recipe.input, seed=seed)
        history = distiller.fit(made.x, ids=made.id, progress=False)
        return Row(
            self.data_set,
            factor,
            value,
            seed,
            accuracy(student, self.test.inputs, self.test.labels),
            *self.probe.agreements(student),
            synthesis_seconds,
            history.seconds,
            torch.get_num_threads(),
        )

    def _impressions(self, recipe: Recipe, seed: int) -> tuple[Impressions, float]:
        """The recipe's number of impressions, and the seconds that they took."""
        key = replace(recipe.synthesis, impressions=1), seed
        if key not in self._made:
            self._made[key] = _Growing(make_synthesizer(self.teacher, recipe.input, recipe.synthesis, seed))
        return self._made[key].first(recipe.synthesis.impressions)


class _Growing:
    """The impressions of one synthesizer, made as far as any run has asked for them."""

    def __init__(self, synthesizer: Synthesizer):
        self._synthesizer = synthesizer
        self._parts: list[Impressions] = []
        self._seconds = 0.0

    def first(self, count: int) -> tuple[Impressions, float]:
        """Those of the ids below ``count``, and their share of the seconds that all have taken."""
        have = sum(map(len, self._parts))
        if have < count:
            started = time.perf_counter()
            self._parts.append(self._synthesizer.run(range(have, count)))
            self._seconds += time.perf_counter() - started
        return Impressions.concatenate(self._parts)[:count], self._seconds * count / max(have, count)


if __name__ == "__main__":
    main(tyro.cli(Ablation))
