"""cpu_overrides: which calls of teacher and student use the faster versions, and which are torch's own."""

import pytest
import torch
import torch.nn.functional as F
from small_models import synthesis_recipe
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.models import AlexNetHalf, LeNet5
from zskd_fast.models import cpu_overrides as module
from zskd_fast.models.cpu_overrides import cpu_overrides
from zskd_fast.synthesis.synthesizer import Synthesizer

CPU = torch.device("cpu")
_CONVOLUTIONS = ("_FastInputGradient", "_FastWeightGradient")


@pytest.fixture
def used(monkeypatch):
    """The names of the faster versions in the order of their calls."""
    names = []

    def noted(name, version):
        return lambda *args: (names.append(name), version(*args))[1]

    versions = {"max_pool": (module.ops, "max_pool")}
    versions |= {name: (getattr(module, name), "apply") for name in _CONVOLUTIONS}
    for name, (owner, function) in versions.items():
        monkeypatch.setattr(owner, function, noted(name, getattr(owner, function)))
    return names


def _teacher():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LeNet5().eval().requires_grad_(False)


def _gradient(teacher, x, weights, context):
    x = x.clone().requires_grad_()
    with context:
        logits = teacher(x)
    return logits.detach(), torch.autograd.grad((logits * weights).sum(), x)[0]


