"""A faster copy of the teacher, whose logits differ from the teacher's by rounding only."""

import contextlib
import copy
from typing import cast

import torch
from torch import nn

from zskd_fast.config.recipe import ImpressionRecipe
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier, frozen
from zskd_fast.models.probe import reason, relative_error
from zskd_fast.runtime.precision import full_float32

_OPTIONS = ("fold_batch_norm", "channels_last", "compile_teacher")


def fast_copy(teacher: Classifier, recipe: ImpressionRecipe) -> Classifier:
    """Return a copy of the teacher with the recipe's fold_batch_norm, channels_last and compile_teacher applied.

    Without any of them the teacher itself is returned. The copy is compared with the teacher on two inputs before it is
    compiled (torch compiles at the first batch of each size). Raises InputError if the teacher cannot be copied so, or
    if the copy returns other logits.
    """
    chosen = " and ".join(name for name in _OPTIONS if getattr(recipe, name))
    if not chosen:
        return teacher
    fast = copy.copy(teacher)
    try:
        fast.model = _transformed(teacher.model, recipe)
        _check_same(fast, teacher)
    except InputError:
        raise
    except Exception as error:  # copying and tracing a user's model can raise anything
        raise InputError(f"the teacher cannot be copied for {chosen}: {reason(error)}") from error
    if recipe.compile_teacher:
        # Code for any batch size takes several times as long to compile, and a run has two sizes at most.
        fast.model = cast(nn.Module, torch.compile(fast.model, dynamic=False))
    return fast


def _transformed(model: nn.Module, recipe: ImpressionRecipe) -> nn.Module:
    model = copy.deepcopy(model).requires_grad_(False)
    # An exported program has no modes: its eval() raises NotImplementedError.
    with contextlib.suppress(NotImplementedError):
        model.eval()
    if recipe.fold_batch_norm:
        from torch.fx.experimental.optimization import fuse  # importing it warns of deprecated parts of torch

        model = fuse(model, inplace=True).requires_grad_(False)
    if recipe.channels_last:
        # A convolution returns the layout of its weights, so the input need not be converted.
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _check_same(fast: Classifier, teacher: Classifier) -> None:
    """Folding replaces a module wherever it is called, so a module that is called twice comes out wrong."""
    x = teacher.probe_input()
    with frozen(teacher.model), torch.no_grad(), full_float32():
        got, wanted = fast.logits(x), teacher.logits(x)
    error = relative_error(got, wanted)
    if not error <= teacher.tolerance:
        raise InputError(
            f"the teacher does not allow fold_batch_norm: it changes the logits of an input by {error:.1e}"
        )
