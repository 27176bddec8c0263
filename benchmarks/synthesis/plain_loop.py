"""Data impressions as described in the paper (sections 3.1 to 3.3) and implemented in public code, in plain torch.

Batches of 100, a new torch Adam for each, and a loss that is read after each step. The priors of the recipe are added
to the loss, and hooks collect the statistics of batch normalization as in the public code of DeepInversion.
`zskd_fast.Synthesizer` is timed against it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain_noise import plain_noise
from zskd_fast.config.recipe import ImpressionRecipe

BATCH = 100
_BatchNorm = nn.modules.batchnorm._BatchNorm


def make_impressions(
    teacher: nn.Module, similarity: Tensor, shape: tuple[int, ...], recipe: ImpressionRecipe, *, count: int
) -> tuple[Tensor, Tensor]:
    """Return impressions [count, *shape] and targets [count, K]; similarity is [K, K], count a multiple of 100.

    All work is done on the device of the similarity, which is the teacher's.
    """
    images, targets, betas = [], [], recipe.betas
    for batch in range(count // BATCH):
        classes = torch.arange(batch * BATCH, (batch + 1) * BATCH, device=similarity.device) % len(similarity)
        concentration = betas[batch % len(betas)] * (similarity[classes] + recipe.concentration_floor)
        targets.append(torch.distributions.Dirichlet(concentration).sample())
        start = plain_noise(BATCH, shape, recipe.start_noise, similarity.device, clamp=recipe.clamp)
        images.append(optimize(teacher, start, targets[-1], recipe))
    return torch.cat(images), torch.cat(targets)


def optimize(teacher: nn.Module, start: Tensor, target: Tensor, recipe: ImpressionRecipe) -> Tensor:
    """Return one batch, optimized by Adam on the summed loss of its images; the valid range is 0 to 1."""
    x = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=recipe.learning_rate, betas=recipe.adam_betas, eps=recipe.adam_eps)
    last = recipe.final_learning_rate_fraction
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, last, total_iters=max(recipe.steps - 1, 1))
    losses = []
    with _statistics(teacher, recipe.statistics_prior) as distance:
        for _ in range(recipe.steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(teacher(x) / recipe.temperature, target, reduction="sum") + _priors(x, recipe)
            if distance:
                loss = loss + recipe.statistics_prior * len(x) * distance()
            loss.backward()
            optimizer.step()
            if last != 1:
                scheduler.step()
            if recipe.clamp:
                x.data.clamp_(0, 1)
            losses.append(loss.item())
    return x.detach()


def _priors(x: Tensor, recipe: ImpressionRecipe) -> Tensor | float:
    """Return the priors on pixels and on neighboring pixels."""
    total: Tensor | float = 0.0
    if recipe.l1:
        total = recipe.l1 * x.abs().sum()
    if recipe.l2:
        total = total + recipe.l2 * x.square().sum()
    if recipe.total_variation:
        neighbors = x.diff(dim=-1).square().sum() + x.diff(dim=-2).square().sum()
        total = total + recipe.total_variation * neighbors
    return total


@contextlib.contextmanager
def _statistics(teacher: nn.Module, weight: float) -> Iterator[Callable[[], Tensor] | None]:
    """Give a function: the distance of the last forward pass from the running statistics; None without any."""
    layers = [module for module in teacher.modules() if isinstance(module, _BatchNorm)]
    if not weight or not layers:
        yield None
        return
    inputs: dict[_BatchNorm, Tensor] = {}
    hooks = [layer.register_forward_hook(lambda layer, x, _: inputs.update({layer: x[0]})) for layer in layers]
    try:
        yield lambda: torch.stack([_distance(layer, x) for layer, x in inputs.items()]).mean()
    finally:
        for hook in hooks:
            hook.remove()


def _distance(layer: _BatchNorm, x: Tensor) -> Tensor:
    """Return the mean over the channels of ((m - M) / S)^2 + (s / S - 1)^2; see `StatisticsPrior`."""
    assert layer.running_mean is not None and layer.running_var is not None
    values = x.transpose(0, 1).flatten(1)
    mean, variance = values.mean(1), values.var(1, unbiased=False)
    wanted = layer.running_var + layer.eps
    spread = ((variance + layer.eps) / wanted).sqrt() - 1
    return ((mean - layer.running_mean).square() / wanted + spread.square()).mean()
