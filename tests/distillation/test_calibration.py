"""The running statistics of a student with batch normalization."""

import pytest
import torch
from small_models import VECTOR, distillation_recipe, open_store, synthesis_recipe, vector_classifier
from students import vectors
from torch import nn

from zskd_fast.distillation.calibration import calibrate
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.models.classifier import Classifier
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer


def _model(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))


def _fit(student, teacher=None, fit=None, **recipe):
    distiller = Distiller(teacher or _model(), student, VECTOR, distillation_recipe(**recipe), seed=1)
    return distiller.fit(vectors(32), **{"progress": False} | (fit or {}))


def test_the_running_statistics_are_those_of_the_impressions():
    student = Classifier(_model(), VECTOR, role="student")
    student.model.train()
    calibrate(student, vectors(32), 32)
    values = student.model[0](vectors(32))
    torch.testing.assert_close(student.model[1].running_mean, values.mean(0))
    torch.testing.assert_close(student.model[1].running_var, values.var(0))
    assert all(module.training for module in student.model.modules())
    assert student.model[1].momentum == 0.1


def test_small_batches_and_a_last_row_by_itself_are_no_obstacle():
    """Batches of 1 become pairs; of 5 impressions the last one is left out."""
    student = Classifier(_model(), VECTOR, role="student")
    student.model.train()
    calibrate(student, vectors(5), 1)
    pairs = student.model[0](vectors(5)[:4]).unflatten(0, (2, 2))
    torch.testing.assert_close(student.model[1].running_mean, pairs.mean((0, 1)))
    torch.testing.assert_close(student.model[1].running_var, pairs.var(1).mean(0))


def test_the_momentum_comes_back_after_an_error():
    student = Classifier(_model(), VECTOR, role="student")
    student.model.train()
    with pytest.raises(RuntimeError):
        calibrate(student, vectors(32)[:, :5], 32)
    assert student.model[1].momentum == 0.1
    assert all(module.training for module in student.model.modules())


def test_a_single_impression_calibrates_nothing():
    student = _model(1)
    Distiller(_model(), student, VECTOR, distillation_recipe(calibrate_student=True), seed=1).fit(vectors(1))
    assert student[1].num_batches_tracked == 20


def test_layers_in_eval_mode_keep_their_statistics():
    student = Classifier(_model(), VECTOR, role="student")
    student.model.train()
    student.model[1].eval()
    calibrate(student, vectors(32), 32)
    assert not student.model[1].running_mean.any()


def test_the_student_is_calibrated_at_the_end_and_whenever_it_is_evaluated():
    student, seen = _model(1), []

    def evaluate(model):
        seen.append((model[1].running_mean.clone(), model[0](vectors(32)).mean(0)))
        return 0.0

    _fit(student, fit={"evaluate": evaluate, "evaluate_every": 5}, calibrate_student=True, batch_size=32)
    assert len(seen) == 4
    for running, wanted in seen:
        torch.testing.assert_close(running, wanted)
    torch.testing.assert_close(student[1].running_mean, student[0](vectors(32)).mean(0))


def test_calibration_changes_nothing_else():
    students = [_model(1), _model(1)]
    for student, calibrated in zip(students, (True, False), strict=True):
        _fit(student, fit={"evaluate": lambda model: 0.0, "evaluate_every": 3}, calibrate_student=calibrated)
    assert all(torch.equal(a, b) for a, b in zip(*(student.parameters() for student in students), strict=True))
    assert not torch.equal(students[0][1].running_mean, students[1][1].running_mean)


def test_the_impressions_of_a_teacher_without_batch_normalization_calibrate_nothing():
    """They have no statistics of the training data."""
    students = [_model(1), _model(1)]
    for student, calibrated in zip(students, (True, False), strict=True):
        _fit(student, vector_classifier(), calibrate_student=calibrated)
    assert torch.equal(students[0][1].running_mean, students[1][1].running_mean)


@pytest.mark.parametrize(
    ("made", "calibrates"), [({}, True), ({"statistics_prior": 0.0}, False), ({"steps": 0}, False)], ids=str
)
def test_impressions_without_the_teachers_statistics_calibrate_nothing(tmp_path, made, calibrates):
    """On start noise a student was worse calibrated than not; a store tells how its impressions were made."""
    synthesizer = Synthesizer(_model(), VECTOR, synthesis_recipe(**{"statistics_prior": 1.0} | made), seed=1)
    store = open_store(tmp_path, synthesizer)
    synthesize(synthesizer, store, progress=False)
    student = _model(1)
    distiller = Distiller(_model(), student, VECTOR, distillation_recipe(), seed=1)
    notes = distiller.fit(store, progress=False).notes
    assert ("student calibrated on impressions" in notes["batch norm"]) == calibrates
    x = torch.cat([store.read_shard(shard).x for shard in range(store.num_shards)])
    means = torch.stack([student[0](rows).mean(0) for rows in x.split(8)[:2]] + [student[0](x[16:]).mean(0)])
    assert torch.allclose(student[1].running_mean, means.mean(0), atol=1e-5) == calibrates


def test_the_teacher_labels_on_batch_statistics_if_the_recipe_says_so():
    """The first loss of a student that is the teacher's copy is 0 in train mode only on the same statistics."""
    teacher = _model()
    teacher[3].p = 0.0
    teacher[1].running_mean.fill_(3.0)
    losses = []
    for batch_statistics in (True, False):
        student = _model()
        student[3].p = 0.0
        losses.append(_fit(student, teacher, batch_statistics=batch_statistics, steps=1).loss[0])
    assert losses[0] < 1e-6 < 1e-2 < losses[1]
    assert torch.equal(teacher[1].running_mean, torch.full((8,), 3.0))
