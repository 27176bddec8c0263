"""Common parts of the benchmarks of the two row losses: inputs, calls and the check against float64."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

SHAPES = [(100, 10), (65536, 10), (65536, 100), (65536, 1000), (4096, 32000)]
QUICK_SHAPES = [(64, 10)]
# Rows whose gradient is compared; a float64 gradient of every row would need gigabytes.
_CHECKED_ROWS = 256

Loss = Callable[..., Tensor]
Call = Callable[[], tuple[Tensor, Tensor]]


@functools.lru_cache(maxsize=1)
def inputs(shape: tuple[int, int], device: str) -> tuple[Tensor, Tensor]:
    """Return logits [N, K] that require grad and constant logits [N, K]."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator).mul_(3).to(device) for _ in range(2))
    return left.requires_grad_(), right


@functools.lru_cache(maxsize=1)
def probabilities(shape: tuple[int, int], device: str) -> Tensor:
    """Return soft targets [N, K]."""
    return inputs(shape, device)[1].softmax(dim=1)


@functools.lru_cache(maxsize=1)
def compiled(loss: Loss, shape: tuple[int, int], threads: int) -> Loss:
    """Return ``loss`` through torch.compile, for one shape; the compiled code fixes the number of threads."""
    torch._dynamo.reset()
    return torch.compile(loss, dynamic=False)


def forward_backward(loss: Loss, logits: Tensor, constant: Tensor, temperature: float) -> Call:
    """Return a call that computes a loss and its gradient through autograd, into new memory."""

    def call() -> tuple[Tensor, Tensor]:
        value = loss(logits, constant, temperature)
        return value.detach(), torch.autograd.grad(value, logits)[0]

    return call


def check(got: tuple[Tensor, Tensor], reference: Loss, logits: Tensor, constant: Tensor, temperature: float) -> None:
    """Compare the mean loss, and the gradient of some rows, with the reference in float64."""
    value, grad = got
    n = len(logits)
    sums = [
        reference(rows.double(), constants.double(), temperature, reduction="sum")
        for rows, constants in zip(logits.detach().split(1024), constant.split(1024), strict=True)
    ]
    torch.testing.assert_close(value.double(), torch.stack(sums).sum() / n, rtol=1e-4, atol=0)
    some = torch.linspace(0, n - 1, min(n, _CHECKED_ROWS), device=logits.device).long()
    rows = logits.detach()[some].double().requires_grad_()
    loss = reference(rows, constant[some].double(), temperature, reduction="sum")
    wanted = torch.autograd.grad(loss, rows)[0]
    error = (grad[some].double() * n - wanted).abs().max() / wanted.abs().max()
    assert error <= 1e-4, f"the gradient is off by {error:.1e} of its largest element"
