"""Checkpoints of a distillation: a resumed run has the bits of an uninterrupted one, and other files are refused."""

import dataclasses
import os
import re

import pytest
import torch
from rewritten import newer, older
from safetensors.torch import load_file, save_file
from small_models import IMAGE, distillation_recipe, image_classifier, same_tensors, vector_classifier
from students import PROBED, Stopped, distilled, images, recorded, stop_at, vectors
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.distillation import distiller as distiller_module
from zskd_fast.errors import InputError
from zskd_fast.runtime.processes import World

AUGMENTED = load_recipe("demo").distillation.augmentation
NOT_MOVED = dataclasses.replace(AUGMENTED, rotation_sigma=0.0, scale_sigma=0.0, shift_sigma=0.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "checkpoint"


# ------------------------------------------------------------------------------------------------ resume


def _image_run():
    models = {"student": image_classifier(seed=5), "teacher": image_classifier()}
    return {**models, "input_spec": IMAGE, "augmentation": AUGMENTED}


def _batch_norm_run():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    student[0].bias.requires_grad_(False)
    units = {"every": 3, "until_fraction": 1.0, "until_step": 100, "reset_active": 0.5, "least_active": 0.4}
    recipe = distillation_recipe().dormant_units
    return {"student": student, "dormant_units": dataclasses.replace(recipe, reset_scale=1.0, **units)}


_RUNS = {
    "images": (images, _image_run),
    "dropout": (vectors, lambda: {"student": vector_classifier(seed=5)}),
    "batch norm, a frozen bias and dormant units": (vectors, _batch_norm_run),
}


@pytest.mark.parametrize("stop", [3, 5, 17])
@pytest.mark.parametrize("name", _RUNS)
def test_a_stopped_run_resumes_to_the_same_bits(path, name, stop):
    inputs, run = _RUNS[name]
    evaluated = {"evaluate": lambda student: 0.25, "evaluate_every": 1}
    whole, expected = distilled(inputs(), **run(), fit=evaluated)
    file = {"checkpoint": path, "checkpoint_seconds": 0.0, "evaluate_every": 1}
    with pytest.raises(Stopped):
        distilled(inputs(), **run(), fit={**file, "evaluate": stop_at(stop)})
    options, modes = run(), []
    options["student"].register_forward_hook(lambda module, args, output: modes.append(module.training))
    student, history = distilled(inputs(), **options, fit={**file, **evaluated})
    assert modes.count(True) == 1 + 20 - (stop - 1), "the run did not continue from the checkpoint"
    assert same_tensors(student, whole)
    assert history.loss == expected.loss
    assert history.learning_rate == expected.learning_rate
    assert history.evaluations == expected.evaluations


def _stopped(path, stop=9):
    """A checkpoint after 8 of 20 steps."""
    with pytest.raises(Stopped):
        distilled(fit={"checkpoint": path, "checkpoint_seconds": 0.0, "evaluate_every": 1, "evaluate": stop_at(stop)})
    return torch.load(path, weights_only=True)


def _without_moments(content):
    for moments in content["optimizer"]["state"].values():
        moments["exp_avg"].zero_()


def _at_another_rate(content):
    content["scheduler"]["last_epoch"] -= 1


def _with_other_weights(content):
    content["student"]["0.bias"] += 1e-3


@pytest.mark.parametrize("change", [None, _without_moments, _at_another_rate, _with_other_weights])
def test_the_resumed_bits_depend_on_adam_the_schedule_and_the_weights(path, change):
    """Guards the test above: a checkpoint that lost one of them gives another student."""
    content = _stopped(path)
    if change:
        change(content)
    torch.save(content, path)
    resumed, _ = distilled(fit={"checkpoint": path})
    assert same_tensors(resumed, distilled()[0]) == (change is None)


def test_the_seconds_are_those_of_the_interrupted_run_too(path):
    fit = {"checkpoint": path, "checkpoint_seconds": 0.0}
    with pytest.raises(Stopped):
        distilled(fit=fit | {"evaluate": stop_at(2), "evaluate_every": 4})
    content = torch.load(path)
    assert 0 < content["phase_seconds"]["student"] < content["seconds"]
    torch.save(content | {"seconds": 100.0, "phase_seconds": {"student": 60.0, "io": 10.0}}, path)
    _, history = distilled(fit=fit)
    assert 100 < history.seconds < 130
    assert history.phase_seconds["student"] > 60 and history.phase_seconds["io"] > 10
    _, again = distilled(fit=fit)
    assert again.seconds > 100 and again.phase_seconds["student"] == history.phase_seconds["student"]


def test_a_finished_run_is_only_read(path):
    file = {"checkpoint": path}
    first, history = distilled(fit=file)
    written = path.stat().st_mtime_ns, path.read_bytes()
    student = vector_classifier(seed=5)
    calls = recorded(student)
    second, again = distilled(student=student, fit=file)
    assert len(calls) == PROBED
    assert same_tensors(first, second)
    assert again.loss == history.loss
    assert (path.stat().st_mtime_ns, path.read_bytes()) == written


def test_tied_weights_stay_tied_and_keep_their_bits(path):
    def tied():
        model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(torch.eye(6))
        model[2].weight = model[0].weight
        return model

    teacher = vector_classifier(classes=6)
    first, _ = distilled(student=tied(), teacher=teacher, fit={"checkpoint": path})
    second, _ = distilled(student=tied(), teacher=teacher, fit={"checkpoint": path})
    assert same_tensors(first, second)
    assert second[2].weight is second[0].weight


# ---------------------------------------------------------------------------------- a checkpoint of another run


def _teacher(bias):
    teacher = vector_classifier()
    teacher[0].bias.data += bias
    return teacher


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"temperature": 2.0}, ["student.recipe.temperature: 2.0 in this run, 4.0 in the checkpoint"]),
        (
            {"seed": 2, "batch_size": 4, "steps": 21},
            [
                "student.recipe.batch_size: 4 in this run, 8 in the checkpoint",
                "student.recipe.steps: 21 in this run, 20 in the checkpoint",
                "student.seed: 2 in this run, 1 in the checkpoint",
            ],
        ),
        ({"teacher": _teacher(1.0)}, ["student.teacher.sha256: '"]),
        ({"student": vector_classifier(seed=6)}, ["student.student.sha256: '"]),
        (
            {"input_spec": InputSpec((6,), (0.0, 2.0))},
            ["student.input.valid_range: [0.0, 2.0] in this run, [0.0, 1.0] in the checkpoint"],
        ),
        ({"impressions": vectors(seed=1)}, ["impressions.x: '"]),
        (
            {"augmentation": NOT_MOVED},
            [f"student.recipe.augmentation.{name}: " for name in ("clamp", "mix_probability", "noise_max")],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_another_run_is_refused_with_one_line_per_difference(path, change, fields):
    distilled(fit={"checkpoint": path})
    before = path.read_bytes()
    with pytest.raises(InputError) as caught:
        distilled(**change, fit={"checkpoint": path})
    first, *lines = str(caught.value).split("\n")
    assert first == f"the checkpoint {path} belongs to another run; choose another file:"
    assert len(lines) == len(fields)
    for line, field in zip(lines, fields, strict=True):
        assert line.startswith(f"  {field}")
    assert path.read_bytes() == before


def test_a_checkpoint_of_another_device_is_refused(monkeypatch, path):
    """A GPU of another model, other libraries and the CPU round differently."""
    distilled(fit={"checkpoint": path})
    facts = {"device": "another GPU", "tf32_cudnn": "on"}
    monkeypatch.setattr(distiller_module, "cuda_facts", lambda device: facts)
    with pytest.raises(InputError, match=r"belongs to another run; choose another file:\n  gpu.*another GPU"):
        distilled(fit={"checkpoint": path})


def test_a_checkpoint_of_another_number_of_processes_is_refused(path, monkeypatch):
    distilled(fit={"checkpoint": path})

    class Two(World):
        def sum(self, tensor):
            return tensor

    monkeypatch.setattr(distiller_module, "joined", lambda: Two(rank=0, size=2))
    with pytest.raises(InputError, match=r"another run.*\n  processes: 2 in this run, 1 in the checkpoint$"):
        distilled(fit={"checkpoint": path})


@pytest.mark.parametrize(
    ("change", "key", "reason"),
    [
        (older, "identity.student.recipe.student_dropout", "the key student.recipe.student_dropout is missing"),
        (older, "identity.student.recipe.fresh_noise.leaves", "the key student.recipe.fresh_noise.leaves is missing"),
        (older, "identity.processes", "the key processes is missing"),
        (older, "evaluations", "the key evaluations is missing"),
        (newer, "identity.student.recipe.label_smoothing", "unknown key student.recipe.label_smoothing;"),
        (newer, "identity.dtype", "unknown key dtype;"),
        (newer, "ema", "unknown key ema"),
    ],
)
def test_a_checkpoint_of_another_version_is_called_so_and_left_alone(path, change, key, reason):
    """Its run may be the same, but nobody knows by which numbers it was made."""
    torch.save(change(_stopped(path), key), path)
    before = path.read_bytes()
    sentence = f"{path} was written by another version of zskd_fast; use that version, or choose another file: "
    with pytest.raises(InputError, match=f"^{re.escape(sentence + reason)}"):
        distilled(fit={"checkpoint": path})
    assert path.read_bytes() == before


# ------------------------------------------------------------------------------------ files that are refused


def test_a_checkpoint_is_a_file_of_torch_save_that_needs_no_code_to_be_read(path):
    content = _stopped(path)
    assert set(content) == {
        *("identity", "step", "student", "optimizer", "scheduler"),
        *("losses", "learning_rates", "evaluations", "seconds", "phase_seconds"),
    }
    assert content["step"] == len(content["losses"]) == len(content["learning_rates"]) == 8
    assert content["identity"]["student"]["seed"] == 1


class _Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["ZSKD_TEST_EVIL"],)


