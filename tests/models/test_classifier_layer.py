"""Which layer of a teacher is its classifier layer."""

import pytest
import torch
from odd_models import Prototypes
from small_models import image_classifier
from torch import nn

from zskd_fast.errors import InputError
from zskd_fast.models.answers import two_logits
from zskd_fast.models.classifier_layer import classifier_weight, find_classifier_layer
from zskd_fast.synthesis.class_similarity import class_similarity


class TwoHeads(nn.Module):
    """A classifier whose auxiliary head is registered last and has as many outputs, as in GoogLeNet."""

    def __init__(self, use_auxiliary=False):
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, 4)
        self.auxiliary = nn.Linear(8, 4)
        self.use_auxiliary = use_auxiliary

    def forward(self, x):
        features = self.body(x).tanh()
        logits = self.head(features)
        return logits + self.auxiliary(features) if self.use_auxiliary else logits


def _forward(model, *shape):
    return lambda: model(torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))


def test_the_only_linear_layer_is_found():
    model = image_classifier()
    assert find_classifier_layer(model) == ("4", model[4])


def test_the_layer_whose_output_is_the_logits_is_found():
    model = TwoHeads()
    assert find_classifier_layer(model, forward=_forward(model, 6)) == ("head", model.head)


def test_the_search_leaves_no_hook_on_the_model():
    model = TwoHeads()
    find_classifier_layer(model, forward=_forward(model, 6))
    with pytest.raises(ZeroDivisionError):
        find_classifier_layer(model, forward=lambda: 1 / 0)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_1x1_convolution_before_global_pooling_is_found():
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    name, layer = find_classifier_layer(model, forward=_forward(model, 3, 8, 8))
    assert (name, layer) == ("2", model[2])
    assert torch.equal(classifier_weight(layer), model[2].weight[:, :, 0, 0])


def test_a_classifier_layer_before_a_softmax_is_found():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4), nn.LogSoftmax(dim=1))
    assert find_classifier_layer(model, forward=_forward(model, 6))[0] == "1"


def test_the_classifier_layer_of_an_exported_program_is_found():
    batch = torch.export.Dim("batch", min=1, max=64)
    example = (torch.randn(2, 1, 8, 8),)
    exported = torch.export.export(image_classifier(), example, dynamic_shapes=({0: batch},)).module()
    name, layer = find_classifier_layer(exported, forward=_forward(exported, 1, 8, 8))
    assert name == "4"
    assert torch.equal(classifier_weight(layer), image_classifier()[4].weight)


def test_an_ambiguous_teacher_is_refused_with_the_candidates():
    model = TwoHeads(use_auxiliary=True)
    message = r"more than one layer .*head \(Linear, \[4, 8\]\), auxiliary \(Linear, \[4, 8\]\)"
    with pytest.raises(InputError, match=message):
        find_classifier_layer(model, forward=_forward(model, 6))
    assert find_classifier_layer(model, name="head")[1] is model.head


def test_a_teacher_without_a_classifier_layer_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Bilinear(4, 4, 5))
    with pytest.raises(InputError, match=r"no Linear layer or convolution.*Candidates: none"):
        find_classifier_layer(nn.Sequential(nn.Tanh(), nn.Flatten()), forward=_forward(nn.Flatten(), 1, 2, 2))
    with pytest.raises(InputError, match=r"classifier of 5 classes.*Candidates: 0 \(Conv2d, \[4, 9\]\)$"):
        find_classifier_layer(model, 5)


class Behind(nn.Module):
    """Two layers of equal shape, and something behind the second."""

    def __init__(self, behind):
        super().__init__()
        self.body, self.head, self.behind = nn.Linear(6, 4), nn.Linear(4, 4), behind

    def forward(self, x):
        return self.behind(self.head(self.body(x).tanh()))


@pytest.mark.parametrize(
    "behind",
    [lambda y: y / 3.7, lambda y: y.log_softmax(1), lambda y: (y / 2).softmax(1).log(), lambda y: y * 5 + 1],
    ids=["temperature", "log softmax", "logarithm of a softmax", "affine"],
)
def test_the_layer_in_front_of_a_temperature_or_a_softmax_is_found(behind):
    model = Behind(behind)
    assert find_classifier_layer(model, forward=_forward(model, 6)) == ("head", model.head)


@pytest.mark.parametrize("behind", [torch.tanh, lambda y: y.roll(1, dims=1), lambda y: -y, torch.zeros_like])
def test_a_layer_behind_which_the_logits_change_otherwise_is_ambiguous(behind):
    model = Behind(behind)
    with pytest.raises(InputError, match=r"more than one layer .*body \(Linear, \[4, 6\]\), head \(Linear, \[4, 4\]\)"):
        find_classifier_layer(model, forward=_forward(model, 6))


def test_equal_logits_count_more_than_equal_directions():
    class Scaled(TwoHeads):
        def forward(self, x):
            self.auxiliary.weight.data.copy_(2 * self.head.weight.data)
            self.auxiliary.bias.data.copy_(2 * self.head.bias.data)
            self.auxiliary(self.body(x).tanh())
            return super().forward(x)

    model = Scaled()
    assert find_classifier_layer(model, forward=_forward(model, 6)) == ("head", model.head)


