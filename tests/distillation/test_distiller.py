"""The distiller: what the student learns, from which impressions, and what the models undergo."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from counted import counted, once
from small_models import (
    IMAGE,
    VECTOR,
    all_impressions,
    distillation_recipe,
    image_classifier,
    impressions_of,
    open_store,
    same_tensors,
    synthesis_recipe,
    vector_classifier,
)
from students import PROBED, Stopped, distilled, images, recorded, stop_at, vectors
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

AUGMENTED = load_recipe("demo").distillation.augmentation


# ------------------------------------------------------------------------------ what the student learns


def test_the_first_loss_is_the_divergence_with_the_temperature_on_both_sides():
    """The known fault: the temperature on the teacher alone."""
    student, teacher = image_classifier(seed=5), image_classifier()
    x = images(8)
    teacher_logits, student_logits = teacher(x).detach().double(), student(x).detach().double()
    tau = 3.0
    p, q = torch.softmax(teacher_logits / tau, 1), torch.softmax(student_logits / tau, 1)
    expected = tau**2 * (p * (p / q).log()).sum(dim=1).mean()
    run = {"student": student, "teacher": teacher, "input_spec": IMAGE}
    _, history = distilled(x, **run, temperature=tau, batch_size=8, steps=1)
    assert history.loss[0] == pytest.approx(float(expected), rel=1e-4)


def test_the_student_learns_to_agree_with_the_teacher():
    student, teacher = image_classifier(seed=5), image_classifier()
    unseen = images(256, seed=9)
    before = (student(unseen).argmax(1) == teacher(unseen).argmax(1)).float().mean()
    run = {"student": student, "teacher": teacher, "input_spec": IMAGE}
    _, history = distilled(images(256), **run, steps=300, batch_size=32)
    after = (student(unseen).argmax(1) == teacher(unseen).argmax(1)).float().mean()
    assert history.loss[-1] < history.loss[0] / 20
    assert after > max(before, 0.9)


def test_the_teacher_labels_the_same_augmented_batch_that_the_student_sees():
    teacher, student = image_classifier(), image_classifier(seed=5)
    seen_by_teacher, seen_by_student = recorded(teacher), recorded(student)
    distilled(images(), teacher=teacher, student=student, input_spec=IMAGE, augmentation=AUGMENTED)
    assert len(seen_by_teacher) == len(seen_by_student) == PROBED + 20
    assert all(map(torch.equal, seen_by_teacher[PROBED:], seen_by_student[PROBED:]))
    originals = images().flatten(1)
    assert torch.cdist(seen_by_student[PROBED].flatten(1), originals).min() > 0.1, "nothing was augmented"


class CallingDropout(nn.Module):
    """Calls a function of dropout."""

    def __init__(self, p, function):
        super().__init__()
        self.p, self.function = p, function

    def forward(self, x):
        return self.function(x, self.p, self.training)


def _with_dropout(p, function=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        dropping = CallingDropout(p, function) if function else nn.Dropout(p)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), dropping, nn.Linear(8, 4))


@pytest.mark.parametrize("function", [None, F.dropout, F.alpha_dropout], ids=["layer", "dropout", "alpha_dropout"])
@pytest.mark.parametrize("active", [True, False])
def test_the_students_dropout_is_off_unless_the_recipe_keeps_it(active, function):
    """Off, the student learns as one without it, and is told so; afterwards the layers are as before."""
    fitted = []
    for p in (0.5, 0.0):
        student = _with_dropout(p, function).eval()
        student[-2].train()
        _, history = distilled(vectors(), student=student, student_dropout=active)
        assert [module.training for module in student] == [False, False, True, False]
        fitted.append((student[-1].weight.detach(), history.notes.get("dropout")))
    (dropped, note), (plain, no_note) = fitted
    assert torch.equal(dropped, plain) != active
    assert no_note is None and note == (None if active else "that of the student is off while it learns")


def test_stored_logits_replace_the_teacher_without_relabel():
    teacher = vector_classifier()
    calls = recorded(teacher)
    x = vectors()
    logits = vector_classifier().eval()(x).detach()
    stored, _ = distilled(impressions_of(x, logits), teacher=teacher, relabel=False)
    assert len(calls) == PROBED, "the teacher was called although its logits were stored"
    relabeled, _ = distilled(x)
    for one, other in zip(stored.parameters(), relabeled.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_student_sees_normalized_impressions():
    spec = InputSpec((6,), mean=(0.5,), std=(0.25,))
    student = vector_classifier(seed=5)
    seen = recorded(student)
    x = vectors(8)
    distilled(x, student=student, input_spec=spec, batch_size=8, steps=1)
    assert torch.equal(seen[PROBED].sort(dim=0).values, ((x - 0.5) / 0.25).sort(dim=0).values)


def test_the_learning_rate_rises_to_its_peak_and_falls():
    _, history = distilled(steps=40, max_learning_rate=4e-3, warmup_fraction=0.25)
    rates = history.learning_rate
    assert len(rates) == 40
    assert rates[0] == pytest.approx(4e-3 / 25)
    assert max(rates) == rates[9] == pytest.approx(4e-3)
    assert rates[-1] == pytest.approx(4e-3 / 25 / 1e4)


# ------------------------------------------------------------------------------- from which impressions


def test_every_epoch_uses_every_impression_once_in_its_own_order():
    student = vector_classifier(seed=5)
    seen = recorded(student)
    x = vectors(10)
    distilled(x, student=student, batch_size=4, steps=10)  # 40 rows are 4 epochs, cut across batches
    rows = torch.cat(seen[PROBED:])
    epochs = [(rows[start : start + 10, None] == x).all(dim=2).int().argmax(dim=1) for start in range(0, 40, 10)]
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(10))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_the_order_does_not_depend_on_the_length_of_the_run():
    short, long = vector_classifier(seed=5), vector_classifier(seed=5)
    seen_short, seen_long = recorded(short), recorded(long)
    distilled(student=short, steps=5)
    distilled(student=long, steps=20)
    assert all(map(torch.equal, seen_short[PROBED:], seen_long[PROBED : PROBED + 5]))


@pytest.mark.parametrize("relabel", [True, False])
def test_the_ids_of_impressions_decide_and_not_the_order_of_their_rows(relabel):
    x, ids = vectors(), torch.arange(16)
    plain = impressions_of(x, vector_classifier().eval()(x).detach(), ids)
    mixed = plain[torch.randperm(16, generator=torch.Generator().manual_seed(3))]
    one, _ = distilled(plain, relabel=relabel)
    other, _ = distilled(mixed, relabel=relabel)
    assert same_tensors(one, other)
    reversed_ids, _ = distilled(dataclasses.replace(plain, id=ids.flip(0)), relabel=relabel)
    assert not same_tensors(one, reversed_ids)


def test_a_tensor_gives_the_student_of_impressions_with_the_ids_of_its_rows():
    assert same_tensors(distilled(vectors())[0], distilled(impressions_of(vectors()))[0])


@pytest.mark.parametrize("relabel", [True, False])
def test_a_store_gives_the_student_of_the_impressions_read_from_it(tmp_path, relabel):
    synthesizer = Synthesizer(vector_classifier(), VECTOR, synthesis_recipe(), seed=1)
    store = open_store(tmp_path / "store", synthesizer)
    with pytest.raises(InputError, match=r"shard-000000\.safetensors is missing .*run the synthesis again"):
        distilled(store)
    synthesize(synthesizer, store, progress=False)
    from_store, wanted = distilled(store, relabel=relabel)
    from_memory, got = distilled(all_impressions(store)[torch.arange(19, -1, -1)], relabel=relabel)
    assert same_tensors(from_store, from_memory)
    assert got.loss == wanted.loss


# --------------------------------------------------------------------------------------------- repeats


def test_the_same_seed_gives_the_same_bits_despite_dropout_and_another_seed_another_student():
    first, _ = distilled()
    torch.rand(3)
    second, _ = distilled()
    assert same_tensors(first, second)
    third, _ = distilled(seed=2)
    assert not same_tensors(first, third)


def test_the_random_state_of_torch_is_not_changed():
    before = torch.get_rng_state()
    distilled()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_under_no_grad_gives_the_same_bits():
    with torch.no_grad():
        student, _ = distilled()
    assert same_tensors(student, distilled()[0])


def test_the_identity_is_that_of_the_student_before_its_first_step():
    teacher, student = Classifier(vector_classifier(), VECTOR), vector_classifier(seed=5)
    distiller = Distiller(teacher, student, VECTOR, distillation_recipe(), seed=1)
    before = distiller.identity
    distiller.fit(vectors(), progress=False)
    assert distiller.identity == before
    assert before.teacher == teacher.identity
    assert before.student == Classifier(vector_classifier(seed=5), VECTOR).identity
    assert (before.seed, before.input, before.recipe) == (1, VECTOR, distillation_recipe())


# ------------------------------------------------------------------------------ what the models undergo


def test_the_teacher_is_not_changed():
    teacher = vector_classifier().train()
    distilled(teacher=teacher)
    assert same_tensors(teacher, vector_classifier())
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

    _, history = distilled(student=student, steps=10, fit={"evaluate": evaluate, "evaluate_every": 4})
    assert history.evaluations == [(4, 0.5), (8, 0.5), (10, 0.5)]
    assert modes.count(True) == 1 + 10  # one in the probe
    assert max(statistics) < 100, "the evaluation changed the batch statistics"
    assert not student.training


def test_the_modes_are_restored_after_an_error():
    student, teacher = vector_classifier(seed=5).eval(), vector_classifier().train()
    with pytest.raises(Stopped):
        distilled(student=student, teacher=teacher, fit={"evaluate": stop_at(1)})
    assert not student.training
    assert teacher.training


def test_frozen_parts_of_the_student_stay_frozen():
    student = vector_classifier(seed=5)
    student[0].requires_grad_(False)
    before = student[0].weight.clone()
    distilled(student=student)
    assert torch.equal(student[0].weight, before)
    assert not student[0].weight.requires_grad


def test_modules_are_probed_and_hashed_once_and_classifiers_not_again(tmp_path):
    modules = vector_classifier(), vector_classifier(seed=5)
    with counted() as counts:
        teacher, student = Classifier(modules[0], VECTOR), Classifier(modules[1], VECTOR, role="student")
        distiller = Distiller(teacher, student, VECTOR, distillation_recipe(), seed=1)
        distiller.fit(vectors(), progress=False, checkpoint=tmp_path / "checkpoint")
        assert (distiller.identity.teacher, distiller.identity.student) == (teacher.identity, student.identity)
    assert counts["probes"] == counts["hashes"] == once(*modules)
    again = vector_classifier(), vector_classifier(seed=5)
    with counted() as counts:
        distilled(teacher=again[0], student=again[1], fit={"checkpoint": tmp_path / "another"})
    assert counts["probes"] == counts["hashes"] == once(*again)
    assert same_tensors(modules[1], again[1])


# -------------------------------------------------------------------------- what is told, and what is kept


def test_the_phases_are_timed_and_progress_is_shown_only_on_request(capsys):
    _, history = distilled(fit={"progress": True})
    shown = capsys.readouterr().err
    assert "20/20" in shown
    assert "step/s" in shown
    assert set(history.phase_seconds) == {"augmentation", "teacher forward", "student", "loss", "update"}
    assert 0 < sum(history.phase_seconds.values()) <= history.seconds
    distilled()
    assert capsys.readouterr().err == ""


def test_the_recipe_is_not_changed():
    recipe = distillation_recipe()
    copy = dataclasses.replace(recipe)
    models = vector_classifier(), vector_classifier(seed=5)
    Distiller(*models, VECTOR, recipe, seed=1).fit(vectors(), progress=False)
    assert recipe == copy


def test_every_pass_of_both_models_is_repeatable(monkeypatch):
    seen = []

    def forward(model, x):
        seen.append((torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark))
        return model(x)

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    models, functions = (image_classifier(), image_classifier(seed=1)), {"forward_fn", "student_forward_fn"}
    distiller = Distiller(*models, IMAGE, distillation_recipe(), seed=1, **dict.fromkeys(functions, forward))
    seen.clear()
    distiller.fit(torch.rand(16, 1, 8, 8), progress=False)
    assert set(seen) == {(True, False)}
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (False, True)
