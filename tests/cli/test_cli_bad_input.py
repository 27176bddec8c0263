"""Bad input gives one sentence and exit code 2, and leaves no file."""

import re
import time
from collections.abc import Iterator

import pytest
import torch
from command_line import (
    DISTILLATION,
    INPUT,
    MODELS,
    RECIPE,
    RUN,
    STUDENT,
    SYNTHESIS,
    main,
    workplace,  # noqa: F401 (a fixture for every test here)
)
from safetensors.torch import save_file

from zskd_fast import report

NO_SHAPE = "the shape of the input is not given"


def replaced(option: str, *values: str) -> list[str]:
    """Return RUN with other values of one option, or without the option if there are none."""
    at = RUN.index(option)
    after = next((i for i in range(at + 1, len(RUN)) if RUN[i].startswith("--")), len(RUN))
    return [*RUN[:at], *([option, *values] if values else []), *RUN[after:]]


def bad_inputs() -> Iterator[tuple[str, list[str], str]]:
    """Yield the name of a case, the command and a part of its sentence."""
    yield (
        "unknown recipe",
        replaced("--recipe", "dmeo"),
        "no recipe is named 'dmeo'; give a file *.toml or one of: demo",
    )
    yield "recipe without a name", [*replaced("--recipe"), "--recipe"], "no recipe is named '--out'"
    yield "unknown option", [*RUN, "--synthesis.stepz", "3"], "--synthesis.stepz"
    yield (
        "senseless number",
        replaced("--synthesis.steps", "-1"),
        "synthesis.steps must be at least 0, got -1",
    )
    yield "no input shape", replaced("--input.shape"), NO_SHAPE
    yield "empty input shape", [*replaced("--input.shape"), "--input.shape"], NO_SHAPE
    yield "input shape 0", replaced("--input.shape", "1", "0", "8"), "one or more integers from 1 up"
    yield (
        "mean alone",
        [*RUN, "--input.mean", "0.5"],
        "mean and std must both be empty or both hold 1 value, got 1 and 0",
    )
    yield "no teacher", ["run", *RECIPE, *STUDENT, *INPUT], "no teacher: give --teacher package.module:callable"
    yield "no student", ["run", *RECIPE, *MODELS, *INPUT], "no student: give --student package.module:callable"
    yield "no such module", replaced("--teacher", "nowhere:teacher"), "cannot import nowhere"
    yield "no such callable", replaced("--teacher", "users_models:teachr"), "has no 'teachr'"
    yield "no file", replaced("--weights", "none.safetensors"), "none.safetensors: no such file"
    yield "truncated", replaced("--weights", "cut.safetensors"), "cut.safetensors: truncated"
    yield "foreign", replaced("--weights", "foreign.safetensors"), "missing 1.weight, 1.bias, 3.weight"
    yield "not weights-only", replaced("--weights", "whole.pt"), "holds a whole pickled model or other object"
    yield "tuple", _fresh("Tuple"), "logits_fn"
    yield "logits_fn fails", [*_fresh("teacher"), "--logits-fn", "builtins:float"], "the teacher's logits_fn fails on"
    yield "ambiguous layer", _fresh("Sum"), "left"
    yield "one logit", _fresh("one_class"), "the teacher has 2 classes, but the student has 4"
    yield "NaN weights", _fresh("nan"), "3.bias"
    yield (
        "other classes",
        replaced("--student", "users_models:three_classes"),
        "has 4 classes, but the student",
    )
    yield "rejected shape", replaced("--input.shape", "1", "9", "9"), "[1, 9, 9]"
    yield "no test images", [*RUN, "--test-data", "."], "no test images in"
    yield "device", [*RUN, "--device", "abacus"], "the device 'abacus' cannot be used here"
    yield "threads", [*RUN, "--threads", "-1"], "threads must not be negative"
    yield "seed", [*RUN, "--seed", "-1"], "the seed must be an integer"
    yield "large seed", [*RUN, "--seed", str(2**64)], "the seed must be an integer from 0 to 2^63 - 1"


def _fresh(teacher: str) -> list[str]:
    """Return RUN with another teacher, which keeps its initial weights."""
    words = ["--teacher", f"users_models:{teacher}"]
    return ["run", *RECIPE, *words, *STUDENT, *INPUT, *SYNTHESIS, *DISTILLATION]


BAD_INPUTS = list(bad_inputs())


def unwrapped(printed: str) -> str:
    """Return a message without the frame and the line breaks that tyro adds."""
    return " ".join(re.sub("[│╭╮╰╯]|[─-]{3,}", " ", printed).split())


