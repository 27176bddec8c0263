"""Files of weights: reading them without running any code that they name, and writing them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from zskd_fast.errors import InputError
from zskd_fast.runtime.files import write_atomically

_NAMES_SHOWN = 3
_WRAPPING_KEYS = ("state_dict", "model_state_dict", "model")

State = dict[str, torch.Tensor]


def load_state(path: str | Path) -> State:
    """Read named tensors from a .safetensors file, or from .pt/.pth without running any code that the file names.

    Raises InputError if the file is missing, damaged, of another kind or holds anything but named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise InputError(f"{path}: wanted a file ending in {', '.join(_READERS)} or .pt2")
    return reader(path)


def load_weights(model: nn.Module, path: Path, source: str) -> None:
    """Load a file of weights into a model; `source` names the model in errors.

    The prefix ``module.`` of a model saved from DistributedDataParallel is dropped. Raises InputError that lists names
    that are missing, unexpected or of another shape.
    """
    state, wanted = load_state(path), model.state_dict()
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    problems = [
        _names("missing", [name for name in wanted if name not in state]),
        _names("unexpected", [name for name in state if name not in wanted]),
        _names("of another shape", _shape_differences(state, wanted)),
    ]
    if any(problems):
        raise InputError(f"{path}: not the weights of {source}: {'; '.join(filter(None, problems))}")
    model.load_state_dict(state)


def load_matrix(path: str | Path) -> torch.Tensor:
    """Read one matrix [K, D], such as classifier weights, from .npy, or from a file of weights that holds one tensor.

    Raises InputError if the file cannot be read or holds something else.
    """
    path = Path(path)
    if path.suffix == ".npy":
        try:
            found = [torch.from_numpy(np.load(path, allow_pickle=False))]
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: not a numpy array of numbers ({error})") from error
    else:
        found = list(load_state(path).values())
    if len(found) != 1 or found[0].ndim != 2 or not found[0].is_floating_point():
        shapes = ", ".join(str(list(tensor.shape)) for tensor in found[:3])
        raise InputError(f"{path}: wanted one matrix [classes, features] of floats, got {len(found)} tensors: {shapes}")
    return found[0]


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, str]) -> None:
    """Write the weights of `model` to a .safetensors file; the file is never half-written."""
    # Clones, since safetensors refuses tensors that share memory, as tied weights do.
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    write_atomically(Path(path), save(state, dict(metadata)))


def _load_safetensors(path: Path) -> State:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: truncated, or not a safetensors file ({error})") from error


def _load_torch(path: Path) -> State:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(_unpickling_sentence(path, error)) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path}: truncated, or not a file of torch.save") from error
    return _unwrapped(content, path)


_READERS = {".safetensors": _load_safetensors, ".pt": _load_torch, ".pth": _load_torch}


def _unpickling_sentence(path: Path, error: Exception) -> str:
    if "GLOBAL" not in str(error):
        return f"{path}: truncated, or not a file of torch.save"
    return (
        f"{path}: holds more than weights, and reading it could run code; "
        "save model.state_dict() instead of the whole model"
    )


def _unwrapped(content: object, path: Path) -> State:
    for key in _WRAPPING_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path}: wanted named tensors (a state_dict), got a {type(content).__name__}")
    if not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(f"{path}: wanted named tensors (a state_dict), got a {type(content).__name__}")
    return dict(content)


def _shape_differences(state: State, wanted: State) -> list[str]:
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
