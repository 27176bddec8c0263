"""Dirichlet rows with one concentration row each; numpy draws all of its rows from one concentration row."""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Bench
from zskd_fast import ops, reference

SHAPES = [(1_000_000, 10), (100_000, 1000)]
QUICK_SHAPES = [(2000, 10)]
SETTINGS = [1.0, 0.1]  # the beta that scales the concentrations
TURNS = 2  # a draw of the large shape takes seconds
PROVIDERS = ["zskd_fast", "torch Dirichlet", "numpy dirichlet"]
_FLOOR = 1e-3
_CHECKED_ROWS = 2000
Samples = Tensor | np.ndarray


@functools.lru_cache(maxsize=1)
def _concentration(shape: tuple[int, int], beta: float, device: str) -> Tensor:
    """Beta times a made-up class similarity, with the classes in turn."""
    rows, classes = shape
    similarity = torch.rand((classes, classes), generator=torch.Generator().manual_seed(0))
    similarity.fill_diagonal_(1.0)
    return (beta * (similarity[torch.arange(rows) % classes] + _FLOOR)).to(device)


def _call(provider: str, concentration: Tensor) -> Callable[[], Samples]:
    rows = len(concentration)
    if provider == "zskd_fast":
        ids = torch.arange(rows, device=concentration.device)
        return lambda: ops.dirichlet(concentration, ids, seed=1)
    if provider == "torch Dirichlet":
        # Validation would be one more pass over the samples.
        return torch.distributions.Dirichlet(concentration, validate_args=False).sample
    generator, alpha = np.random.default_rng(1), concentration[0].double().cpu().numpy()
    return lambda: generator.dirichlet(alpha, size=rows)


def _check(provider: str, drawn: Samples, concentration: Tensor) -> None:
    """Compare zskd_fast with the reference; for all providers check the simplex and the means."""
    samples = torch.as_tensor(drawn[:_CHECKED_ROWS]).double().cpu()
    alpha = concentration[:_CHECKED_ROWS].cpu()
    if provider == "zskd_fast":
        wanted = reference.dirichlet(alpha, torch.arange(len(alpha)), seed=1)
        # About one element in a million is accepted by only one of the two, since their rounding differs. It is then
        # drawn anew, which changes the whole row through the normalization.
        other = ~torch.isclose(samples, wanted.double(), rtol=1e-3, atol=1e-6).all(dim=1)
        assert other.double().mean() <= 5e-3, f"{other.sum()} of {len(other)} rows differ from the reference"
    alpha = (alpha[:1] if provider == "numpy dirichlet" else alpha).double().expand_as(samples)
    torch.testing.assert_close(samples.sum(dim=1), torch.ones(len(samples)).double(), rtol=1e-4, atol=0)
    total = alpha.sum(dim=1, keepdim=True)
    mean = alpha / total
    standard_error = (mean * (1 - mean) / (total + 1)).sum(dim=0).sqrt() / len(samples)
    deviation = ((samples.mean(dim=0) - mean.mean(dim=0)).abs() / standard_error).max()
    assert deviation < 6, f"the mean of a class is off by {deviation:.1f} standard errors"


def test_dirichlet(shape: tuple[int, int], setting: float, threads: int, provider: str, bench: Bench) -> None:
    concentration = _concentration(shape, setting, bench.device)
    bench(
        _call(provider, concentration),
        check=lambda samples: _check(provider, samples, concentration),
        op="dirichlet",
        setting=f"beta={setting:g}",
        provider=provider,
        shape="{}x{}".format(*shape),
        dtype="float64" if provider == "numpy dirichlet" else "float32",
        items=shape[0],
        # The concentrations are read, the samples are written.
        least_bytes=2 * concentration.numel() * concentration.element_size(),
    )
