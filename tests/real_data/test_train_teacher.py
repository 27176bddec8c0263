"""Training of a teacher: it learns, the same seed gives the same bits, and nothing else changes."""

from pathlib import Path

import pytest
import torch
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.teacher_recipe import TeacherRecipe
from zskd_fast.errors import InputError
from zskd_fast.models import AlexNet, LeNet5, LeNet5Half
from zskd_fast.models.classifier import Classifier
from zskd_fast.models.user_models import ASSETS, load_model
from zskd_fast.real_data.evaluation import accuracy
from zskd_fast.real_data.image_sets import LabelledImages, load_folder, to_input
from zskd_fast.real_data.train_teacher import train_teacher


@pytest.fixture(scope="module")
def images() -> LabelledImages:
    """Four classes; each has another bright quarter of the image."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    pixels = torch.randint(0, 60, (400, 1, 28, 28), dtype=torch.uint8, generator=generator)
    for row, label in enumerate(labels.tolist()):
        top, left = 14 * (label // 2), 14 * (label % 2)
        pixels[row, :, top : top + 14, left : left + 14] += 150
    return LabelledImages(pixels, labels, Path("quarters"))


RECIPE = TeacherRecipe(epochs=3, batch_size=32, held_out=80)


def test_the_teacher_learns_and_each_epoch_is_reported(images):
    trained = train_teacher(LeNet5Half, images, RECIPE, seed=0, progress=False)
    assert len(trained.loss) == len(trained.validation) == 3
    assert trained.loss[-1] < 0.5 * trained.loss[0]
    assert trained.validation[-1] > 0.9
    assert not trained.model.training


class Dropping(LeNet5Half):
    """A LeNet-5-Half with dropout in front of its classifier."""

    def forward(self, x):
        return self.classifier(nn.functional.dropout(self.features(x), 0.2, self.training))


@pytest.mark.parametrize("build", [LeNet5Half, Dropping])
def test_same_seed_same_bits_and_the_global_random_state_is_untouched(images, build):
    runs = []
    for seed in (3, 3, 4):
        torch.rand(1)
        before = torch.get_rng_state()
        runs.append(train_teacher(build, images, RECIPE, seed=seed, progress=False))
        assert torch.equal(before, torch.get_rng_state())
    first, second, other = (torch.cat([p.flatten() for p in run.model.parameters()]) for run in runs)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_a_seed_out_of_range_is_refused(images, seed):
    with pytest.raises(InputError, match="the seed must be an integer from 0"):
        train_teacher(LeNet5Half, images, RECIPE, seed=seed, progress=False)


@pytest.mark.parametrize(("probability", "fewest", "most"), [(0.0, 0, 0), (0.5, 20, 44), (1.0, 64, 64)])
def test_images_are_mirrored_left_to_right_with_the_probability_asked_for(images, probability, fewest, most):
    """A model that only looks sees each image of an epoch as it is or mirrored, and nothing else."""
    seen = []

    class Looking(LeNet5Half):
        def forward(self, x):
            if self.training:
                seen.append(x.detach().clone())
            return super().forward(x)

    few = LabelledImages(images.images[:64], images.labels[:64], images.source)
    recipe = TeacherRecipe(epochs=1, batch_size=64, flip_probability=probability)
    train_teacher(Looking, few, recipe, seed=0, progress=False)
    originals = to_input(few.images)

    def found(x):
        return sum(int((originals - image).flatten(1).abs().amax(1).min() < 1e-5) for image in x)

    assert len(seen) == 1
    mirrored = found(seen[0].flip(3))
    assert fewest <= mirrored <= most
    assert found(seen[0]) == 64 - mirrored


def test_held_out_images_are_not_trained_on(images):
    """Wrong labels on the held-out images must not change the teacher."""
    recipe = TeacherRecipe(epochs=1, batch_size=32, held_out=80)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    labels = images.labels.clone()
    labels[order[:80]] = 3 - labels[order[:80]]
    poisoned = LabelledImages(images.images, labels, images.source)
    runs = [train_teacher(LeNet5Half, chosen, recipe, seed=0, progress=False) for chosen in (images, poisoned)]
    assert runs[0].loss == runs[1].loss
    assert runs[0].validation != runs[1].validation


def test_without_held_out_images_there_is_no_validation(images):
    recipe = TeacherRecipe(epochs=1, batch_size=400)
    assert train_teacher(LeNet5Half, images, recipe, seed=0, progress=False).validation == []


def test_held_out_must_leave_images_to_train_on(images):
    with pytest.raises(InputError, match="held_out is 400, wanted fewer than the 400 training images"):
        train_teacher(LeNet5Half, images, TeacherRecipe(held_out=400), seed=0, progress=False)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (AlexNet, r"\[1, 32, 32\]"),
        (lambda: LeNet5Half(num_classes=3), "has 3 classes, but there are labels up to 3"),
    ],
    ids=["color images wanted", "too few classes"],
)
def test_a_model_that_does_not_fit_the_images_is_refused(images, build, sentence):
    with pytest.raises(InputError, match=sentence):
        train_teacher(build, images, RECIPE, seed=0, progress=False)


def test_a_loss_that_explodes_is_an_error(images):
    recipe = TeacherRecipe(epochs=2, batch_size=32, max_learning_rate=1e30)
    with pytest.raises(InputError, match=r"loss became (nan|inf) in epoch 1: lower max_learning_rate"):
        train_teacher(LeNet5Half, images, recipe, seed=0, progress=False)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_learning_rate": 0.0}, "max_learning_rate must be above 0, got 0.0"),
        ({"max_learning_rate": float("nan")}, "max_learning_rate must be a finite number, got nan"),
        ({"warmup_fraction": 1.0}, "warmup_fraction must be between 0 and 1, both excluded, got 1.0"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"rotation_sigma": -0.1}, "rotation_sigma must be at least 0, got -0.1"),
        ({"flip_probability": 1.5}, "flip_probability must be between 0 and 1, got 1.5"),
        ({"held_out": -1}, "held_out must be at least 0, got -1"),
    ],
)
def test_recipe_refuses_numbers_out_of_range(values, sentence):
    with pytest.raises(InputError, match=sentence):
        TeacherRecipe(**values)


def test_shipped_teacher_reaches_its_accuracy_on_the_shipped_test_split():
    teacher = load_model("zskd_fast.models:LeNet5", ASSETS / "lenet5-mnist.safetensors")
    assert isinstance(teacher, LeNet5)
    test = load_folder(ASSETS / "mnist-t10k", "test")
    assert accuracy(Classifier(teacher, InputSpec((1, 32, 32))), to_input(test.images), test.labels) >= 0.992
