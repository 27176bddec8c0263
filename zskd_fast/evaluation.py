"""Accuracy of a classifier on labelled inputs: the only use of real test images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from zskd_fast.errors import InputError

__all__ = ["accuracy"]


@torch.inference_mode()
def accuracy(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    batch_size: int = 1000,
    logits_fn: Callable[[object], torch.Tensor] | None = None,
) -> float:
    """Share of rows of `inputs` [N, ...] whose largest logit is at `labels` [N]; between 0 and 1.

    The model is put into eval mode and every module's own mode is restored afterwards. Batches are moved to
    the device of the model's first parameter. Raises InputError when there is nothing to evaluate.
    """
    if not len(labels):
        raise InputError("accuracy of no images is undefined: got 0 labels, wanted at least 1")
    first = next(model.parameters(), None)
    device = first.device if first is not None else inputs.device
    modes = {module: module.training for module in model.modules()}
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    try:
        for x, y in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
            output = model(x.to(device))
            logits = logits_fn(output) if logits_fn else output
            correct += (logits.argmax(dim=1) == y.to(device)).sum()
    finally:
        for module, training in modes.items():
            module.training = training
    return correct.item() / len(labels)
