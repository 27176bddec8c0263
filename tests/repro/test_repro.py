"""Repetitions: each method runs once, and its outcome is written and not computed again."""

import dataclasses
import functools
import operator
import typing
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from image_files import idx_bytes
from outcomes import outcome as _outcome

from zskd_fast.cli import main as cli
from zskd_fast.cli.options import Repro
from zskd_fast.config.recipe import Recipe
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.config.serialization import to_plain
from zskd_fast.errors import InputError
from zskd_fast.models import classifier
from zskd_fast.repro import methods
from zskd_fast.repro import repeat as module
from zskd_fast.repro.methods import METHODS, REAL, Task
from zskd_fast.repro.repeat import Order, repeat
from zskd_fast.repro.results import Outcome, change_text, read_outcomes, upsert
from zskd_fast.repro.setups import SETUPS
from zskd_fast.repro.table import accuracy_table

_CPU = torch.device("cpu")
_SMALL = {
    "synthesis.impressions": 20,
    "synthesis.steps": 3,
    "synthesis.batch_size": 10,
    "synthesis.shard_size": 10,
    "distillation.steps": 6,
    "distillation.batch_size": 8,
}


@pytest.fixture(autouse=True)
def few_timed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_TIMED_STEPS", 5)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set with forty images of noise in each split."""
    generator = torch.manual_seed(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for prefix in ("train", "t10k"):
        images = torch.randint(0, 256, (40, 28, 28), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (40,), dtype=torch.uint8, generator=generator)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images.numpy()))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels.numpy()))
    return folder


def _order(tmp_path: Path, data: Path | None, **changes: Any) -> Order:
    out = tmp_path / "out"
    order = Order(
        setup="fast-mnist",
        changes=_SMALL,
        methods=tuple(METHODS),
        seeds=range(1),
        data=data,
        out=out,
        results=out / "all.csv",
    )
    return dataclasses.replace(order, **changes)


def test_runs_every_method_and_writes_what_it_cost(tmp_path: Path, data: Path) -> None:
    order = _order(tmp_path, data)
    outcomes = {outcome.method: outcome for outcome in repeat(order, _CPU)}
    assert list(outcomes) == list(METHODS)
    assert read_outcomes(order.results) == sorted(outcomes.values(), key=lambda outcome: outcome.key)
    assert {(outcome.recipe, outcome.change) for outcome in outcomes.values()} == {("fast", change_text(_SMALL))}
    steps = {method: outcome.image_steps for method, outcome in outcomes.items()}
    assert steps == {
        "zskd": 60, "class-impressions": 60, "start-noise": 0, "real-kd": 0, "real-ce": 0
    }  # fmt: skip
    assert all(0 <= outcome.student_accuracy <= 1 for outcome in outcomes.values())
    assert all(outcome.teacher_accuracy == outcomes["zskd"].teacher_accuracy for outcome in outcomes.values())
    assert all(outcome.distillation_seconds > 0 for outcome in outcomes.values())
    images = {method: outcome.student_images for method, outcome in outcomes.items()}
    assert images["zskd"] == images["class-impressions"] == images["real-kd"] == 6 * 8
    without_data = {method for method, outcome in outcomes.items() if outcome.agreement_impressions is not None}
    assert without_data == {"zskd", "class-impressions", "start-noise"}


