"""The sweeps over changed recipes: what is run for them, and the tables and plots of the outcomes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from outcomes import outcome

from benchmarks import sweep
from benchmarks.sweep import BASE, CURVE, FACTORS, Sweep, main
from zskd_fast.config.recipe_files import changed, load_recipe
from zskd_fast.errors import InputError
from zskd_fast.repro import repeat as module
from zskd_fast.repro.methods import Task
from zskd_fast.repro.repeat import Order
from zskd_fast.repro.results import Outcome, change_text, read_outcomes, upsert

_RUNS = [(factor, value) for factor, values in FACTORS.items() for value in values]


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[Order]:
    """Collect the orders of a sweep in place of running them."""
    collected: list[Order] = []

    def collect(order: Order, _: torch.device) -> list[Outcome]:
        collected.append(order)
        return []

    monkeypatch.setattr(sweep, "repeat", collect)
    return collected


@pytest.mark.parametrize(("factor", "value"), _RUNS, ids=map(": ".join, _RUNS))
def test_each_value_of_a_factor_is_another_recipe(factor: str, value: str) -> None:
    base = changed(load_recipe("fast"), BASE)
    others = [changed(base, changes) for name, changes in FACTORS[factor].items() if name != value]
    assert changed(base, FACTORS[factor][value]) not in [base, *others]


def test_each_run_of_the_sweeps_has_a_change_of_its_own() -> None:
    ablation = [BASE, *(BASE | changes for values in FACTORS.values() for changes in values.values())]
    changes = [change_text(each) for each in [*ablation, *CURVE.values()]]
    assert len(set(changes)) == len(changes)


def test_the_curve_takes_parts_of_the_recipe_with_the_same_ratio(orders: list[Order], tmp_path: Path) -> None:
    main(Sweep(kind="curve", setups=("fast-mnist",), seeds=2, results=tmp_path / "r.csv"))
    recipes = [changed(load_recipe("fast"), order.changes) for order in orders]
    sizes = [(each.synthesis.impressions, each.distillation.steps) for each in recipes]
    assert sizes == 2 * [(500, 1250), (1000, 2500), (2000, 5000)]
    assert [order.seeds for order in orders] == [[0]] * 3 + [[1]] * 3
    assert len({(order.out, *order.seeds) for order in orders}) == len(orders), "runs would share a folder"


def test_the_ablation_measures_agreement_on_the_probe_of_the_base(orders: list[Order], tmp_path: Path) -> None:
    main(Sweep(kind="ablation", only=("steps", "priors"), setups=("fast-mnist",), results=tmp_path / "r.csv"))
    changes = [change_text(order.changes) for order in orders]
    runs = [{}, *FACTORS["steps"].values(), *FACTORS["priors"].values()]
    assert changes == [change_text(BASE | each) for each in runs]
    assert all(order.probe_changes == BASE for order in orders)
    assert len({order.out for order in orders}) == len(orders)


def test_rows_of_the_table_are_not_measured_again(orders: list[Order], tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    change = change_text(BASE | {"synthesis.steps": 15})
    upsert(path, [outcome(change=change_text(BASE), device=""), outcome(change=change, seed=1)])
    main(Sweep(kind="ablation", only=("steps",), setups=("fast-mnist",), results=path))
    asked = [order.changes.get("synthesis.steps") for order in orders]
    assert asked == [0, 15, 30, 120, 240], "the base is there; 15 steps are there for another seed only"
    orders.clear()
    upsert(path, [outcome(change=change_text(CURVE["1/8"]))])
    main(Sweep(kind="curve", only=("1/8",), setups=("fast-mnist",), results=path))
    assert len(orders) == 1, "start noise is missing"


def test_an_unknown_factor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--only width is not known; give some of: impressions, steps"):
        main(Sweep(kind="ablation", only=("width",), results=tmp_path / "r.csv"))


def test_runs_in_the_changed_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the sweep to the row, with the training itself left out."""
    monkeypatch.setattr(module, "Probe", lambda *_args, **_names: None)

    def run(method: str, task: Task, _: Outcome | None) -> Outcome:
        return outcome(method=method, change=task.change, image_steps=task.recipe.synthesis.steps)

    monkeypatch.setattr(module, "run_method", run)
    results, change = tmp_path / "r.csv", BASE | {"synthesis.steps": 15}
    orders = Sweep(kind="ablation", only=("steps",), out=tmp_path / "out", results=results).orders()
    module.repeat(next(order for order in orders if order.changes == change), torch.device("cpu"))
    (row,) = read_outcomes(results)
    assert (row.change, row.image_steps) == (change_text(change), 15)


# ------------------------------------------------------------------------------------------ tables and plots


def test_a_factor_is_compared_with_the_base_on_its_own_seeds() -> None:
    accuracy = _accuracy()
    base = [outcome(change=change_text(BASE), seed=seed, student_accuracy=0.9 - 0.1 * seed) for seed in range(3)]
    changes = BASE | FACTORS["steps"]["0"]
    runs = [outcome(change=change_text(changes), seed=seed, student_accuracy=0.8) for seed in (0, 1)]
    means = accuracy.factor_means(accuracy._by_setup(base + runs)["fast-mnist"], "steps")
    assert list(means["accuracy"].dropna().round(6).items()) == [("base", 85.0), ("0", 80.0)]


def test_the_tables_of_the_ablation_have_a_line_per_value(tmp_path: Path) -> None:
    accuracy = _accuracy()
    base = [
        outcome(change=change_text(BASE), seed=seed, student_accuracy=0.9 + seed / 10, agreement_noise=0.7)
        for seed in (0, 1)
    ]
    steps = outcome(change=change_text(BASE | FACTORS["steps"]["0"]), agreement_noise=0.5)
    curve = outcome(change=change_text(CURVE["1/8"]), student_accuracy=0.1)
    lines = accuracy.ablation_text([*base, steps, curve], tmp_path).splitlines()
    assert "| MNIST | 2 | 95.0 ± 7.1 | 90.0 | 100.0 |" in lines
    assert "| base | 90.0 | 90.0 | 70.0 | 30 |" in lines
    assert "| 0 | 98.0 | 90.0 | 50.0 | 30 |" in lines
    assert "| 15 |  |  |  |  |" in lines
    assert (tmp_path / "ablation.svg").stat().st_size > 0


def test_a_line_of_the_curve_runs_through_the_means_of_each_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy, drawn = _accuracy(), []

    def keep(figure: Any, path: Path) -> Path:
        drawn.append(figure)
        return path

    monkeypatch.setattr(accuracy, "save", keep)
    outcomes = [
        outcome(
            change=change_text(CURVE[size]),
            method=method,
            seed=seed,
            student_accuracy=mean + seed / 100,
            distillation_seconds=seconds,
        )
        for size, mean, seconds in (("1/2", 0.9, 20.0), ("1", 0.95, 40.0))
        for method in ("zskd", "start-noise")
        for seed in (0, 1)
    ]
    other = [outcome(change=change_text(BASE), student_accuracy=0.1), outcome(method="real-ce")]
    assert accuracy.draw_curve([*outcomes, *other], tmp_path) == tmp_path / "accuracy.svg"
    (axis,) = drawn[0].axes
    labeled = {line.get_label(): [round(y, 6) for y in line.get_ydata()] for line in axis.lines}
    assert labeled["data impressions"] == [90.5, 95.5]
    assert labeled["paper: ZSKD"] == [98.77, 98.77]


def _accuracy() -> Any:
    for module_name in ("matplotlib", "pandas"):
        pytest.importorskip(module_name, reason="tables and plots need the extra `bench`")
    from benchmarks import accuracy

    return accuracy
