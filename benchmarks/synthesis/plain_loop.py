"""Data impressions as described in the paper (sections 3.1 to 3.3) and implemented in public code, in plain torch.

Batches of 100, a new torch Adam for each, a teacher whose weights require gradients, and a loss that is read after each
step. `zskd_fast.Synthesizer` is timed against it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 100


def make_impressions(
    teacher: nn.Module,
    similarity: Tensor,
    shape: tuple[int, ...],
    *,
    count: int,
    steps: int,
    learning_rate: float,
    temperature: float,
    betas: tuple[float, ...] = (1.0, 0.1),
    floor: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Return impressions [count, *shape] and targets [count, K]; similarity is [K, K], count a multiple of 100.

    All work is done on the device of the similarity, which is the teacher's.
    """
    images, targets = [], []
    for batch in range(count // BATCH):
        classes = torch.arange(batch * BATCH, (batch + 1) * BATCH, device=similarity.device) % len(similarity)
        concentration = betas[batch % len(betas)] * (similarity[classes] + floor)
        targets.append(torch.distributions.Dirichlet(concentration).sample())
        start = torch.randn(BATCH, *shape, device=similarity.device)
        images.append(optimize(teacher, start, targets[-1], steps, learning_rate, temperature))
    return torch.cat(images), torch.cat(targets)


def optimize(
    teacher: nn.Module, start: Tensor, target: Tensor, steps: int, learning_rate: float, temperature: float
) -> Tensor:
    """Return one batch, optimized by Adam on the mean cross-entropy of the softmax at the temperature."""
    x = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=learning_rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(teacher(x) / temperature, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return x.detach()
