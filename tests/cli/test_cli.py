"""The command line: two-stage parsing, and whole runs."""

import json

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
from safetensors.torch import load_file

from zskd_fast.cli import main as cli
from zskd_fast.config.recipe import load_recipe, recipe_to_toml
from zskd_fast.distillation.distiller import Distiller

# -------------------------------------------------------------------------------------------- parsing


def test_help_is_quick_and_imports_no_torch():
    code = "import sys; from zskd_fast.cli.main import main; main(); assert 'torch' not in sys.modules"
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
        ".lock",
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


def test_resume_never_and_must_say_whether_a_store_may_be_there(capsys):
    words = ["synthesize", *RECIPE, *MODELS, *INPUT, *SYNTHESIS, "--out", "store"]
    assert main(*words, "--resume", "must") == 2
    assert 'store holds no store to go on with, and resume is "must"' in capsys.readouterr().err
    assert main(*words, "--resume", "never") == 0
    assert main(*words, "--resume", "never") == 2
    assert 'store holds a store already, and resume is "never"' in capsys.readouterr().err
    assert main(*words, "--resume", "must", "--synthesis.impressions", "20") == 0
    printed = capsys.readouterr().out
    assert "4 made" in printed and "16 were there already" in printed


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
    assert main(*run, *test, "--out", "without") == 0  # finished long ago, but now an accuracy is asked for
    assert record(tmp_path / "without")["accuracy"] == record(tmp_path / "with")["accuracy"]


def test_train_teacher_writes_weights_with_their_provenance(tmp_path, capsys):
    from image_files import write_test_split

    write_test_split(tmp_path)
    for name in ("images-idx3", "labels-idx1"):
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes((tmp_path / f"t10k-{name}-ubyte.gz").read_bytes())
    words = ["train-teacher", "--data", ".", "--out", "sub/t.safetensors", "--epochs", "1", "--seed", "4"]
    assert main(*words, "--model", "zskd_fast.models:LeNet5Half") == 0
    assert "real test images" in capsys.readouterr().out
    from zskd_fast.models.loading import load_model, weights_metadata

    facts = json.loads(weights_metadata("sub/t.safetensors")["teacher"])
    assert facts["seed"] == 4 and facts["training"]["epochs"] == 1
    load_model("zskd_fast.models:LeNet5Half", "sub/t.safetensors")
