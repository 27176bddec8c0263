"""Small classifiers, recipes, stores and impressions."""

import dataclasses
import itertools

import torch
from torch import nn

from zskd_fast.config.identity import ImpressionIdentity, ModelIdentity, RunIdentity, StudentIdentity
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import (
    AugmentationRecipe,
    DistillationRecipe,
    ImpressionRecipe,
    NoiseRecipe,
    SynthesisRecipe,
)
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.store.impressions import Impressions
from zskd_fast.store.store import Store
from zskd_fast.synthesis.synthesizer import Synthesizer

IMAGE = InputSpec(shape=(1, 8, 8))
VECTOR = InputSpec(shape=(6,))


def image_classifier(*, classes=4, seed=0) -> nn.Sequential:
    """A small convolutional classifier of 1x8x8 images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, classes))


def vector_classifier(*, classes=4, seed=0) -> nn.Sequential:
    """A small classifier of 6 values, with dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, classes))


def rough_forward():
    """A `forward_fn` that stands for TF32: while it is allowed, each call is off by another one of three errors."""
    calls = itertools.count()

    def forward(model, x):
        return model(x) * (1 + 0.03 * (next(calls) % 3) * torch.backends.cudnn.allow_tf32)

    return forward


def synthesis_recipe(**changes) -> SynthesisRecipe:
    """The demo's synthesis without the statistics prior: 20 impressions of 5 steps in batches of 4 and shards of 8."""
    small = {"impressions": 20, "steps": 5, "batch_size": 4, "shard_size": 8, "statistics_prior": 0.0}
    return dataclasses.replace(load_recipe("demo").synthesis, **small | changes)


def flat_classifier(values: int) -> nn.Module:
    """A classifier of inputs of any shape with so many values, with 3 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(values, 3))


def noise_recipe(**changes) -> NoiseRecipe:
    """Uniform noise on (0, 1), with changes."""
    plain = {"kind": "uniform", "scale": 1.0, "shift": 0.0, "leaves": 0, "leaf_size": (0.0, 0.0)}
    return NoiseRecipe(**plain | changes)


def augmentation_recipe(**changes) -> AugmentationRecipe:
    """No augmentation except the changes."""
    off = {field.name: 0.0 for field in dataclasses.fields(AugmentationRecipe)}
    return AugmentationRecipe(**off | {"clamp": False} | changes)


def distillation_recipe(augmentation=None, **changes) -> DistillationRecipe:
    """The demo's distillation, cut to 20 steps of 8, from the student's own weights, without shared layers, with the
    student's dropout, and without augmentation unless given."""
    small = {
        "steps": 20,
        "batch_size": 8,
        "augmentation": augmentation or augmentation_recipe(),
        "pruned_start": False,
        "shared_layers": False,
        "student_dropout": True,
    }
    return dataclasses.replace(load_recipe("demo").distillation, **small | changes)


def impression_identity(*, seed=3, layer="fc", input_spec=IMAGE, **recipe) -> ImpressionIdentity:
    """The identity of impressions of a teacher that does not exist."""
    whole = synthesis_recipe(**recipe)
    numbers = {field.name: getattr(whole, field.name) for field in dataclasses.fields(ImpressionRecipe)}
    return ImpressionIdentity(
        seed=seed,
        input=input_spec,
        teacher=ModelIdentity(name="LeNet5", sha256="ab"),
        layer=layer,
        num_classes=3,
        recipe=ImpressionRecipe(**numbers),
    )


def run_identity(*, num_impressions=10, seed=3, **recipe) -> RunIdentity:
    """The identity of a run of models that do not exist."""
    impressions = impression_identity(seed=seed, **recipe)
    student = StudentIdentity(
        seed=seed,
        input=impressions.input,
        teacher=impressions.teacher,
        student=ModelIdentity(name="LeNet5Half", sha256="cd"),
        recipe=distillation_recipe(),
    )
    return RunIdentity(impressions=impressions, num_impressions=num_impressions, student=student)


def open_store(folder, synthesizer: Synthesizer, **options) -> Store:
    """The store of a synthesizer's recipe."""
    sizes = {"impressions": synthesizer.recipe.impressions, "shard_size": synthesizer.recipe.shard_size}
    return Store.open_or_create(folder, synthesizer.identity, **sizes | options)


def all_impressions(store: Store) -> Impressions:
    """All impressions of a finished store."""
    return Impressions.concatenate([store.read_shard(shard) for shard in range(store.num_shards)])


def impressions_of(x, teacher_logits=None, ids=None) -> Impressions:
    """Impressions with these inputs, for a distiller, which looks at nothing else."""
    count = len(x)
    logits = torch.zeros(count, 4) if teacher_logits is None else teacher_logits
    ids = torch.arange(count) if ids is None else ids
    zeros = torch.zeros(count)
    return Impressions(
        x=x,
        target=logits.softmax(dim=-1),
        teacher_logits=logits,
        id=ids,
        class_index=torch.zeros(count, dtype=torch.int64),
        beta=zeros,
        loss=zeros,
        steps=torch.zeros(count, dtype=torch.int64),
    )


def same_tensors(left: nn.Module, right: nn.Module) -> bool:
    """Whether two models hold the same bits."""
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
