"""`zskd_fast.distill`: the whole job in one call."""

import dataclasses
import tempfile

import pytest
import torch
from counted import counted, once, shards_once
from small_models import (
    IMAGE,
    distillation_recipe,
    image_classifier,
    same_tensors,
    synthesis_recipe,
    vector_classifier,
)
from torch import nn

import zskd_fast
from zskd_fast import ops
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import Recipe
from zskd_fast.config.recipe_files import changed, load_recipe
from zskd_fast.errors import InputError
from zskd_fast.models.checkpoint_files import load_state
from zskd_fast.models.classifier import Classifier
from zskd_fast.real_data.evaluation import TestSet
from zskd_fast.run.job import Job, run_job
from zskd_fast.run.run_folder import RunFolder
from zskd_fast.synthesis.synthesizer import Synthesizer

RECIPE = Recipe(
    name="small", description="Small.", synthesis=synthesis_recipe(), distillation=distillation_recipe(steps=8)
)
SHAPE = IMAGE.shape


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files, in which every call must leave nothing."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.glob("zskd*"))


def _distill(*, teacher=None, student=None, input_shape=SHAPE, recipe=RECIPE, **options):
    """Distill a new small student, unless it is given; return it with the record."""
    teacher = image_classifier() if teacher is None else teacher
    student = image_classifier(seed=5) if student is None else student
    options = {"progress": False} | options
    return student, zskd_fast.distill(teacher, student, input_shape=input_shape, recipe=recipe, **options)


def test_the_student_is_trained_in_place_and_all_else_is_left_as_it_was():
    teacher, student = image_classifier(), image_classifier(seed=5).eval()
    teacher[0].eval()
    teacher[0].weight.requires_grad_(False)
    generator = torch.get_rng_state()
    _, record = _distill(teacher=teacher, student=student)
    assert record.finished and len(record.distillation.loss) == 8
    assert not same_tensors(student, image_classifier(seed=5))
    assert same_tensors(teacher, image_classifier())
    assert [module.training for module in teacher] == [False, True, True, True, True]
    assert not teacher[0].weight.requires_grad and teacher[4].weight.requires_grad
    assert not any(module.training for module in student.modules())
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_student_comes_to_agree_with_the_teacher():
    teacher = image_classifier()
    student, _ = _distill(teacher=teacher, impressions=64, steps=300)
    x = torch.rand(200, *SHAPE, generator=torch.Generator().manual_seed(3)) / 5
    with torch.no_grad():
        before, after = (
            ops.distillation_loss(model(x), teacher(x), 1.0) for model in (image_classifier(seed=5), student)
        )
    assert after < before / 5


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not():
    first, record = _distill(seed=3)
    second, again = _distill(seed=3)
    other, _ = _distill(seed=4)
    assert same_tensors(first, second) and record.distillation.loss == again.distillation.loss
    assert record.student_sha256 == again.student_sha256
    assert not same_tensors(first, other)


def test_the_student_is_that_of_run_job_with_the_same_numbers(tmp_path):
    spec = InputSpec(SHAPE, (-1.0, 2.0), (0.1,), (0.5,))
    wanted = image_classifier(seed=5)
    job = Job(
        teacher=Classifier(image_classifier(), spec),
        student=Classifier(wanted, spec, role="student"),
        distillation=dataclasses.replace(RECIPE.distillation, steps=9),
        out=tmp_path / "run",
        seed=2,
    )
    run = run_job(job, dataclasses.replace(RECIPE.synthesis, impressions=12), layer="4", progress=False)
    options = {"valid_range": [-1, 2], "mean": [0.1], "std": [0.5], "layer": "4"}
    student, record = _distill(input_shape=list(SHAPE), impressions=12, steps=9, seed=2, **options)
    assert same_tensors(student, wanted)
    assert record.identity == run.record.identity
    assert record.student_sha256 == run.record.student_sha256
    assert record.distillation.loss == run.record.distillation.loss


