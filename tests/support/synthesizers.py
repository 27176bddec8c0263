"""Synthesizers of small teachers, and the comparison of what they make."""

import torch
from small_models import IMAGE, image_classifier, synthesis_recipe

from zskd_fast.store.impressions import Impressions
from zskd_fast.synthesis.synthesizer import Synthesizer


def small_synthesizer(teacher=None, input_spec=IMAGE, seed=1, layer=None, **recipe) -> Synthesizer:
    """The synthesizer of a small recipe, with changes, and of a small classifier of images unless one is given."""
    teacher = image_classifier() if teacher is None else teacher
    return Synthesizer(teacher, input_spec, synthesis_recipe(**recipe), seed=seed, layer=layer)


def same_impressions(left: Impressions, right: Impressions) -> bool:
    """Whether two sets of impressions have the same bits."""
    return all(torch.equal(tensor, right.tensors()[name]) for name, tensor in left.tensors().items())


def assert_close_impressions(left: Impressions, right: Impressions) -> None:
    """Two sets of impressions differ by their rounding only."""
    for name, tensor in left.tensors().items():
        torch.testing.assert_close(tensor, right.tensors()[name], rtol=1e-4, atol=1e-4, msg=name)
