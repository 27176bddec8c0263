"""The augmentation of the student's batch in the recommended recipe, beside that of the plain loop."""

import torch
from torch import Tensor

from benchmarks.distillation import plain_loop
from benchmarks.measure import Bench
from zskd_fast import ops, reference
from zskd_fast.config.recipe_files import load_recipe

SHAPES = [(128, 1, 32, 32), (128, 3, 32, 32)]
QUICK_SHAPES = [(3, 3, 8, 8)]
PROVIDERS = ["zskd_fast", "torch"]
_RECIPE = load_recipe("fast").distillation.augmentation


def test_augment(shape: tuple[int, ...], threads: int, provider: str, bench: Bench) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(bench.device)
    positions = torch.arange(len(x), device=bench.device)
    wanted = reference.augment(x.double(), positions, seed=0, stream=3, **vars(_RECIPE))

    def vary() -> Tensor:
        if provider == "torch":  # with draws of its own
            return plain_loop.augment(x, _RECIPE)
        return ops.augment(x, positions, seed=0, stream=3, **vars(_RECIPE))

    def check(varied: Tensor) -> None:
        if provider == "zskd_fast":
            torch.testing.assert_close(varied.double(), wanted, rtol=0, atol=1e-4)

    bench(
        vary,
        op="augment",
        setting="recipe fast",
        provider=provider,
        shape="x".join(map(str, shape)),
        items=len(x),
        # x is read, the result is written.
        least_bytes=2 * x.numel() * x.element_size(),
        check=check,
    )