def test_impressions_and_steps_replace_those_of_the_recipe():
    _, record = _distill(impressions=10, steps=6)
    assert record.identity.num_impressions == record.synthesis.made == 10
    assert record.identity.student.recipe == dataclasses.replace(RECIPE.distillation, steps=6)
    assert len(record.distillation.loss) == 6
    assert (RECIPE.synthesis.impressions, RECIPE.distillation.steps) == (20, 8)


def test_a_recipe_is_a_name_a_path_or_a_recipe(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('base = "demo"\n[synthesis]\nsteps = 7')
    small = {"impressions": 8, "steps": 4}
    recipe = changed(load_recipe("demo"), {"synthesis.steps": 7})
    students = [_distill(recipe=form, **small)[0] for form in (file, str(file), recipe)]
    assert same_tensors(students[0], students[1]) and same_tensors(students[0], students[2])
    _, record = _distill(recipe="demo", **small)
    assert record.identity.impressions.recipe.steps == 200


def test_the_recommended_recipe_is_the_default():
    student = image_classifier(seed=5)
    record = zskd_fast.distill(image_classifier(), student, input_shape=SHAPE, impressions=4, steps=2, progress=False)
    fast = load_recipe("fast")
    assert record.identity.impressions.recipe.start_noise == fast.synthesis.start_noise
    assert record.identity.student.recipe == dataclasses.replace(fast.distillation, steps=2)
    assert record.identity.student.seed == record.identity.impressions.seed == 0


def test_a_folder_is_kept_and_a_second_call_returns_the_finished_record(tmp_path):
    student, record = _distill(out=tmp_path / "run")
    run = RunFolder.read(tmp_path / "run")
    assert run.is_finished and run.record == record
    state = load_state(run.student_path)
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again, same = _distill(out=str(tmp_path / "run"))
    assert same == record
    assert same_tensors(again, student)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    without_folder, _ = _distill()
    assert same_tensors(without_folder, student)


def test_an_interrupted_call_is_continued_in_its_folder(tmp_path, monkeypatch):
    wanted, _ = _distill()
    real = Synthesizer.run

    def run(self, ids, **options):
        if int(ids[0]) == 8:
            raise KeyboardInterrupt
        return real(self, ids, **options)

    monkeypatch.setattr(Synthesizer, "run", run)
    with pytest.raises(KeyboardInterrupt):
        _distill(out=tmp_path / "run")
    monkeypatch.setattr(Synthesizer, "run", real)
    with counted() as counts:
        student, record = _distill(out=tmp_path / "run")
    assert same_tensors(student, wanted)
    assert counts["read"] == shards_once(0) and counts["written"] == shards_once(1, 2)
    assert (record.finished, record.synthesis.made) == (True, 12)


def test_each_model_is_hashed_and_probed_once(tmp_path):
    for shards in ((0, 1, 2), ()):
        teacher, student = image_classifier(), image_classifier(seed=5)
        with counted() as counts:
            _distill(teacher=teacher, student=student, out=tmp_path / "run")
        assert counts["hashes"] == counts["probes"] == once(teacher, student)
        assert counts["written"] == shards_once(*shards) and not counts["read"]


class _Pair(nn.Module):
    """Return the logits beside something else."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return x, self.body(x)


def test_logits_functions_and_a_matrix_pick_what_cannot_be_found():
    def second(output):
        return output[1]

    plain, _ = _distill()
    student, _ = _distill(
        teacher=_Pair(image_classifier()),
        student=_Pair(image_classifier(seed=5)),
        logits_fn=second,
        student_logits_fn=second,
    )
    assert same_tensors(student.body, plain)
    weight = image_classifier()[4].weight.detach()
    from_matrix, record = _distill(layer=weight)
    assert same_tensors(from_matrix, plain)
    assert record.identity.impressions.layer.startswith("matrix ")


def test_test_images_are_measured_and_change_no_bit():
    x = torch.rand(30, *SHAPE, generator=torch.Generator().manual_seed(3))
    test = TestSet(x, image_classifier()(x).argmax(dim=1), "made up")
    student, record = _distill(test=test)
    plain, without = _distill()
    assert same_tensors(student, plain)
    assert without.accuracy is None
    measured = (student(x).argmax(dim=1) == test.labels).float().mean().item()
    assert (record.accuracy.images, record.accuracy.teacher) == (30, 1.0)
    assert record.accuracy.student == pytest.approx(measured)


def test_progress_is_shown_only_if_asked_for(capsys):
    _distill()
    assert capsys.readouterr() == ("", "")
    _distill(progress=True)
    printed = capsys.readouterr()
    assert "impressions" in printed.err and "distillation" in printed.err and printed.out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "dmo"}, r"no recipe is named 'dmo'; give a file \*\.toml or one of: demo, fast, paper"),
        ({"recipe": "none.toml"}, r"cannot read the recipe none\.toml"),
        ({"impressions": 0}, r"synthesis\.impressions must be at least 1, got 0"),
        ({"steps": 0}, r"distillation\.steps must be at least 1, got 0"),
        ({"seed": -1}, r"the seed must be an integer from 0 to 2\^63 - 1, got -1"),
        ({"input_shape": (1, 0, 8)}, "input shape must be one or more integers from 1 up"),
        ({"input_shape": 64}, "input shape must be a sequence of numbers, got 64"),
        ({"impressions": 10.0}, r"synthesis\.impressions must be an integer, got 10\.0"),
        ({"input_shape": None}, r"in Python input_shape=\(3, 32, 32\)"),
        ({"input_shape": None, "mean": (0.5,), "std": (0.5,)}, "valid_range, mean and std need input_shape"),
        ({"input_shape": (3, 8, 8)}, r"the teacher rejects a batch of 3 inputs of shape \[3, 8, 8\]"),
        ({"valid_range": (1.0, 0.0)}, "valid_range must be two finite numbers, the lower one first"),
        ({"valid_range": (0.0, 1.0, 2.0)}, "valid_range must be two finite numbers, the lower one first"),
        ({"mean": (0.0, 0.0), "std": (1.0, 1.0)}, "mean and std must both be empty or both hold 1"),
        ({"teacher": _Pair(image_classifier())}, "the teacher returns a tuple, wanted one tensor of logits.*logits_fn"),
        ({"student": _Pair(image_classifier())}, "the student returns a tuple, wanted one tensor of logits.*logits_fn"),
        ({"student": image_classifier(classes=3)}, "the teacher has 4 classes, but the student has 3"),
        (
            {"student": image_classifier().requires_grad_(False)},
            "the student has no parameter that requires a gradient",
        ),
        ({"student": vector_classifier()}, "the student rejects a batch of 3 inputs"),
        ({"layer": "nowhere"}, "nowhere"),
        ({"layer": torch.eye(3)}, r"classifier weights given as layer are \[3, 3\], wanted \[4, D\]"),
        ({"test": TestSet(torch.rand(2, 6), torch.zeros(2), "made up")}, r"test images have shape \[2, 6\]"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(Synthesizer, "run", lambda *_, **__: pytest.fail("impressions were made"))
    for out in (None, tmp_path / "run"):
        with pytest.raises(InputError, match=message):
            _distill(out=out, **options)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_used_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(Synthesizer, "run", lambda *_, **__: pytest.fail("impressions were made"))
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("")
    with pytest.raises(InputError, match=r"cannot write to .*file: Not a directory"):
        _distill(out=tmp_path / "file")
    with pytest.raises(InputError, match=r"other is not the folder of a run: it holds notes\.txt but no run\.json"):
        _distill(out=tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_the_folder_of_another_run_is_refused_with_its_differences(tmp_path):
    trained, _ = _distill(out=tmp_path / "run")
    with pytest.raises(InputError, match=r"belongs to another run; .*\n  impressions\.seed: 1 in this run, 0 in the "):
        _distill(out=tmp_path / "run", seed=1)
    with pytest.raises(InputError, match=r"\n  student\.student\.sha256: "):
        _distill(student=trained, out=tmp_path / "run")


def test_an_error_during_the_work_leaves_no_temporary_file(temporary, monkeypatch):
    def fail(self, ids, **options):
        assert list(temporary.glob("zskd*")), "the work is done elsewhere"
        raise InputError("an impression is NaN")

    monkeypatch.setattr(Synthesizer, "run", fail)
    with pytest.raises(InputError, match="an impression is NaN"):
        _distill()
