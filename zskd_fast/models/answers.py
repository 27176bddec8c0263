"""What a model answers with, and how its logits follow from that."""

from __future__ import annotations

import enum
from collections.abc import Callable

import torch

from zskd_fast.errors import InputError

# A row of a softmax sums to 1 up to rounding; logits that do so in every row of noise have not been seen.
_SUM_TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 2e-2}
_FINE_SUM_TOLERANCE = 1e-4
# How close to both 0 and 1 the values of a sigmoid come for inputs far outside the valid range.
_SATURATED = 1e-3
# Nodes of the graph that only change the shape or the type of a value.
_RESHAPING = ("View", "Reshape", "UnsafeView", "Squeeze", "Unsqueeze", "Clone", "ToCopy", "Slice", "Alias")


class Answer(enum.Enum):
    """What the values are that a model returns for an input."""

    LOGITS = "logits"
    PROBABILITIES = "probabilities"
    ONE_LOGIT = "one logit"

    @property
    def note(self) -> str:
        """How the logits follow, in words; empty where the values are the logits."""
        return _NOTES[self]


_NOTES = {
    Answer.LOGITS: "",
    Answer.PROBABILITIES: (
        "returns probabilities, rows that sum to 1: their logarithm is used as the logits, "
        "which is exact after a softmax"
    ),
    Answer.ONE_LOGIT: (
        "returns one logit z: its two classes get the logits (-z/2, z/2), whose softmax is (1 - sigmoid(z), "
        "sigmoid(z)); as in every classifier of two classes, each class is similar to itself only"
    ),
}


def values_of(output: object) -> object:
    """Return the tensor of logits, if the output is one or names it; any other output as it is.

    Named are ``output.logits`` (transformers, torchvision's auxiliary outputs), ``output["logits"]``, and the only
    entry of a tuple or list.
    """
    if isinstance(output, torch.Tensor):
        return output
    named = getattr(output, "logits", None)
    if named is None and isinstance(output, dict):
        named = output.get("logits")
    if named is None and isinstance(output, tuple | list) and len(output) == 1:
        named = output[0]
    return named if isinstance(named, torch.Tensor) else output


def recognized(values: object, rows: int, role: str, mode: str = "", far: Callable[[], object] | None = None) -> Answer:
    """Return what the values are that a model returned for ``rows`` inputs of noise inside the valid range.

    ``far`` returns the values for inputs far outside the valid range. It is called if all values are between 0 and 1
    and the graph does not show why; logits leave that interval then. Raises InputError if the values are neither logits
    [rows, K] of K >= 2 classes, nor probabilities of such classes, nor one logit per row, or if they are not finite.
    """
    option = f"{'' if role == 'teacher' else 'student_'}logits_fn"
    given = f"{option} (--{option.replace('_', '-')} package.module:callable)"
    if not isinstance(values, torch.Tensor):
        both = " in either mode" if mode else ""
        raise InputError(
            f"the {role} returns a {type(values).__name__}{mode}, wanted one tensor of logits [N, K]; give {given}, "
            f"a function that picks the logits out of what the model returns{both}"
        )
    if not values.is_floating_point():
        raise InputError(f"the {role} returns {values.dtype} values{mode}, wanted logits in floating point")
    has_one = values.shape in ((rows,), (rows, 1))
    if not has_one and (values.ndim != 2 or values.shape[0] != rows or values.shape[1] < 2):
        inputs, wanted = f"a batch of {rows} input{'s' if rows > 1 else ''}", f"[{rows}, K]"
        raise InputError(f"the {role} returns shape {list(values.shape)} for {inputs}{mode}, wanted {wanted} logits")
    if not torch.isfinite(values).all():
        raise InputError(f"the {role}'s logits of an input inside the valid range are not all finite{mode}")
    if not has_one and _sums_to_one(values):
        return Answer.PROBABILITIES
    if _are_between(values) and (_ends_in_sigmoid(values) or (far is not None and _are_saturated(far()))):
        kind = "a probability" if has_one else "a probability per class, whose rows do not sum to 1,"
        raise InputError(
            f"the {role} returns {kind} as of a sigmoid, wanted logits of classes that exclude one another; return "
            f"the values before the sigmoid, or give {given} that returns torch.logit(output, eps=1e-6)"
        )
    return Answer.ONE_LOGIT if has_one else Answer.LOGITS


def logits_of(values: torch.Tensor, answer: Answer) -> torch.Tensor:
    """Return the logits [N, K] float32 that the values of an answer stand for."""
    if answer is Answer.PROBABILITIES:
        return _log(values).float()
    if answer is Answer.ONE_LOGIT:
        return two_logits(values).float()
    return values.float()


def two_logits(values: torch.Tensor) -> torch.Tensor:
    """Return (-z/2, z/2) of one logit z per row: [N] or [N, 1] -> [N, 2].

    Their softmax is that of (0, z), and unlike those, both have weights: -w/2 and w/2, in opposite directions.
    """
    half = values.reshape(-1, 1) / 2
    return torch.cat([-half, half], dim=1)


def _log(probabilities: torch.Tensor) -> torch.Tensor:
    """Return the logarithm; a probability that underflowed counts as the smallest whose inverse is finite."""
    limits = torch.finfo(probabilities.dtype)
    smallest = max(limits.tiny * limits.eps, torch.finfo(torch.float32).tiny)
    values = probabilities if probabilities.dtype == torch.float64 else probabilities.float()
    return values.clamp_min(smallest).log()


def _sums_to_one(values: torch.Tensor) -> bool:
    tolerance = _SUM_TOLERANCE.get(values.dtype, _FINE_SUM_TOLERANCE)
    sums = values.detach().double().sum(dim=1)
    return bool((values >= 0).all()) and bool(((sums - 1).abs() <= tolerance).all())


def _are_between(values: torch.Tensor) -> bool:
    return bool((values >= 0).all()) and bool((values <= 1).all())


def _are_saturated(values: object) -> bool:
    if not isinstance(values, torch.Tensor) or not _are_between(values):
        return False
    return float(values.min()) < _SATURATED and float(values.max()) > 1 - _SATURATED


def _ends_in_sigmoid(values: torch.Tensor) -> bool:
    """Whether the last node of the graph, apart from changes of the shape, is a sigmoid."""
    node = values.grad_fn
    while node is not None:
        name = node.name()
        if not name.startswith(_RESHAPING):
            return "sigmoid" in name.lower()
        node = node.next_functions[0][0] if node.next_functions else None
    return False
