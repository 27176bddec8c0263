"""The command line: options and their defaults, help, and whole runs."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from command_line import (
    DEMO,
    DISTILLATION,
    INPUT,
    MODELS,
    PACKAGE,
    RECIPE,
    RUN,
    STUDENT,
    SYNTHESIS,
    contents,
    main,
    python,
    record,
    workplace,  # noqa: F401 (a fixture for every test here)
)
from safetensors import safe_open
from safetensors.torch import load_file

from zskd_fast.cli import main as cli
from zskd_fast.cli.options import commands
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.models.user_models import load_model

# Prints the CPU seconds of every help; the first number includes the imports.
TIMED_HELP = """
import sys, time
started = time.process_time()
from zskd_fast.cli.main import main
for command in sys.argv[1:]:
    assert main([command, "--help"] if command else ["--help"]) == 0
    print("seconds", time.process_time() - started)
    started = time.process_time()
assert "torch" not in sys.modules
"""

# --------------------------------------------------------------------------------------- options and help


def test_every_help_is_quick_and_imports_no_torch():
    names = ["", *commands()]
    lines = python("-c", TIMED_HELP, *names).splitlines()
    seconds = [float(line.split()[1]) for line in lines if line.startswith("seconds ")]
    assert len(seconds) == len(names) == 12
    assert max(seconds) < 1.0


def test_python_m_is_the_same_command():
    printed = python("-m", "zskd_fast", "--help")
    assert all(name in printed for name in commands())


@pytest.mark.parametrize("command", ["demo", "run", "synthesize", "distill"])
def test_the_demo_has_the_recipe_demo_and_every_other_command_fast(command):
    words = {"run": INPUT, "synthesize": INPUT, "distill": ["--impressions", "store"]}.get(command, [])
    parsed = cli.parse([command, *words])
    recipe = load_recipe("demo" if command == "demo" else "fast")
    assert parsed.recipe == recipe.name
    assert getattr(parsed, "synthesis", recipe.synthesis) == recipe.synthesis
    assert getattr(parsed, "distillation", recipe.distillation) == recipe.distillation


def test_the_recipe_gives_the_defaults_and_any_number_can_be_changed():
    recipe = load_recipe("paper")
    for words in (["--recipe", "paper"], ["--recipe=paper"]):
        command = cli.parse(["run", *words, *INPUT, *STUDENT, "--synthesis.betas", "1", "0.5", "0.1"])
        assert command.synthesis.betas == (1.0, 0.5, 0.1)
        assert command.synthesis.steps == recipe.synthesis.steps
        assert command.distillation == recipe.distillation
        assert command.recipe == "paper"


def test_a_recipe_from_a_file_that_is_given_after_the_changes(tmp_path):
    (tmp_path / "mine.toml").write_text('base = "demo"\nname = "mine"\n[synthesis]\nsteps = 77\n')
    command = cli.parse(["demo", "--synthesis.l2", "0.5", "--recipe", "mine.toml"])
    assert (command.synthesis.steps, command.synthesis.l2) == (77, 0.5)
    assert command.synthesis.impressions == load_recipe("demo").synthesis.impressions


def test_options_of_a_nested_table_of_the_machine_and_of_the_input():
    command = cli.parse(["demo", "--distillation.augmentation.noise-max", "0.3", "--seed", "5"])
    assert command.distillation.augmentation.noise_max == 0.3
    assert command.machine.seed == 5
    words = ["--input.shape", "3", "4", "5", "--input.mean", "0.5", "--input.std", "0.25"]
    spec = cli.parse(["synthesize", *words, "--input.valid-range", "-1", "1"]).input
    assert (spec.shape, spec.valid_range, spec.mean, spec.std) == ((3, 4, 5), (-1.0, 1.0), (0.5,), (0.25,))


# ----------------------------------------------------------------------------------------- whole runs


def test_the_demo_writes_store_student_record_and_report(tmp_path, capsys):
    assert main(*DEMO, "--out", "out") == 0
    printed = capsys.readouterr().out
    for word in ("teacher", "99.", "student", "per second", "teacher backward", "peak memory", "MiB"):
        assert word in printed
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock",
        "class-similarity.safetensors",
        "impressions",
        "report.html",
        "run.json",
        "student.safetensors",
    ]
    values = record(out)
    assert values["accuracy"]["images"] == 10_000 and values["accuracy"]["teacher"] >= 0.992
    assert values["synthesis"]["made"] == 16 and values["peak_memory_bytes"] > 2**20
    assert len(values["distillation"]["loss"]) == 4


def test_without_a_terminal_the_demo_prints_a_line_of_progress_per_ten_seconds_at_most(tmp_path):
    sizes = ["--synthesis.steps", "100", "--distillation.steps", "100"]
    words = [sys.executable, "-m", "zskd_fast", *DEMO, *sizes, "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    started = time.perf_counter()
    with (tmp_path / "stderr.txt").open("wb") as stderr:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=stderr, env=environment)
    seconds = time.perf_counter() - started
    printed = (tmp_path / "stderr.txt").read_text()
    assert "\r" not in printed and printed.endswith("\n")
    for bar in ("impressions", "distillation"):
        lines = [line for line in printed.splitlines() if line.startswith(f"{bar}: ")]
        assert 1 <= len(lines) <= 1 + seconds / 10  # one of them when the bar closes
        assert lines[-1].startswith(f"{bar}: 100%")
    assert all(line.startswith(("impressions: ", "distillation: ")) for line in printed.splitlines())


def test_a_finished_run_is_shown_and_not_repeated(tmp_path, capsys):
    assert main(*RUN, "--out", "out") == 0
    before, first = contents(tmp_path / "out"), capsys.readouterr().out
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    assert main(*RUN, "--out", "out") == 0
    remark, again = capsys.readouterr().out.split("\n", 1)
    assert again == first and remark.startswith("run  ") and "finished before" in remark
    assert contents(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path):
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert main(*RUN, "--out", out, "--seed", seed) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 4
    a, c = contents(tmp_path / "a"), contents(tmp_path / "c")
    assert all(a[name] != c[name] for name in a)


def test_an_interrupted_run_continues_with_its_shards(tmp_path, monkeypatch, capsys):
    assert main(*RUN, "--out", "whole") == 0

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Distiller, "fit", interrupted)
        assert main(*RUN, "--out", "halved") == 130
    assert "the same command continues from 16 of 16 impressions" in capsys.readouterr().err
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "halved").rglob("shard-*")}
    assert len(shards) == 2
    assert main(*RUN, "--out", "halved") == 0
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert contents(tmp_path / "halved") == contents(tmp_path / "whole")
    assert record(tmp_path / "halved")["synthesis"]["made"] == 16


def test_resume_decides_whether_a_store_may_or_must_exist(capsys):
    words = ["synthesize", *RECIPE, *MODELS, *INPUT, *SYNTHESIS, "--out", "store"]
    assert main(*words, "--resume", "must") == 2
    assert 'store holds no store to resume, and resume is "must"' in capsys.readouterr().err
    assert main(*words, "--resume", "never") == 0
    assert main(*words, "--resume", "never") == 2
    assert 'store holds a store already, and resume is "never"' in capsys.readouterr().err
    assert main(*words, "--resume", "must", "--synthesis.impressions", "20") == 0
    printed = capsys.readouterr().out
    assert "4 made" in printed and "16 existed already" in printed


def test_synthesize_then_distill_is_run(tmp_path):
    assert main(*RUN, "--out", "whole") == 0
    assert main("synthesize", *RECIPE, *MODELS, *INPUT, *SYNTHESIS, "--out", "store") == 0
    distill = ["distill", *RECIPE, *MODELS, *STUDENT, *DISTILLATION, "--impressions", "store"]
    assert main(*distill, "--out", "two") == 0
    whole, two = contents(tmp_path / "whole"), contents(tmp_path / "two")
    assert two["student.safetensors"] == whole["student.safetensors"]
    assert contents(tmp_path / "store")["manifest.json"] == whole["impressions/manifest.json"]
    assert (tmp_path / "two" / "report.html").stat().st_size > 10_000


def test_run_takes_an_exported_program_a_layer_and_initial_weights():
    import users_models

    model = users_models.teacher().eval()
    model.load_state_dict(load_file("teacher.safetensors"))
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (torch.rand(2, 1, 8, 8),), dynamic_shapes=[{0: batch}])
    torch.export.save(program, "teacher.pt2")
    start = users_models.student()
    torch.save(start.state_dict(), "start.pt")
    words = ["--weights", "teacher.pt2", "--layer", "program.3", *STUDENT, "--student-weights", "start.pt"]
    distillation = ["--distillation.steps", "1", "--distillation.max-learning-rate", "1e-12"]
    assert main("run", *RECIPE, *words, *INPUT, *SYNTHESIS, *distillation, "--out", "out") == 0
    trained = load_file("out/student.safetensors")
    torch.testing.assert_close(trained, dict(start.state_dict()), atol=1e-9, rtol=0)


def test_a_logits_fn_picks_the_logits_out_of_a_tuple():
    words = ["--teacher", "users_models:Tuple", "--logits-fn", "users_models:first"]
    assert main("run", *RECIPE, *words, *STUDENT, *INPUT, *SYNTHESIS, *DISTILLATION, "--out", "out") == 0


def test_test_data_adds_an_accuracy_and_nothing_else(tmp_path):
    test = ["--test-data", str(PACKAGE / "assets/mnist-t10k")]
    assert main(*DEMO, "--out", "demo") == 0
    words = ["--teacher", "zskd_fast.models:LeNet5", "--student", "zskd_fast.models:LeNet5Half"]
    weights = ["--weights", str(PACKAGE / "assets/lenet5-mnist.safetensors"), "--input.shape", "1", "32", "32"]
    run = ["run", *RECIPE, *words, *weights, *SYNTHESIS, *DISTILLATION]
    assert main(*run, *test, "--out", "with") == 0
    assert main(*run, "--out", "without") == 0
    assert contents(tmp_path / "demo") == contents(tmp_path / "with") == contents(tmp_path / "without")
    assert record(tmp_path / "with")["accuracy"]["student"] == record(tmp_path / "demo")["accuracy"]["student"]
    assert record(tmp_path / "without")["accuracy"] is None
    assert main(*run, *test, "--out", "without") == 0  # the run has finished; only the accuracy is added
    assert record(tmp_path / "without")["accuracy"] == record(tmp_path / "with")["accuracy"]


def test_train_teacher_writes_weights_and_how_they_were_made(tmp_path, capsys):
    from image_files import write_test_split

    write_test_split(tmp_path)
    for name in ("images-idx3", "labels-idx1"):
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes((tmp_path / f"t10k-{name}-ubyte.gz").read_bytes())
    words = ["train-teacher", "--data", ".", "--out", "sub/t.safetensors", "--epochs", "1", "--seed", "4"]
    assert main(*words, "--model", "zskd_fast.models:LeNet5Half") == 0
    assert "real test images" in capsys.readouterr().out
    with safe_open("sub/t.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["teacher"])
    assert facts["seed"] == 4 and facts["training"]["epochs"] == 1
    load_model("zskd_fast.models:LeNet5Half", "sub/t.safetensors")
