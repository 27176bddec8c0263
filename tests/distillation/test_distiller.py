import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import (
    IMAGE,
    VECTOR,
    augmentation_recipe,
    distillation_recipe,
    image_classifier,
    same_tensors,
    vector_classifier,
)
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import load_recipe
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import weights_sha256

AUGMENTED = load_recipe("demo-mnist").distillation.augmentation


def _vectors(count=16, seed=0):
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(seed))


def _images(count=16, seed=0):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def _fit(
    x=None,
    logits=None,
    ids=None,
    *,
    student=None,
    teacher=None,
    input_spec=VECTOR,
    seed=1,
    fit=None,
    **recipe,
):
    """Distils a small student; returns it with the history."""
    teacher = vector_classifier() if teacher is None else teacher
    student = vector_classifier(seed=5) if student is None else student
    distiller = Distiller(teacher, student, distillation_recipe(**recipe), input_spec, seed=seed)
    history = distiller.fit(_vectors() if x is None else x, logits, ids, **{"progress": False} | (fit or {}))
    return student, history


def _record(module):
    """Collects the inputs of a module."""
    inputs = []
    module.register_forward_hook(lambda module, args, output: inputs.append(args[0].detach().clone()))
    return inputs


# What the student learns


def test_the_first_loss_is_the_divergence_with_the_temperature_on_both_sides():
    """The known fault: the temperature on the teacher alone."""
    student, teacher = image_classifier(seed=5), image_classifier()
    x = _images(8)
    teacher_logits, student_logits = teacher(x).detach().double(), student(x).detach().double()
    tau = 3.0
    p, q = torch.softmax(teacher_logits / tau, 1), torch.softmax(student_logits / tau, 1)
    expected = tau**2 * (p * (p / q).log()).sum(dim=1).mean()
    run = {"student": student, "teacher": teacher, "input_spec": IMAGE}
    _, history = _fit(x, **run, temperature=tau, batch_size=8, steps=1)
    assert history.loss[0] == pytest.approx(float(expected), rel=1e-4)


def test_the_student_comes_to_agree_with_the_teacher():
    student, teacher = image_classifier(seed=5), image_classifier()
    x = _images(256)
    fresh = _images(256, seed=9)
    before = (student(fresh).argmax(1) == teacher(fresh).argmax(1)).float().mean()
    _, history = _fit(x, student=student, teacher=teacher, input_spec=IMAGE, steps=300, batch_size=32)
    after = (student(fresh).argmax(1) == teacher(fresh).argmax(1)).float().mean()
    assert history.loss[-1] < history.loss[0] / 20
    assert after > max(before, 0.9)


def test_the_teacher_labels_the_very_batch_that_the_student_sees():
    teacher, student = image_classifier(), image_classifier(seed=5)
    seen_by_teacher, seen_by_student = _record(teacher), _record(student)
    _fit(_images(), teacher=teacher, student=student, input_spec=IMAGE, augmentation=AUGMENTED)
    # The first input of each is that of the check at construction.
    assert len(seen_by_teacher) == len(seen_by_student) == 21
    assert all(map(torch.equal, seen_by_teacher[1:], seen_by_student[1:]))
    originals = _images().flatten(1)
    assert torch.cdist(seen_by_student[1].flatten(1), originals).min() > 0.1, "nothing was augmented"


def test_stored_logits_stay_with_their_impression():
    teacher = vector_classifier()
    calls = _record(teacher)
    x = _vectors()
    logits = vector_classifier().eval()(x).detach()
    stored, _ = _fit(x, logits, teacher=teacher, relabel=False)
    assert len(calls) == 1, "the teacher was asked although its logits were given"
    relabelled, _ = _fit(x)
    for one, other in zip(stored.parameters(), relabelled.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_student_sees_normalised_impressions():
    spec = InputSpec((6,), mean=(0.5,), std=(0.25,))
    student = vector_classifier(seed=5)
    seen = _record(student)
    x = _vectors(8)
    _fit(x, student=student, input_spec=spec, batch_size=8, steps=1)
    assert torch.equal(seen[1].sort(dim=0).values, ((x - 0.5) / 0.25).sort(dim=0).values)


def test_the_learning_rate_rises_to_its_peak_and_falls():
    _, history = _fit(steps=40, max_learning_rate=4e-3, warmup_fraction=0.25)
    rates = history.learning_rate
    assert len(rates) == 40
    assert rates[0] == pytest.approx(4e-3 / 25)
    assert max(rates) == rates[9] == pytest.approx(4e-3)
    assert rates[-1] == pytest.approx(4e-3 / 25 / 1e4)


# The order of the impressions


def test_every_epoch_uses_every_impression_once_in_its_own_order():
    student = vector_classifier(seed=5)
    seen = _record(student)
    x = _vectors(10)
    _fit(x, student=student, batch_size=4, steps=10)  # 40 rows are 4 epochs, cut across batches
    rows = torch.cat(seen[1:])
    epochs = [
        (rows[start : start + 10, None] == x).all(dim=2).int().argmax(dim=1) for start in range(0, 40, 10)
    ]
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(10))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_the_order_does_not_depend_on_the_length_of_the_run():
    short, long = vector_classifier(seed=5), vector_classifier(seed=5)
    seen_short, seen_long = _record(short), _record(long)
    _fit(student=short, steps=5)
    _fit(student=long, steps=20)
    assert all(map(torch.equal, seen_short[1:], seen_long[1:6]))


