"""Dead-leaves images at the sizes of the start noise and of the fresh noise in a batch."""

import torch
from torch import Tensor

from benchmarks.measure import Bench
from zskd_fast import ops, reference

SHAPES = [(64, 10, 1, 32, 32), (64, 10, 3, 32, 32)]
QUICK_SHAPES = [(3, 4, 3, 8, 8)]
_PAINTERS = {"zskd_fast": ops.dead_leaves, "torch": reference.dead_leaves}
PROVIDERS = list(_PAINTERS)


def test_dead_leaves(shape: tuple[int, ...], threads: int, provider: str, bench: Bench) -> None:
    images, count, channels, height, width = shape
    leaves = torch.randn(images, count, 5 + channels, generator=torch.Generator().manual_seed(0)).to(bench.device)
    wanted = reference.dead_leaves(leaves, height, width)

    def check(image: Tensor) -> None:
        torch.testing.assert_close(image, wanted, rtol=0, atol=0)

    bench(
        lambda: _PAINTERS[provider](leaves, height, width),
        op="dead_leaves",
        setting="paint",
        provider=provider,
        shape="x".join(map(str, shape)),
        items=images,
        least_bytes=wanted.numel() * wanted.element_size(),
        check=check,
    )
