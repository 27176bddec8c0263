"""The teacher of a synthesizer: what it undergoes, and which teachers and arguments are refused."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from counted import counted, once
from small_models import (
    IMAGE,
    VECTOR,
    distillation_recipe,
    image_classifier,
    same_tensors,
    synthesis_recipe,
    vector_classifier,
)
from synthesizers import assert_close_impressions, same_impressions, small_synthesizer
from torch import nn

import zskd_fast
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.synthesis.class_similarity import class_similarity
from zskd_fast.synthesis.synthesizer import Synthesizer

# ------------------------------------------------------------------------------- what the teacher undergoes


def test_the_teacher_runs_in_eval_mode_and_is_restored():
    teacher = vector_classifier().train()
    teacher[0].weight.requires_grad_(False)
    weights = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    first = small_synthesizer(teacher, VECTOR).run(range(8))
    assert same_impressions(small_synthesizer(teacher.eval(), VECTOR).run(range(8)), first), "dropout was active"
    teacher.train()

    def stop(count):
        assert not any(module.training for module in teacher.modules())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_synthesizer(teacher, VECTOR).run(range(8), progress=stop)
    assert all(module.training for module in teacher.modules())
    assert [parameter.requires_grad for parameter in teacher.parameters()] == [False, True, True, True]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in teacher.state_dict().items())


def test_a_classifier_is_not_probed_or_hashed_again():
    with counted() as counts:
        teacher = Classifier(image_classifier(), IMAGE)
        synthesizer = small_synthesizer(teacher)
        made = synthesizer.run(range(8))
        assert synthesizer.identity.teacher == teacher.identity
    assert counts["probes"] == counts["hashes"] == once(teacher.model)
    assert same_impressions(made, small_synthesizer(teacher.model).run(range(8)))


def test_both_halves_take_a_whole_recipe():
    recipe = dataclasses.replace(
        zskd_fast.load_recipe("demo"), synthesis=synthesis_recipe(), distillation=distillation_recipe()
    )
    made = zskd_fast.Synthesizer(image_classifier(), IMAGE, recipe, seed=3).run(range(8))
    assert same_impressions(made, small_synthesizer(seed=3).run(range(8)))
    learned = [image_classifier(seed=5) for _ in range(2)]
    for student, numbers in zip(learned, (recipe, recipe.distillation), strict=True):
        zskd_fast.Distiller(image_classifier(), student, IMAGE, numbers, seed=3).fit(made, progress=False)
    assert same_tensors(*learned)


def test_a_classifier_of_another_input_is_refused():
    teacher = Classifier(image_classifier(), InputSpec(IMAGE.shape, valid_range=(0.0, 255.0)))
    with pytest.raises(InputError, match="the teacher was probed with another input or logits_fn; give the module"):
        small_synthesizer(teacher)


def test_a_run_under_no_grad_gives_the_same_bits():
    with torch.no_grad():
        made = small_synthesizer().run(range(4))
    assert same_impressions(made, small_synthesizer().run(range(4)))


def test_every_pass_of_the_teacher_is_repeatable(monkeypatch):
    seen = []

    def forward(model, x):
        seen.append((torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark))
        return model(x)

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    synthesizer = Synthesizer(image_classifier(), IMAGE, synthesis_recipe(), seed=1, forward_fn=forward)
    seen.clear()
    synthesizer.run(range(6))
    assert set(seen) == {(True, False)}
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (False, True)


def test_no_device_is_named_in_the_package():
    """The known fault: .cuda() hard-coded."""
    for path in Path(zskd_fast.__file__).parent.rglob("*.py"):
        assert not re.search(r"\.cuda\(", path.read_text("utf-8")), path


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_is_on_the_device_of_the_teacher():
    made = small_synthesizer(image_classifier().cuda()).run(range(8))
    assert {tensor.device.type for tensor in made.tensors().values()} == {"cuda"}
    assert_close_impressions(made.to("cpu"), small_synthesizer().run(range(8)))


# ----------------------------------------------------------------------------------------- what is refused


class Wrapped(nn.Module):
    """The small classifier, with a function of its logits as the output."""

    def __init__(self, wrap):
        super().__init__()
        self.inner, self.wrap = image_classifier(), wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


def _first(output):
    return output[0]


def test_a_tuple_needs_logits_fn():
    teacher = Wrapped(lambda logits: (logits, None))
    with pytest.raises(InputError, match="logits_fn"):
        small_synthesizer(teacher)
    made = Synthesizer(teacher, IMAGE, synthesis_recipe(), seed=1, logits_fn=_first).run([3])
    assert torch.equal(made.x, small_synthesizer(teacher.inner).run([3]).x)


def test_a_teacher_without_a_gradient_is_refused():
    with pytest.raises(InputError, match="no gradient flows"):
        small_synthesizer(Wrapped(lambda logits: logits.detach()))


def test_an_input_shape_that_the_teacher_rejects_is_named():
    with pytest.raises(InputError, match=r"rejects a batch of 3 inputs of shape \[1, 12, 12\]"):
        small_synthesizer(input_spec=InputSpec((1, 12, 12)))


def test_one_logit_is_a_classifier_of_two_classes_each_similar_to_itself_only():
    with pytest.warns(UserWarning, match="the teacher returns one logit z"):
        synthesizer = small_synthesizer(image_classifier(classes=1))
    assert torch.equal(synthesizer.similarity, torch.eye(2))
    assert synthesizer.layer == "4"
    with pytest.warns(UserWarning):
        given = small_synthesizer(image_classifier(classes=1), layer=torch.ones(1, 5))
    assert torch.equal(given.similarity, torch.eye(2))


def test_a_backward_pass_that_fails_is_named():
    class Overwritten(nn.Module):
        def forward(self, x):
            y = x.flatten(1).exp()
            z = y.square()
            y.zero_()  # the backward pass of square needs its values
            return z

    with pytest.raises(InputError, match="the teacher's backward pass to its input fails: one of the variables"):
        small_synthesizer(Overwritten(), layer=torch.eye(64))


def test_nan_weights_are_named():
    teacher = image_classifier()
    teacher[0].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"0\.weight hold NaN"):
        small_synthesizer(teacher)


@pytest.mark.parametrize("ids", [[], [-1], [0.5], [[1, 2]]])
def test_bad_ids_are_refused(ids):
    with pytest.raises(InputError, match="ids must be"):
        small_synthesizer().run(ids)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, None, True])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(InputError, match="seed"):
        small_synthesizer(seed=seed)


def test_impressions_that_diverge_are_an_error_with_the_first_id():
    with pytest.raises(InputError, match=r"3 of 3 impressions hold NaN .* id 5; lower"):
        small_synthesizer(learning_rate=1e38, clamp=False, steps=50, l1=0.0).run([5, 6, 7])


def test_the_classifier_weights_may_be_given():
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(small_synthesizer(layer=weight).similarity, class_similarity(weight))
    with pytest.raises(InputError, match=r"\[5, 9\], wanted \[4, D\]"):
        small_synthesizer(layer=torch.randn(5, 9))


def test_a_layer_of_another_type_is_refused():
    with pytest.raises(InputError, match=r"layer must be the name of a layer or a tensor \[4, D\], got a ndarray"):
        small_synthesizer(layer=torch.ones(4, 5).numpy())
