"""Models and weights as users have them, on the command line: what is taken, what is said, and exit code 2."""

import os
import subprocess
import sys

import pytest
import torch
from command_line import (
    DISTILLATION,
    INPUT,
    MODELS,
    PACKAGE,
    RECIPE,
    RUN,
    STUDENT,
    SYNTHESIS,
    main,
    workplace,  # noqa: F401 (a fixture for every test here)
)
from safetensors.torch import load_file

TEACHER = ["--teacher", "users_models:teacher"]
SIZES = [*RECIPE, *INPUT, *SYNTHESIS, *DISTILLATION]
OWN_LAYERS = ["--distillation.shared-layers", "False"]
NOTE = "no file of weights was given: a teacher with random weights, unless users_models:teacher loads its own"
BROKEN = {
    "broken_syntax.py": "def teacher(:\n    pass\n",
    "broken_exit.py": 'import sys\n\ndef teacher():\n    sys.exit("set DATA_DIR")\n',
    "broken_raise.py": 'def teacher():\n    raise ValueError("no such folder")\n',
    "broken_type.py": "def teacher():\n    return len(3)\n",
}


def teacher_state():
    return load_file("teacher.safetensors")


def run(*words, out="out"):
    """Run with the teacher and these words for its weights."""
    return main("run", *TEACHER, *words, *STUDENT, *SIZES, "--out", out)


def student(out):
    return load_file(f"{out}/student.safetensors")


# ------------------------------------------------------------------------------------------- no weights


def test_forgotten_weights_are_said_before_the_work_and_in_the_summary(capsys):
    torch.manual_seed(0)
    assert run() == 0
    printed = capsys.readouterr()
    assert printed.err.startswith(f"zskd-fast: {NOTE}; --weights gives one\n")
    assert f"\n              {NOTE}\n" in printed.out
    torch.manual_seed(0)  # the same random teacher
    assert run() == 0  # the finished run, shown again
    assert NOTE in capsys.readouterr().out


def test_synthesize_and_distill_say_forgotten_weights_too(capsys):
    torch.manual_seed(0)
    assert main("synthesize", *TEACHER, *RECIPE, *INPUT, *SYNTHESIS, "--out", "store") == 0
    assert NOTE in capsys.readouterr().err
    torch.manual_seed(0)
    distill = ["distill", *TEACHER, *STUDENT, *RECIPE, *DISTILLATION, "--impressions", "store"]
    assert main(*distill, "--out", "out") == 0
    printed = capsys.readouterr()
    assert NOTE in printed.err and NOTE in printed.out


def test_nothing_is_said_with_weights(capsys):
    assert main(*RUN, "--out", "out") == 0
    printed = capsys.readouterr()
    assert "weights was given" not in printed.err + printed.out and "took" not in printed.err


# ------------------------------------------------------------------------------------------- many layouts


def test_a_published_checkpoint_gives_the_student_of_the_bare_weights(capsys):
    state = teacher_state()
    whole = {"epoch": 200, "state_dict": {f"module.{name}": value for name, value in state.items()}, "best_prec1": 91.7}
    torch.save(whole, "model_best.pth.tar", _use_new_zipfile_serialization=False)
    assert run("--weights", "teacher.safetensors", out="bare") == 0
    assert run("--weights", "model_best.pth.tar", out="published") == 0
    bare, published = student("bare"), student("published")
    assert all(torch.equal(bare[name], published[name]) for name in bare)


def test_one_of_several_sets_is_chosen_by_an_option(capsys):
    state = teacher_state()
    torch.save({"state_dict": state, "state_dict_ema": {name: value / 2 for name, value in state.items()}}, "w.pth")
    assert run("--weights", "w.pth") == 2
    assert "at state_dict, state_dict_ema; choose one of them, such as --weights-key state_dict_ema" in (
        capsys.readouterr().err
    )
    for key in ("state_dict", "state_dict_ema"):
        assert run("--weights", "w.pth", "--weights-key", key, out=key) == 0
    assert run("--weights", "teacher.safetensors", out="bare") == 0
    same = [
        all(torch.equal(value, student(key)[name]) for name, value in student("bare").items())
        for key in ("state_dict", "state_dict_ema")
    ]
    assert same == [True, False]


def test_the_students_option_has_a_name_of_its_own(capsys):
    import users_models

    sets = {name: users_models.student().state_dict() for name in ("first", "last")}
    torch.save(sets, "start.pth")
    words = [*MODELS, *STUDENT, "--student-weights", "start.pth", *RECIPE, *INPUT, *SYNTHESIS]
    assert main("run", *words, *DISTILLATION, "--out", "out") == 2
    assert "choose one of them, such as --student-weights-key last" in capsys.readouterr().err
    first = ["--student-weights-key", "first", "--distillation.max-learning-rate", "1e-30", *OWN_LAYERS]
    assert main("run", *words, *DISTILLATION, *first, "--out", "out") == 0
    assert all(torch.allclose(value, sets["first"][name], atol=1e-6) for name, value in student("out").items())


