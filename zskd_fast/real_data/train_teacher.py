"""Training of a teacher on real images, the only part of the package that learns from real data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.teacher_recipe import TeacherRecipe
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.models.cpu_overrides import cpu_overrides
from zskd_fast.models.fast_copy import in_fast_layout
from zskd_fast.real_data.evaluation import accuracy
from zskd_fast.real_data.image_sets import LabelledImages, to_input
from zskd_fast.runtime.progress import progress_bar
from zskd_fast.runtime.seeds import check_seed

_Examples = tuple[torch.Tensor, torch.Tensor]


@dataclass
class TrainedTeacher:
    """A teacher in eval mode, with its mean loss and, given held-out images, its validation accuracy per epoch."""

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

    The model sees `to_input(images)`: raw values in [0, 1], not normalized. The same seed, torch version and number
    of threads give the same bits; the global random state does not change. Raises InputError if the seed is out of
    range, if too few images are left to train on, if the model does not fit them, or if the loss becomes NaN or
    infinite.
    """
    check_seed(seed)
    device = torch.device(device)
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    examples, held_out = _split(images, recipe.held_out, generator)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # of the weights, and of dropout
        model = build().to(device)
        classifier = _checked_classifier(model, examples)
        validate = partial(accuracy, classifier, *held_out) if recipe.held_out else None
        trained = TrainedTeacher(model)
        with in_fast_layout(classifier, trains=True):
            _fit(trained, examples, validate, recipe, generator, progress)
    model.eval()
    trained.seconds = time.perf_counter() - started
    return trained


def _checked_classifier(model: nn.Module, examples: _Examples) -> Classifier:
    inputs, labels = examples
    classifier = Classifier(model, InputSpec(tuple(inputs.shape[1:])))
    classes, largest = classifier.num_classes, int(labels.max())
    if classes <= largest:
        raise InputError(f"the teacher has {classes} classes, but there are labels up to {largest}")
    return classifier


def _split(images: LabelledImages, held_out: int, generator: torch.Generator) -> tuple[_Examples, _Examples]:
    """Return the examples to train on and the held-out ones, in random order."""
    if held_out >= len(images):
        raise InputError(f"held_out is {held_out}, wanted fewer than the {len(images)} training images")
    order = torch.randperm(len(images), generator=generator)
    inputs, labels = to_input(images.images[order]), images.labels[order]
    return (inputs[held_out:], labels[held_out:]), (inputs[:held_out], labels[:held_out])


def _fit(
    trained: TrainedTeacher,
    examples: _Examples,
    validate: Callable[[], float] | None,
    recipe: TeacherRecipe,
    generator: torch.Generator,
    progress: bool,
) -> None:
    model, (inputs, labels) = trained.model, examples
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.max_learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=recipe.max_learning_rate,
        total_steps=recipe.epochs * math.ceil(len(labels) / recipe.batch_size),
        pct_start=recipe.warmup_fraction,
    )
    with progress_bar("teacher", total=schedule.total_steps, unit="step", shown=progress) as bar:
        for _ in range(recipe.epochs):
            model.train()
            total = torch.zeros((), device=device)
            for rows in torch.randperm(len(labels), generator=generator).split(recipe.batch_size):
                x = _move(inputs[rows], recipe, generator)
                with cpu_overrides(device):
                    logits = model(x.to(device))
                loss = F.cross_entropy(logits, labels[rows].to(device), label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach() * len(rows)
                bar.update()
            _close_epoch(trained, total.item() / len(labels), validate, bar)


def _close_epoch(trained: TrainedTeacher, loss: float, validate: Callable[[], float] | None, bar: tqdm) -> None:
    if not math.isfinite(loss):
        epoch = len(trained.loss) + 1
        raise InputError(f"the teacher's loss became {loss} in epoch {epoch}: lower max_learning_rate")
    trained.loss.append(loss)
    shown = {"loss": f"{loss:.4f}"}
    if validate is not None:
        trained.validation.append(validate())
        shown["validation"] = f"{trained.validation[-1]:.2%}"
    bar.set_postfix(shown, refresh=False)


def _move(x: torch.Tensor, recipe: TeacherRecipe, generator: torch.Generator) -> torch.Tensor:
    """Mirror, rotate, scale and shift each image of x[N, C, H, W] at random; zeros fill in from outside."""
    if recipe.flip_probability:
        mirrored = torch.rand(len(x), generator=generator) < recipe.flip_probability
        x = torch.where(mirrored.reshape(-1, 1, 1, 1), x.flip(3), x)
    draws = torch.randn(4, len(x), generator=generator)
    angle = draws[0] * recipe.rotation_sigma
    scale = 1.0 + draws[1] * recipe.scale_sigma
    cos, sin, shift = scale * angle.cos(), scale * angle.sin(), draws[2:] * recipe.shift_sigma
    rows = torch.stack((cos, -sin, shift[0], sin, cos, shift[1]), dim=1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
