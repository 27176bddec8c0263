"""What the probe of a model finds before any work: what is refused in one sentence, and what is made to work."""

import copy

import pytest
import torch
from odd_models import (
    Counting,
    InTrainMode,
    KeywordInput,
    Renormalizing,
    Standardizing,
    TwoInputs,
    Wrapped,
    dropped,
    named,
    subtracting,
    with_keyword,
    with_mask,
)
from small_models import IMAGE, VECTOR, same_tensors, vector_classifier
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models import probe
from zskd_fast.models.classifier import Classifier, frozen

X = torch.rand(5, 6, generator=torch.Generator().manual_seed(1))


def _refused(model, message, spec=VECTOR, **options):
    with pytest.raises(InputError, match=message):
        Classifier(model, spec, **options)


def _wanted(model, x=X):
    with frozen(model), torch.no_grad():
        return model(x)


# ------------------------------------------------------------------------------------------ the inputs


def test_the_inputs_are_noise_of_several_scales_inside_the_valid_range():
    inputs = probe.noise_inputs(InputSpec((3, 8, 8), (-1.0, 3.0)), 6, torch.device("cpu"))
    assert inputs.shape == (6, 3, 8, 8) and inputs.dtype == torch.float32
    assert inputs.min() == -1 and inputs.max() == 3
    assert set(inputs[1].unique().tolist()) == {-1.0, 3.0}
    assert inputs[2].min() >= 0 and inputs[2].max() <= 2
    assert (inputs.flatten(1).std(dim=1) > 0.3).all(), "an input is constant"
    assert torch.equal(inputs, probe.noise_inputs(InputSpec((3, 8, 8), (-1.0, 3.0)), 6, torch.device("cpu")))


def test_a_teacher_that_standardizes_each_input_is_probed():
    assert Classifier(Standardizing(), VECTOR).num_classes == 4


def test_the_probe_leaves_torchs_random_state_and_default_dtype_alone():
    state = torch.get_rng_state()
    Classifier(Wrapped(before=lambda x: x + 0 * torch.rand_like(x)), VECTOR)
    assert torch.equal(torch.get_rng_state(), state)


# ----------------------------------------------------------------------------------------- the answers


def test_probabilities_are_turned_into_logits_and_noted():
    classifier = Classifier(Wrapped(lambda y: y.softmax(1)), VECTOR)
    wanted = _wanted(vector_classifier())
    with frozen(classifier.model):
        torch.testing.assert_close(classifier.logits(X).softmax(1), _wanted(classifier.model))
        torch.testing.assert_close(classifier.logits(X), wanted.log_softmax(1))
    assert classifier.notes == [
        "returns probabilities, rows that sum to 1: their logarithm is used as the logits, "
        "which is exact after a softmax"
    ]
    assert Classifier(vector_classifier(), VECTOR).notes == []


def test_one_logit_becomes_two_and_is_noted():
    classifier = Classifier(Wrapped(classes=1), VECTOR)
    assert classifier.num_classes == 2
    with frozen(classifier.model):
        torch.testing.assert_close(classifier.logits(X).softmax(1)[:, 1:], _wanted(classifier.model).sigmoid())
    assert classifier.notes[0].startswith("returns one logit z: its two classes get the logits (-z/2, z/2)")


def test_a_sigmoid_is_named():
    _refused(Wrapped(torch.sigmoid), "the teacher returns a probability per class.* as of a sigmoid")
    _refused(Wrapped(lambda y: 1 / (1 + (-100 * y).exp())), "as of a sigmoid")
    with pytest.raises(InputError, match="the student returns a probability per class"):
        _train(Wrapped(torch.sigmoid))
    undone = Classifier(Wrapped(torch.sigmoid), VECTOR, logits_fn=lambda p: torch.logit(p, eps=1e-6))
    with frozen(undone.model):
        torch.testing.assert_close(undone.logits(X), _wanted(vector_classifier()), rtol=1e-4, atol=1e-5)


def test_logits_that_the_output_names_are_taken():
    classifier = Classifier(Wrapped(named), VECTOR)
    with frozen(classifier.model):
        assert torch.equal(classifier.logits(X), _wanted(vector_classifier()))


