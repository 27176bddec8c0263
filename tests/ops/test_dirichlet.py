"""dirichlet: the right distribution for any concentration; draws depend only on seed, id and concentration."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from zskd_fast import ops, reference
from zskd_fast.distributions import Dirichlet

ALPHAS = [1e-6, 1e-4, 1e-2, 0.1, 1.0, 10.0, 1e4]
DRAWS = 40_000


def log_beta_cdf(log_y: np.ndarray, a: float, b: float) -> np.ndarray:
    """P(Y <= y) for Y ~ Beta(a, b); where y underflows, its leading term y^a / (a B(a, b))."""
    with np.errstate(under="ignore", over="ignore"):
        y = np.exp(log_y)
        leading = np.exp(a * log_y - np.log(a) - scipy.special.betaln(a, b))
    return np.where(y < 1e-280, leading, scipy.stats.beta.cdf(y, a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_marginals_are_beta_by_kolmogorov_smirnov(alpha, dtype):
    """Compare the draws below 1/2, where log y is precise. A larger draw is 1 minus the other classes."""
    concentration = torch.tensor([alpha, 2 * alpha, 0.5 * alpha], dtype=dtype)
    log_y = ops.dirichlet(concentration, torch.arange(DRAWS), seed=11, log=True).double().numpy()
    for c, a in enumerate(concentration.double().tolist()):
        ordered = np.sort(log_y[:, c])
        cdf = log_beta_cdf(ordered, a, concentration.double().sum().item() - a)
        steps = np.arange(1, DRAWS + 1) / DRAWS
        below = ordered <= np.log(0.5)
        distance = np.maximum(np.abs(cdf - steps), np.abs(cdf - steps + 1 / DRAWS))[below].max(initial=0)
        assert distance <= 1.95 / np.sqrt(DRAWS), f"class {c}: KS distance {distance:.4f} (p < 0.001)"


@pytest.mark.parametrize("alpha", ALPHAS)
def test_mean_and_covariance(alpha):
    concentration = torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64) * alpha
    y = ops.dirichlet(concentration, torch.arange(DRAWS), seed=12).numpy()
    total = concentration.sum().item()
    mean = (concentration / total).numpy()
    covariance = (np.diag(mean) - np.outer(mean, mean)) / (total + 1)
    centered = y - mean
    products = centered[:, :, None] * centered[:, None, :]
    mean_error = centered.std(axis=0) / np.sqrt(DRAWS)
    covariance_error = products.std(axis=0) / np.sqrt(DRAWS)
    assert (np.abs(centered.mean(axis=0)) <= 4.5 * mean_error).all()
    assert (np.abs(products.mean(axis=0) - covariance) <= 4.5 * covariance_error).all()


@pytest.mark.parametrize("alpha", [1e-6, 1e-5, 1e-4])
def test_tiny_concentrations_give_one_hot_rows(alpha):
    """In the limit y is a one-hot vector: class c with probability alpha_c / sum alpha."""
    weights = torch.tensor([1.0, 2.0, 5.0])
    y = ops.dirichlet(weights * alpha, torch.arange(DRAWS), seed=13)
    assert y.isfinite().all()
    largest = y.max(dim=1)
    assert (largest.values > 0.99).float().mean() > 0.995
    counts = torch.bincount(largest.indices, minlength=3).numpy()
    assert scipy.stats.chisquare(counts, DRAWS * (weights / weights.sum()).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 7, 10, 31, 32, 33, 100, 511, 512, 513, 1000])
def test_rows_sum_to_one_and_match_the_reference(classes, dtype):
    alpha = torch.rand(23, classes, generator=torch.Generator().manual_seed(classes)) * 2 + 0.01
    alpha = alpha.to(dtype)
    y = ops.dirichlet(alpha, torch.arange(23), seed=1)
    want = reference.dirichlet(alpha, torch.arange(23), seed=1)
    eps = torch.finfo(dtype).eps
    assert y.dtype == dtype and (y >= 0).all()
    assert (y.double().sum(dim=1) - 1).abs().max() <= max(10 * eps, 0.5 * eps * classes**0.5)
    assert (y.double() - want.double()).abs().max() <= max(4 * eps, 1e-14)


def test_op_and_reference_agree_on_every_attempt():
    """Of the 200,000 Gamma variates, about ten thousand need the full acceptance test or another attempt."""
    alpha = torch.rand(2000, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.5 + 1e-3
    ids = torch.arange(2000) * 7 + 2**33
    got = ops.dirichlet(alpha, ids, seed=2**62 + 5, log=True)
    want = reference.dirichlet(alpha, ids, seed=2**62 + 5, log=True)
    assert ((got - want).abs() / want.abs()).max() <= 1e-12


def test_log_is_finite_where_the_draw_underflows():
    concentration = torch.full((10,), 1e-3)
    ids = torch.arange(500)
    log_y, y = (ops.dirichlet(concentration, ids, seed=3, log=log) for log in (True, False))
    assert log_y.isfinite().all() and (y == 0).any() and (log_y < -200).any()
    visible = y > 1e-30
    assert (log_y.exp() - y)[visible].abs().max() <= 1e-6


@pytest.mark.parametrize("classes", [10, 600])
def test_a_row_depends_only_on_seed_id_and_concentration(classes):
    alpha = torch.rand(300, classes, generator=torch.Generator().manual_seed(0)) + 0.05
    ids = torch.arange(5000, 5300)
    whole = ops.dirichlet(alpha, ids, seed=9)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ops.dirichlet(alpha[order], ids[order], seed=9), whole[order])
    for i in (0, 7, 299):
        assert torch.equal(ops.dirichlet(alpha[i], ids[i : i + 1], seed=9), whole[i : i + 1])
    assert not torch.equal(ops.dirichlet(alpha, ids, seed=10), whole)
    assert not (ops.dirichlet(alpha, ids + 2**32, seed=9) == whole).all(dim=1).any()


@pytest.mark.parametrize("classes", [10, 600])
def test_same_bits_for_every_thread_count(classes):
    alpha, ids = torch.full((classes,), 0.3), torch.arange(4000)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.dirichlet(alpha, ids, seed=0))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_rows_of_different_ids_are_uncorrelated():
    y = ops.dirichlet(torch.ones(3), torch.arange(DRAWS), seed=5)[:, 0].numpy()
    assert abs(np.corrcoef(y[:-1], y[1:])[0, 1]) < 4 / np.sqrt(DRAWS)


def test_layouts_give_the_same_bits():
    alpha = torch.rand(20, 6, generator=torch.Generator().manual_seed(0)) + 0.1
    ids = torch.arange(20)
    want = ops.dirichlet(alpha, ids, seed=0)
    assert torch.equal(ops.dirichlet(alpha.t().contiguous().t(), ids, seed=0), want)
    assert torch.equal(ops.dirichlet(torch.cat([alpha, alpha], dim=1)[:, :6], ids, seed=0), want)
    assert torch.equal(ops.dirichlet(alpha, torch.arange(40)[::2] // 2, seed=0), want)


def test_empty_batch():
    assert ops.dirichlet(torch.ones(4), torch.empty(0, dtype=torch.int64), seed=0).shape == (0, 4)
    assert ops.dirichlet(torch.ones(0, 4), torch.empty(0, dtype=torch.int64), seed=0).shape == (0, 4)


def test_opcheck_and_compile():
    alpha, ids = torch.rand(5, 4) + 0.1, torch.arange(5)
    torch.library.opcheck(torch.ops.zskd_fast.dirichlet.default, (alpha, ids, 3, False))
    compiled = torch.compile(lambda a, i: ops.dirichlet(a, i, seed=3) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(alpha, ids), ops.dirichlet(alpha, ids, seed=3) * 2)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["dense", "strided"])
def test_error_names_the_place_of_an_invalid_concentration(bad, dtype, layout):
    """The first of two bad rows is named; what lies between strided rows does not count."""
    alpha = torch.ones(3000, 10, dtype=dtype) if layout == "dense" else torch.zeros(3000, 12, dtype=dtype)[:, :10]
    alpha[:] = 1
    alpha[1234, 7] = alpha[1240, 0] = bad
    with pytest.raises(ValueError, match=r"dirichlet: concentration\[1234, 7\] is .*, wanted a finite number"):
        ops.dirichlet(alpha, torch.arange(3000), seed=0)


@pytest.mark.parametrize(
    ("concentration", "ids", "seed", "error", "message"),
    [
        (torch.ones(2, 3), torch.arange(4), 0, ValueError, "concentration has 2 rows, wanted 4 as ids"),
        (torch.ones(()), torch.arange(4), 0, ValueError, r"wanted \[K\] or \[N, K\]"),
        (torch.ones(3), torch.arange(4).int(), 0, TypeError, "ids is Int, wanted int64"),
        (torch.ones(3), torch.arange(4), -1, ValueError, "seed is -1, wanted 0 or more"),
        (torch.ones(3), torch.arange(4), 2**63, ValueError, r"seed is 9223372036854775808, wanted 0 to 2\^63 - 1"),
        (torch.ones(1).expand(2**32 + 1), torch.arange(0), 0, ValueError, r"wanted at most 2\^32 classes"),
        (torch.ones(3).int(), torch.arange(4), 0, TypeError, "concentration is Int, wanted float32"),
        (torch.ones(3, requires_grad=True), torch.arange(4), 0, ValueError, "not differentiable"),
    ],
)
def test_errors_name_the_bad_argument(concentration, ids, seed, error, message):
    with pytest.raises(error, match=message):
        ops.dirichlet(concentration, ids, seed=seed)


def test_distribution_is_a_drop_in():
    concentration = torch.tensor([[0.5, 1.0, 3.0], [2.0, 2.0, 2.0]])
    ours, torchs = Dirichlet(concentration), torch.distributions.Dirichlet(concentration)
    torch.manual_seed(0)
    first = ours.sample((5, 4))
    torch.manual_seed(0)
    assert torch.equal(ours.sample((5, 4)), first)
    assert not torch.equal(ours.sample((5, 4)), first)
    assert first.shape == torchs.sample((5, 4)).shape == (5, 4, 2, 3)
    assert torch.equal(ours.log_prob(first), torchs.log_prob(first))
    ids = torch.arange(2)
    assert torch.equal(ours.sample_ids(ids, seed=7), ops.dirichlet(concentration, ids, seed=7))
