"""The teacher's forward and backward pass, most of a synthesis, under what torch offers to make it faster."""

import concurrent.futures
import copy
import functools

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from benchmarks import machine
from benchmarks.measure import Bench
from zskd_fast import ops
from zskd_fast.models import AlexNet, LeNet5
from zskd_fast.models.cpu_overrides import fast_calls

THREADS = [machine.all_threads()]
_BATCH = 100


class ConvNet(nn.Sequential):
    """Five 3x3 convolutions, each with batch normalisation: what folding is for; the paper has no such teacher."""

    def __init__(self):
        layers, inputs = [], 3
        for outputs, pool in ((32, False), (32, True), (64, False), (64, True), (128, False)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            layers += [nn.MaxPool2d(2)] if pool else []
            inputs = outputs
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


_TEACHERS = {
    "LeNet-5": (LeNet5, (1, 32, 32)),
    "AlexNet": (AlexNet, (3, 32, 32)),
    "conv-bn": (ConvNet, (3, 32, 32)),
}
SETTINGS = list(_TEACHERS)
QUICK_SETTINGS = ["LeNet-5"]
PROVIDERS = [
    "frozen",
    "fast_calls",
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


def _teacher(setting):
    make, shape = _TEACHERS[setting]
    torch.manual_seed(0)
    return make().eval().requires_grad_(False), shape


@functools.lru_cache(maxsize=1)
def _compiled(setting):
    torch._dynamo.reset()
    return torch.compile(_teacher(setting)[0], dynamic=False)


def _prepared(setting, provider):
    teacher, _ = _teacher(setting)
    if provider == "compile_teacher":
        return _compiled(setting)
    if provider in ("fold_batch_norm", "both"):
        teacher = fuse(copy.deepcopy(teacher)).requires_grad_(False)
    if provider in ("channels_last", "both"):
        teacher = teacher.to(memory_format=torch.channels_last)
    return teacher.requires_grad_(provider == "weights require gradients")


def _batch_size(provider):
    return int(provider.removeprefix("batch ")) if provider.startswith("batch ") else _BATCH


def _inputs(setting, batch, device):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((batch, *_TEACHERS[setting][1]), generator=generator).to(device).requires_grad_()
    return x, torch.rand((batch, 10), generator=generator).softmax(dim=1).to(device)


def _gradient(teacher, x, target):
    logits = teacher(x)
    _, grad = ops.soft_cross_entropy_value_and_grad(logits, target, 20.0)
    if any(parameter.requires_grad for parameter in teacher.parameters()):
        x.grad = None
        logits.backward(grad)  # as the public loops do: the weights get a gradient that nobody reads
        return x.grad
    return torch.autograd.grad(logits, x, grad)[0]


def _with_fast_calls(teacher, x, target):
    with fast_calls(x.device):
        logits = teacher(x)
    _, grad = ops.soft_cross_entropy_value_and_grad(logits, target, 20.0)
    return torch.autograd.grad(logits, x, grad)[0]


def _without_onednn(teacher, x, target):
    with torch.backends.mkldnn.flags(enabled=False):
        return _gradient(teacher, x, target)


def _two_at_once(teacher, x, target):
    """Half of the batch in each of two Python threads, each with half of the cores."""
    halves = [
        (half.detach().requires_grad_(), rows) for half, rows in zip(x.chunk(2), target.chunk(2), strict=True)
    ]
    return torch.cat(list(_pool().map(lambda half: _gradient(teacher, *half), halves)))


@functools.cache
def _pool():
    each = max(1, machine.all_threads() // 2)
    return concurrent.futures.ThreadPoolExecutor(2, initializer=lambda: torch.set_num_threads(each))


def _check(grad, wanted):
    """In the mean: where rounding moves a value over a ReLU's or a max-pool's edge, single pixels may differ more."""
    error = (grad - wanted).norm() / wanted.norm()
    assert error < 1e-2, f"the gradient differs by {error:.1e}: an option must not change the impressions"


def test_teacher(setting, provider, threads, bench: Bench):
    batch = _batch_size(provider)
    x, target = _inputs(setting, batch, bench.device)
    teacher = _prepared(setting, provider).to(bench.device)
    step = {
        "fast_calls": _with_fast_calls,
        "without oneDNN": _without_onednn,
        "two batches at once": _two_at_once,
    }.get(provider, _gradient)
    bench(
        lambda: step(teacher, x, target),
        check=lambda grad: _check(grad, _gradient(_teacher(setting)[0].to(bench.device), x, target)),
        op="teacher",
        setting=setting,
        provider=provider,
        shape="x".join(map(str, _TEACHERS[setting][1])),
        items=batch,
    )
