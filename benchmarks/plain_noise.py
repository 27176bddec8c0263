"""The noise of a recipe in plain torch, from torch's generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zskd_fast import reference
from zskd_fast.config.recipe import NoiseRecipe


def plain_noise(
    count: int, shape: tuple[int, ...], recipe: NoiseRecipe, device: torch.device | str, *, clamp: bool
) -> Tensor:
    """Return [count, *shape] noise in units of the valid range."""
    if recipe.kind == "dead_leaves":
        noise = _dead_leaves(count, shape, recipe, device)
    else:
        draw = torch.randn if recipe.kind == "normal" else torch.rand
        noise = draw(count, *shape, device=device)
    noise = recipe.scale * noise + recipe.shift
    return noise.clamp(0, 1) if clamp else noise


def _dead_leaves(count: int, shape: tuple[int, ...], recipe: NoiseRecipe, device: torch.device | str) -> Tensor:
    channels, height, width = shape
    center = torch.rand(count, recipe.leaves, 2, device=device) * 2 - 1
    smallest, largest = recipe.leaf_size
    half_axes = smallest + (largest - smallest) * torch.rand(count, recipe.leaves, 2, device=device)
    angle = math.pi * torch.rand(count, recipe.leaves, 1, device=device)
    values = torch.rand(count, recipe.leaves, channels, device=device)
    return reference.dead_leaves(torch.cat([center, half_axes, angle, values], dim=-1), height, width)
