"""A faster copy of the teacher, whose logits differ from the teacher's by rounding only."""

import contextlib
import copy
from collections.abc import Iterator
from typing import cast

import torch
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import ImpressionRecipe
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier, frozen, modes_kept, set_eval
from zskd_fast.models.probe import reason, relative_error
from zskd_fast.runtime.precision import full_float32

_LAST = torch.channels_last


def prefers_channels_last(input_spec: InputSpec, device: torch.device) -> bool:
    """Whether convolutions are faster with the channels last: for color images on a CPU.

    There a training step of a ResNet-20 takes 0.7 times as long, that of an AlexNet 0.9 times; gray images are slower.
    """
    return device.type == "cpu" and input_spec.is_image and input_spec.shape[0] > 1


@contextlib.contextmanager
def in_fast_layout(classifier: Classifier, *, trains: bool = False) -> Iterator[None]:
    """Keep the weights of a model in the faster memory layout, and in their own afterwards.

    A model that does not run so, such as one with ``x.view`` behind a convolution, keeps its own layout. ``trains``
    says that it has to run in train mode, too.
    """
    weights = [tensor for tensor in classifier.model.parameters() if tensor.ndim == 4]
    plain = all(weight.is_contiguous() for weight in weights)
    if not (weights and plain and prefers_channels_last(classifier.input_spec, classifier.device)):
        yield
        return

    def set_layout(layout: torch.memory_format) -> None:
        for weight in weights:
            weight.data = weight.data.contiguous(memory_format=layout)

    try:
        set_layout(_LAST)
        if not _runs(classifier, trains=trains):
            set_layout(torch.contiguous_format)
        yield
    finally:
        set_layout(torch.contiguous_format)


def _runs(classifier: Classifier, *, trains: bool) -> bool:
    """Whether the model answers, of which nothing remains; called for models on a CPU only."""
    model = classifier.model
    try:
        with frozen(model), torch.random.fork_rng(devices=[]), torch.no_grad():
            classifier.logits(classifier.probe_input())
        if trains:
            with modes_kept(model), torch.random.fork_rng(devices=[]):
                model.train()
                classifier.probe_training(len(classifier.probe_input()))
    except Exception:  # a user's model can raise anything
        return False
    return True


def fast_copy(teacher: Classifier, recipe: ImpressionRecipe) -> Classifier:
    """Return a copy of the teacher with the recipe's fold_batch_norm, channels_last and compile_teacher applied.

    Without any of them the teacher itself is returned. The copy is compared with the teacher on two inputs before it is
    compiled (torch compiles at the first batch of each size). Raises InputError if the teacher cannot be copied so, or
    if the copy returns other logits; with channels_last "auto" such a teacher keeps its own memory layout.
    """
    if recipe.channels_last == "auto" and prefers_channels_last(teacher.input_spec, teacher.device):
        with contextlib.suppress(InputError):
            return _fast_copy(teacher, recipe, channels_last=True)
    return _fast_copy(teacher, recipe, channels_last=recipe.channels_last == "on")


def _fast_copy(teacher: Classifier, recipe: ImpressionRecipe, *, channels_last: bool) -> Classifier:
    options = {
        "fold_batch_norm": recipe.fold_batch_norm,
        "channels_last": channels_last,
        "compile_teacher": recipe.compile_teacher,
    }
    chosen = " and ".join(name for name, is_chosen in options.items() if is_chosen)
    if not chosen:
        return teacher
    fast = copy.copy(teacher)
    try:
        fast.model = _transformed(teacher.model, fold=recipe.fold_batch_norm, channels_last=channels_last)
        _check_same(fast, teacher)
    except InputError:
        raise
    except Exception as error:  # copying and tracing a user's model can raise anything
        raise InputError(f"the teacher cannot be copied for {chosen}: {reason(error)}") from error
    if recipe.compile_teacher:
        # Code for any batch size takes several times as long to compile, and a run has two sizes at most.
        fast.model = cast(nn.Module, torch.compile(fast.model, dynamic=False))
    return fast


def _transformed(model: nn.Module, *, fold: bool, channels_last: bool) -> nn.Module:
    model = copy.deepcopy(model).requires_grad_(False)
    set_eval(model)
    if fold:
        from torch.fx.experimental.optimization import fuse  # importing it warns of deprecated parts of torch

        model = fuse(model, inplace=True).requires_grad_(False)
    if channels_last:
        # A convolution returns the layout of its weights, so the input need not be converted.
        model = model.to(memory_format=_LAST)  # type: ignore[call-overload]
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