def test_a_teachers_logits_keep_their_bits_and_its_gradient_differs_by_rounding(used):
    teacher, x, weights = _teacher(), torch.rand(7, 1, 32, 32), torch.rand(7, 10)
    logits, grad = _gradient(teacher, x, weights, cpu_overrides(CPU))
    wanted_logits, wanted = _gradient(teacher, x, weights, torch.enable_grad())
    assert used == ["_FastInputGradient", "max_pool", "max_pool"]
    assert torch.equal(logits, wanted_logits)
    assert (grad - wanted).norm() <= 1e-6 * wanted.norm()
    assert (grad - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@pytest.mark.parametrize("kernel", [(5, 5), (5, 7), (8, 6), (16, 16)])
@pytest.mark.parametrize("padding", [0, 2, (1, 3)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_input_gradient_of_a_convolution_is_as_exact_as_torchs(channels, kernel, padding, used):
    conv = nn.Conv2d(channels, 6, kernel, padding=padding).requires_grad_(False)
    x = torch.randn(3, channels, 18, 20)
    weights = torch.randn_like(conv(x))
    _, grad = _gradient(conv, x, weights, cpu_overrides(CPU))
    exact = nn.Conv2d(channels, 6, kernel, padding=padding).requires_grad_(False)
    exact.load_state_dict(conv.state_dict())
    _, wanted = _gradient(exact.double(), x.double(), weights.double(), cpu_overrides(CPU))
    assert used == ["_FastInputGradient"]
    assert (grad - wanted).norm() <= 2e-6 * wanted.norm()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(5, 6, 5),
        nn.Conv2d(3, 6, 3),
        nn.Conv2d(3, 6, 5, stride=2),
        nn.Conv2d(3, 6, 5, dilation=2),
        nn.Conv2d(3, 6, 5, padding="same"),
        nn.Conv2d(3, 6, 5, padding=5),
        nn.Conv2d(4, 4, 5, groups=2),
        nn.MaxPool2d(3),
        nn.MaxPool2d(2, stride=1),
        nn.MaxPool2d(2, padding=1),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(2, ceil_mode=True),
    ],
    ids=str,
)
def test_other_layers_are_torchs_own(layer, used):
    layer = layer.requires_grad_(False)
    x = torch.randn(2, getattr(layer, "in_channels", 3), 19, 19)
    weights = torch.randn_like(layer(x))
    for got, want in zip(
        _gradient(layer, x, weights, cpu_overrides(CPU)),
        _gradient(layer, x, weights, torch.enable_grad()),
        strict=True,
    ):
        assert torch.equal(got, want)
    assert used == []


@pytest.mark.parametrize("kernel", [3, (5, 7), (8, 6)])
@pytest.mark.parametrize("padding", [0, 2, (1, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_weight_gradient_of_a_convolution_over_gray_images_is_as_exact_as_torchs(kernel, padding, bias, used):
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 6, kernel, padding=padding, bias=bias)
    x = torch.randn(20, 1, 18, 20)
    weights = torch.randn_like(conv(x))
    with cpu_overrides(CPU):
        y = conv(x)
        (y * weights).sum().backward()
    assert used == ["_FastWeightGradient"]
    assert torch.equal(y, conv(x))
    exact = nn.Conv2d(1, 6, kernel, padding=padding, bias=bias).double()
    exact.load_state_dict(conv.state_dict())
    (exact(x.double()) * weights).sum().backward()
    for got, wanted in zip(conv.parameters(), exact.parameters(), strict=True):
        assert (got.grad - wanted.grad).norm() <= 4e-6 * wanted.grad.norm()


def test_weight_and_input_gradients_together_are_torchs_own(used):
    conv, x = nn.Conv2d(1, 6, 5), torch.randn(2, 1, 12, 12)
    with cpu_overrides(CPU):
        conv(x.requires_grad_()).sum().backward()
    assert conv.weight.grad is not None and conv.bias.grad is not None and used == []


def test_a_student_that_needs_no_gradient_is_torchs_own(used):
    with cpu_overrides(CPU), torch.no_grad():
        nn.Conv2d(1, 6, 5)(torch.randn(2, 1, 12, 12))
    assert used == []


def test_functional_calls_and_the_indices_of_max_pooling(used):
    x = torch.rand(2, 3, 8, 8)
    with cpu_overrides(CPU):
        values, indices = F.max_pool2d(x, 2, return_indices=True)
        assert torch.equal(F.max_pool2d(x, kernel_size=(2, 2), stride=[2]), values)
        assert torch.equal(torch.max_pool2d(x, 2, []), values)
    assert indices.shape == values.shape and used == ["max_pool", "max_pool"]
    F.max_pool2d(x, 2)
    assert used == ["max_pool", "max_pool"], "used outside the context"


def test_without_nnpack_convolutions_are_torchs_own(used, monkeypatch):
    monkeypatch.setattr(torch, "_nnpack_available", lambda: False)
    _gradient(_teacher(), torch.rand(2, 1, 32, 32), torch.rand(2, 10), cpu_overrides(CPU))
    assert used == ["max_pool", "max_pool"]


def test_the_synthesizer_uses_the_overrides_unless_its_teacher_is_compiled(used):
    spec = InputSpec(shape=(1, 32, 32))
    Synthesizer(_teacher(), spec, synthesis_recipe(steps=2), seed=0).run(range(3))
    # The first batch has one gradient more, which shows that the teacher gives one.
    assert used == ["_FastInputGradient", "max_pool", "max_pool"] * 3
    compiled = Synthesizer(_teacher(), spec, synthesis_recipe(compile_teacher=True), seed=0)
    assert not isinstance(compiled._overrides, module._Overrides)


# ------------------------------------------------------------------------------- local response normalization


@pytest.mark.parametrize(
    ("shape", "channels_last"),
    [
        ((2, 9, 4, 5), False),
        ((2, 9, 4, 5), True),
        ((3, 2, 3, 3), False),
        ((1, 1, 2, 2), False),
        ((4, 6, 7), False),
        ((2, 7, 3, 2, 4), False),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_the_response_norm_is_as_exact_as_torchs(shape, channels_last, size):
    """Against float64, with values so large that the norm matters, windows at the edges and even sizes."""
    generator = torch.Generator().manual_seed(0)
    x, upstream = (10 * torch.randn(shape, generator=generator) for _ in range(2))
    if channels_last:
        x = x.to(memory_format=torch.channels_last)

    def both(x, context):
        x = x.clone().requires_grad_()
        with context:
            y = F.local_response_norm(x, size, alpha=0.3, k=1.5)
        return y.detach(), torch.autograd.grad(y, x, upstream.to(x.dtype))[0]

    truth = both(x.double(), torch.enable_grad())
    plain = both(x, torch.enable_grad())
    with cpu_overrides(CPU):
        assert F.local_response_norm(x.clone().requires_grad_(), size).grad_fn.name() == "_FastResponseNormBackward"
    for got, theirs, wanted in zip(both(x, cpu_overrides(CPU)), plain, truth, strict=True):
        limit = 2 * (theirs - wanted).abs().max() + 2e-7 * wanted.abs().max()
        assert (got - wanted).abs().max() <= limit


@pytest.mark.parametrize("case", [{"beta": 0.5}, {"dtype": torch.float64}, {"k": 0.0}])
def test_other_response_norms_are_torchs_own(case):
    case = dict(case)
    x = torch.rand(2, 6, 4, 4, dtype=case.pop("dtype", torch.float32)) + 0.5
    wanted = F.local_response_norm(x, 5, **case)
    with cpu_overrides(CPU):
        assert torch.equal(F.local_response_norm(x, 5, **case), wanted)


def test_a_model_with_response_norms_uses_the_faster_version(monkeypatch):
    calls = []
    version = module._FastResponseNorm.apply
    monkeypatch.setattr(module._FastResponseNorm, "apply", lambda *args: (calls.append(1), version(*args))[1])
    with cpu_overrides(CPU):
        AlexNetHalf().eval()(torch.rand(2, 3, 32, 32))
    assert len(calls) == 2
