"""Models of the kinds that people have, from the teacher to the student: those that work, and those that are refused
before any work."""

import copy
import dataclasses
import warnings

import pytest
import torch
from command_line import (
    workplace,  # noqa: F401 (a fixture for every test here)
)
from odd_models import (
    Counting,
    InTrainMode,
    KeywordInput,
    Prototypes,
    Renormalizing,
    Standardizing,
    TwoInputs,
    Wrapped,
    dropped,
    made_under_inference_mode,
    named,
    subtracting,
    with_keyword,
    with_mask,
)
from small_models import VECTOR, distillation_recipe, noise_recipe, same_tensors, synthesis_recipe, vector_classifier
from torch import nn

import zskd_fast
from zskd_fast.config.recipe import Recipe
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.run.job import Job, run_job
from zskd_fast.synthesis.synthesizer import Synthesizer

RECIPE_OF_VECTORS = Recipe(
    name="small",
    description="Small.",
    synthesis=synthesis_recipe(start_noise=noise_recipe(), total_variation=0.0),
    distillation=distillation_recipe(steps=8),
)


def _distilled(teacher=None, student=None, **options):
    """Return the student of a small run."""
    teacher = vector_classifier() if teacher is None else teacher
    student = vector_classifier(seed=5) if student is None else student
    options = {"recipe": RECIPE_OF_VECTORS, "progress": False} | options
    zskd_fast.distill(teacher, student, input_shape=VECTOR.shape, **options)
    return student


