"""The batch normalization of a teacher: its statistics as a prior on impressions, and its use on batch statistics."""

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import nn

from zskd_fast.config.recipe import ImpressionRecipe
from zskd_fast.errors import InputError

_Layer = nn.modules.batchnorm._BatchNorm


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the layers of batch normalization with running statistics."""
    layers = (module for module in model.modules() if isinstance(module, _Layer))
    return [layer for layer in layers if layer.running_mean is not None and layer.running_var is not None]


class StatisticsPrior:
    """The distance of a batch from the running statistics of a teacher (DeepInversion, Yin et al., CVPR 2020).

    The running statistics are what the teacher remembers of its training data: mean and variance of each channel of
    what enters each layer of batch normalization. Each thread has its own batch.
    """

    def __init__(self, model: nn.Module):
        self._layers = batch_norms(model)
        self._own = threading.local()
        layers = f"{len(self._layers)} layer{'s' if len(self._layers) > 1 else ''}"
        self.description = f"impressions drawn to the running statistics of {layers} of the teacher"
        """For a summary."""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Collect the distance of every layer during the forward passes inside."""
        with contextlib.ExitStack() as hooks:
            for layer in self._layers:
                hooks.callback(layer.register_forward_pre_hook(self._collect).remove)
            yield

    def begin(self) -> None:
        """Forget what was collected in this thread."""
        self._own.distances = []

    def distance(self) -> torch.Tensor:
        """Return the mean distance over the layers in the forward passes of this thread since `begin`.

        The distance of a layer is the mean over its channels of ((m - M) / S)^2 + (s / S - 1)^2, with mean m and
        deviation s of the batch, M and S of the running statistics.
        """
        return torch.stack(self._own.distances).mean()

    def _collect(self, layer: _Layer, inputs: tuple[torch.Tensor, ...]) -> None:
        distances = getattr(self._own, "distances", None)
        if distances is None or not torch.is_grad_enabled():
            return
        running_mean, running_variance = layer.running_mean, layer.running_var
        assert running_mean is not None and running_variance is not None
        # As a matrix [N * H * W, C] and without torch.var_mean, which takes four times as long.
        exact = inputs[0].to(torch.promote_types(inputs[0].dtype, torch.float32))
        values = exact.movedim(1, -1).flatten(0, -2)
        mean = values.mean(0)
        variance = (values.square().mean(0) - mean.square()).clamp_min(0)
        shift = (mean - running_mean).square() / (running_variance + layer.eps)
        spread = ((variance + layer.eps) / (running_variance + layer.eps)).sqrt() - 1
        distances.append((shift + spread.square()).mean())


def statistics_prior(teacher: nn.Module, fast_teacher: nn.Module, recipe: ImpressionRecipe) -> StatisticsPrior | None:
    """Return the prior on the copy that makes the impressions; None without a weight or batch normalization.

    Raises InputError if the copy has the batch normalization folded.
    """
    if not recipe.statistics_prior or not batch_norms(teacher):
        return None
    if not batch_norms(fast_teacher):
        raise InputError("fold_batch_norm leaves no statistics for statistics_prior; set one of them to false or 0")
    return StatisticsPrior(fast_teacher)


@contextlib.contextmanager
def on_batch_statistics(model: nn.Module) -> Iterator[None]:
    """Let a model in eval mode normalize each batch by its own statistics, as in training; its buffers stay unchanged.

    For inputs unlike the training data the running statistics of a layer are far off, and the activations with them
    (Raikwar and Mishra, NeurIPS 2022).
    """
    kept = [(layer, layer.running_mean, layer.running_var) for layer in batch_norms(model)]
    try:
        for layer, _, _ in kept:
            layer.running_mean = layer.running_var = None
        yield
    finally:
        for layer, mean, variance in kept:
            layer.running_mean, layer.running_var = mean, variance