@pytest.mark.parametrize("kernel", [7, 3])
def test_a_convolution_over_the_whole_image_or_before_a_mean_is_found(kernel):
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Tanh(), nn.Conv2d(6, 5, kernel), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    name, layer = find_classifier_layer(model, forward=_forward(model, 3, 7, 7))
    assert (name, layer) == ("2", model[2])
    assert torch.equal(classifier_weight(layer), model[2].weight.flatten(1))
    assert find_classifier_layer(model, 5, "2") == ("2", model[2])


def test_a_linear_layer_counts_more_than_a_convolution_of_as_many_channels():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 5), nn.Tanh())
    assert find_classifier_layer(model, forward=_forward(model, 3, 7, 7))[0] == "3"


@pytest.mark.parametrize("seed", range(3))
def test_one_logit_has_the_layer_that_yields_it(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 1))

    def forward():
        return two_logits(_forward(model, 6)())

    name, layer = find_classifier_layer(model, forward=forward)
    assert (name, layer) == ("2", model[2])
    weight = classifier_weight(layer)
    assert torch.equal(weight, torch.cat([-model[2].weight, model[2].weight]))
    assert find_classifier_layer(model, 2, "2") == ("2", model[2])


def test_a_layer_of_one_output_is_no_candidate_for_two_logits():
    """For instance a gate: the layer of two rows is the classifier, whatever is behind it."""
    model = nn.Sequential(nn.Linear(6, 2), nn.Tanh())
    model.gate = nn.Linear(6, 1)
    assert find_classifier_layer(model[:2], forward=_forward(model[:2], 6))[0] == "0"
    assert find_classifier_layer(model, 2)[0] == "0"


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_the_weight_of_a_parametrized_layer_is_the_one_it_uses(norm):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), norm(nn.Linear(8, 4))).eval()
    name, layer = find_classifier_layer(model, forward=_forward(model, 6))
    assert (name, layer) == ("2", model[2])
    x = torch.randn(3, 8)
    torch.testing.assert_close(x @ classifier_weight(layer).T + layer.bias, layer(x))


@pytest.mark.filterwarnings("ignore")
def test_the_weight_of_a_layer_with_the_former_weight_norm():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.utils.weight_norm(nn.Linear(8, 4)))
    assert find_classifier_layer(model, forward=_forward(model, 6))[0] == "2"
    assert classifier_weight(model[2]).shape == (4, 8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", ["script", "trace"])
def test_the_layer_of_a_torchscript_module_is_found(compiled):
    model = image_classifier().eval()
    script = torch.jit.script(model) if compiled == "script" else torch.jit.trace(model, torch.rand(2, 1, 8, 8))
    name, layer = find_classifier_layer(script, forward=_forward(script, 1, 8, 8))
    assert name == "4"
    assert torch.equal(classifier_weight(layer), image_classifier()[4].weight)


@pytest.mark.filterwarnings("ignore")
def test_an_ambiguous_script_is_refused_since_no_hook_tells_the_layers_apart():
    script = torch.jit.script(TwoHeads())
    with pytest.raises(InputError, match=r"more than one layer .*head .*auxiliary"):
        find_classifier_layer(script, forward=_forward(script, 6))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Embedding(4, 8),
        nn.ConvTranspose2d(4, 8, 1),
        nn.Conv2d(8, 4, 1, groups=2),
        nn.BatchNorm1d(4),
        nn.Bilinear(4, 4, 4),
    ],
)
def test_layers_with_other_weights_are_refused(layer):
    with pytest.raises(InputError, match="neither a Linear layer nor a convolution"):
        classifier_weight(layer)


# ------------------------------------------------------------------------------------------- by its name


def test_prototypes_are_named_as_a_parameter_or_a_buffer():
    model = Prototypes()
    model.register_buffer("centers", torch.ones(4, 8, 1, 1))
    with pytest.raises(InputError, match=r"name the layer, or a parameter .*prototypes \(parameter, \[4, 8\]\)"):
        find_classifier_layer(model, forward=_forward(model, 6))
    name, prototypes = find_classifier_layer(model, 4, "prototypes")
    assert name == "prototypes" and prototypes is model.prototypes
    assert (
        torch.equal(classifier_weight(prototypes), model.prototypes) and not classifier_weight(prototypes).requires_grad
    )
    assert classifier_weight(find_classifier_layer(model, 4, "centers")[1]).shape == (4, 8)
    assert torch.equal(class_similarity(model, layer="prototypes"), class_similarity(model.prototypes))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fc9", r"no layer or parameter 'fc9'; candidates: 0 \(Linear, \[8, 6\]\), 2 \(Linear"),
        ("1", r"'1' \(Tanh\) is no classifier"),
        ("0", "has 8 rows, but the teacher has 4 classes"),
        ("0.weight", "'0.weight' has 8 rows, but the teacher has 4 classes"),
        ("2.bias", r"'2\.bias' of the teacher has shape \[4\], wanted \[K, D\], one row per class"),
    ],
)
def test_a_wrong_name_is_refused_with_the_candidates(name, message):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    with pytest.raises(InputError, match=message):
        find_classifier_layer(model, 4, name)
