"""One Adam step on a batch of impressions with the L1 prior and the clamp."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Bench
from zskd_fast import ops, reference

Update = Callable[[], None]
SHAPES = [(1000, 1, 32, 32), (10000, 1, 32, 32), (1000, 3, 32, 32)]
QUICK_SHAPES = [(16, 1, 8, 8)]
_BETAS, _EPS = (0.9, 0.999), 1e-8
_HYPER: dict[str, Any] = {"lr": 0.1, "betas": _BETAS, "eps": _EPS, "l1": 2e-3, "lo": 0.0, "hi": 1.0}


def _inputs(shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor]:
    """Return impressions and the gradient of their loss."""
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)
    return x.to(device), grad.to(device)


def _ours(x: Tensor, grad: Tensor) -> Update:
    moments, steps = (torch.zeros_like(x), torch.zeros_like(x)), itertools.count(1)
    return lambda: ops.impression_update_(x, grad, *moments, next(steps), **_HYPER)


def _adam(x: Tensor, grad: Tensor, **kind: bool) -> Update:
    """Return a step of torch.optim.Adam, with separate ops for the prior and the clamp."""
    optimizer = torch.optim.Adam([x.requires_grad_()], lr=_HYPER["lr"], betas=_BETAS, eps=_EPS, **kind)

    @torch.no_grad()
    def update() -> None:
        x.grad = torch.add(grad, x.sign(), alpha=_HYPER["l1"])
        optimizer.step()
        x.clamp_(_HYPER["lo"], _HYPER["hi"])

    return update


def _plain_update(
    x: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, correction1: Tensor, correction2: Tensor
) -> None:
    beta1, beta2 = _BETAS
    g = grad + _HYPER["l1"] * x.sign()
    exp_avg.lerp_(g, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    denominator = (exp_avg_sq / correction2).sqrt() + _EPS
    x.sub_(_HYPER["lr"] * (exp_avg / correction1) / denominator).clamp_(_HYPER["lo"], _HYPER["hi"])


@functools.lru_cache(maxsize=1)
def _compiled_update(shape: tuple[int, ...], threads: int) -> Any:
    torch._dynamo.reset()
    return torch.compile(_plain_update, dynamic=False)


def _compiled(x: Tensor, grad: Tensor) -> Update:
    """Return the same step in plain torch, through torch.compile."""
    moments, steps = (torch.zeros_like(x), torch.zeros_like(x)), itertools.count(1)
    step_of = _compiled_update(tuple(x.shape), torch.get_num_threads())

    def update() -> None:
        step = next(steps)
        # Tensors: with numbers every step would be compiled again.
        step_of(x, grad, *moments, *(torch.tensor(1 - beta**step, device=x.device) for beta in _BETAS))

    return update


_MAKERS: dict[str, Callable[[Tensor, Tensor], Update]] = {
    "zskd_fast": _ours,
    "Adam fused, prior, clamp": functools.partial(_adam, fused=True),
    "Adam foreach, prior, clamp": functools.partial(_adam, foreach=True),
    "torch.compile": _compiled,
}
PROVIDERS = list(_MAKERS)


def _check(provider: str, shape: tuple[int, ...], device: str) -> None:
    """Compare three steps with the reference in float64."""
    got, grad = _inputs(shape, device)
    x, moments = got.double(), (torch.zeros_like(got).double(), torch.zeros_like(got).double())
    update = _MAKERS[provider](got, grad)
    for step in (1, 2, 3):
        update()
        reference.impression_update_(x, grad.double(), *moments, step, **_HYPER)
    torch.testing.assert_close(got.detach().double(), x, rtol=0, atol=1e-4)


def test_impression_update(shape: tuple[int, ...], threads: int, provider: str, bench: Bench) -> None:
    if bench.is_first_turn:
        _check(provider, shape, bench.device)
    x, grad = _inputs(shape, bench.device)
    bench(
        _MAKERS[provider](x, grad),
        op="impression_update_",
        setting="l1 and clamp",
        provider=provider,
        shape="x".join(map(str, shape)),
        items=shape[0],
        # x and both moments are read and written, the gradient is read.
        least_bytes=7 * x.numel() * x.element_size(),
        count_traffic=provider != "torch.compile",
    )