@pytest.mark.parametrize("key", ["identity", "student", "evaluations", "more"])
def test_a_checkpoint_that_would_run_code_is_refused_and_the_code_is_not_run(path, tmp_path, monkeypatch, key):
    witness = tmp_path / "witness"
    monkeypatch.setenv("ZSKD_TEST_EVIL", str(witness))
    torch.save({**_stopped(path), key: _Evil()}, path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="not a readable checkpoint"):
        distilled(fit={"checkpoint": path})
    assert not witness.exists()
    assert path.read_bytes() == before
    torch.load(path, weights_only=False)
    assert witness.exists(), "the file runs no code, so the test shows nothing"


@pytest.mark.parametrize(
    "content", [b"precious", b"", b"0", b"\x80\x02e.", b"PK\x03\x04", b'{"identity": {}}'], ids=repr
)
def test_a_file_that_is_no_checkpoint_is_refused_and_not_changed(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable checkpoint of a distillation"):
        distilled(fit={"checkpoint": path})
    assert path.read_bytes() == content


def test_a_safetensors_file_is_refused_and_not_changed(path):
    path.parent.mkdir()
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        distilled(fit={"checkpoint": path})
    assert "x" in load_file(path)


@pytest.mark.parametrize("content", [{"x": torch.zeros(1)}, torch.zeros(1), {"identity": 3}], ids=str)
def test_a_file_of_torch_save_that_is_no_checkpoint_is_refused(path, content):
    path.parent.mkdir()
    torch.save(content, path)
    with pytest.raises(InputError, match="not a readable checkpoint of a distillation: it has no identity"):
        distilled(fit={"checkpoint": path})


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(path, kept):
    distilled(fit={"checkpoint": path})
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InputError, match="not a readable checkpoint"):
        distilled(fit={"checkpoint": path})


def test_a_folder_is_refused(path):
    path.mkdir(parents=True)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        distilled(fit={"checkpoint": path})


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the checkpoint"):
        distilled(fit={"checkpoint": tmp_path / "file" / "checkpoint"})