def test_with_ids_the_order_of_the_rows_does_not_matter():
    x, ids = _vectors(), torch.arange(16)
    mixed = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    one, _ = _fit(x, ids=ids)
    other, _ = _fit(x[mixed], ids=ids[mixed])
    assert same_tensors(one, other)


# Repeats and resumes


def test_same_seed_same_bits_even_with_dropout_and_another_seed_another_student():
    first, _ = _fit()
    torch.rand(3)
    second, _ = _fit()
    assert same_tensors(first, second)
    third, _ = _fit(seed=2)
    assert not same_tensors(first, third)


def test_the_random_state_of_torch_is_left_alone():
    before = torch.get_rng_state()
    _fit()
    assert torch.equal(torch.get_rng_state(), before)


class Stopped(BaseException):
    """Stands for a kill: nothing in the package catches it."""


def _stop_at(step):
    def evaluate(student):
        evaluate.calls += 1
        if evaluate.calls == step:
            raise Stopped
        return 0.25

    evaluate.calls = 0
    return evaluate


@pytest.mark.parametrize("stop", [3, 5, 17])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path, stop):
    watch = {"evaluate": lambda student: 0.25, "evaluate_every": 1}
    whole, expected = _fit(_images(), **_image_run(), fit=watch)
    file = {"checkpoint": tmp_path / "run" / "checkpoint", "checkpoint_every": 4, "evaluate_every": 1}
    with pytest.raises(Stopped):
        _fit(_images(), **_image_run(), fit={**file, "evaluate": _stop_at(stop)})
    resumed = _record(student := image_classifier(seed=5))
    _, history = _fit(_images(), **_image_run() | {"student": student}, fit={**file, **watch})
    assert len(resumed) - 1 == 20 - (stop - 1) // 4 * 4, "it did not go on from the checkpoint"
    assert same_tensors(student, whole)
    assert history.loss == expected.loss
    assert history.learning_rate == expected.learning_rate
    assert history.evaluations == expected.evaluations


def _image_run():
    models = {"student": image_classifier(seed=5), "teacher": image_classifier()}
    return {**models, "input_spec": IMAGE, "augmentation": AUGMENTED}


def test_a_finished_run_is_only_read(tmp_path):
    file = {"checkpoint": tmp_path / "checkpoint"}
    first, history = _fit(fit=file)
    student = vector_classifier(seed=5)
    calls = _record(student)
    second, again = _fit(student=student, fit=file)
    assert len(calls) == 1
    assert same_tensors(first, second)
    assert again.loss == history.loss


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(tmp_path):
    file = {"checkpoint": tmp_path / "checkpoint"}
    _fit(fit=file)
    before = (tmp_path / "checkpoint").read_bytes()
    with pytest.raises(
        InputError, match=r"another run.*\n  recipe\.temperature: 2\.0 in this run, 4\.0 in the"
    ):
        _fit(temperature=2.0, fit=file)
    with pytest.raises(InputError, match=r"impressions\.x"):
        _fit(_vectors(seed=1), fit=file)
    assert (tmp_path / "checkpoint").read_bytes() == before


def test_a_file_that_is_no_checkpoint_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes"
    path.write_text("precious")
    with pytest.raises(InputError, match="not a readable checkpoint"):
        _fit(fit={"checkpoint": path})
    assert path.read_text() == "precious"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not a readable checkpoint"):
        _fit(fit={"checkpoint": path})
    assert "x" in load_file(path)


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the checkpoint"):
        _fit(fit={"checkpoint": tmp_path / "file" / "checkpoint"})


