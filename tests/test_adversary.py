import pytest
import torch
from small_models import IMAGE, VECTOR, distillation_recipe, image_classifier, same_tensors, vector_classifier

from zskd_fast import ops
from zskd_fast.adversary import harden
from zskd_fast.classifier import Classifier
from zskd_fast.distiller import Distiller
from zskd_fast.input_spec import InputSpec
from zskd_fast.recipe import AdversaryRecipe

_TEMPERATURE = 2.0


def _adversary(**changes):
    return AdversaryRecipe(**{"steps": 1, "step_size": 0.02, "wait_fraction": 0.0} | changes)


def _pair(spec=IMAGE):
    teacher, student = Classifier(image_classifier(seed=0), spec), Classifier(image_classifier(seed=1), spec)
    return teacher, student


def _inside(count, spec=IMAGE):
    low, high = spec.valid_range
    return low + (high - low) * torch.rand(count, *spec.shape, generator=torch.manual_seed(0)) * 0.5 + 0.25


def _loss(teacher, student, x):
    return ops.distillation_loss(
        student.logits(x), teacher.logits(x).detach(), _TEMPERATURE, reduction="none"
    )


def test_a_hardened_batch_has_a_larger_distillation_loss():
    teacher, student = _pair()
    x = _inside(50)
    one = harden(x, teacher, student, _adversary(), _TEMPERATURE, IMAGE)
    three = harden(x, teacher, student, _adversary(steps=3), _TEMPERATURE, IMAGE)
    before, after, later = (_loss(teacher, student, batch).detach() for batch in (x, one, three))
    assert (after > before).float().mean() > 0.9
    assert before.mean() < after.mean() < later.mean()


def test_the_teacher_is_differentiated_too():
    """With the teacher for a constant, a batch only fools the student: it learnt less than without any adversary."""
    teacher, student = _pair()
    x = _inside(20).requires_grad_()
    log_p = torch.log_softmax(teacher.logits(x) / _TEMPERATURE, dim=1)
    log_q = torch.log_softmax(student.logits(x) / _TEMPERATURE, dim=1)
    (ascent,) = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), x)
    moved = harden(x.detach(), teacher, student, _adversary(), _TEMPERATURE, IMAGE) - x.detach()
    along = torch.nn.functional.cosine_similarity(moved.flatten(1), ascent.flatten(1))
    torch.testing.assert_close(along, torch.ones(20), rtol=0, atol=1e-3)


def test_a_step_has_the_length_of_the_recipe_in_units_of_the_valid_range():
    spec = InputSpec(IMAGE.shape, (-2.0, 2.0))
    teacher, student = _pair(spec)
    x = _inside(20) - 0.5
    moved = harden(x, teacher, student, _adversary(), _TEMPERATURE, spec) - x
    rms = moved.square().flatten(1).mean(dim=1).sqrt()
    torch.testing.assert_close(rms, torch.full((20,), 0.02 * 4))


def test_the_move_of_an_input_does_not_depend_on_its_batch_mates():
    teacher, student = _pair()
    x = _inside(20)
    together = harden(x, teacher, student, _adversary(steps=2), _TEMPERATURE, IMAGE)
    alone = harden(x[7:8], teacher, student, _adversary(steps=2), _TEMPERATURE, IMAGE)
    torch.testing.assert_close(together[7:8], alone, rtol=0, atol=1e-5)


def test_a_hardened_batch_stays_in_the_valid_range_and_the_given_one_as_it_was():
    teacher, student = _pair()
    x = _inside(20)
    kept = x.clone()
    moved = harden(x, teacher, student, _adversary(step_size=2.0), _TEMPERATURE, IMAGE)
    assert moved.min() == 0
    assert moved.max() == 1
    assert torch.equal(x, kept)


def test_where_neither_model_looks_at_the_input_nothing_moves():
    teacher, student = _pair()
    x = _inside(5)
    with torch.no_grad():
        for parameter in [*teacher.model.parameters(), *student.model.parameters()]:
            parameter.zero_()
    assert torch.equal(harden(x, teacher, student, _adversary(), _TEMPERATURE, IMAGE), x)


def test_hardening_leaves_modes_and_gradients_of_both_models_alone():
    teacher, student = Classifier(vector_classifier(), VECTOR), Classifier(vector_classifier(seed=1), VECTOR)
    teacher.model.eval()
    student.model.train()
    student.model[0].eval()
    x = torch.rand(4, 6)
    first, second = (harden(x, teacher, student, _adversary(), _TEMPERATURE, VECTOR) for _ in range(2))
    assert torch.equal(first, second), "dropout was at work"
    assert [module.training for module in student.model] == [False, True, True, True]
    assert all(parameter.grad is None for parameter in student.model.parameters())


@pytest.mark.parametrize(("wait_fraction", "waits"), [(0.0, 0), (0.5, 10), (1.0, 20)])
def test_the_adversary_waits_for_its_share_of_the_steps(monkeypatch, wait_fraction, waits):
    calls = []
    monkeypatch.setattr("zskd_fast.distiller.harden", lambda x, *_: calls.append(len(x)) or x)
    recipe = distillation_recipe(adversary=_adversary(wait_fraction=wait_fraction))
    Distiller(image_classifier(), image_classifier(seed=1), recipe, IMAGE, seed=0).fit(
        _inside(16), progress=False
    )
    assert calls == [8] * (20 - waits)


def test_the_student_learns_from_the_hardened_batch():
    def fitted(**changes):
        student = image_classifier(seed=1)
        recipe = distillation_recipe(**changes)
        Distiller(image_classifier(), student, recipe, IMAGE, seed=0).fit(_inside(16), progress=False)
        return student

    plain, hardened = fitted(), fitted(adversary=_adversary())
    assert not same_tensors(plain, hardened)
    assert same_tensors(hardened, fitted(adversary=_adversary())), "the same seed gave other bits"
