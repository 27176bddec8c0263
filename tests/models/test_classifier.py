import pytest
import torch
from small_models import IMAGE, image_classifier
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier, frozen, tensor_sha256, weights_sha256


class Returns(nn.Module):
    """Hands back whatever the function makes of the input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_the_model_sees_normalised_inputs_and_gives_float32_logits():
    spec = InputSpec(shape=(3,), mean=(0.5,), std=(0.25,))
    double = Classifier(nn.Linear(3, 4).double(), spec)
    x = torch.rand(5, 3)
    logits = double.logits(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, double.model((x.double() - 0.5) / 0.25).float())


def test_counts_the_classes():
    assert Classifier(image_classifier(classes=7), IMAGE).num_classes == 7


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x.flatten(1), x), "returns a tuple.*logits_fn"),
        (lambda x: {"logits": x.flatten(1)}, "returns a dict.*logits_fn"),
        (lambda x: x.flatten(1)[0], r"returns shape \[64\] for a batch of 2 inputs"),
        (lambda x: x, r"returns shape \[2, 1, 8, 8\]"),
        (lambda x: x.flatten(1)[:, :1], "K = 1 logit"),
        (lambda x: x.flatten(1) / 0, "not all finite"),
        (
            lambda x: x.reshape(2, 3, 5),
            r"rejects a batch of 2 inputs of shape \[1, 8, 8\]: shape '\[2, 3, 5\]' is invalid",
        ),
    ],
)
def test_says_what_is_wrong_with_the_output(function, message):
    with pytest.raises(InputError, match=message):
        Classifier(Returns(function), IMAGE)


def test_logits_fn_picks_the_logits_out_of_a_dict():
    model = Returns(lambda x: {"logits": x.flatten(1)})
    classifier = Classifier(model, IMAGE, logits_fn=lambda output: output["logits"])
    assert classifier.num_classes == 64


def test_names_the_weights_that_hold_nan():
    model = image_classifier()
    model[4].bias.data[1] = float("nan")
    with pytest.raises(InputError, match=r"the student's weights 4\.bias hold NaN"):
        Classifier(model, IMAGE, role="student")


def test_refuses_a_device_where_the_model_does_not_lie():
    with pytest.raises(InputError, match="lies on cpu, wanted cuda"):
        Classifier(image_classifier(), IMAGE, device="cuda")


def test_the_check_leaves_batch_norm_statistics_alone():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3)).train()
    before = weights_sha256(model)
    Classifier(model, IMAGE)
    assert weights_sha256(model) == before
    assert model[1].training


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


def test_the_digest_of_weights_changes_with_a_name_a_value_and_a_dtype_only():
    model = image_classifier()
    digest = weights_sha256(model)
    assert weights_sha256(image_classifier()) == digest
    assert weights_sha256(nn.ModuleList([model])) != digest
    assert weights_sha256(image_classifier().double()) != digest
    model[4].bias.data[0] += 1e-7
    assert weights_sha256(model) != digest


def test_the_digest_of_a_tensor_does_not_depend_on_its_strides():
    tensor = torch.arange(6.0).reshape(2, 3)
    assert tensor_sha256(tensor.T.contiguous().T) == tensor_sha256(tensor)
    assert tensor_sha256(tensor.reshape(3, 2)) != tensor_sha256(tensor)
