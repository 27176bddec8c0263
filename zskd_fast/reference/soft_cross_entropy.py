"""Cross-entropy with soft targets, computed from its definition."""

import torch
from torch import Tensor


def reduce(losses: Tensor, reduction: str, mean: str) -> Tensor:
    """Reduce losses [...] by "none", "sum" or the mean, which the caller names `mean`.

    "mean" is over all losses; "batchmean" divides their sum by the size of the first axis.
    """
    if reduction not in ("none", "sum", mean):
        raise ValueError(f"reduction is {reduction!r}, wanted none, sum or {mean}")
    if reduction == "batchmean" and losses.dim() > 1:
        losses = losses.flatten(1).sum(dim=1)
    return losses if reduction == "none" else losses.sum() if reduction == "sum" else losses.mean()


def soft_cross_entropy(logits: Tensor, target: Tensor, temperature: float, *, reduction: str = "mean") -> Tensor:
    """Compute `ops.soft_cross_entropy` in the dtype of the logits."""
    log_p = torch.log_softmax(logits / temperature, dim=-1)
    terms = torch.where(target == 0, 0.0, -target * log_p.masked_fill(target == 0, 0.0))
    # A NaN must not be hidden by a target of 0: it makes the loss of its row NaN.
    nan = logits.isnan().any(dim=-1)
    return reduce(terms.sum(dim=-1).masked_fill(nan, torch.nan), reduction, "mean")
