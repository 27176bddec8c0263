"""philox: the published random words, and variates that depend only on seed, id and stream."""

import numpy as np
import pytest
import scipy.stats
import torch

from zskd_fast import ops, reference
from zskd_fast.reference.philox import philox4x32_10

# Known answers of philox4x32-10: kat_vectors of Random123, the library of its authors.
PUBLISHED = [
    ([0x00000000] * 4, [0x00000000] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "want"), PUBLISHED)
def test_reference_gives_the_published_words(counter, key, want):
    got = philox4x32_10(np.array(counter, dtype=np.uint64), np.array(key, dtype=np.uint64))
    assert got.tolist() == want


def test_op_uses_the_words_of_the_reference_for_extreme_ids_seeds_and_streams():
    """A float64 uniform variate has all 32 bits of its word."""
    ids = torch.tensor([0, 1, 2**31, 2**40 + 7, -1])
    for seed in (0, 2**32, 2**63 - 1):
        for stream in (0, 5, 2**28 - 1):
            got = ops.philox(ids, 1001, seed=seed, stream=stream, dtype=torch.float64)
            want = reference.philox(ids, 1001, seed=seed, stream=stream, dtype=torch.float64)
            assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_variates_match_the_reference(distribution, dtype):
    ids = torch.arange(500)
    got = ops.philox(ids, 37, seed=3, stream=9, distribution=distribution, dtype=dtype)
    want = reference.philox(ids, 37, seed=3, stream=9, distribution=distribution, dtype=dtype)
    assert got.dtype == dtype
    assert (got - want).abs().max() <= 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_a_row_depends_only_on_seed_id_and_stream(distribution):
    ids = torch.arange(1000, 1300)
    whole = ops.philox(ids, 21, seed=1, stream=2, distribution=distribution)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ops.philox(ids[order], 21, seed=1, stream=2, distribution=distribution), whole[order])
    assert torch.equal(ops.philox(ids[7:8], 21, seed=1, stream=2, distribution=distribution), whole[7:8])
    longer = ops.philox(ids, 600, seed=1, stream=2, distribution=distribution)
    assert torch.equal(longer[:, :21], whole)
    assert torch.equal(
        ops.philox(torch.arange(1000, 1600)[::2], 21, seed=1, stream=2, distribution=distribution)[:5],
        ops.philox(ids[:10:2].contiguous(), 21, seed=1, stream=2, distribution=distribution),
    )


def test_seed_id_and_stream_all_matter():
    draw = ops.philox(torch.tensor([5]), 8, seed=1, stream=2)
    for other in (
        ops.philox(torch.tensor([6]), 8, seed=1, stream=2),
        ops.philox(torch.tensor([5 + 2**32]), 8, seed=1, stream=2),
        ops.philox(torch.tensor([5]), 8, seed=2, stream=2),
        ops.philox(torch.tensor([5]), 8, seed=1 + 2**32, stream=2),
        ops.philox(torch.tensor([5]), 8, seed=1, stream=3),
    ):
        assert not (draw == other).any()


def test_variates_have_the_right_distribution():
    ids = torch.arange(2000)
    uniform = ops.philox(ids, 100, seed=4, stream=0).flatten().numpy()
    normal = ops.philox(ids, 100, seed=4, stream=1, distribution="normal").flatten().numpy()
    assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert scipy.stats.kstest(normal, "norm").pvalue > 1e-3
    lagged = np.corrcoef(normal[:-1], normal[1:])[0, 1]
    assert abs(lagged) < 4 / np.sqrt(normal.size)


def test_same_bits_for_every_thread_count():
    ids = torch.arange(4000)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.philox(ids, 50, seed=0, stream=0, distribution="normal"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_no_ids_and_no_variates():
    assert ops.philox(torch.empty(0, dtype=torch.int64), 5, seed=0, stream=0).shape == (0, 5)
    assert ops.philox(torch.arange(3), 0, seed=0, stream=0).shape == (3, 0)


def test_opcheck_and_compile():
    ids = torch.arange(6)
    arguments = (ids, 5, 1, 2, "normal", torch.float32)
    torch.library.opcheck(torch.ops.zskd_fast.philox.default, arguments)
    compiled = torch.compile(lambda i: ops.philox(i, 5, seed=1, stream=2) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(ids), ops.philox(ids, 5, seed=1, stream=2) + 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ids": torch.zeros(2)}, TypeError, "ids is Float, wanted int64"),
        ({"ids": torch.zeros(2, 2, dtype=torch.int64)}, ValueError, r"ids has shape \[2, 2\], wanted \[N\]"),
        ({"count": -1}, ValueError, "count is -1"),
        ({"seed": -1}, ValueError, "seed is -1, wanted 0 or more"),
        ({"seed": 2**63}, ValueError, r"philox: seed is 9223372036854775808, wanted 0 to 2\^63 - 1"),
        ({"stream": 2**28}, ValueError, "stream is 268435456"),
        ({"distribution": "cauchy"}, ValueError, "distribution is 'cauchy', wanted uniform or normal"),
        ({"dtype": torch.float16}, TypeError, "dtype is Half, wanted float32 or float64"),
    ],
)
def test_errors_name_the_bad_argument(arguments, error, message):
    good = {"ids": torch.arange(2), "count": 3, "seed": 0, "stream": 0}
    with pytest.raises(error, match=message):
        ops.philox(**{**good, **arguments})
