"""The probe and the weights of a model: which may change, and those that were made in an unusual way."""

import copy

import pytest
import torch
from odd_models import Counting, Renormalizing
from probed import X, require_refused
from small_models import IMAGE, VECTOR, same_tensors, vector_classifier
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models import probe
from zskd_fast.models.classifier import Classifier

# ---------------------------------------------------------------------------------- weights that change


@pytest.mark.parametrize(("model", "name"), [(Renormalizing, "inner.3.weight"), (Counting, "calls")])
def test_a_forward_pass_that_changes_weights_is_refused(model, name):
    require_refused(model(), f"the teacher's forward pass changes its weights {name} in eval mode")


@pytest.mark.parametrize("model", [Renormalizing, Counting])
def test_a_student_may_change_its_weights_but_the_probe_restores_them(model):
    student = model()
    Classifier(student, VECTOR, role="student")
    assert same_tensors(student, model())


def test_weights_that_are_rewritten_with_their_own_values_are_no_change():
    teacher = Renormalizing()
    weight = teacher.inner[3].weight.data
    weight.copy_(torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [0.8, -0.6]]).repeat(1, 8) / 8**0.5)
    for _ in range(3):
        teacher(X)  # until the division changes no bit
    Classifier(teacher, VECTOR)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool])
@pytest.mark.parametrize("count", [1, 3, 8, 33])
def test_the_fingerprint_changes_with_one_bit(dtype, count):
    model = nn.Module()
    model.register_buffer("values", torch.ones(count).to(dtype))
    before = probe.fingerprints(model)
    assert probe.changed(model, before) == []
    model.values[count // 2] = 0
    assert probe.changed(model, before) == ["values"]


def test_the_fingerprint_sees_a_buffer_that_is_replaced_or_grows():
    model = nn.Module()
    model.register_buffer("values", torch.ones(2, 6)[:, 1:4])
    before = probe.fingerprints(model)
    model.values = torch.ones(2, 3)
    assert probe.changed(model, before) == []
    model.values = torch.ones(2, 4)
    assert probe.changed(model, before) == ["values"]


def test_weights_kept_restores_values_and_replaced_buffers():
    model = nn.BatchNorm1d(2)
    before = copy.deepcopy(model)
    mean = model.running_mean
    with pytest.raises(ZeroDivisionError), probe.weights_kept(model):
        model.weight.data.mul_(3)
        model.running_mean = torch.full((2,), 7.0)
        raise ZeroDivisionError
    assert same_tensors(model, before)
    assert model.running_mean is mean


def test_memory_that_two_models_share_is_named():
    left, right = vector_classifier(), vector_classifier()
    assert probe.shared_memory(left, right) == []
    left[3].weight = right[3].weight
    left[0].bias.data = right[0].bias.data
    left.register_buffer("empty", torch.empty(0))
    right.register_buffer("empty", torch.empty(0))
    assert probe.shared_memory(left, right) == ["0.bias", "3.weight"]


# --------------------------------------------------------------------------- weights, as they were made


def test_weights_made_under_inference_mode_become_normal_ones_of_equal_values():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)).requires_grad_()
        model[2].weight = model[0].weight
        model.table = torch.arange(3)
    before = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    Classifier(model, VECTOR)
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers(), model.table))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model[2].weight is model[0].weight
    assert {name: tensor.tolist() for name, tensor in model.state_dict().items()} == before
    model(X).sum().backward()


def test_the_weights_of_a_recurrent_layer_made_under_inference_mode_are_the_ones_it_uses():
    with torch.inference_mode():
        model = nn.LSTM(6, 4, batch_first=True)
    Classifier(model, InputSpec((2, 6)), logits_fn=lambda output: output[0][:, -1])
    model(torch.rand(1, 2, 6))[0].sum().backward()
    assert model.weight_ih_l0.grad is not None


def test_a_caller_under_inference_mode():
    with torch.inference_mode():
        classifier = Classifier(vector_classifier(), VECTOR)
    assert not any(parameter.is_inference() for parameter in classifier.model.parameters())


def test_lazy_modules_get_their_weights_from_the_probe():
    torch.manual_seed(3)
    model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(4)).train()
    classifier = Classifier(model, VECTOR, role="student")
    assert classifier.num_parameters == 6 * 8 + 8 + 16 + 8 * 4 + 4
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert model[1].num_batches_tracked == 0
    again = copy.deepcopy(model)
    assert Classifier(again, VECTOR).identity == classifier.identity
    require_refused(nn.Sequential(nn.LazyLinear(4), nn.Unflatten(1, (9, 9))), "the teacher rejects a batch of 3 inputs")


def test_weights_of_several_types_are_named_where_the_model_fails():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 4)).half()
    model[0].bias.data = model[0].bias.data.float()
    require_refused(
        model, r"several types, float16 \(0.weight\) and float32 \(0.bias\): convert .*model.float\(\)", IMAGE
    )


class Mixed(nn.Module):
    """Half precision inside, float32 around it: several types that work."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.inner = vector_classifier().half()

    def forward(self, x):
        return self.inner((x * self.scale).half()).float()


def test_weights_of_several_types_may_work():
    assert Classifier(Mixed(), VECTOR).num_classes == 4


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_model_is_named():
    quantized = torch.ao.quantization.quantize_dynamic(vector_classifier(), {nn.Linear})
    require_refused(quantized, r"the teacher's module '0' \(Linear, quantized\) passes no gradient")


def test_weights_without_values_are_named():
    require_refused(vector_classifier().to("meta"), "0.weight are on the device meta, which holds no values")


def test_a_sum_that_overflows_is_no_infinite_weight():
    model = vector_classifier()
    model[0].weight.data.fill_(3e38)
    assert not torch.isfinite(model[0].weight.sum())
    probe.require_usable_weights(model, "teacher")
    model[0].weight.data[1, 1] = float("inf")
    with pytest.raises(InputError, match=r"the teacher's weights 0\.weight hold NaN or infinity"):
        probe.require_usable_weights(model, "teacher")


@pytest.mark.filterwarnings("ignore")
def test_a_frozen_script_is_refused_and_one_with_hooks_is_not():
    script = torch.jit.script(vector_classifier().eval())
    require_refused(torch.jit.freeze(script), "is a frozen TorchScript module.*before torch.jit.freeze")
    assert Classifier(script, VECTOR).num_classes == 4


@pytest.mark.filterwarnings("ignore")
def test_the_error_of_a_script_is_its_last_line():
    script = torch.jit.script(vector_classifier().eval())
    require_refused(
        script, r"inputs of shape \[7\]: mat1 and mat2 shapes cannot be multiplied \(3x7 and 6x16\)$", InputSpec((7,))
    )
