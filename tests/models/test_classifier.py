"""A model is probed and hashed once, an unusable one is refused, and a frozen one comes back as it was."""

import pytest
import torch
from small_models import IMAGE, image_classifier
from torch import nn

from zskd_fast.config.identity import ModelIdentity
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier, as_classifier, frozen, tensor_sha256


class Returns(nn.Module):
    """A model that returns a function of its input, and counts its calls."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.function(x)


def sha256(model):
    return Classifier(model, IMAGE).identity.sha256


# ------------------------------------------------------------------------------------------- the probe


def test_the_model_gets_normalized_inputs_and_returns_float32_logits():
    spec = InputSpec(shape=(3,), mean=(0.5,), std=(0.25,))
    double = Classifier(nn.Linear(3, 4).double(), spec)
    x = torch.rand(5, 3)
    logits = double.logits(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, double.model((x.double() - 0.5) / 0.25).float())


@pytest.mark.parametrize(
    ("model", "got"),
    [
        ("resnet18", "an object of type str"),
        (nn.Identity, "the class Identity; call it"),
        (nn.Identity().state_dict(), "a dict; build the model and give it these weights by load_state_dict"),
        (lambda x: x, "an object of type function"),
    ],
    ids=["name", "class", "weights", "function"],
)
def test_what_is_no_module_is_refused(model, got):
    with pytest.raises(InputError, match=f"^the student must be an nn.Module, got {got}$"):
        Classifier(model, IMAGE, role="student")


def test_a_program_that_was_exported_for_batches_of_one_size_is_refused_with_the_remedy():
    exported = torch.export.export(image_classifier().eval(), (torch.rand(5, *IMAGE.shape),)).module()
    with pytest.raises(InputError, match=r"a batch of 3 inputs.*; export it for batches of any size: .*dynamic_shapes"):
        Classifier(exported, IMAGE)


def test_the_number_of_classes_and_of_parameters():
    classifier = Classifier(image_classifier(classes=7), IMAGE)
    assert classifier.num_classes == 7
    assert classifier.num_parameters == (9 * 4 + 4) + (36 * 7 + 7)


def test_the_name_is_that_of_the_class_unless_another_is_given():
    assert Classifier(image_classifier(), IMAGE).name == "Sequential"
    named = Classifier(image_classifier(), IMAGE, name="teacher")
    assert (named.name, named.identity.name) == ("teacher", "Sequential")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x.flatten(1), x), "returns a tuple.*logits_fn"),
        (lambda x: {"scores": x.flatten(1)}, "returns a dict.*logits_fn"),
        (lambda x: x.flatten(1)[0], r"returns shape \[64\] for a batch of 3 inputs"),
        (lambda x: x, r"returns shape \[3, 1, 8, 8\]"),
        (lambda x: x.flatten(1)[:, :0], r"returns shape \[3, 0\] for a batch of 3 inputs, wanted \[3, K\] logits"),
        (lambda x: x.flatten(1) / 0, "not all finite"),
        (lambda x: x.flatten(1).argmax(1), r"returns torch.int64 values, wanted logits in floating point"),
        (
            lambda x: x.reshape(2, 3, 5),
            r"rejects a batch of 3 inputs of shape \[1, 8, 8\]: shape '\[2, 3, 5\]' is invalid",
        ),
    ],
)
def test_an_output_that_cannot_be_used_is_described(function, message):
    with pytest.raises(InputError, match=message):
        Classifier(Returns(function), IMAGE)


def test_logits_fn_picks_the_logits_out_of_a_dict():
    model = Returns(lambda x: {"logits": x.flatten(1)})
    classifier = Classifier(model, IMAGE, logits_fn=lambda output: output["logits"])
    assert classifier.num_classes == 64
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(classifier.logits(x), x.flatten(1))


def test_weights_that_hold_nan_are_named():
    model = image_classifier()
    model[4].bias.data[1] = float("nan")
    with pytest.raises(InputError, match=r"the student's weights 4\.bias hold NaN"):
        Classifier(model, IMAGE, role="student")


def test_the_device_is_that_of_the_weights_and_must_be_one():
    assert Classifier(image_classifier(), IMAGE).device == torch.device("cpu")
    assert Classifier(Returns(lambda x: x.flatten(1)), IMAGE).device == torch.device("cpu")
    spread = image_classifier()
    spread[4].to("meta")
    with pytest.raises(InputError, match="the teacher is spread over the devices cpu, meta, wanted all of it on one"):
        Classifier(spread, IMAGE)


def test_the_probe_changes_neither_batch_norm_statistics_nor_modes():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Classifier(model, IMAGE)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[1].training


# -------------------------------------------------------------------- one probe and one hash in a run


def test_as_classifier_does_not_probe_a_classifier_again():
    model = Returns(lambda x: x.flatten(1))
    classifier = as_classifier(model, IMAGE, role="student")
    calls = model.calls
    assert classifier.role == "student"
    assert as_classifier(classifier, IMAGE) is classifier
    assert as_classifier(classifier, InputSpec(IMAGE.shape), logits_fn=None) is classifier
    assert model.calls == calls


def test_as_classifier_passes_logits_fn_on():
    model = Returns(lambda x: (x.flatten(1), x))

    def first(output):
        return output[0]

    classifier = as_classifier(model, IMAGE, logits_fn=first)
    assert classifier.num_classes == 64
    assert as_classifier(classifier, IMAGE) is classifier
    assert as_classifier(classifier, IMAGE, logits_fn=first) is classifier


@pytest.mark.parametrize(
    ("spec", "logits_fn"),
    [(InputSpec(IMAGE.shape, (0.0, 255.0)), None), (IMAGE, lambda output: output)],
    ids=["input", "logits_fn"],
)
def test_as_classifier_refuses_a_classifier_that_was_probed_otherwise(spec, logits_fn):
    classifier = Classifier(image_classifier(), IMAGE)
    with pytest.raises(InputError, match="the student was probed with another input or logits_fn; give the module"):
        as_classifier(classifier, spec, role="student", logits_fn=logits_fn)


def test_the_identity_is_that_of_the_weights_at_construction():
    model = image_classifier()
    classifier = Classifier(model, IMAGE)
    before = classifier.identity
    assert before == ModelIdentity(name="Sequential", sha256=sha256(image_classifier()))
    model[4].bias.data[0] += 1.0
    assert classifier.identity == before
    assert Classifier(model, IMAGE).identity != before


def test_the_hash_of_weights_changes_with_a_name_a_value_and_a_dtype_only():
    model = image_classifier()
    digest = sha256(model)
    assert sha256(image_classifier()) == digest
    assert sha256(nn.Sequential(model)) != digest
    assert sha256(image_classifier().double()) != digest
    model[4].bias.data[0] += 1e-7
    assert sha256(model) != digest


def test_the_hash_of_a_tensor_does_not_depend_on_its_strides():
    tensor = torch.arange(6.0).reshape(2, 3)
    assert tensor_sha256(tensor.T.contiguous().T) == tensor_sha256(tensor)
    assert tensor_sha256(tensor.reshape(3, 2)) != tensor_sha256(tensor)


# ------------------------------------------------------------------------------------------- freezing


def test_frozen_restores_each_mode_and_flag_even_after_an_error():
    model = image_classifier()
    model.train()
    model[0].eval()
    model[0].weight.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(ZeroDivisionError), frozen(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
