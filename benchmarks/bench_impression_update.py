"""One Adam step on a batch of impressions with the L1 prior and the clamp."""

import functools

import torch

from benchmarks.measure import Bench
from zskd_fast import ops, reference

SHAPES = [(1000, 1, 32, 32), (10000, 1, 32, 32), (1000, 3, 32, 32)]
QUICK_SHAPES = [(16, 1, 8, 8)]
_BETAS, _EPS = (0.9, 0.999), 1e-8
_HYPER = {"lr": 0.1, "betas": _BETAS, "eps": _EPS, "l1": 2e-3, "lo": 0.0, "hi": 1.0}


def _inputs(shape, device):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator).to(device), torch.randn(shape, generator=generator).to(
        device
    )


class _Ours:
    """The op, on moments that the caller keeps."""

    def __init__(self, x, grad):
        self.x, self.grad = x, grad
        self.moments = torch.zeros_like(x), torch.zeros_like(x)
        self.step = 0

    def __call__(self):
        self.step += 1
        ops.impression_update_(self.x, self.grad, *self.moments, self.step, **_HYPER)


class _Torch:
    """torch.optim.Adam, and the prior and the clamp as ops of their own."""

    def __init__(self, x, grad, **kind):
        self.x, self.loss_grad = x.requires_grad_(), grad
        self.optimizer = torch.optim.Adam([self.x], lr=_HYPER["lr"], betas=_BETAS, eps=_EPS, **kind)

    @torch.no_grad()
    def __call__(self):
        self.x.grad = torch.add(self.loss_grad, self.x.sign(), alpha=_HYPER["l1"])
        self.optimizer.step()
        self.x.clamp_(_HYPER["lo"], _HYPER["hi"])


def _plain_update(x, grad, exp_avg, exp_avg_sq, correction1, correction2):
    beta1, beta2 = _BETAS
    g = grad + _HYPER["l1"] * x.sign()
    exp_avg.lerp_(g, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    denominator = (exp_avg_sq / correction2).sqrt() + _EPS
    x.sub_(_HYPER["lr"] * (exp_avg / correction1) / denominator).clamp_(_HYPER["lo"], _HYPER["hi"])


@functools.lru_cache(maxsize=1)
def _compiled_update(shape, threads):
    torch._dynamo.reset()
    return torch.compile(_plain_update, dynamic=False)


class _Compiled(_Ours):
    """The same lines of plain torch, fused by torch.compile."""

    def __init__(self, x, grad):
        super().__init__(x, grad)
        self.update = _compiled_update(tuple(x.shape), torch.get_num_threads())

    def __call__(self):
        self.step += 1
        # As tensors, or every step would be compiled anew.
        corrections = [torch.tensor(1 - beta**self.step, device=self.x.device) for beta in _BETAS]
        self.update(self.x, self.grad, *self.moments, *corrections)


_MAKERS = {
    "zskd_fast": _Ours,
    "Adam fused, prior, clamp": functools.partial(_Torch, fused=True),
    "Adam foreach, prior, clamp": functools.partial(_Torch, foreach=True),
    "torch.compile": _Compiled,
}
PROVIDERS = list(_MAKERS)


def _check(provider, shape, device):
    """Three steps against the reference in float64."""
    update = _MAKERS[provider](*_inputs(shape, device))
    x, grad = (tensor.double() for tensor in _inputs(shape, device))
    moments = torch.zeros_like(x), torch.zeros_like(x)
    for step in (1, 2, 3):
        update()
        reference.impression_update_(x, grad, *moments, step, **_HYPER)
    torch.testing.assert_close(update.x.detach().double(), x, rtol=0, atol=1e-4)


def test_impression_update(shape, threads, provider, bench: Bench):
    if bench.is_first_turn:
        _check(provider, shape, bench.device)
    update = _MAKERS[provider](*_inputs(shape, bench.device))
    bench(
        update,
        op="impression_update_",
        setting="l1 and clamp",
        provider=provider,
        shape="x".join(map(str, shape)),
        items=shape[0],
        # x and both moments are read and written, the gradient is read.
        least_bytes=7 * update.x.numel() * update.x.element_size(),
        count_traffic=provider != "torch.compile",
    )
