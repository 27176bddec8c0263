"""A copy into a warm buffer, far larger than the caches: the limit of an op that only moves bytes."""

import torch

from benchmarks.measure import Bench

SHAPES = [(64 * 1024 * 1024,)]
QUICK_SHAPES = [(1024 * 1024,)]


def test_copy(shape: tuple[int], threads: int, bench: Bench) -> None:
    source = torch.ones(shape, device=bench.device)
    target = torch.zeros_like(source)
    target.copy_(source)
    assert torch.equal(target, source)
    bench(
        lambda: target.copy_(source),
        op="copy",
        provider="torch",
        shape=str(shape[0]),
        items=shape[0],
        least_bytes=2 * source.numel() * source.element_size(),
    )
