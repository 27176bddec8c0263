"""The student in train mode: its mode while it learns, and what is tried with it and the teacher before that."""

import contextlib
from collections.abc import Iterator

import torch

from zskd_fast.distillation.dropout import Dropout
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier, frozen, modes_kept
from zskd_fast.models.cpu_overrides import cpu_overrides
from zskd_fast.models.probe import noise_inputs, reason, relative_error, shared_memory
from zskd_fast.runtime.precision import full_float32
from zskd_fast.runtime.processes import joined
from zskd_fast.synthesis.batch_norm import on_batch_statistics


@contextlib.contextmanager
def training(teacher: Classifier, student: Classifier, *, without: Dropout | None = None) -> Iterator[None]:
    """Freeze the teacher, put the student in train mode, and keep torch's own random state unchanged.

    Dropout that the student is to be ``without`` drops nothing.
    """
    devices = [student.device] if student.device.type == "cuda" else []
    with (
        modes_kept(student.model),
        frozen(teacher.model),
        torch.random.fork_rng(devices),
        torch.enable_grad(),
        cpu_overrides(student.device),
    ):
        student.model.train()
        with without.off() if without else contextlib.nullcontext():
            yield


def probe_student(teacher: Classifier, student: Classifier, batch_size: int, *, without: Dropout | None = None) -> bool:
    """Take one step in train mode on as many inputs of noise as a process has in a batch; nothing remains of it.

    Dropout that the student is to learn ``without`` is off here, too.

    Returns whether every parameter that requires a gradient gets one. Raises InputError if the step fails, if the
    student has nothing to learn with, or if its training would change the teacher.
    """
    if teacher.model is student.model:
        raise InputError("the student is the teacher itself; give a model of its own, as by copy.deepcopy(teacher)")
    trained = {name for name, parameter in student.model.named_parameters() if parameter.requires_grad}
    if not trained:
        raise InputError("the student has no parameter that requires a gradient, so it cannot learn")
    _refuse_shared([name for name in shared_memory(student.model, teacher.model) if name in trained])
    modules, x = _shared_modules(teacher, student), teacher.probe_input()
    if modules:
        with torch.no_grad(), frozen(teacher.model), full_float32():
            wanted = teacher.logits(x)
    with training(teacher, student, without=without):
        uses_every_parameter = _step(student, batch_size)
        if modules:  # they are in train mode now, which changes dropout and normalization, but no activation
            with torch.no_grad(), full_float32():
                error = relative_error(teacher.logits(x), wanted)
            _refuse_shared([] if error <= teacher.tolerance else modules)
    return uses_every_parameter


def probe_labels_on_batch(teacher: Classifier, batch_size: int) -> None:
    """Raise InputError if a process has one input of a batch, and the teacher cannot normalize it by its statistics."""
    rows = _least_rows(batch_size)
    if rows > 1:
        return
    with frozen(teacher.model), on_batch_statistics(teacher.model), torch.no_grad():
        try:
            teacher.logits(noise_inputs(teacher.input_spec, rows, teacher.device))
        except ValueError as error:  # torch's, of a single value per channel
            why = f"{reason(error)}{_shares(batch_size)}"
            raise InputError(
                f"the teacher's batch normalization has no statistics of one input ({why}); give a larger batch_size, "
                "or batch_statistics = false"
            ) from error


def _step(student: Classifier, batch_size: int) -> bool:
    try:
        return student.probe_training(_least_rows(batch_size))
    except InputError as error:
        if joined().size == 1:
            raise
        raise InputError(f"{error}{_shares(batch_size)}") from error


def _least_rows(batch_size: int) -> int:
    """Return the size of the smallest share of a batch that a process has."""
    return max(1, batch_size // joined().size)


def _shares(batch_size: int) -> str:
    processes = joined().size
    if processes == 1:
        return ""
    return f"; a batch of {batch_size} over {processes} processes leaves {_least_rows(batch_size)} for one"


def _shared_modules(teacher: Classifier, student: Classifier) -> list[str]:
    theirs = {id(module) for module in teacher.model.modules()}
    return [name for name, module in student.model.named_modules() if id(module) in theirs]


def _refuse_shared(names: list[str]) -> None:
    if names:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise InputError(
            f"the student shares {names[0]}{others} with the teacher, which training would change; give the student "
            "a copy of its own, as by copy.deepcopy"
        )
