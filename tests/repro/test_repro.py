"""Repetitions: every way to a student, once each, written down and not done again."""

import dataclasses
import typing

import pytest
import torch
from image_files import idx_bytes
from outcomes import outcome as _outcome

from zskd_fast.cli import main as cli
from zskd_fast.cli.options import Repro
from zskd_fast.config.recipe import load_recipe
from zskd_fast.errors import InputError
from zskd_fast.repro import methods as ways
from zskd_fast.repro import repeat as module
from zskd_fast.repro.methods import REAL, WAYS
from zskd_fast.repro.repeat import Order, repeat
from zskd_fast.repro.results import Outcome, read_table, upsert
from zskd_fast.repro.setups import SETUPS
from zskd_fast.repro.table import accuracy_table

_CPU = torch.device("cpu")


def _small_recipe():
    recipe = load_recipe("fast-small")
    synthesis = dataclasses.replace(recipe.synthesis, impressions=20, steps=3, batch_size=10, shard_size=10)
    distillation = dataclasses.replace(recipe.distillation, steps=6, batch_size=8)
    return dataclasses.replace(recipe, synthesis=synthesis, distillation=distillation)


@pytest.fixture(autouse=True)
def few_timed_steps(monkeypatch):
    monkeypatch.setattr(ways, "_TIMED_STEPS", 5)


@pytest.fixture
def data(tmp_path):
    """Forty real images, as it were, in each split."""
    generator = torch.manual_seed(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for prefix in ("train", "t10k"):
        images = torch.randint(0, 256, (40, 28, 28), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (40,), dtype=torch.uint8, generator=generator)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images.numpy()))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels.numpy()))
    return folder


def _order(tmp_path, data, **changes):
    out = tmp_path / "out"
    order = Order("fast-mnist", _small_recipe(), tuple(WAYS), range(1), data, out, out / "all.csv")
    return dataclasses.replace(order, **changes)


def test_takes_every_way_and_says_what_it_cost(tmp_path, data):
    order = _order(tmp_path, data)
    outcomes = {outcome.way: outcome for outcome in repeat(order, _CPU)}
    assert list(outcomes) == list(WAYS)
    assert read_table(order.results, Outcome) == sorted(outcomes.values(), key=lambda outcome: outcome.key)
    steps = {way: outcome.image_steps for way, outcome in outcomes.items()}
    assert steps == {
        "zskd": 60, "class-impressions": 60, "start-noise": 0, "real-kd": 0, "real-ce": 0
    }  # fmt: skip
    assert all(0 <= outcome.student_accuracy <= 1 for outcome in outcomes.values())
    assert all(outcome.teacher_accuracy == outcomes["zskd"].teacher_accuracy for outcome in outcomes.values())
    assert all(outcome.distillation_seconds > 0 for outcome in outcomes.values())
    without_data = {way for way, outcome in outcomes.items() if outcome.agreement_impressions is not None}
    assert without_data == {"zskd", "class-impressions", "start-noise"}


def test_what_is_done_is_not_done_again(tmp_path, data, monkeypatch):
    order = _order(tmp_path, data, ways=("zskd",))
    first = repeat(order, _CPU)
    asked = []
    monkeypatch.setattr(module, "run_way", lambda way, task, zskd: asked.append(way) or _outcome(way=way))
    assert repeat(dataclasses.replace(order, ways=("zskd", "real-kd")), _CPU)[0] == first[0]
    assert asked == ["real-kd"]


def test_start_noise_is_given_as_many_seconds(tmp_path, data, monkeypatch):
    order = _order(tmp_path, data, ways=("zskd", "start-noise"))
    zskd, noise = repeat(order, _CPU)
    assert noise.impressions == zskd.impressions
    assert noise.student_images > zskd.student_images, "the seconds of the synthesis were not used"


def test_an_interrupted_rival_keeps_its_number_of_steps(tmp_path, data, monkeypatch):
    """Timed again they would be others, and the folder would belong to another run."""
    order = _order(tmp_path, data, ways=("zskd", "start-noise"))
    first = repeat(order, _CPU)[1]
    (order.out / "seed-0" / "outcomes.csv").unlink()
    assert repeat(order, _CPU)[1].student_images == first.student_images


def test_real_data_that_is_not_there_is_refused_before_anything_is_made(tmp_path):
    order = _order(tmp_path, None, ways=("zskd", "real-kd"))
    with pytest.raises(InputError, match=r"real-kd need the training split of MNIST .*--data.*--ways"):
        repeat(order, _CPU)
    assert not order.out.exists()


def test_start_noise_alone_has_no_seconds_to_match(tmp_path, data):
    with pytest.raises(InputError, match="takes the seconds of the way zskd"):
        repeat(_order(tmp_path, data, ways=("start-noise",)), _CPU)


def test_a_new_row_replaces_the_one_of_the_same_run(tmp_path):
    path = tmp_path / "results" / "all.csv"
    upsert(path, [_outcome(seed=1), _outcome(seed=0)])
    upsert(path, [_outcome(seed=1, student_accuracy=0.5), _outcome(threads=1)])
    rows = read_table(path, Outcome)
    assert [(row.seed, row.threads, row.student_accuracy) for row in rows] == [
        (0, 1, 0.98),
        (0, 2, 0.98),
        (1, 2, 0.5),
    ]
    assert rows[0] == _outcome(threads=1), "a value changed on its way through the file"


def test_another_kind_of_file_is_refused_and_kept(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"notes\.csv is not a table with a row for each Outcome"):
        upsert(path, [_outcome()])
    assert path.read_text() == "a,b\n1,2\n"


def test_the_table_has_mean_and_deviation_over_seeds_beside_what_was_published():
    table = accuracy_table([_outcome(seed=seed, student_accuracy=0.98 + seed / 1000) for seed in range(3)])
    assert (
        "| MNIST | fast-medium: data impressions | 98.10 ± 0.10 | 90.00 ± 0.00 | 1,000 | 60,000 | 30 | 3 |"
        in table
    )
    assert "| MNIST | paper: ZSKD | 98.77 |  | 24,000 | 36.0 million |  |  |" in table
    assert "MNIST: the paper's 36.0 million image-steps are 600 times those of fast-medium" in table
    assert "Fashion" not in table
    many = accuracy_table([_outcome(image_steps=36_000_000)])
    assert "| 98.00 | 90.00 | 1,000 | 36.0 million | 30 | 1 |" in many


def test_the_command_line_offers_every_setup_and_way():
    """It names them itself, since it is read before torch is."""
    hints = typing.get_type_hints(Repro)
    assert typing.get_args(hints["name"]) == tuple(SETUPS)
    assert typing.get_args(typing.get_args(hints["ways"])[0]) == tuple(WAYS)


def test_without_options_the_command_needs_no_training_data():
    assert Repro.ways == tuple(way for way in WAYS if way not in REAL)


def test_the_recommended_recipe_differs_in_its_sizes_alone():
    small, medium, large = (load_recipe(f"fast-{size}") for size in ("small", "medium", "large"))
    for recipe in (small, large):
        synthesis = dataclasses.replace(recipe.synthesis, impressions=medium.synthesis.impressions)
        distillation = dataclasses.replace(recipe.distillation, steps=medium.distillation.steps)
        assert (recipe.input, synthesis, distillation) == (
            medium.input,
            medium.synthesis,
            medium.distillation,
        )
    for recipe in (small, medium, large):
        assert recipe.distillation.fresh.start == recipe.synthesis.start


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "got 0 seeds and 3 ways, wanted 1 or more"),
        (["--ways", "real-ce"], "real-ce need the training split of MNIST"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["repro", "fast-mnist", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())
