import dataclasses

import pytest
import torch

from benchmarks.ablation import BASE, FACTORS, Row, _Growing, base_recipe, changed
from zskd_fast.repro.results import read_table, upsert
from zskd_fast.repro.setups import SETUPS
from zskd_fast.run.pipeline import load_teacher, make_synthesizer

_RUNS = [(factor, value) for factor, values in FACTORS.items() for value in values]


@pytest.mark.parametrize(("factor", "value"), _RUNS, ids=map(": ".join, _RUNS))
def test_each_value_of_a_factor_is_a_recipe_of_its_own(factor, value):
    others = [changed(base_recipe(), changes) for name, changes in FACTORS[factor].items() if name != value]
    recipe = changed(base_recipe(), FACTORS[factor][value])
    assert recipe not in [base_recipe(), *others]


def test_a_run_that_is_done_again_takes_the_place_of_the_first(tmp_path):
    row = Row("fast-mnist", "steps", "0", 0, 0.9, 0.8, 0.7, 1.5, 2.5, 2)
    other, better = dataclasses.replace(row, value="15"), dataclasses.replace(row, student_accuracy=0.95)
    for each in (row, other, better):
        upsert(tmp_path / "ablation.csv", [each])
    assert read_table(tmp_path / "ablation.csv", Row) == [better, other]


def test_a_factor_is_compared_with_the_base_on_its_own_seeds():
    pytest.importorskip("matplotlib", reason="the plots need the extra `bench`")
    from benchmarks.ablation_report import mean_row

    base = [Row("fast-mnist", BASE, BASE, seed, 0.9 - 0.1 * seed, 0.8, 0.7, 1.5, 2.5, 2) for seed in range(3)]
    runs = [dataclasses.replace(row, factor="steps", value="0") for row in base[:2]]
    for value in (BASE, "0"):
        mean = mean_row(base + runs, "fast-mnist", "steps", value)
        assert mean is not None
        assert mean.student_accuracy == pytest.approx(0.85)
    assert mean_row(base + runs, "fast-mnist", "steps", "15") is None


def test_impressions_that_grow_are_those_made_at_once():
    recipe = changed(base_recipe(), {"synthesis.steps": 2, "synthesis.batch_size": 5})
    teacher = load_teacher(SETUPS["fast-mnist"].teacher, torch.device("cpu"))
    growing = _Growing(make_synthesizer(teacher, recipe.input, recipe.synthesis, 0))
    small, _ = growing.first(10)
    growing.first(20)
    at_once = make_synthesizer(teacher, recipe.input, recipe.synthesis, 0).run(range(20))
    assert torch.equal(growing.first(20)[0].x, at_once.x)
    assert torch.equal(growing.first(10)[0].x, small.x)
    assert 0 < growing.first(10)[1] < growing.first(20)[1]
