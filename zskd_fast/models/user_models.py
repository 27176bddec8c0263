"""Models as a user names them: ``package.module:callable`` and a file of weights."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models.checkpoint_files import load_weights
from zskd_fast.models.classifier import Classifier
from zskd_fast.models.input_facts import find_input_spec
from zskd_fast.runtime.seeds import check_seed

ASSETS = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model comes from."""

    model: str | None = None
    """``package.module:callable`` without arguments; None if `weights` is a whole model (.pt2)."""
    weights: Path | None = None
    """File of weights; None keeps the weights that the callable made."""
    logits_fn: str | None = None
    """``package.module:callable`` that picks the logits out of the model's output; None for a plain tensor."""

    @property
    def name(self) -> str:
        """Short name: ``LeNet5`` for ``zskd_fast.models:LeNet5``, else the name of the file."""
        return self.model.rpartition(":")[2] if self.model else Path(str(self.weights)).name


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
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = load_model(source.model, source.weights).to(device)
    if input_spec is None:
        input_spec = find_input_spec(model, source.weights)
    logits_fn: Any = None if source.logits_fn is None else load_callable(source.logits_fn)
    return Classifier(model, input_spec, role=role, logits_fn=logits_fn, name=source.name)


def load_model(spec: str | None, weights: str | Path | None = None) -> nn.Module:
    """Build the model that a user named and load its weights, on the CPU.

    spec: ``package.module:callable``; the callable takes no argument and returns an `nn.Module`. None when `weights` is
    a whole model, a `torch.export` program (.pt2). weights: .safetensors, or .pt/.pth that holds nothing but tensors;
    None keeps the weights that the callable made.

    Raises InputError for a callable that cannot be found or returns no module, for an unreadable, truncated or foreign
    file, and for weights that are not finite.
    """
    weights = None if weights is None else Path(weights)
    if weights is not None and weights.suffix == ".pt2":
        return _load_exported(weights, spec)
    if spec is None:
        raise InputError("no model: wanted package.module:callable, or a torch.export program (.pt2) as weights")
    model = build_model(spec)
    if weights is not None:
        load_weights(model, weights, spec)
    _require_finite(model.state_dict(), str(weights or spec))
    return model


def build_model(spec: str) -> nn.Module:
    """Call ``package.module:callable`` and check that it returns an `nn.Module`."""
    build = load_callable(spec)
    try:
        model = build()
    except TypeError as error:
        raise InputError(f"{spec}: cannot be called without arguments ({error})") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec}: wanted a callable that returns a torch.nn.Module, got {_described(model)}")
    return model


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
    sys.path.insert(0, "")
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"{spec}: cannot import {module_name} ({error})") from error
    finally:
        sys.path.remove("")


def _load_exported(path: Path, spec: str | None) -> nn.Module:
    if spec is not None:
        raise InputError(f"{path}: a torch.export program is the whole model; leave out {spec}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch documents no error classes for a damaged archive
        raise InputError(f"{path}: truncated, or not a torch.export program") from error
    model = ExportedModel(program)
    _require_finite(model.state_dict(), str(path))
    return model


def _require_finite(state: dict[str, torch.Tensor], source: str) -> None:
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            kind = "NaN" if bool(value.isnan().any()) else "infinite"
            raise InputError(f"{source}: the tensor {name} holds {kind} values, wanted finite weights")


def _described(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
