"""The teacher's forward and backward pass, most of a synthesis, with the options of torch that may speed it up."""

import concurrent.futures
import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from benchmarks import machine
from benchmarks.measure import Bench
from zskd_fast import ops
from zskd_fast.models import AlexNet, LeNet5
from zskd_fast.models.cpu_overrides import cpu_overrides

THREADS = [machine.all_threads()]
_BATCH = 100


class ConvNet(nn.Sequential):
    """Five 3x3 convolutions, each with a batch normalization that can be folded; not a teacher of the paper."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        inputs = 3
        for outputs, pool in ((32, False), (32, True), (64, False), (64, True), (128, False)):
            conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(), *([nn.MaxPool2d(2)] if pool else [])]
            inputs = outputs
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


_TEACHERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "LeNet-5": (LeNet5, (1, 32, 32)),
    "AlexNet": (AlexNet, (3, 32, 32)),
    "conv-bn": (ConvNet, (3, 32, 32)),
}
SETTINGS = list(_TEACHERS)
QUICK_SETTINGS = ["LeNet-5"]
_OVERRIDES = "fast_calls"  # the name of `cpu_overrides` in results.csv
PROVIDERS = [
    "frozen",
    _OVERRIDES,
    "weights require gradients",
    "batch 25",
    "batch 400",
    "channels_last",
    "fold_batch_norm",
    "both",
    "without oneDNN",
    "compile_teacher",
    "two batches at once",
]
QUICK_PROVIDERS = ["frozen", "batch 25"]


def _teacher(setting: str) -> nn.Module:
    torch.manual_seed(0)
    return _TEACHERS[setting][0]().eval().requires_grad_(False)


@functools.lru_cache(maxsize=1)
def _compiled(setting: str) -> Any:
    torch._dynamo.reset()
    return torch.compile(_teacher(setting), dynamic=False)


def _prepared(setting: str, provider: str) -> Any:
    if provider == "compile_teacher":
        return _compiled(setting)
    teacher: Any = _teacher(setting)
    if provider in ("fold_batch_norm", "both"):
        teacher = fuse(copy.deepcopy(teacher)).requires_grad_(False)
    if provider in ("channels_last", "both"):
        teacher = teacher.to(memory_format=torch.channels_last)
    return teacher.requires_grad_(provider == "weights require gradients")


def _inputs(shape: tuple[int, ...], batch: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((batch, *shape), generator=generator).to(device).requires_grad_()
    return x, torch.rand((batch, 10), generator=generator).softmax(dim=1).to(device)


def _gradient(teacher: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    logits = teacher(x)
    _, grad = ops.soft_cross_entropy_value_and_grad(logits, target, 20.0)
    if any(parameter.requires_grad for parameter in teacher.parameters()):
        x.grad = None
        logits.backward(grad)  # as in the public loops: the weights get a gradient that is not used
        assert x.grad is not None
        return x.grad
    return torch.autograd.grad(logits, x, grad)[0]


def _with_overrides(teacher: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    with cpu_overrides(x.device):
        logits = teacher(x)
    _, grad = ops.soft_cross_entropy_value_and_grad(logits, target, 20.0)
    return torch.autograd.grad(logits, x, grad)[0]


def _without_onednn(teacher: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    with torch.backends.mkldnn.flags(enabled=False):
        return _gradient(teacher, x, target)


def _two_at_once(teacher: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Half of the batch in each of two Python threads, each with half of the cores."""
    halves = zip([half.detach().requires_grad_() for half in x.chunk(2)], target.chunk(2), strict=True)
    return torch.cat(list(_pool().map(lambda half: _gradient(teacher, *half), halves)))


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    each = max(1, machine.all_threads() // 2)
    return concurrent.futures.ThreadPoolExecutor(2, initializer=lambda: torch.set_num_threads(each))


_STEPS = {_OVERRIDES: _with_overrides, "without oneDNN": _without_onednn, "two batches at once": _two_at_once}


def _check(grad: Tensor, wanted: Tensor) -> None:
    """Compare in the mean: single pixels differ more where rounding changes which side of a ReLU a value is on."""
    error = (grad - wanted).norm() / wanted.norm()
    assert error < 1e-2, f"the gradient differs by {error:.1e}; an option must not change the impressions"


def test_teacher(setting: str, provider: str, threads: int, bench: Bench) -> None:
    batch = int(provider.removeprefix("batch ")) if provider.startswith("batch ") else _BATCH
    shape = _TEACHERS[setting][1]
    x, target = _inputs(shape, batch, bench.device)
    teacher, step = _prepared(setting, provider).to(bench.device), _STEPS.get(provider, _gradient)
    bench(
        lambda: step(teacher, x, target),
        check=lambda grad: _check(grad, _gradient(_teacher(setting).to(bench.device), x, target)),
        op="teacher",
        setting=setting,
        provider=provider,
        shape="x".join(map(str, shape)),
        items=batch,
    )
