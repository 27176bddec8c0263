"""Turn what a user names on the command line into a model: a `package.module:callable` and its weights."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from zskd_fast.errors import InputError
from zskd_fast.runtime.files import write_atomically

__all__ = [
    "ASSETS",
    "ExportedModel",
    "build_model",
    "load_callable",
    "load_model",
    "load_state",
    "save_weights",
    "weights_metadata",
]

ASSETS = Path(__file__).parents[1] / "assets"

_NAMES_SHOWN = 3
_WRAPPING_KEYS = ("state_dict", "model_state_dict", "model")


class ExportedModel(nn.Module):
    """A `torch.export` program as a module that can be told to be in eval mode.

    An exported program has its mode baked in and refuses `eval()`; here that is a harmless no-op.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.program = program.module()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.program(x)

    def train(self, mode: bool = True) -> ExportedModel:
        self.training = mode
        return self


def load_model(spec: str | None, weights: str | Path | None = None) -> nn.Module:
    """Build the model that a user named and load its weights, on the CPU.

    spec: `package.module:callable`, where the callable takes no argument and returns an `nn.Module`; None
    when `weights` is a whole model, a `torch.export` program (.pt2). weights: .safetensors, or .pt/.pth that
    holds nothing but tensors; None keeps the weights that the callable made.
    Raises InputError for a callable that cannot be found or returns no module, for an unreadable, truncated
    or foreign file, and for weights that are not finite.
    """
    weights = None if weights is None else Path(weights)
    if weights is not None and weights.suffix == ".pt2":
        return _load_exported(weights, spec)
    if spec is None:
        raise InputError(
            "no model: wanted package.module:callable, or a torch.export program (.pt2) as weights"
        )
    model = build_model(spec)
    if weights is not None:
        _load_weights(model, weights, spec)
    _require_finite(model.state_dict(), str(weights or spec))
    return model


def build_model(spec: str) -> nn.Module:
    """Call `package.module:callable` and check that it gave an `nn.Module`."""
    build = load_callable(spec)
    try:
        model = build()
    except TypeError as error:
        raise InputError(f"{spec}: cannot be called without arguments ({error})") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec}: wanted a callable that returns a torch.nn.Module, got {_described(model)}")
    return model


def load_callable(spec: str) -> Callable[..., object]:
    """Import `package.module:callable`; modules in the current folder are found, as with `python -m`."""
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


def load_state(path: str | Path) -> dict[str, torch.Tensor]:
    """Read named tensors from .safetensors, or from .pt/.pth without running any code that the file names."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix in (".pt", ".pth"):
        return _load_torch(path)
    raise InputError(f"{path}: wanted a file ending in .safetensors, .pt, .pth or .pt2")


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write the weights of `model` to a .safetensors file that is either whole or absent."""
    # Clones, since safetensors refuses tensors that share memory, as tied weights do.
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    write_atomically(path, save(state, dict(metadata)))


def weights_metadata(path: str | Path) -> dict[str, str]:
    """The metadata strings of a .safetensors file; empty when it has none."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{path}: truncated, or not a safetensors file ({error})") from error


def _import(module_name: str, spec: str) -> object:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"{spec}: cannot import {module_name} ({error})") from error
    finally:
        sys.path.remove("")


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: truncated, or not a safetensors file ({error})") from error


def _load_torch(path: Path) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(_unpickling_sentence(path, error)) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path}: truncated, or not a file of torch.save") from error
    return _unwrapped(content, path)


def _unpickling_sentence(path: Path, error: Exception) -> str:
    if "GLOBAL" not in str(error):
        return f"{path}: truncated, or not a file of torch.save"
    return (
        f"{path}: holds more than weights, and reading it could run code; "
        "save model.state_dict() instead of the whole model"
    )


def _unwrapped(content: object, path: Path) -> dict[str, torch.Tensor]:
    for key in _WRAPPING_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = isinstance(content, Mapping) and all(
        isinstance(value, torch.Tensor) for value in content.values()
    )
    if not tensors or not content:
        raise InputError(f"{path}: wanted named tensors (a state_dict), got {_described(content)}")
    return dict(content)


def _load_weights(model: nn.Module, path: Path, spec: str) -> None:
    state, wanted = load_state(path), model.state_dict()
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}  # saved from DDP
    problems = [
        _names("missing", [name for name in wanted if name not in state]),
        _names("unexpected", [name for name in state if name not in wanted]),
        _names("of another shape", _shape_differences(state, wanted)),
    ]
    if any(problems):
        raise InputError(f"{path}: not the weights of {spec}: {'; '.join(filter(None, problems))}")
    model.load_state_dict(state)


def _shape_differences(state: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> list[str]:
    return [
        f"{name} (got {list(state[name].shape)}, wanted {list(value.shape)})"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]


def _names(fault: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{fault} {', '.join(names[:_NAMES_SHOWN])}{more}"


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
