"""The distillation of a recipe in eager torch, as one would write it without this package.

The same batches, losses and schedule as `zskd_fast.Distiller`, which is timed against it; no search for dormant units.
The memory layout is torch's default, and random numbers come from torch's generator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain_noise import plain_noise
from zskd_fast.config.recipe import AugmentationRecipe, DistillationRecipe

Features = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A model that returns its features and its logits."""


class Split(nn.Module):
    """A model in two parts: the head gives the features, the tail makes the logits of them."""

    def __init__(self, head: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.head, self.tail = head, tail

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and logits."""
        features = self.head(x)
        return features, self.tail(features)


def use_batch_statistics(teacher: nn.Module) -> None:
    """Let a teacher in eval mode normalize each batch by its own statistics."""
    for layer in teacher.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean = layer.running_var = None


def share_tail(teacher: Split, student: Split, seed: int) -> None:
    """Give the student the teacher's tail, frozen; features of another size are projected by a layer that it learns."""
    if isinstance(student.tail, nn.Linear) and isinstance(teacher.tail, nn.Linear):
        inputs, outputs = student.tail.in_features, teacher.tail.in_features
        if inputs != outputs:
            projection = nn.Linear(inputs, outputs)
            generator = torch.Generator().manual_seed(seed)
            nn.init.normal_(projection.weight, std=inputs**-0.5, generator=generator)
            nn.init.zeros_(projection.bias)
            student.head = nn.Sequential(student.head, projection.to(student.tail.weight.device))
    student.tail = copy.deepcopy(teacher.tail).requires_grad_(False)


def train(
    teacher: Features,
    student: Features,
    parameters: list[nn.Parameter],
    x: Tensor,
    recipe: DistillationRecipe,
    after: Callable[[int], bool] | None = None,
) -> list[float]:
    """Train the parameters of the student on the impressions x[N, C, H, W] in (0, 1); return the losses.

    ``after`` gets the number of steps done and ends the training by True.
    """
    low, high = recipe.beta1_range
    optimizer = torch.optim.Adam(parameters, betas=(high, recipe.beta2), eps=recipe.adam_eps)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.max_learning_rate,
        total_steps=recipe.steps,
        pct_start=recipe.warmup_fraction,
        div_factor=recipe.start_divisor,
        final_div_factor=recipe.final_divisor,
        base_momentum=low,
        max_momentum=high,
    )
    losses: list[float] = []
    for step in range(recipe.steps):
        loss = distance(teacher, student, augment(draw_batch(x, recipe), recipe.augmentation), recipe)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        if after is not None and after(step + 1):
            break
    return losses


def distance(teacher: Features, student: Features, x: Tensor, recipe: DistillationRecipe) -> Tensor:
    """Return the KL divergence of the tempered softmaxes and the relative distance of the features, weighted."""
    with torch.no_grad():
        wanted_features, wanted = teacher(x)
    features, logits = student(x)
    tau = recipe.temperature
    log_student, teacher_probabilities = F.log_softmax(logits / tau, dim=1), F.softmax(wanted / tau, dim=1)
    divergence = tau**2 * F.kl_div(log_student, teacher_probabilities, reduction="batchmean")
    apart = F.mse_loss(features, wanted_features) / wanted_features.square().mean()
    return divergence + recipe.feature_weight * apart


def draw_batch(x: Tensor, recipe: DistillationRecipe) -> Tensor:
    """Return impressions and fresh noise in random order."""
    fresh = recipe.fresh_noise.count(recipe.batch_size)
    stored = x[torch.randint(len(x), (recipe.batch_size - fresh,), device=x.device)]
    noise = plain_noise(fresh, tuple(x.shape[1:]), recipe.fresh_noise, x.device, clamp=True)
    batch = torch.cat([stored, noise])
    return batch[torch.randperm(len(batch), device=x.device)]


def augment(x: Tensor, recipe: AugmentationRecipe) -> Tensor:
    """Rotate, zoom, shift and flip each image, mix it with another, and add noise."""
    count, device = len(x), x.device
    angle, log_scale, shift_x, shift_y = torch.randn(4, count, device=device)
    zoom = torch.exp(-recipe.scale_sigma * log_scale)
    cos, sin = zoom * torch.cos(recipe.rotation_sigma * angle), zoom * torch.sin(recipe.rotation_sigma * angle)
    flip = torch.where(torch.rand(count, device=device) < recipe.flip_probability, -1.0, 1.0)
    row_x = torch.stack([flip * cos, -flip * sin, recipe.shift_sigma * shift_x], dim=1)
    row_y = torch.stack([sin, cos, recipe.shift_sigma * shift_y], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, align_corners=False)
    drawn = torch.rand(2, count, 1, 1, 1, device=device)
    weight = torch.where(drawn[0] < recipe.mix_probability, drawn[1], 1.0)
    x = weight * x + (1 - weight) * x.roll(1, 0)
    sigma = recipe.noise_max * torch.rand(count, 1, 1, 1, device=device)
    x = x + sigma * torch.randn_like(x)
    return x.clamp(0, 1) if recipe.clamp else x
