"""The gradient of the total-variation prior on a batch of impressions, in both layouts of color images."""

import torch
from torch import Tensor

from benchmarks.measure import Bench
from zskd_fast import ops, reference

SHAPES = [(100, 1, 32, 32), (100, 3, 32, 32), (100, 32, 32, 3)]
QUICK_SHAPES = [(3, 3, 8, 8)]
_ADDERS = {"zskd_fast": ops.total_variation_grad_, "torch": reference.total_variation_grad_}
PROVIDERS = list(_ADDERS)
_WEIGHT = 2e-3


def test_total_variation_grad(shape: tuple[int, ...], threads: int, provider: str, bench: Bench) -> None:
    channels_last = shape[-1] == 3
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.rand(shape, generator=generator).to(bench.device) for _ in range(2))
    if channels_last:
        x, grad = x.permute(0, 3, 1, 2), grad.permute(0, 3, 1, 2)
    wanted, checked = grad.double(), grad.clone()
    reference.total_variation_grad_(wanted, x.double(), _WEIGHT)
    _ADDERS[provider](checked, x, _WEIGHT)
    torch.testing.assert_close(checked.double(), wanted, rtol=0, atol=1e-6)

    def add() -> Tensor:
        _ADDERS[provider](grad, x, _WEIGHT)
        return grad

    bench(
        add,
        op="total_variation_grad_",
        setting="channels last" if channels_last else "contiguous",
        provider=provider,
        shape="x".join(map(str, x.shape)),
        items=len(x),
        # x is read, grad is read and written.
        least_bytes=3 * x.numel() * x.element_size(),
    )