def test_a_student_with_weights_of_its_own_starts_from_them_and_not_from_its_teachers(capsys):
    import users_models

    own = users_models.narrow().state_dict()
    torch.save(own, "start.pth")
    words = ["run", *MODELS, "--student", "users_models:narrow", *SIZES, *OWN_LAYERS]
    words += ["--distillation.max-learning-rate", "1e-30"]
    assert main(*words, "--student-weights", "start.pth", "--out", "own") == 0
    assert all(torch.allclose(value, own[name], atol=1e-6) for name, value in student("own").items())
    assert "pruned start" not in capsys.readouterr().out
    assert main(*words, "--out", "pruned") == 0
    assert "\npruned start  2 layers of the teacher, pruned to the student's widths\n" in capsys.readouterr().out


def test_leftovers_are_one_line_on_stderr(tmp_path):
    state = {f"model.{name}": value for name, value in teacher_state().items()} | {"loss_fn.weight": torch.ones(4)}
    torch.save({"state_dict": state, "hyper_parameters": {"lr": 0.1}}, "last.ckpt")
    words = ["run", *TEACHER, "--weights", "last.ckpt", *STUDENT, *SIZES, "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "zskd_fast", *words], check=True, capture_output=True, text=True, env=environment
    )
    assert done.stderr.splitlines()[0] == (
        "last.ckpt: took the weights at state_dict.model; left out what the model has no name for: "
        "state_dict.loss_fn.weight"
    )


@pytest.mark.parametrize("name", ["teacher.pt", "teacher"])
def test_a_torchscript_teacher_gives_the_student_of_its_model(name):
    import users_models

    model = users_models.teacher()
    model.load_state_dict(teacher_state())
    torch.jit.save(torch.jit.script(model), name)
    """Only the layers of a Python module can be taken over."""
    assert main("run", "--weights", name, "--layer", "3", *STUDENT, *SIZES, "--out", "script") == 0
    assert run("--weights", "teacher.safetensors", *OWN_LAYERS, out="bare") == 0
    bare, script = student("bare"), student("script")
    assert all(torch.allclose(bare[name], script[name], atol=1e-4) for name in bare)


# -------------------------------------------------------------------------------------------- exit code 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--teacher", "broken_syntax:teacher"], "SyntaxError: invalid syntax (broken_syntax.py:1)"),
        (["--teacher", "broken_exit:teacher"], "it ends the program with: set DATA_DIR (broken_exit.py:4)"),
        (["--teacher", "broken_raise:teacher"], "broken_raise:teacher: ValueError: no such folder (broken_raise.py:2)"),
        (["--teacher", "broken_type:teacher"], "TypeError: object of type 'int' has no len() (broken_type.py:2)"),
        ([*TEACHER, "--weights", "page.pth"], "page.pth: a web page and not a file of weights"),
        ([*TEACHER, "--weights", "pointer.pth"], "pointer.pth: a Git LFS pointer and not the weights themselves"),
        ([*TEACHER, "--weights", "empty.pth"], "empty.pth: an empty file"),
        ([*TEACHER, "--weights", "folder"], "folder: a folder, wanted a file of weights; the folder holds nothing"),
        ([*TEACHER, "--weights", "hundred.pth"], "the weights are of 100 classes, but users_models:teacher builds 4"),
        (["--weights", "teacher.safetensors"], "teacher.safetensors holds weights alone"),
        ([*TEACHER, "--weights", "teacher.safetensors", "--weights-key", "ema"], "has no weights at 'ema'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_used_is_one_line_and_leaves_no_file(tmp_path, capsys, words, sentence):
    for name, code in BROKEN.items():
        (tmp_path / name).write_text(code)
    (tmp_path / "page.pth").write_text("<!doctype html><title>Google Drive - Virus scan warning</title>")
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "folder").mkdir()
    state = teacher_state()
    torch.save(state | {"3.weight": torch.ones(100, 16), "3.bias": torch.ones(100)}, "hundred.pth")
    assert main("run", *words, *STUDENT, *SIZES, "--out", "out") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if NOTE.split(":")[0] not in line]
    assert len(lines) == 1 and lines[0].startswith("zskd-fast: ") and sentence in lines[0]
    assert not (tmp_path / "out").exists()