def _assert_close(student, wanted):
    for one, other in zip(student.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def _learned(student):
    return not any(map(torch.equal, student.parameters(), vector_classifier(seed=5).parameters()))


@pytest.fixture(scope="module")
def plain():
    """The student of the plain teacher."""
    student = _distilled()
    assert _learned(student)
    return student


# ------------------------------------------------------------- teachers with the answers of the plain one


@pytest.mark.parametrize(
    ("teacher", "options"),
    [
        (Wrapped(named), {}),
        (Wrapped(lambda y: (y,)), {}),
        (Wrapped(lambda y: {"logits": y}), {}),
        (Wrapped(lambda y: (y, y + 1)), {"logits_fn": lambda output: output[0]}),
        (KeywordInput(), {"forward_fn": with_keyword}),
        (TwoInputs(), {"forward_fn": with_mask}),
        (Wrapped(before=lambda x: x.relu_()), {}),
        (made_under_inference_mode(), {}),
    ],
    ids=["logits", "tuple", "dict", "logits_fn", "keyword", "two inputs", "relu_", "inference mode"],
)
def test_a_teacher_of_equal_answers_gives_the_same_student(plain, teacher, options):
    """relu_ changes no value between 0 and 1."""
    assert same_tensors(_distilled(teacher, **options), plain)


@pytest.mark.parametrize("after", [lambda y: y.softmax(1), lambda y: y.log_softmax(1)], ids=["softmax", "log_softmax"])
def test_a_teacher_that_ends_in_a_softmax_gives_the_student_of_its_logits(plain, after):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        _assert_close(_distilled(Wrapped(after)), plain)


def test_a_student_that_ends_in_a_softmax_learns_the_same(plain):
    with pytest.warns(UserWarning, match="the student returns probabilities, rows that sum to 1: their logarithm"):
        student = _distilled(student=Wrapped(lambda y: y.softmax(1), seed=5))
    _assert_close(student.inner, plain)


def test_a_teacher_that_writes_into_its_input_gives_the_student_of_one_that_does_not():
    assert same_tensors(_distilled(Wrapped(before=subtracting)), _distilled(Wrapped(before=lambda x: x - 0.5)))


def test_a_student_that_writes_into_its_input_learns_as_one_that_does_not():
    writing, reading = Wrapped(before=subtracting, seed=5), Wrapped(before=lambda x: x - 0.5, seed=5)
    assert same_tensors(_distilled(student=writing), _distilled(student=reading))


def test_one_logit_is_distilled_as_its_two_classes():
    class Two(nn.Module):
        """The binary teacher with both logits written out."""

        def __init__(self, binary):
            super().__init__()
            self.body = binary[:3]
            self.head = nn.Linear(16, 2)
            with torch.no_grad():
                self.head.weight.copy_(torch.cat([-binary[3].weight, binary[3].weight]) / 2)
                self.head.bias.copy_(torch.cat([-binary[3].bias, binary[3].bias]) / 2)

        def forward(self, x):
            return self.head(self.body(x))

    students = vector_classifier(classes=2, seed=5), vector_classifier(classes=2, seed=5)
    with pytest.warns(UserWarning, match="one logit z"):
        _distilled(vector_classifier(classes=1), students[0])
    _distilled(Two(vector_classifier(classes=1)), students[1])
    _assert_close(*students)
    with pytest.warns(UserWarning, match="the student returns one logit z"):
        _distilled(Wrapped(lambda y: y[:, 0], classes=1), Wrapped(lambda y: y[:, 0], classes=1, seed=5))


@pytest.mark.parametrize("behind", [lambda y: y / 2.5, nn.Softmax(1)], ids=["a temperature", "a softmax"])
def test_the_classifier_layer_in_front_of_something_is_found(behind):
    teacher = Wrapped(behind)
    teacher.inner.insert(0, nn.Linear(6, 6))
    teacher.inner.insert(1, nn.Linear(6, 4))  # as many rows as classes
    teacher.inner.insert(2, nn.Linear(4, 6))
    classifier = Classifier(teacher, VECTOR)
    assert Synthesizer(classifier, VECTOR, RECIPE_OF_VECTORS.synthesis, seed=0).layer == "inner.6"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_a_weight_normed_classifier_layer(plain, norm):
    teacher = vector_classifier()
    norm(teacher[3])
    _assert_close(_distilled(teacher), plain)


def test_prototypes_are_named_by_layer():
    with pytest.raises(InputError, match=r"Candidates: .*prototypes \(parameter, \[4, 8\]\)"):
        _distilled(Prototypes())
    by_name = _distilled(Prototypes(), layer="prototypes")
    assert _learned(by_name)
    assert same_tensors(by_name, _distilled(Prototypes(), layer=Prototypes().prototypes.detach()))


def test_a_teacher_that_standardizes_each_input():
    assert _learned(_distilled(Standardizing()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", ["script", "trace"])
def test_a_teacher_and_a_student_of_torchscript(plain, compiled):
    teacher, student = vector_classifier().eval(), vector_classifier(seed=5)
    if compiled == "script":
        models = torch.jit.script(teacher), torch.jit.script(student)
        assert torch.isfinite(torch.cat([p.flatten() for p in _distilled(*models).parameters()])).all()
        student = models[1]
        assert _learned(student)
    else:  # a trace has one mode
        _assert_close(_distilled(torch.jit.trace(teacher, torch.rand(2, 6))), plain)


# ---------------------------------------------------------------------------------- how torch is set up


def test_a_caller_under_inference_mode_gets_the_same_student(plain):
    with torch.inference_mode():
        assert same_tensors(_distilled(), plain)
        student = _distilled(made_under_inference_mode(), made_under_inference_mode(seed=5))
    assert same_tensors(student, plain)
    assert not any(parameter.is_inference() for parameter in student.parameters())


def test_the_parts_under_inference_mode(plain):
    with torch.inference_mode():
        student = vector_classifier(seed=5)
        made = Synthesizer(vector_classifier(), VECTOR, RECIPE_OF_VECTORS.synthesis, seed=0).run(torch.arange(20))
        distiller = Distiller(vector_classifier(), student, VECTOR, RECIPE_OF_VECTORS.distillation, seed=0)
        distiller.fit(made, progress=False)
    assert same_tensors(student, plain)


def test_a_caller_under_no_grad_gets_the_same_student(plain):
    with torch.no_grad():
        assert same_tensors(_distilled(), plain)


def test_another_default_dtype_changes_nothing(plain):
    models = vector_classifier(), vector_classifier(seed=5)
    torch.set_default_dtype(torch.float64)
    try:
        student = _distilled(*models)
        double = _distilled(vector_classifier().double(), vector_classifier(seed=5).double())
    finally:
        torch.set_default_dtype(torch.float32)
    assert same_tensors(student, plain)
    assert all(parameter.dtype == torch.float64 for parameter in double.parameters())
    assert all(torch.isfinite(parameter).all() for parameter in double.parameters())


def test_a_lazy_student_gets_its_weights_before_it_is_hashed():
    students = []
    for _ in range(2):
        torch.manual_seed(4)
        students.append(_distilled(student=nn.Sequential(nn.LazyLinear(16), nn.Tanh(), nn.LazyLinear(4))))
    assert same_tensors(*students)


# ------------------------------------------------------------------------- refused, and before any work


def _shared_norm():
    teacher = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    return teacher, nn.Sequential(nn.Linear(6, 8), teacher[1].requires_grad_(False), nn.Linear(8, 4))


def _shared_weight():
    teacher, student = vector_classifier(), vector_classifier(seed=5)
    student[3].weight = teacher[3].weight
    return teacher, student


def _shared_dropout():
    teacher, student = vector_classifier(), vector_classifier(seed=5)
    student[2] = teacher[2]
    return teacher, student


def _same():
    return (vector_classifier(),) * 2


def _with_norm():
    return vector_classifier(), nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (lambda: (Wrapped(torch.sigmoid), None), "the teacher returns a probability per class.* as of a sigmoid"),
        (lambda: (None, Wrapped(torch.sigmoid)), "the student returns a probability per class.* as of a sigmoid"),
        (lambda: (Wrapped(dropped), None), "the same input two different answers"),
        (lambda: (Renormalizing(), None), r"changes its weights inner\.3\.weight in eval mode"),
        (lambda: (Counting(), None), "changes its weights calls in eval mode"),
        (lambda: (None, InTrainMode(lambda y: (y, y))), "the student returns a tuple in train mode"),
        (lambda: (None, InTrainMode(lambda y: y.detach())), "no gradient flows from the student's logits"),
        (lambda: (None, vector_classifier().requires_grad_(False)), "no parameter that requires a gradient"),
        (_same, "the student is the teacher itself"),
        (_shared_norm, "the student shares 1 with the teacher"),
        (_shared_weight, r"the student shares 3\.weight with the teacher"),
        (_shared_dropout, "the student shares 2 with the teacher"),
        (lambda: (TwoInputs(), None), r"give forward_fn \(--forward-fn package.module:callable\)"),
        (lambda: (None, KeywordInput()), r"give student_forward_fn \(--student-forward-fn"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_what_cannot_be_distilled_is_refused_before_any_work(tmp_path, monkeypatch, models, message):
    monkeypatch.setattr(Synthesizer, "run", lambda *_, **__: pytest.fail("impressions were made"))
    with pytest.raises(InputError, match=message):
        _distilled(*models(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batch_norm_in_a_batch_of_one_is_refused_before_any_work(tmp_path):
    one_row = dataclasses.replace(RECIPE_OF_VECTORS.distillation, batch_size=1)
    recipe = dataclasses.replace(RECIPE_OF_VECTORS, distillation=one_row)
    with pytest.raises(InputError, match=r"rejects a batch of 1 input of shape \[6\] in train mode"):
        _distilled(*_with_norm(), recipe=recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_two_models_may_share():
    """An activation, which is the same in both modes, and a constant that no training changes."""
    teacher, student = vector_classifier(), vector_classifier(seed=5)
    student[1] = teacher[1]
    mean = torch.full((6,), 0.5)
    for model in (teacher, student):
        model.register_buffer("mean", mean)
    assert _learned(_distilled(teacher, student))


def test_the_probe_leaves_both_models_as_they_were():
    teacher, student = _with_norm()
    student.train()
    before = copy.deepcopy(teacher), copy.deepcopy(student)
    Distiller(teacher, student, VECTOR, RECIPE_OF_VECTORS.distillation, seed=0)
    assert same_tensors(teacher, before[0]) and same_tensors(student, before[1])
    assert all(parameter.grad is None for parameter in student.parameters())


def test_a_run_is_continued_although_the_same_teacher_is_given_again(tmp_path):
    teacher = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    job = Job(
        teacher=Classifier(teacher, VECTOR),
        student=Classifier(vector_classifier(seed=5), VECTOR, role="student"),
        distillation=RECIPE_OF_VECTORS.distillation,
        out=tmp_path / "run",
        seed=0,
    )
    run_job(job, RECIPE_OF_VECTORS.synthesis, progress=False)
    student = Classifier(vector_classifier(seed=5), VECTOR, role="student")
    again = dataclasses.replace(job, teacher=Classifier(teacher, VECTOR), student=student)
    assert run_job(again, RECIPE_OF_VECTORS.synthesis, progress=False).is_finished