@pytest.mark.parametrize(("model", "forward_fn"), [(KeywordInput, with_keyword), (TwoInputs, with_mask)])
@pytest.mark.parametrize(("role", "option"), [("teacher", "forward_fn"), ("student", "student_forward_fn")])
def test_a_dict_or_two_inputs_need_forward_fn_and_the_sentence_says_so(model, forward_fn, role, option):
    flag = option.replace("_", "-")
    _refused(model(), rf"rejects a batch of 3 .*give {option} \(--{flag} package.module:callable\)", role=role)
    classifier = Classifier(model(), VECTOR, role=role, forward_fn=forward_fn)
    with frozen(classifier.model):
        assert torch.equal(classifier.logits(X), _wanted(vector_classifier()))


def test_an_error_inside_a_model_of_one_tensor_does_not_advise_forward_fn():
    with pytest.raises(InputError) as error:
        Classifier(Wrapped(before=lambda x: None.shape), VECTOR)
    assert str(error.value).endswith("'NoneType' object has no attribute 'shape'")
    _refused(Wrapped(before=lambda x: x.pixel_values), "has no attribute 'pixel_values'; .* give forward_fn")


def test_a_forward_fn_that_fails_is_named():
    _refused(KeywordInput(), r"no key 'pixels' \(called by forward_fn _wrong\)", forward_fn=_wrong)


def _wrong(model, x):
    return model({"pixel": x})


# ------------------------------------------------------------------- always the same answer, same weights


def test_a_teacher_that_answers_twice_differently_is_refused():
    _refused(Wrapped(dropped), "gives the same input two different answers in eval mode, as with F.dropout")
    Classifier(Wrapped(dropped), VECTOR, role="student")


def test_a_teacher_whose_answer_depends_on_the_batch_is_refused():
    _refused(
        nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        "depend on the other inputs of its batch",
    )


@pytest.mark.parametrize(("model", "name"), [(Renormalizing, "inner.3.weight"), (Counting, "calls")])
def test_a_forward_pass_that_changes_weights_is_refused(model, name):
    _refused(model(), f"the teacher's forward pass changes its weights {name} in eval mode")


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


# ---------------------------------------------------------------------------------------- in-place models


@pytest.mark.parametrize("before", [subtracting, torch.relu_, lambda x: x.data.neg_()], ids=["-=", "relu_", "data"])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_model_that_writes_into_its_input_gets_a_copy(before, role):
    spec = InputSpec((6,), (-1.0, 1.0))
    classifier = Classifier(Wrapped(before=before), spec, role=role)
    x = 2 * X - 1
    given = x.clone()
    with frozen(classifier.model):
        logits = classifier.logits(given)
    assert torch.equal(given, x), "the input was changed"
    assert torch.equal(logits, _wanted(vector_classifier(), before(x.clone())))


@pytest.mark.parametrize(
    ("before", "copied"), [(subtracting, lambda x: x - 0.5), (torch.relu_, torch.relu)], ids=["-=", "relu_"]
)
def test_the_gradient_of_a_model_that_writes_into_its_input(before, copied):
    """relu_ changes no value of the valid range here, but autograd refuses it on a leaf all the same."""
    classifier = Classifier(Wrapped(before=before), VECTOR)
    x = X.clone().requires_grad_()
    with frozen(classifier.model):
        got = torch.autograd.grad(classifier.logits(x).square().sum(), x)[0]
    y = copied(X).requires_grad_()
    with frozen(classifier.model):
        wanted = torch.autograd.grad(classifier.model.inner(y).square().sum(), y)[0]
    assert torch.equal(got, wanted)


def test_a_model_that_does_not_write_gets_its_input_itself():
    seen = []
    model = vector_classifier()
    classifier = Classifier(model, VECTOR)
    model.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    classifier.logits(X)
    assert seen[0] is X


# ----------------------------------------------------------------------------- weights, as they were made


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
    _refused(nn.Sequential(nn.LazyLinear(4), nn.Unflatten(1, (9, 9))), "the teacher rejects a batch of 3 inputs")


def test_weights_of_several_types_are_named_where_the_model_fails():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 4)).half()
    model[0].bias.data = model[0].bias.data.float()
    _refused(model, r"several types, float16 \(0.weight\) and float32 \(0.bias\): convert .*model.float\(\)", IMAGE)


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
    _refused(quantized, r"the teacher's module '0' \(Linear, quantized\) passes no gradient")


