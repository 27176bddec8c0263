import dataclasses

import pytest

from benchmarks.ablation import FACTORS, Row, base_recipe, changed
from zskd_fast.repro.results import read_table, upsert

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