def test_a_finished_method_is_not_run_again(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = _order(tmp_path, data, methods=("zskd",))
    first = repeat(order, _CPU)
    asked = []

    def run(method: str, task: Task, zskd: Outcome | None) -> Outcome:
        asked.append(method)
        return _outcome(method=method)

    monkeypatch.setattr(module, "run_method", run)
    assert repeat(dataclasses.replace(order, methods=("zskd", "real-kd")), _CPU)[0] == first[0]
    assert asked == ["real-kd"]


def test_other_changes_in_the_same_folder_are_another_run(tmp_path: Path, data: Path) -> None:
    order = _order(tmp_path, data, methods=("zskd",))
    repeat(order, _CPU)
    changes = {**_SMALL, "distillation.steps": 7}
    (outcome,) = repeat(dataclasses.replace(order, changes=changes), _CPU)
    assert (outcome.change, outcome.student_images) == (change_text(changes), 7 * 8)
    assert len(read_outcomes(order.results)) == 2


def test_the_students_of_another_teacher_are_not_given_for_those_of_this_one(tmp_path: Path, data: Path) -> None:
    order = _order(tmp_path, data, methods=("zskd",))
    (own,) = repeat(order, _CPU)
    state = safetensors.torch.load_file(str(SETUPS["fast-mnist"].teacher.weights))
    last = [name for name in state if name.startswith("classifier")][-2:]
    state |= {name: state[name].roll(1, dims=0).clone() for name in last}
    safetensors.torch.save_file(state, str(tmp_path / "other.safetensors"))
    with pytest.raises(InputError, match="teacher"):
        repeat(dataclasses.replace(order, weights=tmp_path / "other.safetensors"), _CPU)
    assert repeat(order, _CPU) == [own]


def test_the_teacher_is_hashed_once_for_all_seeds_and_methods(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    digest = classifier._weights_sha256
    monkeypatch.setattr(
        classifier, "_weights_sha256", lambda model: hashed.append(type(model).__name__) or digest(model)
    )
    repeat(_order(tmp_path, data, methods=("zskd", "start-noise"), seeds=range(2)), _CPU)
    assert hashed.count("LeNet5") == 1


def test_all_seeds_can_share_one_probe(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probes = []

    def probe(_: object, recipe: Recipe, *, seed: int) -> None:
        probes.append((recipe.synthesis.steps, seed))

    monkeypatch.setattr(module, "Probe", probe)
    monkeypatch.setattr(module, "run_method", lambda *_: _outcome())
    repeat(_order(tmp_path, data, seeds=(3, 4), probe_changes={**_SMALL, "synthesis.steps": 2}), _CPU)
    assert probes == [(2, 0)]


def test_a_setup_without_images_of_its_own_asks_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fast-cifar10 needs the test images of .*; give their folder as --data"):
        repeat(_order(tmp_path, None, setup="fast-cifar10"), _CPU)


def test_a_setup_without_a_teacher_of_its_own_asks_for_its_weights(tmp_path: Path) -> None:
    message = r"needs the weights of its teacher AlexNet, .*--model zskd_fast.models:AlexNet .*--weights"
    with pytest.raises(InputError, match=message):
        repeat(_order(tmp_path, None, setup="fast-cifar10-alexnet"), _CPU)


def test_weights_of_the_user_take_the_place_of_the_shipped_ones(tmp_path: Path, data: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    shipped = safetensors.torch.load_file(str(SETUPS["fast-mnist"].teacher.weights))
    safetensors.torch.save_file({name: torch.zeros_like(value) for name, value in shipped.items()}, str(weights))
    with pytest.raises(InputError, match="classifier weights of class 0 are all zero"):
        repeat(_order(tmp_path, data, methods=("zskd",), weights=weights), _CPU)


def test_the_setups_change_the_sizes_of_their_recipe_only() -> None:
    changes = {name: change_text(setup.changes) for name, setup in SETUPS.items()}
    assert changes == {
        "fast-mnist": "",
        "fast-fashion": "",
        "fast-cifar10": "distillation.steps=5000 synthesis.impressions=2000",
        "fast-cifar10-resnet8": "distillation.steps=5000 synthesis.impressions=2000",
        "fast-cifar10-alexnet": "distillation.steps=5000 synthesis.impressions=2000",
        "paper-mnist": "",
        "paper-fashion": "synthesis.impressions=48000",
    }


def test_the_fresh_noise_of_the_recommended_recipe_is_its_start_noise() -> None:
    values = to_plain(load_recipe("fast"))
    fresh = dict(values["distillation"]["fresh_noise"])
    assert fresh.pop("fraction") > 0
    assert fresh == values["synthesis"]["start_noise"]


def test_a_change_is_spelled_as_options_in_order() -> None:
    changes = {"synthesis.betas": [1.0, 0.1], "distillation.steps": 10, "synthesis.targets": "one_hot"}
    assert change_text(changes) == "distillation.steps=10 synthesis.betas=1.0,0.1 synthesis.targets=one_hot"


def test_start_noise_is_given_as_many_seconds(tmp_path: Path, data: Path) -> None:
    order = _order(tmp_path, data, methods=("zskd", "start-noise"))
    zskd, noise = repeat(order, _CPU)
    assert noise.impressions == zskd.impressions
    assert noise.student_images > zskd.student_images, "the seconds of the synthesis were not used"


def test_an_interrupted_run_with_start_noise_keeps_its_number_of_steps(tmp_path: Path, data: Path) -> None:
    """A second timing would give another number, and the folder would belong to another run."""
    order = _order(tmp_path, data, methods=("zskd", "start-noise"))
    first = repeat(order, _CPU)[1]
    (order.out / "seed-0" / "outcomes.csv").unlink()
    assert repeat(order, _CPU)[1].student_images == first.student_images


def test_missing_real_data_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    order = _order(tmp_path, None, methods=("zskd", "real-kd"))
    with pytest.raises(InputError, match=r"real-kd need the training split of MNIST .*--data.*--methods"):
        repeat(order, _CPU)
    assert not order.out.exists()


def test_start_noise_needs_the_seconds_of_zskd(tmp_path: Path, data: Path) -> None:
    with pytest.raises(InputError, match="takes as many seconds as the method zskd"):
        repeat(_order(tmp_path, data, methods=("start-noise",)), _CPU)


def test_a_new_row_replaces_the_one_of_the_same_run(tmp_path: Path) -> None:
    path = tmp_path / "results" / "all.csv"
    upsert(path, [_outcome(seed=1), _outcome(seed=0)])
    upsert(path, [_outcome(seed=1, student_accuracy=0.5), _outcome(threads=1)])
    rows = read_outcomes(path)
    assert [(row.seed, row.threads, row.student_accuracy) for row in rows] == [
        (0, 1, 0.98),
        (0, 2, 0.98),
        (1, 2, 0.5),
    ]
    assert rows[0] == _outcome(threads=1), "a value changed on its way through the file"


def test_cells_that_were_not_measured_stay_empty(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    row = _outcome(device="", torch="", teacher_accuracy=None, impressions=None, version="")
    upsert(path, [row, _outcome(change="synthesis.steps=3")])
    assert read_outcomes(path)[0] == row


def test_the_committed_table_is_in_the_form_that_is_written(tmp_path: Path) -> None:
    committed = Path(__file__).parents[2] / "benchmarks" / "accuracy.csv"
    rows = read_outcomes(committed)
    upsert(tmp_path / "all.csv", reversed(rows))
    assert (tmp_path / "all.csv").read_bytes() == committed.read_bytes()
    for setup, recipe, change in {row.run[:3] for row in rows}:
        assert recipe == SETUPS[setup].recipe
        values = to_plain(load_recipe(recipe))
        for option in change.split():
            name, _, value = option.partition("=")
            assert value and functools.reduce(operator.getitem, name.split("."), values) is not None


def test_another_kind_of_file_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"notes\.csv is not a results table"):
        upsert(path, [_outcome()])
    assert path.read_text() == "a,b\n1,2\n"


def test_the_table_has_mean_and_deviation_over_seeds_beside_the_published_figures() -> None:
    table = accuracy_table([_outcome(seed=seed, student_accuracy=0.98 + seed / 1000) for seed in range(3)])
    pair = "MNIST, LeNet5 to LeNet5Half"
    assert f"| {pair} | fast: data impressions | 98.10 ± 0.10 | 90.00 ± 0.00 | 1,000 | 60,000 | 30 | 3 |" in table
    assert f"| {pair} | paper: ZSKD | 98.77 |  | 24,000 | 36.0 million |  |  |" in table
    assert f"- {pair}: the paper's 36.0 million image-steps are 600 times those of fast and would take" in table
    assert "Fashion" not in table
    many = accuracy_table([_outcome(image_steps=36_000_000)])
    assert "| 98.00 | 90.00 | 1,000 | 36.0 million | 30 | 1 |" in many


def test_changed_recipes_have_rows_of_their_own_and_published_figures_can_be_left_out() -> None:
    changes = ["", "distillation.steps=2500", "distillation.steps=20000"]
    outcomes = [_outcome(change=change, image_steps=None) for change in reversed(changes)]
    lines = accuracy_table(outcomes, published=False).splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == [
        "fast: data impressions",
        "fast with distillation.steps=2500: data impressions",
        "fast with distillation.steps=20000: data impressions",
    ]


def test_the_command_line_offers_every_setup_and_method() -> None:
    """It has its own list, since it is read before torch is."""
    hints = typing.get_type_hints(Repro)
    assert typing.get_args(hints["name"]) == tuple(SETUPS)
    assert typing.get_args(typing.get_args(hints["methods"])[0]) == tuple(METHODS)


def test_without_options_the_command_needs_no_training_data() -> None:
    assert Repro.methods == tuple(method for method in METHODS if method not in REAL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "got 0 seeds and 3 methods, wanted 1 or more"),
        (["--methods", "real-ce"], "real-ce need the training split of MNIST"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["repro", "fast-mnist", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
