"""Dead-leaves images, a leaf at a time."""

import torch
from torch import Tensor


def dead_leaves(leaves: Tensor, height: int, width: int) -> Tensor:
    """Compute `ops.dead_leaves`."""
    count, channels = len(leaves), leaves.shape[2] - 5
    rows = pixel_centers(height, leaves).reshape(1, height, 1)
    columns = pixel_centers(width, leaves).reshape(1, 1, width)
    image = leaves.new_zeros((count, channels, height, width))
    for place, leaf in enumerate(leaves[..., None, None].unbind(1)):
        down, right = rows - leaf[:, 0], columns - leaf[:, 1]
        first, second, angle = leaf[:, 2:5].unbind(1)
        cos, sin = torch.cos(angle), torch.sin(angle)
        along = cos / first * right + sin / first * down
        across = -sin / second * right + cos / second * down
        is_box = place % 2
        covered = (torch.maximum(along.abs(), across.abs()) if is_box else along.square() + across.square()) < 1
        image = torch.where(covered.unsqueeze(1), leaf[:, 5:], image)
    return image


def pixel_centers(count: int, like: Tensor) -> Tensor:
    """Return the centers of ``count`` pixels between -1 and 1."""
    return (2 * torch.arange(count, dtype=like.dtype, device=like.device) + 1) / count - 1
