"""Models as a user names them: ``package.module:callable`` and a file of weights."""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models.checkpoint_files import Destination, load_weights
from zskd_fast.models.classifier import Classifier
from zskd_fast.models.file_kinds import FileKind, file_kind
from zskd_fast.models.input_facts import find_input_spec
from zskd_fast.runtime.seeds import check_seed

ASSETS = Path(__file__).parents[1] / "assets"

_LOG = logging.getLogger(__name__)
_KEY_OPTIONS = {"teacher": "--weights-key", "student": "--student-weights-key"}
_OWN_FOLDERS = tuple(str(folder) for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))
_LIBRARY = sysconfig.get_path("stdlib")
_PACKAGES = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model comes from."""

    model: str | None = None
    """``package.module:callable`` without arguments; None if `weights` is a whole model."""
    weights: Path | None = None
    """File of weights or of a whole model; None keeps the weights that the callable made."""
    weights_key: str | None = None
    """Place in the file to look for the weights, with dots between keys; None if only one fits the model."""
    logits_fn: str | None = None
    """``package.module:callable`` that picks the logits out of the model's output; None for a plain tensor."""
    forward_fn: str | None = None
    """``package.module:callable`` of the model and x that calls the model; None for one that takes one tensor."""

    @property
    def name(self) -> str:
        """Short name: ``LeNet5`` for ``zskd_fast.models:LeNet5``, else the name of the file."""
        return self.model.rpartition(":")[2] if self.model else Path(str(self.weights)).name

    @property
    def note(self) -> str | None:
        """What to say of a teacher that is used without a file of weights; None if there is one."""
        if self.weights is not None or self.model is None:
            return None
        return f"no file of weights was given: a teacher with random weights, unless {self.model} loads its own"


class ExportedModel(nn.Module):
    """A `torch.export` program as a module; eval() and train() do nothing, since an exported program has one mode."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.program = program.module()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.program(x)

    def train(self, mode: bool = True) -> ExportedModel:
        self.training = mode
        return self


def load_classifier(
    source: ModelSource,
    input_spec: InputSpec | None,
    *,
    role: str = "teacher",
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> Classifier:
    """Build a model, load its weights, move it to the device and probe it.

    `seed` decides the weights that the callable draws from torch's generator, whose state is restored afterwards.
    Raises InputError as `load_model` and `Classifier` do, and for a seed out of range.
    """
    if seed is not None:
        check_seed(seed)
    device = torch.device(device)
    logits_fn, forward_fn = (
        None if spec is None else load_callable(spec) for spec in (source.logits_fn, source.forward_fn)
    )
    options: dict[str, Any] = {"logits_fn": logits_fn, "forward_fn": forward_fn}
    # The Classifier draws the weights of lazy modules.
    with torch.random.fork_rng([device] if device.type == "cuda" else [], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = load_model(source.model, source.weights, source.weights_key, role=role).to(device)
        if input_spec is None:
            input_spec = find_input_spec(model, source.weights)
        return Classifier(model, input_spec, role=role, name=source.name, **options)


def load_model(
    spec: str | None, weights: str | Path | None = None, weights_key: str | None = None, *, role: str = "teacher"
) -> nn.Module:
    """Build the model that a user named and load its weights, on the CPU.

    spec: ``package.module:callable``; the callable takes no argument and returns an `nn.Module`. None when `weights` is
    a whole model, a TorchScript or torch.export program: torch's readers of programs run what a program says, so a
    program must come from a source that the user trusts. weights: a file of torch.save or safetensors, of which no code
    is run; None keeps the weights that the callable made. weights_key: as in `ModelSource`. role: "teacher" or
    "student", for sentences.

    Raises InputError for a callable that cannot be found, fails or returns no module, for a file that holds no weights
    of the model, and for weights that are not finite.
    """
    weights = None if weights is None else Path(weights)
    model = _load_program(weights, spec) if weights is not None else None
    if model is None:
        if spec is None:
            option = "--weights" if role == "teacher" else f"--{role}-weights"
            has = "" if weights is None else f"; {weights} holds weights alone"
            raise InputError(
                f"no {role}: give --{role} package.module:callable, or a TorchScript or torch.export program as "
                f"{option}{has}"
            )
        model = build_model(spec)
        if weights is not None:
            to = Destination(source=spec, key_option=_KEY_OPTIONS[role], class_argument=_class_argument(spec))
            load_weights(model, weights, to, weights_key)
    _require_finite(model.state_dict(), str(weights or spec))
    return model


def build_model(spec: str) -> nn.Module:
    """Call ``package.module:callable`` and return its `nn.Module`, or the only one in the tuple that it returns."""
    build = load_callable(spec)
    if isinstance(build, nn.Module):  # it can be called too, but it needs no call
        return copy.deepcopy(build)
    try:
        inspect.signature(build).bind()
    except TypeError as error:
        raise InputError(
            f"{spec}: cannot be called without arguments ({error}); write a function that gives them"
        ) from error
    except ValueError:  # some builtins have no signature
        pass
    return _the_module(_users_code(build, f"{spec}:"), spec)


def load_callable(spec: str) -> Callable[..., object]:
    """Import ``package.module:callable``; modules in the current folder are found, as with ``python -m``."""
    module_name, separator, path = spec.partition(":")
    if not (separator and module_name and path):
        raise InputError(f"{spec!r}: wanted package.module:callable, such as zskd_fast.models:LeNet5")
    found: object = _import(module_name, spec)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise InputError(f"{spec}: module {module_name} has no {path!r}") from None
    if not callable(found):
        raise InputError(f"{spec}: wanted something to call, got {_described(found)}")
    return found


def _import(module_name: str, spec: str) -> object:
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise InputError(f"{spec}: wanted the name of a module and not of a file, such as {dotted}:callable")
    sys.path.insert(0, "")
    try:
        return _users_code(lambda: importlib.import_module(module_name), f"{spec}: cannot import {module_name}:")
    finally:
        sys.path.remove("")


def _users_code(call: Callable[[], object], caption: str) -> object:
    """Call what a user wrote. Raises InputError with its message, file and line for whatever it raises."""
    try:
        return call()
    except SystemExit as stop:
        code = f"with code {stop.code}" if stop.code is None or isinstance(stop.code, int) else f"with: {stop.code}"
        raise InputError(f"{caption} it ends the program {code}{_location(stop)}") from stop
    except SyntaxError as error:
        where = f"{_shortened(str(error.filename))}:{error.lineno}"
        raise InputError(f"{caption} {type(error).__name__}: {error.msg} ({where})") from error
    except Exception as error:
        message = " ".join(str(error).split())
        raise InputError(f"{caption} {type(error).__name__}{message and f': {message}'}{_location(error)}") from error


def _location(error: BaseException) -> str:
    """Return file and line of the innermost frame that is the user's: of a library only if there is no other."""
    frames = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*_OWN_FOLDERS, "<"))
    ]
    users = [(file, line) for file, line in frames if file.startswith(_PACKAGES) or not file.startswith(_LIBRARY)]
    own = [(file, line) for file, line in users if not file.startswith(_PACKAGES)]
    file, line = (own or users or [("", 0)])[-1]
    return f" ({_shortened(file)}:{line})" if file else ""


