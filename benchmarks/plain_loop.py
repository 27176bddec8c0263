"""Data impressions as the paper describes them, the way every public implementation runs them.

Batches of 100, a fresh torch Adam for each, a teacher whose weights require gradients, and a loss that is read after
each step. Sections 3.1 to 3.3 of the paper in plain torch: the job that `zskd_fast.Synthesizer` is timed against.
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
    """Impressions [count, *shape] and their targets [count, K]; ``similarity`` is [K, K], count a multiple of 100."""
    images, targets = [], []
    for batch in range(count // BATCH):
        classes = torch.arange(batch * BATCH, (batch + 1) * BATCH) % len(similarity)
        concentration = betas[batch % len(betas)] * (similarity[classes] + floor)
        targets.append(torch.distributions.Dirichlet(concentration).sample())
        start = torch.randn(BATCH, *shape)
        images.append(optimise(teacher, start, targets[-1], steps, learning_rate, temperature))
    return torch.cat(images), torch.cat(targets)


def optimise(
    teacher: nn.Module, start: Tensor, target: Tensor, steps: int, learning_rate: float, temperature: float
) -> Tensor:
    """One batch, by Adam on the mean cross-entropy of the tempered softmax."""
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
