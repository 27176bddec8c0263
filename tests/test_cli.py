"""The command line: two-stage parsing, whole runs, and one sentence with exit code 2 for bad input."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from zskd_fast import cli, report
from zskd_fast.distiller import Distiller
from zskd_fast.recipe import load_recipe, recipe_to_toml

# A module as a user would have it in the current folder.
USERS_MODELS = """
import torch
from torch import nn

def teacher():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))

def student():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

def one_class():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))

def three_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

class Tuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = teacher()
    def forward(self, x):
        return self.body(x), x

def first(output):
    return output[0]

class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(64, 4), nn.Linear(64, 4)
    def forward(self, x):
        return self.left(x.flatten(1)) + self.right(x.flatten(1))

def nan():
    model = teacher()
    model[3].bias.data[0] = float("nan")
    return model
"""

PACKAGE = Path(cli.__file__).parent
INPUT = ["--input.shape", "1", "8", "8"]
SYNTHESIS = ["--synthesis.impressions", "16", "--synthesis.steps", "3", "--synthesis.shard-size", "8"]
DISTILLATION = ["--distillation.steps", "4", "--distillation.batch-size", "8"]
MODELS = ["--teacher", "users_models:teacher", "--weights", "teacher.safetensors"]
STUDENT = ["--student", "users_models:student"]
RECIPE = ["--recipe", "demo-mnist"]
RUN = ["run", *RECIPE, *MODELS, *STUDENT, *INPUT, *SYNTHESIS, *DISTILLATION]
DEMO = ["demo", *SYNTHESIS, *DISTILLATION]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A folder with the user's module and weights; it is the current folder."""
    (tmp_path / "users_models.py").write_text(USERS_MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "users_models", raising=False)
    import users_models

    torch.manual_seed(0)
    save_file(users_models.teacher().state_dict(), tmp_path / "teacher.safetensors")
    yield tmp_path
    sys.modules.pop("users_models", None)


def main(*argv: object) -> int:
    return cli.main([str(word) for word in argv])