def test_tied_weights_survive_a_checkpoint(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(torch.eye(6))
        model[2].weight = model[0].weight
        return model

    teacher = vector_classifier(classes=6)
    file = {"checkpoint": tmp_path / "checkpoint"}
    first, _ = _fit(student=tied(), teacher=teacher, fit=file)
    second, _ = _fit(student=tied(), teacher=teacher, fit=file)
    assert same_tensors(first, second)


# What it does to the models


def test_the_teacher_stays_as_it_was():
    teacher = vector_classifier().train()
    before = weights_sha256(teacher)
    _fit(teacher=teacher)
    assert weights_sha256(teacher) == before
    assert all(module.training for module in teacher.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())


def test_the_student_trains_in_train_mode_and_is_evaluated_in_eval_mode():
    student = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).eval()
    modes = []
    student.register_forward_hook(lambda *_: modes.append(student.training))
    statistics = []

    def evaluate(model):
        assert model is student
        assert not model.training
        assert not model(torch.full((4, 6), 1e3)).requires_grad
        statistics.append(float(model[1].running_mean.abs().max()))
        return 0.5

    _, history = _fit(student=student, steps=10, fit={"evaluate": evaluate, "evaluate_every": 4})
    assert history.evaluations == [(4, 0.5), (8, 0.5), (10, 0.5)]
    assert modes.count(True) == 10
    assert max(statistics) < 100, "the evaluation went into the batch statistics"
    assert not student.training


def test_the_modes_come_back_after_an_error():
    student, teacher = vector_classifier(seed=5).eval(), vector_classifier().train()
    with pytest.raises(Stopped):
        _fit(student=student, teacher=teacher, fit={"evaluate": _stop_at(1)})
    assert not student.training
    assert teacher.training


def test_frozen_parts_of_the_student_stay_frozen():
    student = vector_classifier(seed=5)
    student[0].requires_grad_(False)
    before = student[0].weight.clone()
    _fit(student=student)
    assert torch.equal(student[0].weight, before)
    assert not student[0].weight.requires_grad


def test_works_under_no_grad():
    with torch.no_grad():
        student, _ = _fit()
    assert same_tensors(student, _fit()[0])


# What it refuses


@pytest.mark.parametrize("checkpoint_every", [0, 5])
def test_stops_at_the_step_where_the_loss_became_nan(tmp_path, checkpoint_every):
    path = tmp_path / "checkpoint"
    huge = {"max_learning_rate": 1e38, "steps": 50, "start_divisor": 1.0}
    with pytest.raises(InputError, match=r"NaN or infinite at step [2-5]; lower max_learning_rate"):
        _fit(**huge, fit={"checkpoint": path, "checkpoint_every": checkpoint_every})
    assert not path.exists(), "a student that is lost was saved"


def test_teacher_and_student_must_have_the_same_classes():
    with pytest.raises(InputError, match="teacher has 4 classes, but the student has 3"):
        _fit(student=vector_classifier(classes=3))


def test_a_student_that_rejects_the_input_is_named():
    with pytest.raises(InputError, match="the student rejects"):
        _fit(student=nn.Linear(5, 4))


def test_a_student_that_is_all_frozen_cannot_learn():
    with pytest.raises(InputError, match="no parameter that requires a gradient"):
        _fit(student=vector_classifier(seed=5).requires_grad_(False))


def test_vectors_cannot_be_rotated():
    with pytest.raises(InputError, match="no images"):
        _fit(augmentation=augmentation_recipe(rotation_sigma=0.1))


@pytest.mark.parametrize(
    ("x", "logits", "ids", "message"),
    [
        (torch.zeros(4, 5), None, None, r"shape \[4, 5\], wanted \['N', 6\]"),
        (torch.zeros(0, 6), None, None, "N >= 1"),
        (torch.zeros(4, 6), None, torch.arange(3), r"ids must have shape \[4\]"),
        (
            torch.zeros(4, 6),
            torch.zeros(4, 3),
            None,
            r"teacher_logits must have shape \[4, 4\], got \[4, 3\]",
        ),
        (torch.zeros(4, 6), None, torch.arange(4), r"teacher_logits must have shape \[4, 4\], got None"),
    ],
)
def test_data_that_do_not_fit_are_refused(x, logits, ids, message):
    with pytest.raises(InputError, match=message):
        _fit(x, logits, ids, relabel="teacher_logits" not in message)


def test_times_the_phases_and_shows_progress_only_when_asked(capsys):
    _, history = _fit(fit={"progress": True})
    shown = capsys.readouterr().err
    assert "20/20" in shown
    assert "step/s" in shown
    assert set(history.phase_seconds) == {"augmentation", "teacher forward", "student", "loss", "update"}
    assert 0 < sum(history.phase_seconds.values()) <= history.seconds
    _fit()
    assert capsys.readouterr().err == ""


def test_the_recipe_is_not_changed():
    recipe = distillation_recipe()
    copy = dataclasses.replace(recipe)
    Distiller(vector_classifier(), vector_classifier(seed=5), recipe, VECTOR, seed=1).fit(
        _vectors(), progress=False
    )
    assert recipe == copy
