"""The teacher and student architectures of the paper, for 32x32 inputs.

Every model takes raw [N, C, 32, 32] float inputs and returns logits [N, num_classes]; none of them contains a
softmax, so a temperature can be applied outside. The last module is always the linear classifier layer.
"""

from __future__ import annotations

import torch
from torch import nn


class _LeNet(nn.Module):
    def __init__(self, channels: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        first, second = channels
        self.features = nn.Sequential(
            nn.Conv2d(1, first, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(
            nn.Linear(second * 5 * 5, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


class LeNet5(_LeNet):
    """LeNet-5 for [N, 1, 32, 32] inputs: 61,706 parameters with 10 classes (paper section 4.1)."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__((6, 16), num_classes)


class LeNet5Half(_LeNet):
    """LeNet-5 with half the convolution channels (3 and 8): 35,820 parameters (paper section 4.1)."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__((3, 8), num_classes)


def _conv(inputs: int, outputs: int, kernel: int, *, response_norm: bool, pool: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.ReLU()]
    if response_norm:
        # TensorFlow's alpha=1e-4 multiplies the sum over 5 channels, torch's alpha multiplies their mean.
        layers.append(nn.LocalResponseNorm(size=5, alpha=5e-4, beta=0.75, k=1.0))
    if pool:
        layers.append(nn.MaxPool2d(kernel_size=3, stride=2))
    layers.append(nn.BatchNorm2d(outputs))
    return layers


def _linear(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(outputs)]


class _AlexNet(nn.Module):
    def __init__(self, channels: tuple[int, int, int], hidden: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        outer, second, middle = channels
        self.features = nn.Sequential(
            *_conv(3, outer, 5, response_norm=True, pool=True),
            *_conv(outer, second, 5, response_norm=True, pool=True),
            *_conv(second, middle, 3, response_norm=False, pool=False),
            *_conv(middle, middle, 3, response_norm=False, pool=False),
            *_conv(middle, second, 3, response_norm=False, pool=True),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(
            *_linear(second * 3 * 3, hidden[0]),
            *_linear(hidden[0], hidden[1]),
            nn.Linear(hidden[1], num_classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


class AlexNet(_AlexNet):
    """AlexNet for [N, 3, 32, 32] CIFAR-10 inputs (paper section 4.3, layer plan of the authors' code).

    Five convolutions of 48, 128, 192, 192, 128 channels with batch normalization, then 512 and 256 features.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__((48, 128, 192), (512, 256), num_classes)


class AlexNetHalf(_AlexNet):
    """`AlexNet` with half the channels and half the hidden features: 24, 64, 96, 96, 64, then 256 and 128."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__((24, 64, 96), (256, 128), num_classes)
