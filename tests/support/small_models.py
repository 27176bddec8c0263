"""Small classifiers and recipes, for tests that need one but not a good one."""

import dataclasses

import torch
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import (
    AugmentationRecipe,
    DistillationRecipe,
    StartRecipe,
    SynthesisRecipe,
    load_recipe,
)

IMAGE = InputSpec(shape=(1, 8, 8))
VECTOR = InputSpec(shape=(6,))


def image_classifier(*, classes=4, seed=0) -> nn.Sequential:
    """A small convolutional classifier of 1x8x8 images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, classes)
        )


def vector_classifier(*, classes=4, seed=0) -> nn.Sequential:
    """A small classifier of 6 values, with dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, classes))


def synthesis_recipe(**changes) -> SynthesisRecipe:
    """The demo's synthesis, cut short: 20 impressions of 5 steps in batches of 4 and shards of 8."""
    small = {"impressions": 20, "steps": 5, "batch_size": 4, "shard_size": 8}
    return dataclasses.replace(load_recipe("demo-mnist").synthesis, **small | changes)


def start_recipe(**changes) -> StartRecipe:
    """Uniform noise on (0, 1) but for the changes."""
    plain = {"noise": "uniform", "scale": 1.0, "shift": 0.0, "leaves": 0, "leaf_size": (0.0, 0.0)}
    return StartRecipe(**plain | changes)


def augmentation_recipe(**changes) -> AugmentationRecipe:
    """No augmentation at all but the changes."""
    off = {field.name: 0.0 for field in dataclasses.fields(AugmentationRecipe)}
    return AugmentationRecipe(**off | {"clamp": False} | changes)


def distillation_recipe(augmentation=None, **changes) -> DistillationRecipe:
    """The demo's distillation, cut short to 20 steps of 8, without augmentation and adversary unless given."""
    small = {"steps": 20, "batch_size": 8, "augmentation": augmentation or augmentation_recipe()}
    return dataclasses.replace(load_recipe("demo-mnist").distillation, **small | changes)


def same_tensors(left: nn.Module, right: nn.Module) -> bool:
    """Whether two models hold the same bits."""
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
