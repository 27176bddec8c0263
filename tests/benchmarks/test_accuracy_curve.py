"""The curve of accuracy over seconds: what is run for it, and how it is drawn."""

from pathlib import Path

from outcomes import outcome as _outcome

from benchmarks import accuracy_curve, plots
from benchmarks.accuracy_curve import Curve, main


def test_runs_parts_of_the_recipe_with_its_share_of_impressions(monkeypatch):
    orders = []
    monkeypatch.setattr(accuracy_curve, "repeat", lambda order, _device: orders.append(order))
    main(Curve(data_sets=("fast-mnist",), seeds=2))
    assert [(order.recipe.name, *order.seeds) for order in orders] == [
        (f"fast-small / {divisor}", seed) for seed in (0, 1) for divisor in (8, 4, 2)
    ]
    shares = {order.recipe.synthesis.impressions / order.recipe.distillation.steps for order in orders}
    assert shares == {4000 / 10000}
    assert len({(order.out, *order.seeds) for order in orders}) == len(orders), "runs would share a folder"


def test_a_line_runs_through_the_means_of_each_recipe(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure) or path)
    outcomes = [
        _outcome(recipe=recipe, way=way, seed=seed, student_accuracy=accuracy + seed / 100)
        for recipe, accuracy in (("half", 0.9), ("whole", 0.95))
        for way in ("zskd", "start-noise")
        for seed in (0, 1)
    ]
    assert plots.draw_accuracy(outcomes, tmp_path) == Path(tmp_path / "accuracy.svg")
    (axis,) = drawn[0].axes
    labelled = {line.get_label(): [round(y, 6) for y in line.get_ydata()] for line in axis.lines}
    assert labelled["data impressions"] == [90.5, 95.5]
    assert labelled["paper: ZSKD"] == [98.77, 98.77]
