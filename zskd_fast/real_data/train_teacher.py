"""Train a teacher on real images. The only part of the package that learns from real data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.teacher_recipe import TeacherRecipe
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.real_data.evaluation import accuracy
from zskd_fast.real_data.images import LabelledImages, to_input

__all__ = ["TrainedTeacher", "train_teacher"]


@dataclass
class TrainedTeacher:
    """A teacher in eval mode, its mean loss and (with held-out images) validation accuracy per epoch."""

    model: nn.Module
    loss: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: float = 0.0


def train_teacher(
    build: Callable[[], nn.Module],
    images: LabelledImages,
    recipe: TeacherRecipe,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> TrainedTeacher:
    """Train `build()` on real images with cross-entropy.

    The model sees `to_input(images)`: raw values in [0, 1], not normalised. The same seed, torch version and
    thread count give the same bits; the global random state is left as it was. Raises InputError when too few
    images are left to train on, when the model does not fit them, or when the loss stops being finite.
    """
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    fit, held_out = _split(images, recipe.held_out, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build().to(device)
    _require_fit(model, fit)
    trained = TrainedTeacher(model)
    _fit(trained, fit, held_out, recipe, generator, progress)
    model.eval()
    trained.seconds = time.perf_counter() - started
    return trained


_Examples = tuple[torch.Tensor, torch.Tensor]


def _require_fit(model: nn.Module, examples: _Examples) -> None:
    inputs, labels = examples
    classes = Classifier(model, InputSpec(tuple(inputs.shape[1:]))).num_classes
    if classes <= int(labels.max()):
        raise InputError(f"the teacher has {classes} classes, but there are labels up to {int(labels.max())}")


def _split(images: LabelledImages, held_out: int, generator: torch.Generator) -> tuple[_Examples, _Examples]:
    if held_out >= len(images):
        raise InputError(f"held_out is {held_out}, wanted fewer than the {len(images)} training images")
    order = torch.randperm(len(images), generator=generator)
    inputs, labels = to_input(images.images[order]), images.labels[order]
    return (inputs[held_out:], labels[held_out:]), (inputs[:held_out], labels[:held_out])


def _fit(
    trained: TrainedTeacher,
    examples: _Examples,
    held_out: _Examples,
    recipe: TeacherRecipe,
    generator: torch.Generator,
    progress: bool,
) -> None:
    model, (inputs, labels) = trained.model, examples
    steps_per_epoch = math.ceil(len(labels) / recipe.batch_size)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.max_learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        max_lr=recipe.max_learning_rate,
        total_steps=recipe.epochs * steps_per_epoch,
        pct_start=recipe.warm_up_fraction,
    )
    with tqdm(total=schedule.total_steps, desc="teacher", unit="step", disable=not progress) as bar:
        for _ in range(recipe.epochs):
            model.train()
            total = torch.zeros((), device=next(model.parameters()).device)
            for rows in torch.randperm(len(labels), generator=generator).split(recipe.batch_size):
                x = _move(inputs[rows], recipe, generator)
                total += _step(model, x, labels[rows], recipe, optimiser) * len(rows)
                schedule.step()
                bar.update()
            _close_epoch(trained, total.item() / len(labels), held_out, bar)


def _step(
    model: nn.Module,
    x: torch.Tensor,
    labels: torch.Tensor,
    recipe: TeacherRecipe,
    optimiser: torch.optim.Optimizer,
) -> torch.Tensor:
    device = next(model.parameters()).device
    logits = model(x.to(device))
    loss = F.cross_entropy(logits, labels.to(device), label_smoothing=recipe.label_smoothing)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.detach()


def _close_epoch(trained: TrainedTeacher, loss: float, held_out: _Examples, bar: tqdm) -> None:
    if not math.isfinite(loss):
        raise InputError(
            f"the teacher's loss became {loss} in epoch {len(trained.loss) + 1}: lower max_learning_rate"
        )
    trained.loss.append(loss)
    shown = {"loss": f"{loss:.4f}"}
    if len(held_out[1]):
        trained.validation.append(accuracy(trained.model, *held_out))
        shown["validation"] = f"{trained.validation[-1]:.2%}"
    bar.set_postfix(shown)


def _move(x: torch.Tensor, recipe: TeacherRecipe, generator: torch.Generator) -> torch.Tensor:
    """A random rotation, scale and shift of each image [N, C, H, W]; zeros come in from outside."""
    draws = torch.randn(4, len(x), generator=generator)
    angle = draws[0] * recipe.rotation_sigma
    scale = 1.0 + draws[1] * recipe.scale_sigma
    cos, sin, shift = scale * angle.cos(), scale * angle.sin(), draws[2:] * recipe.shift_sigma
    rows = torch.stack((cos, -sin, shift[0], sin, cos, shift[1]), dim=1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
