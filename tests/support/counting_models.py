"""A teacher and a student of 1x8x8 images; the student counts its steps in a file and can send a signal in one.

STEPS names the file, to whose name the rank is added; a character is written per step. SIGNAL_AT and SIGNAL are the
step in whose middle the process sends itself a signal, and its number.
"""

import os

import torch
from small_models import image_classifier
from torch import nn


def teacher() -> nn.Module:
    """The teacher."""
    return image_classifier()


def student() -> nn.Module:
    """A student with dropout and batch normalization, whose forward pass changes its state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(108, 4)]
        model = nn.Sequential(*layers)
    model.register_forward_hook(_count)
    return model


def steps(path: str, rank: int = 0) -> int:
    """Return how many steps were counted in a file."""
    return os.path.getsize(f"{path}-{rank}") if os.path.exists(f"{path}-{rank}") else 0


def _count(module: nn.Module, args: object, output: object) -> None:
    if not module.training:
        return
    if not hasattr(module, "is_probed"):  # the first call in train mode is that of the probe
        module.is_probed = True
        return
    rank, path = int(os.environ.get("RANK", "0")), os.environ["STEPS"]
    with open(f"{path}-{rank}", "a") as file:
        file.write(".")
    if steps(path, rank) == int(os.environ.get("SIGNAL_AT", "0")):
        os.kill(os.getpid(), int(os.environ["SIGNAL"]))