def test_weights_without_values_are_named():
    _refused(vector_classifier().to("meta"), "0.weight are on the device meta, which holds no values")


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
    _refused(torch.jit.freeze(script), "is a frozen TorchScript module.*before torch.jit.freeze")
    assert Classifier(script, VECTOR).num_classes == 4


@pytest.mark.filterwarnings("ignore")
def test_the_error_of_a_script_is_its_last_line():
    script = torch.jit.script(vector_classifier().eval())
    _refused(
        script, r"inputs of shape \[7\]: mat1 and mat2 shapes cannot be multiplied \(3x7 and 6x16\)$", InputSpec((7,))
    )


# -------------------------------------------------------------------------- the student in train mode


def _train(model, rows=4):
    classifier = Classifier(model, VECTOR, role="student")
    model.train()
    return classifier.probe_training(rows), classifier


def test_a_training_step_leaves_nothing_behind():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))
    before = copy.deepcopy(model)
    assert _train(model)[0] is True
    assert same_tensors(model, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_parameter_without_a_gradient_is_noticed():
    model = Wrapped()
    model.unused = nn.Linear(2, 2)
    assert _train(model)[0] is False
    model.unused.requires_grad_(False)
    assert _train(model)[0] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: (y, y), r"the student returns a tuple in train mode, wanted .*student_logits_fn .* in either mode"),
        (lambda y: y[:, :3], "other classes in each mode: 3 in train mode, but 4 in eval mode"),
        (lambda y: y / 0, "logits of an input inside the valid range are not all finite in train mode"),
        (lambda y: y.detach(), "no gradient flows from the student's logits in train mode"),
        (lambda y: torch.zeros_like(y, requires_grad=True), "no gradient flows from the student's logits"),
    ],
)
def test_what_fails_in_train_mode_is_described(change, message):
    with pytest.raises(InputError, match=message):
        _train(InTrainMode(change))


def test_auxiliary_outputs_that_are_named_are_no_obstacle():
    _, classifier = _train(InTrainMode(named))
    x = X.clone()
    classifier.model.eval()
    wanted = classifier.logits(x)
    classifier.model.train()
    classifier.model.inner.eval()
    assert torch.equal(classifier.logits(x), wanted)


def test_batch_norm_rejects_one_row_in_train_mode():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    with pytest.raises(InputError, match=r"rejects a batch of 1 input of shape .* in train mode: Expected more than 1"):
        _train(model, rows=1)
    assert _train(model, rows=2)[0]


def test_a_backward_pass_that_fails_is_described():
    def overwritten(logits):
        y = logits.exp()
        z = y.square()
        y.zero_()
        return z

    with pytest.raises(InputError, match="the student's backward pass in train mode fails: one of the variables"):
        _train(InTrainMode(overwritten))


def test_a_softmax_in_one_mode_only_is_undone_in_that_mode_only():
    """Some models apply it in eval mode only: in train mode the logarithm of logits would be NaN."""

    class InEvalMode(InTrainMode):
        def forward(self, x):
            logits = self.inner(x)
            return logits if self.training else logits.softmax(1)

    _, classifier = _train(InEvalMode(None))
    for module in classifier.model.modules():
        module.eval()
    probabilities = classifier.logits(X)
    classifier.model.training = True
    assert torch.equal(classifier.logits(X), _wanted(vector_classifier(seed=5)))
    torch.testing.assert_close(probabilities, classifier.logits(X).log_softmax(1))


# ------------------------------------------------------------------------------------------ small parts


def test_memory_that_two_models_share_is_named():
    left, right = vector_classifier(), vector_classifier()
    assert probe.shared_memory(left, right) == []
    left[3].weight = right[3].weight
    left[0].bias.data = right[0].bias.data
    left.register_buffer("empty", torch.empty(0))
    right.register_buffer("empty", torch.empty(0))
    assert probe.shared_memory(left, right) == ["0.bias", "3.weight"]


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


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("first\nsecond"), "first"),
        (ValueError(), "ValueError"),
        (KeyError("image"), "no key 'image'"),
        (
            RuntimeError("\n The following operation failed in the TorchScript interpreter.\nat x\nRuntimeError: mat1"),
            "mat1",
        ),
    ],
)
def test_a_reason_is_one_line(error, words):
    assert probe.reason(error) == words
