"""Inputs and comparisons that the tests of the two row losses share."""

from collections.abc import Callable

import torch

CLASSES = [1, 2, 3, 7, 10, 31, 32, 33, 100, 1000]
TEMPERATURES = [1.0, 4.0, 20.0]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of(
    rows: int, classes: int, dtype: torch.dtype = torch.float32, *, scale: float = 8.0, seed: int = 0
) -> torch.Tensor:
    return (torch.randn(rows, classes, generator=generator(seed)) * scale).to(dtype)


def targets_of(rows: int, classes: int, dtype: torch.dtype = torch.float32, *, seed: int = 1) -> torch.Tensor:
    return torch.softmax(torch.randn(rows, classes, generator=generator(seed)) * 3, dim=1).to(dtype)


def value_and_grad(
    loss_fn: Callable[..., torch.Tensor],
    logits: torch.Tensor,
    other: torch.Tensor,
    temperature: float,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss and the gradient of its sum with respect to the logits."""
    leaf = logits.detach().clone().requires_grad_()
    loss = loss_fn(leaf, other, temperature, reduction=reduction)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), grad


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float, what: str) -> None:
    """Assert that the largest error, relative to the largest wanted value, is within the tolerance. A NaN fails."""
    error = (got.double() - want.double()).abs().max().item()
    size = want.double().abs().max().item()
    assert error <= tolerance * max(size, 1e-30), f"{what}: error {error:.3g} of {size:.3g}, allowed {tolerance:.3g}"


def layouts(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the same values in the memory layouts that a caller may use."""
    rows, classes = matrix.shape
    wide = torch.full((rows, 3 * classes), torch.nan, dtype=matrix.dtype)
    wide[:, ::3] = matrix
    padded = torch.full((2 * rows, classes + 5), torch.nan, dtype=matrix.dtype)
    padded[::2, 2 : 2 + classes] = matrix
    return {
        "contiguous": matrix,
        "transposed": matrix.t().contiguous().t(),
        "strided columns": wide[:, ::3],
        "slice of a larger matrix": padded[::2, 2 : 2 + classes],
        "offset storage": torch.cat([torch.zeros(1, classes, dtype=matrix.dtype), matrix])[1:],
    }