def python(*argv: str) -> str:
    """Runs another Python where zskd_fast can be imported, and returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run(
        [sys.executable, *argv], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return run.stdout


def record(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


def contents(folder) -> dict[str, bytes]:
    """Every file below a folder that the seed decides: the store and the student."""
    files = [*folder.rglob("*.safetensors"), *folder.rglob("manifest.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# -------------------------------------------------------------------------------------------- parsing


def test_help_is_quick_and_imports_no_torch():
    code = "import sys; from zskd_fast.cli import main; main(); assert 'torch' not in sys.modules"
    for command in ("demo", "run", "doctor"):
        python("-c", code, command, "--help")


def test_python_m_is_the_same_command():
    printed = python("-m", "zskd_fast", "--help")
    assert all(name in printed for name in ("demo", "synthesize", "distill", "train-teacher", "doctor"))


def test_recipe_gives_the_defaults_and_any_number_can_be_changed(tmp_path):
    recipe = load_recipe("paper-mnist")
    for words in (["--recipe", "paper-mnist"], ["--recipe=paper-mnist"]):
        command = cli.parse(["run", *words, *STUDENT, "--synthesis.betas", "1", "0.5", "0.1"])
        assert command.synthesis.betas == (1.0, 0.5, 0.1)
        assert command.synthesis.steps == recipe.synthesis.steps
        assert command.distillation == recipe.distillation
        assert command.recipe == "paper-mnist"


def test_recipe_from_a_file_given_after_the_overrides(tmp_path):
    text = recipe_to_toml(load_recipe("demo-mnist")).replace("steps = 200", "steps = 77")
    (tmp_path / "mine.toml").write_text(text)
    command = cli.parse(["demo", "--synthesis.l2", "0.5", "--recipe", "mine.toml"])
    assert (command.synthesis.steps, command.synthesis.l2) == (77, 0.5)


def test_options_of_a_nested_table_and_of_the_machine():
    command = cli.parse(["demo", "--distillation.augmentation.noise-max", "0.3", "--seed", "5"])
    assert command.distillation.augmentation.noise_max == 0.3
    assert command.machine.seed == 5


# ----------------------------------------------------------------------------------------- whole runs


def test_demo_writes_store_student_record_and_report(tmp_path, capsys):
    assert main(*DEMO, "--out", "out") == 0
    printed = capsys.readouterr().out
    for word in ("teacher", "99.", "student", "per second", "teacher backward", "peak memory", "MiB"):
        assert word in printed
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "impressions",
        "report.html",
        "run.json",
        "student.safetensors",
    ]
    values = record(out)
    assert values["accuracy"]["images"] == 10_000 and values["accuracy"]["teacher"] >= 0.992
    assert values["synthesis"]["made"] == 16 and values["peak_memory_bytes"] > 2**20
    assert len(values["distillation"]["loss"]) == 4


def test_a_finished_run_is_shown_again_and_not_done_again(tmp_path, capsys):
    assert main(*RUN, "--out", "out") == 0
    before, first = contents(tmp_path / "out"), capsys.readouterr().out
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    assert main(*RUN, "--out", "out") == 0
    assert capsys.readouterr().out == first
    assert contents(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_same_seed_same_bits_and_another_seed_others(tmp_path):
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert main(*RUN, "--out", out, "--seed", seed) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 4
    a, c = contents(tmp_path / "a"), contents(tmp_path / "c")
    assert all(a[name] != c[name] for name in a)


def test_interrupted_run_goes_on_with_its_shards(tmp_path, monkeypatch, capsys):
    assert main(*RUN, "--out", "whole") == 0

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Distiller, "fit", interrupted)
        assert main(*RUN, "--out", "halved") == 130
    assert "the same command goes on" in capsys.readouterr().err
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "halved").rglob("shard-*")}
    assert len(shards) == 2
    assert main(*RUN, "--out", "halved") == 0
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert contents(tmp_path / "halved") == contents(tmp_path / "whole")
    assert record(tmp_path / "halved")["synthesis"]["made"] == 16


def test_synthesize_then_distill_is_run(tmp_path):
    assert main(*RUN, "--out", "whole") == 0
    assert main("synthesize", *RECIPE, *MODELS, *INPUT, *SYNTHESIS, "--out", "store") == 0
    distill = ["distill", *RECIPE, *MODELS, *STUDENT, *DISTILLATION, "--impressions", "store"]
    assert main(*distill, "--out", "two") == 0
    whole, two = contents(tmp_path / "whole"), contents(tmp_path / "two")
    assert two["student.safetensors"] == whole["student.safetensors"]
    assert contents(tmp_path / "store")["manifest.json"] == whole["impressions/manifest.json"]
    assert (tmp_path / "two" / "report.html").stat().st_size > 10_000


def test_run_takes_an_exported_program_and_weights_to_start_from(tmp_path):
    import users_models

    model = users_models.teacher().eval()
    model.load_state_dict(load_file("teacher.safetensors"))
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (torch.rand(2, 1, 8, 8),), dynamic_shapes=[{0: batch}])
    torch.export.save(program, "teacher.pt2")
    start = users_models.student()
    torch.save(start.state_dict(), "start.pt")
    words = ["--weights", "teacher.pt2", *STUDENT, "--student-weights", "start.pt"]
    run = ["run", *RECIPE, *words, *INPUT, *SYNTHESIS, "--distillation.steps", "1"]
    assert (
        main(*run, "--layer", "program.3", "--out", "out", "--distillation.max-learning-rate", "1e-12") == 0
    )
    trained = load_file("out/student.safetensors")
    torch.testing.assert_close(trained, dict(start.state_dict()), atol=1e-9, rtol=0)


def test_output_that_is_a_tuple_works_with_a_logits_fn():
    words = ["--teacher", "users_models:Tuple", "--logits-fn", "users_models:first"]
    assert main("run", *RECIPE, *words, *STUDENT, *INPUT, *SYNTHESIS, *DISTILLATION, "--out", "out") == 0


def test_test_data_only_adds_an_accuracy(tmp_path):
    test = ["--test-data", str(PACKAGE / "assets/mnist-t10k")]
    assert main(*DEMO, "--out", "demo") == 0
    words = ["--teacher", "zskd_fast.models:LeNet5", "--student", "zskd_fast.models:LeNet5Half"]
    weights = ["--weights", str(PACKAGE / "assets/lenet5-mnist.safetensors")]
    run = ["run", *RECIPE, *words, *weights, *SYNTHESIS, *DISTILLATION]
    assert main(*run, *test, "--out", "with") == 0
    assert main(*run, "--out", "without") == 0
    assert contents(tmp_path / "demo") == contents(tmp_path / "with") == contents(tmp_path / "without")
    assert (
        record(tmp_path / "with")["accuracy"]["student"] == record(tmp_path / "demo")["accuracy"]["student"]
    )
    assert record(tmp_path / "without")["accuracy"] is None


def test_train_teacher_writes_weights_with_their_provenance(tmp_path, capsys):
    from test_evaluation import write_test_split

    write_test_split(tmp_path)
    for name in ("images-idx3", "labels-idx1"):
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes((tmp_path / f"t10k-{name}-ubyte.gz").read_bytes())
    words = ["train-teacher", "--data", ".", "--out", "sub/t.safetensors", "--epochs", "1", "--seed", "4"]
    assert main(*words, "--model", "zskd_fast.models:LeNet5Half") == 0
    assert "real test images" in capsys.readouterr().out
    from zskd_fast.loading import load_model, weights_metadata

    facts = json.loads(weights_metadata("sub/t.safetensors")["teacher"])
    assert facts["seed"] == 4 and facts["training"]["epochs"] == 1
    load_model("zskd_fast.models:LeNet5Half", "sub/t.safetensors")


# ------------------------------------------------------------------------------------------ bad input


def replaced(option: str, *values: str) -> list[str]:
    """RUN with other values of one option."""
    at = RUN.index(option)
    after = next((i for i in range(at + 1, len(RUN)) if RUN[i].startswith("--")), len(RUN))
    return [*RUN[:at], *([option, *values] if values else []), *RUN[after:]]


def bad_inputs():
    yield "unknown recipe", replaced("--recipe", "demo-mnits"), "no recipe is named 'demo-mnits'"
    yield "no recipe", replaced("--recipe"), "--recipe"
    yield "unknown option", [*RUN, "--synthesis.stepz", "3"], "--synthesis.stepz"
    yield "senseless number", replaced("--synthesis.steps", "0"), "synthesis.steps must be at least 1, got 0"
    yield "no teacher", ["run", *RECIPE, *STUDENT], "no model: wanted package.module:callable"
    yield "no such module", replaced("--teacher", "nowhere:teacher"), "cannot import nowhere"
    yield "no such callable", replaced("--teacher", "users_models:teachr"), "has no 'teachr'"
    yield "no file", replaced("--weights", "none.safetensors"), "none.safetensors: no such file"
    yield "truncated", replaced("--weights", "cut.safetensors"), "cut.safetensors: truncated"
    yield "foreign", replaced("--weights", "foreign.safetensors"), "missing 1.weight, 1.bias, 3.weight"
    yield "not weights-only", replaced("--weights", "whole.pt"), "save model.state_dict() instead"
    yield "tuple", _fresh("Tuple"), "logits_fn"
    yield "ambiguous layer", _fresh("Sum"), "left"
    yield "one class", _fresh("one_class"), "K = 1"
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


def _fresh(teacher: str) -> list[str]:
    words = ["--teacher", f"users_models:{teacher}"]
    return ["run", *RECIPE, *words, *STUDENT, *INPUT, *SYNTHESIS, *DISTILLATION]


BAD_INPUTS = list(bad_inputs())


@pytest.mark.parametrize(
    ("argv", "words"), [case[1:] for case in BAD_INPUTS], ids=[case[0] for case in BAD_INPUTS]
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, capsys, argv, words):
    import users_models

    whole = (tmp_path / "teacher.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    save_file({"head": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    torch.save(users_models.teacher(), tmp_path / "whole.pt")
    before = sorted(tmp_path.iterdir())
    assert main(*argv, "--out", "out/of/the/way") == 2
    error = capsys.readouterr().err
    assert words in " ".join(error.replace("│", " ").split())
    assert "Traceback" not in error
    assert [path for path in sorted(tmp_path.iterdir()) if path.name != "__pycache__"] == [
        path for path in before if path.name != "__pycache__"
    ]


def test_recipe_with_an_unknown_key(tmp_path, capsys):
    text = recipe_to_toml(load_recipe("demo-mnist")).replace("temperature", "temprature", 1)
    (tmp_path / "mine.toml").write_text(text)
    assert main("demo", "--recipe", "mine.toml", "--out", "out") == 2
    assert "unknown key synthesis.temprature" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["run", "synthesize", "train-teacher"])
def test_folder_that_cannot_be_written_is_refused_at_once(tmp_path, capsys, command):
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


def test_folder_of_another_run_is_refused_before_any_work(tmp_path, capsys):
    assert main(*RUN, "--out", "out") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert main(*RUN, "--out", "out", "--seed", "1", "--synthesis.l1", "0.5") == 2
    error = capsys.readouterr().err
    assert "belongs to another run" in error
    assert "seed: 1 in this run, 0 in the folder" in error
    assert "recipe.synthesis.l1: 0.5 in this run, 0.002 in the folder" in error
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


def test_distill_from_an_unfinished_store(tmp_path, capsys):
    assert main("synthesize", *RECIPE, *MODELS, *INPUT, *SYNTHESIS, "--out", "store") == 0
    (tmp_path / "store/shard-000001.safetensors").unlink()
    distill = ["distill", *RECIPE, *MODELS, *STUDENT, *DISTILLATION, "--impressions", "store"]
    assert main(*distill, "--out", "out") == 2
    assert "shard-000001.safetensors is missing" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_report_of_what_is_no_run(tmp_path, capsys):
    assert main("report", ".") == 2
    assert "it has no run.json" in capsys.readouterr().err


def test_without_matplotlib_a_run_finishes_and_report_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "missing_extras", lambda: ["matplotlib"])
    monkeypatch.setattr("zskd_fast.commands.missing_extras", lambda: ["matplotlib"])
    assert main(*RUN, "--out", "out") == 0
    assert "left out, it needs matplotlib: pip install 'zskd_fast[report]'" in capsys.readouterr().out
    assert not (tmp_path / "out/report.html").exists()
    assert main("report", "out") == 2
    assert "needs matplotlib: pip install 'zskd_fast[report]'" in capsys.readouterr().err
