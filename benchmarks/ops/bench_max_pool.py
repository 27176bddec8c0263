"""2x2 max-pooling at the two sizes of a LeNet-5, forward and backward."""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Bench
from zskd_fast import ops, reference

SHAPES = [(100, 6, 28, 28), (100, 16, 10, 10)]
QUICK_SHAPES = [(2, 3, 8, 8)]
_POOLS = {"zskd_fast": ops.max_pool, "F.max_pool2d": lambda x: F.max_pool2d(x, 2)}
PROVIDERS = list(_POOLS)


def test_max_pool(shape: tuple[int, ...], threads: int, provider: str, bench: Bench) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(bench.device).requires_grad_()
    upstream = torch.ones_like(reference.max_pool(x))
    wanted = torch.autograd.grad(reference.max_pool(x), x, upstream)[0]

    def check(grad: Tensor) -> None:
        torch.testing.assert_close(grad, wanted, rtol=0, atol=0)

    bench(
        lambda: torch.autograd.grad(_POOLS[provider](x), x, upstream)[0],
        op="max_pool",
        setting="forward and backward",
        provider=provider,
        shape="x".join(map(str, shape)),
        items=shape[0],
        # Forward reads x and writes a quarter of it; backward reads the quarter and writes the gradient of x.
        least_bytes=x.numel() * x.element_size() * 5 // 2,
        check=check,
    )
