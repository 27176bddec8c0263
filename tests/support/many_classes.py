"""A teacher of any number of classes that needs no training."""

import torch
from torch import nn


def prototype_classifier(classes: int) -> nn.Sequential:
    """The classifier of the nearest of some smooth random images 1x8x8: -30 times the squared distance to each.

    It is right on each of its images, even with noise. That is a Linear layer, since |x|^2 is the same for all.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(classes, 1, 4, 4, generator=generator)
    images = nn.functional.interpolate(coarse, size=8, mode="bilinear").flatten(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    model[1].weight.data = 60 * images
    model[1].bias.data = -30 * images.square().sum(dim=1)
    return model.eval()
