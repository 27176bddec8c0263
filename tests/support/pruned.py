"""Teachers whose students start pruned, and such students."""

import contextlib

import torch
from small_models import VECTOR
from torch import nn

from zskd_fast.distillation.pruned_start import PrunedStart, pruned_start
from zskd_fast.models.classifier import Classifier, frozen
from zskd_fast.synthesis.batch_norm import on_batch_statistics


def seeded(build, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def mlp(first=8, second=6, *, seed=0, inputs=6):
    layers = lambda: nn.Sequential(  # noqa: E731
        *(nn.Linear(inputs, first), nn.ReLU(inplace=True), nn.Linear(first, second), nn.Tanh(), nn.Linear(second, 4))
    )
    return seeded(layers, seed)


def pruned(teacher, student, spec=VECTOR) -> PrunedStart | None:
    """Return what sets the first weights of the student."""
    return pruned_start(Classifier(teacher, spec), Classifier(student, spec, role="student"))


def started(teacher, student, x, spec=VECTOR) -> nn.Module:
    """Return the student with its first weights from the teacher, in train mode."""
    start = pruned(teacher, student, spec)
    with frozen(teacher):
        student.train()
        start.set_weights(lambda: x.split(64), on_batch=True)
    return student


@contextlib.contextmanager
def labeling(teacher):
    """Run the teacher as it labels a batch."""
    with frozen(teacher), on_batch_statistics(teacher), torch.no_grad():
        yield


def without(teacher, channels):
    """Return the teacher with channels of its first two layers that add nothing to what the next layer gives."""
    layers = [layer for layer in teacher if isinstance(layer, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for layer, following, dead in zip(layers, layers[1:], channels, strict=False):
            following.weight.flatten(1).unflatten(1, (len(layer.weight), -1))[:, dead] = 0
    return teacher