@pytest.mark.parametrize(("argv", "words"), [case[1:] for case in BAD_INPUTS], ids=[case[0] for case in BAD_INPUTS])
def test_bad_input_gives_one_sentence_and_leaves_no_file(tmp_path, capsys, argv, words):
    import users_models

    whole = (tmp_path / "teacher.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    save_file({"head": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    torch.save(users_models.teacher(), tmp_path / "whole.pt")
    before = sorted(tmp_path.iterdir())
    assert main(*argv, "--out", "out/of/the/way") == 2
    error = capsys.readouterr().err
    assert words in unwrapped(error)
    assert "Traceback" not in error
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == [
        path for path in before if path.name != "__pycache__"
    ]


@pytest.mark.parametrize("command", ["run", "synthesize"])
def test_the_input_shape_is_required(capsys, command):
    words = {"run": [*MODELS, *STUDENT], "synthesize": MODELS}[command]
    assert main(command, *words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "give --input.shape, such as --input.shape 3 32 32" in printed.err
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["distill", "--impressions", "store"], "--layer"),
        (["verify", "store"], "--layer"),
        (["verify", "store"], "--seed"),
    ],
)
def test_an_option_without_an_effect_is_refused(capsys, command, option):
    assert main(*command, option, "1") == 2
    assert f"Unrecognized options: {option}" in unwrapped(capsys.readouterr().err)


def test_a_recipe_with_an_unknown_key(tmp_path, capsys):
    (tmp_path / "mine.toml").write_text('base = "demo"\n[synthesis]\ntemprature = 1.0\n')
    assert main("demo", "--recipe", "mine.toml", "--out", "out") == 2
    assert "unknown key synthesis.temprature" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["run", "synthesize", "train-teacher"])
def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path, capsys, command):
    (tmp_path / "file").write_text("")
    words = {
        "run": RUN,
        "synthesize": ["synthesize", *RECIPE, *MODELS, *INPUT],
        "train-teacher": ["train-teacher", "--data", "nowhere"],
    }
    out = "file/x/t.safetensors" if command == "train-teacher" else "file/x"
    started = time.perf_counter()
    assert main(*words[command], "--out", out) == 2
    assert time.perf_counter() - started < 2.0
    assert "cannot write to file/x: Not a directory" in capsys.readouterr().err


def test_the_folder_of_another_run_is_refused_before_any_work(tmp_path, capsys):
    assert main(*RUN, "--out", "out") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert main(*RUN, "--out", "out", "--seed", "1", "--synthesis.l1", "0.5") == 2
    error = capsys.readouterr().err
    assert "belongs to another run" in error
    for part in ("impressions", "student"):
        assert f"{part}.seed: 1 in this run, 0 in the folder" in error
    assert "impressions.recipe.l1: 0.5 in this run, 0.002 in the folder" in error
    assert {path: path.read_bytes() for path in before} == before


def test_distill_refuses_the_impressions_of_another_teacher(tmp_path, capsys):
    import users_models

    assert main("synthesize", *RECIPE, *MODELS, *INPUT, *SYNTHESIS, "--out", "store") == 0
    torch.manual_seed(9)
    save_file(users_models.teacher().state_dict(), "teacher.safetensors")
    distill = ["distill", *RECIPE, *MODELS, *STUDENT, *DISTILLATION, "--impressions", "store"]
    assert main(*distill, "--out", "out") == 2
    assert "store holds impressions of another teacher" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_distill_refuses_an_unfinished_store(tmp_path, capsys):
    assert main("synthesize", *RECIPE, *MODELS, *INPUT, *SYNTHESIS, "--out", "store") == 0
    (tmp_path / "store/shard-000001.safetensors").unlink()
    distill = ["distill", *RECIPE, *MODELS, *STUDENT, *DISTILLATION, "--impressions", "store"]
    assert main(*distill, "--out", "out") == 2
    assert "shard-000001.safetensors is missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_report_of_a_folder_without_a_run(tmp_path, capsys):
    assert main("report", ".") == 2
    assert "it has no run.json" in capsys.readouterr().err


def test_without_matplotlib_a_run_finishes_and_its_report_names_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "missing_extras", lambda: ["matplotlib"])
    monkeypatch.setattr("zskd_fast.cli.commands.missing_extras", lambda: ["matplotlib"])
    assert main(*RUN, "--out", "out") == 0
    assert "not written, it needs matplotlib: pip install 'zskd_fast[report]'" in capsys.readouterr().out
    assert not (tmp_path / "out/report.html").exists()
    assert main("report", "out") == 2
    assert "needs matplotlib: pip install 'zskd_fast[report]'" in capsys.readouterr().err
