"""Dirichlet rows, one concentration row for each; numpy draws all of its rows from one concentration row."""

import functools

import numpy as np
import torch

from benchmarks.measure import Bench
from zskd_fast import ops, reference

SHAPES = [(1_000_000, 10), (100_000, 1000)]
QUICK_SHAPES = [(2000, 10)]
SETTINGS = [1.0, 0.1]  # the beta that scales the concentrations
TURNS = 2  # a draw of the large shape takes seconds
PROVIDERS = ["zskd_fast", "torch Dirichlet", "numpy dirichlet"]
_FLOOR = 1e-3
_CHECKED_ROWS = 2000


@functools.lru_cache(maxsize=1)
def _concentration(shape, beta, device):
    """Like that of a teacher: beta times a class similarity, of the classes in turn."""
    rows, classes = shape
    similarity = torch.rand((classes, classes), generator=torch.Generator().manual_seed(0)).fill_diagonal_(
        1.0
    )
    return (beta * (similarity[torch.arange(rows) % classes] + _FLOOR)).to(device)


def _call(provider, concentration):
    rows = len(concentration)
    if provider == "zskd_fast":
        ids = torch.arange(rows, device=concentration.device)
        return lambda: ops.dirichlet(concentration, ids, seed=1)
    if provider == "torch Dirichlet":
        # Without validation, which would be a pass more over the samples.
        return torch.distributions.Dirichlet(concentration, validate_args=False).sample
    generator, alpha = np.random.default_rng(1), concentration[0].double().cpu().numpy()
    return lambda: generator.dirichlet(alpha, size=rows)


def _check(provider, samples, concentration):
    """Our rows are those of the reference; anybody's rows lie on the simplex and have the right means."""
    samples = torch.as_tensor(samples[:_CHECKED_ROWS]).double().cpu()
    alpha = concentration[:_CHECKED_ROWS].cpu()
    if provider == "zskd_fast":
        wanted = reference.dirichlet(alpha, torch.arange(len(alpha)), seed=1)
        # About one element in a million is accepted by the one and not by the other, whose rounding differs, and is
        # another draw from there on, which moves the rest of its row a little.
        other = ~torch.isclose(samples, wanted.double(), rtol=1e-3, atol=1e-6).all(dim=1)
        assert other.double().mean() <= 5e-3, f"{other.sum()} of {len(other)} rows are not the reference's"
    alpha = (alpha[:1] if provider == "numpy dirichlet" else alpha).double().expand_as(samples)
    torch.testing.assert_close(samples.sum(dim=1), torch.ones(len(samples)).double(), rtol=1e-4, atol=0)
    total = alpha.sum(dim=1, keepdim=True)
    mean = alpha / total
    standard_error = (mean * (1 - mean) / (total + 1)).sum(dim=0).sqrt() / len(samples)
    deviation = ((samples.mean(dim=0) - mean.mean(dim=0)).abs() / standard_error).max()
    assert deviation < 6, f"the mean of a class is {deviation:.1f} standard errors off"


def test_dirichlet(shape, setting, threads, provider, bench: Bench):
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
