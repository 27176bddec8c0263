"""The teacher and student architectures of the paper, and two residual networks, for 32x32 inputs.

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


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside the identity, which a 1x1 convolution replaces where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.residual(x) + self.shortcut(x))


class _ResNet(nn.Module):
    def __init__(self, channels: tuple[int, int, int], blocks: int, num_classes: int) -> None:
        super().__init__()
        inputs = channels[0]
        stages: list[nn.Module] = [nn.Conv2d(3, inputs, 3, padding=1, bias=False), nn.BatchNorm2d(inputs), nn.ReLU()]
        for outputs, stride in zip(channels, (1, 2, 2), strict=True):
            for block in range(blocks):
                stages.append(_ResidualBlock(inputs, outputs, stride if block == 0 else 1))
                inputs = outputs
        self.features = nn.Sequential(*stages)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(inputs, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.features(x)))


class ResNet20(_ResNet):
    """ResNet-20 for [N, 3, 32, 32] inputs (He et al., 2016, section 4.2): 272,474 parameters with 10 classes.

    Three stages of three blocks, of 16, 32 and 64 channels, with batch normalization.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__((16, 32, 64), 3, num_classes)


class ResNet20Half(_ResNet):
    """`ResNet20` with half the channels (8, 16 and 32): 68,786 parameters with 10 classes."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__((8, 16, 32), 3, num_classes)


class ResNet8(_ResNet):
    """`ResNet20` with one block per stage: 78,042 parameters with 10 classes."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__((16, 32, 64), 1, num_classes)