def _shortened(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def _the_module(built: object, spec: str) -> nn.Module:
    """Return what was built: a module, or the only one with weights in a tuple such as (model, transform)."""
    if isinstance(built, nn.Module):
        return built
    parts = [part for part in built if isinstance(part, nn.Module)] if isinstance(built, tuple | list) else []
    models = [part for part in parts if part.state_dict()] or parts  # transforms can be modules, without weights
    if len(models) == 1:
        _LOG.warning("%s: returns %s; took the %s", spec, _described(built), type(models[0]).__name__)
        return models[0]
    raise InputError(f"{spec}: wanted a callable that returns one torch.nn.Module, got {_described(built)}")


def _class_argument(spec: str) -> str | None:
    """Return the argument of a callable that decides the number of classes, as far as its name tells."""
    try:
        names = inspect.signature(load_callable(spec)).parameters
    except ValueError:  # some builtins have no signature
        return None
    return next((name for name in names if "class" in name.lower() or "label" in name.lower()), None)


def _load_program(path: Path, spec: str | None) -> nn.Module | None:
    """Return the model of a TorchScript or torch.export program, None if the file holds weights alone."""
    kind = file_kind(path)
    if not kind.is_program:
        return None
    if spec is not None:
        raise InputError(f"{path}: {kind.value} is the whole model; leave out {spec}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # torch deprecates TorchScript; whoever has only that can do nothing about it
            if kind is FileKind.TORCHSCRIPT:
                return torch.jit.load(str(path), map_location="cpu")
            return ExportedModel(torch.export.load(path))
    except Exception as error:  # torch documents no error classes for a damaged archive
        raise InputError(f"{path}: truncated, or not {kind.value} that this torch can read") from error


def _require_finite(state: dict[str, torch.Tensor], source: str) -> None:
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or is_lazy(value):  # of a quantized model, or without values yet
            continue
        if value.is_floating_point() and not bool(value.isfinite().all()):
            kind = "NaN" if bool(value.isnan().any()) else "infinite"
            raise InputError(f"{source}: the tensor {name} holds {kind} values, wanted finite weights")


def _described(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
