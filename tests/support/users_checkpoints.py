"""Checkpoints as people publish them: a small ResNet with BatchNorm, and the ways in which its weights are saved."""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn


class ResNet(nn.Module):
    """A residual network of 8x8 images with the names of the ResNets for CIFAR-10."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.linear = nn.Linear(4, num_classes)

    def forward(self, x):
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.layer1(out) + out)
        return self.linear(out.mean(dim=(2, 3)))


class Wrapped(nn.Module):
    """A model inside another, without weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ResNet()

    def forward(self, x):
        return self.net(x * 2 - 1)


def resnet(num_classes: int = 4) -> ResNet:
    """A function with an argument, as torchvision and timm have them."""
    return ResNet(num_classes)


def four_classes() -> ResNet:
    """A function without arguments."""
    return ResNet()


def wrapped() -> Wrapped:
    """A model inside a wrapper."""
    return Wrapped()


def parallel() -> nn.DataParallel:
    """A model that the user wrapped for several GPUs."""
    return nn.DataParallel(ResNet())


def trained(seed: int = 0, num_classes: int = 4) -> ResNet:
    """A ResNet whose every tensor differs from those of a new one, statistics and counters included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNet(num_classes)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module(torch.randn(8, 4, 2, 2) * 3 + 1)
                nn.init.uniform_(module.weight)
                nn.init.uniform_(module.bias)
    return model.eval()


def prefixed(state: dict, prefix: str) -> OrderedDict:
    """The state with a prefix in front of every name."""
    return OrderedDict((prefix + name, value) for name, value in state.items())


def without_counters(state: dict) -> OrderedDict:
    """The state as torch saved it before 0.4.1."""
    return OrderedDict((name, value) for name, value in state.items() if "num_batches_tracked" not in name)


def save_old(content: object, path: Path) -> None:
    """Save in the format of torch before 1.6."""
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_exported(model: nn.Module, path: Path) -> None:
    """Save as a torch.export program for any batch size."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (torch.rand(2, 1, 8, 8),), dynamic_shapes=[{0: batch}])
    torch.export.save(program, path)
