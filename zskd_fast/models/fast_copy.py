"""A copy of the teacher that torch runs faster; its logits differ from the teacher's by rounding alone."""

import contextlib
import copy

import torch
from torch import nn

from zskd_fast.config.recipe import SynthesisRecipe
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier, LogitsFn, frozen

# Of the largest logit; far above the rounding of float32 through a deep teacher, far below a wrong layer.
_TOLERANCE = 1e-3


def fast_teacher(
    teacher: Classifier, recipe: SynthesisRecipe, *, logits_fn: LogitsFn | None = None
) -> Classifier:
    """The teacher with the recipe's fold_batch_norm, channels_last and compile_teacher applied to a copy.

    Without any of them it is the teacher itself. The copy is compared with the teacher on two inputs, before it is
    compiled: torch does that at the first batch of each size. Raises InputError if the teacher cannot be treated
    so, or answers differently afterwards.
    """
    if not (recipe.fold_batch_norm or recipe.channels_last or recipe.compile_teacher):
        return teacher
    try:
        model = _transformed(teacher.model, recipe)
        fast = Classifier(model, teacher.input_spec, logits_fn=logits_fn)
        _check_same(fast, teacher)
    except InputError:
        raise
    except Exception as error:  # copying and tracing a user's model can raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"the teacher cannot be copied for {_options(recipe)}: {reason}") from error
    if recipe.compile_teacher:
        # Code for any batch size takes several times as long to compile, and a run has two sizes at most.
        fast.model = torch.compile(fast.model, dynamic=False)
    return fast


def _transformed(model: nn.Module, recipe: SynthesisRecipe) -> nn.Module:
    model = copy.deepcopy(model).requires_grad_(False)
    # An exported program has no modes and refuses to be asked.
    with contextlib.suppress(NotImplementedError):
        model.eval()
    if recipe.fold_batch_norm:
        from torch.fx.experimental.optimization import fuse  # its import warns of things deprecated in torch

        model = fuse(model, inplace=True).requires_grad_(False)
    if recipe.channels_last:
        # What a convolution returns has the layout of its weights, so the input need not be laid out anew.
        model = model.to(memory_format=torch.channels_last)
    return model


def _check_same(fast: Classifier, teacher: Classifier) -> None:
    """The folding replaces a module wherever it is called: one that is called twice comes out wrong."""
    x = teacher.probe_input()
    with frozen(teacher.model), torch.no_grad():
        got, wanted = fast.logits(x), teacher.logits(x)
    error = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1.0))
    if not error <= _TOLERANCE:
        raise InputError(
            f"the teacher takes no fold_batch_norm: with it the logits of an input change by {error:.1e}"
        )


def _options(recipe: SynthesisRecipe) -> str:
    names = ("fold_batch_norm", "channels_last", "compile_teacher")
    return " and ".join(name for name in names if getattr(recipe, name))
