"""The row losses on as many rows in pieces that stay in the caches: the time of their arithmetic."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from benchmarks.measure import Bench
from benchmarks.ops import bench_distillation_loss, bench_soft_cross_entropy, row_losses
from zskd_fast import ops

SHAPES = [(65536, 10), (65536, 100), (65536, 1000)]
QUICK_SHAPES = [(640, 10)]
PROVIDERS = ["zskd_fast"]
_OPS = {
    "soft_cross_entropy": (ops.soft_cross_entropy, bench_soft_cross_entropy.TEMPERATURE),
    "distillation_loss": (ops.distillation_loss, bench_distillation_loss.TEMPERATURE),
}
SETTINGS = list(_OPS)
THREADS = [1]  # the start of several threads for each piece would count
_PIECE = 1 << 17  # elements: the call itself takes a hundredth of the time, and three pieces fit into the caches


def _pieces(setting: str, shape: tuple[int, int], device: str) -> list[Callable[[], tuple[Tensor, Tensor]]]:
    """Return the calls that together take all rows, on the same memory again and again."""
    loss, temperature = _OPS[setting]
    rows, classes = shape
    together = min(rows, _PIECE // classes)
    logits, other = row_losses.inputs((together, classes), device)
    constant = other.softmax(1) if setting == SETTINGS[0] else other
    call = row_losses.forward_backward(loss, logits, constant, temperature)
    return [call] * round(rows / together)


def test_in_cache(shape: tuple[int, int], setting: str, threads: int, provider: str, bench: Bench) -> None:
    bench.require_cpu()
    calls = _pieces(setting, shape, bench.device)

    def all_rows() -> None:
        for call in calls:
            call()

    bench(
        all_rows,
        op="in the caches",
        setting=setting,
        provider=provider,
        shape="{}x{}".format(*shape),
        items=shape[0],
    )
