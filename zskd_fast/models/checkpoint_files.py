"""Files of weights: loading a model's weights from a checkpoint of any layout, and writing weights."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.nn.parameter import is_lazy

from zskd_fast.errors import InputError
from zskd_fast.models.file_kinds import read_checkpoint
from zskd_fast.runtime.files import write_atomically

_LOG = logging.getLogger(__name__)
_NAMES_SHOWN = 3
_MOST_LEVELS = 20
_TOP = "."  # the place of tensors below no key and no prefix
# What DataParallel, torch.compile, FSDP and activation checkpointing put into the names of the model inside.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# BatchNorm has it since torch 0.4.1, and torch takes checkpoints without it too.
_OPTIONAL = "num_batches_tracked"

State = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Destination:
    """The model that weights are for, as sentences name it."""

    source: str
    """Where the model comes from, such as ``package.module:callable``."""
    key_option: str = "weights_key"
    """The option that chooses one of several sets of weights in a file."""
    class_argument: str | None = None
    """The argument of the callable that decides the number of classes, if it has one."""


@dataclass(frozen=True)
class _Entry:
    """A tensor in a file: its name with the keys above it, those keys, and the tensor."""

    name: str
    keys: tuple[str, ...]
    tensor: torch.Tensor


_Entries = dict[str, _Entry]


@dataclass(frozen=True)
class _Match:
    """A place in a file compared with a model."""

    place: str
    """Keys and prefix in front of the model's names, `_TOP` if there are none."""
    found: _Entries
    """The entry of each of the model's names that the place has."""
    missing: list[str]
    unlike: list[str]
    """The model's names whose tensors differ in shape, or are quantized where the model's are not."""

    @property
    def fits(self) -> bool:
        """Whether the place has all that the model needs."""
        return not self.missing and not self.unlike

    @property
    def faults(self) -> int:
        """Number of the model's names that the place does not serve."""
        return len(self.missing) + len(self.unlike)

    def beside(self, entries: _Entries) -> list[str]:
        """Return the names of the tensors that stand beside those found, in the same mappings."""
        used = {entry.name for entry in self.found.values()}
        mappings = {entry.keys for entry in self.found.values()}
        return [name for name, entry in entries.items() if name not in used and entry.keys in mappings]


def load_state(path: str | Path) -> State:
    """Read the named tensors of a file that holds nothing else, without running any code that the file names.

    Raises InputError if the file is missing, damaged, of another kind or holds anything but named tensors.
    """
    content, _ = read_checkpoint(Path(path))
    if not isinstance(content, Mapping) or not content:
        raise InputError(_no_tensors(Path(path), content))
    if not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(_no_tensors(Path(path), content))
    return dict(content)


def load_weights(model: nn.Module, path: Path, to: Destination, key: str | None = None) -> None:
    """Load the weights in a file into a model.

    They may stand at any depth and below a common prefix, with tensors of other things beside them; a model inside a
    wrapper takes names without the wrapper's. What was taken and what was left out is logged, unless the file holds the
    model's names and nothing else. ``key`` names the part of the file to look in, with dots between keys; "." is its
    top.

    Raises InputError if no set of names and shapes in the file fits the model, or if several do and differ.
    """
    content, not_made = read_checkpoint(path)
    entries = _named_tensors(content)
    if not entries:
        raise InputError(_no_tensors(path, content))
    if key is not None:
        entries = _chosen(entries, key, path)
    wanted = _wanted(model, to)
    found = _matches(entries, wanted)
    fits = [match for match in found if match.fits]
    fits = _distinct([match for match in fits if match.place == key] or fits)
    if not fits:
        raise InputError(f"{path}: {_misfit(found, entries, wanted, to)}{_not_made(not_made)}")
    if len(fits) > 1:
        places = [match.place for match in fits]
        raise InputError(
            f"{path}: {len(fits)} sets of weights fit {to.source}, at {', '.join(places)}; "
            f"choose one of them, such as {to.key_option} {places[-1]}"
        )
    _take(model, fits[0], path, to)
    _report(path, fits[0], entries, not_made)


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


def _wanted(model: nn.Module, to: Destination) -> State:
    state = model.state_dict()
    others = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:  # of a quantized model, say: they would keep their initial values
        remedy = "let the callable load its weights, and give no file"
        raise InputError(f"{to.source}: builds a model whose state {_listed(others)} is no tensor; {remedy}")
    return state


def _chosen(entries: _Entries, key: str, path: Path) -> _Entries:
    chosen = _under(entries, key)
    if not chosen:
        places = dict.fromkeys(".".join(entry.keys) or _TOP for entry in entries.values())
        raise InputError(f"{path}: has no weights at {key!r}; it has some at {_listed(list(places))}")
    return chosen


def _take(model: nn.Module, match: _Match, path: Path, to: Destination) -> None:
    try:
        model.load_state_dict({name: entry.tensor for name, entry in match.found.items()}, strict=False)
    except Exception as error:  # a model's own hooks can raise anything
        raise InputError(f"{path}: {to.source} does not take these weights: {' '.join(str(error).split())}") from error


# ------------------------------------------------------------ the search, by names and shapes


def _named_tensors(content: object) -> _Entries:
    """Return the tensors of nested mappings and lists by their names, with dots between keys."""
    return {entry.name: entry for entry in _entries(content, (), ())}


def _under(entries: _Entries, key: str) -> _Entries:
    """Return the entries below a key or a prefix; `_TOP` chooses those below no key."""
    if key == _TOP:
        return {name: entry for name, entry in entries.items() if not entry.keys}
    return {name: entry for name, entry in entries.items() if name.startswith(f"{key}.")}


def _matches(entries: _Entries, wanted: State) -> list[_Match]:
    """Return each place that has some of the model's names, compared with the model.

    Parts of names that wrappers add count nowhere. A prefix that all of the model's names share may be absent in the
    file: the shortest that leaves a fit is dropped.
    """
    file_names, model_names = _by_unwrapped_name(list(entries)), _by_unwrapped_name(list(wanted))
    every: list[_Match] = []
    for own in _own_prefixes(list(model_names)):
        short = {name.removeprefix(own): model_names[name] for name in model_names}
        found = [_match(prefix, short, file_names, entries, wanted) for prefix in _prefixes(file_names, short)]
        if any(match.fits for match in found):
            return found
        every += found
    return every


def _distinct(fits: list[_Match]) -> list[_Match]:
    """Drop each match that holds the same values as the first."""
    return [fit for i, fit in enumerate(fits) if i == 0 or not _same(fits[0], fit)]


def _entries(value: object, keys: tuple[str, ...], above: tuple[int, ...]) -> Iterator[_Entry]:
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    if id(value) in above or len(above) > _MOST_LEVELS:  # a pickle can hold a mapping that holds itself
        return
    for name, inner in pairs:
        if isinstance(inner, torch.Tensor):
            yield _Entry(".".join((*keys, str(name))), keys, inner)
        else:
            yield from _entries(inner, (*keys, str(name)), (*above, id(value)))


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _by_unwrapped_name(names: list[str]) -> dict[str, str]:
    """Map each name without its wrappers to the name; names that would become the same stay as they are."""
    counts = Counter(map(_unwrapped, names))
    return {short if counts[short := _unwrapped(name)] == 1 else name: name for name in names}


def _own_prefixes(names: list[str]) -> Iterator[str]:
    """Yield the prefixes that all names share, from none to the longest."""
    prefix = ""
    while True:
        yield prefix
        rests = [name.removeprefix(prefix) for name in names]
        firsts = {rest.partition(".")[0] for rest in rests}
        if len(firsts) != 1 or not all("." in rest for rest in rests):
            return
        prefix += f"{firsts.pop()}."


def _prefixes(file_names: Mapping[str, str], model_names: Mapping[str, str]) -> list[str]:
    """Return the prefixes in the file below which at least one of the model's names stands, in the file's order."""
    prefixes: dict[str, None] = {}
    for name in file_names:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in model_names:
                prefixes["".join(f"{part}." for part in parts[:i])] = None
    return list(prefixes)


def _match(
    prefix: str, model_names: Mapping[str, str], file_names: Mapping[str, str], entries: _Entries, wanted: State
) -> _Match:
    present = {short: name for short, name in model_names.items() if prefix + short in file_names}
    found = {name: entries[file_names[prefix + short]] for short, name in present.items()}
    missing = [name for name in wanted if name not in found and name.rpartition(".")[2] != _OPTIONAL]
    unlike = [name for name, entry in found.items() if not _alike(entry.tensor, wanted[name])]
    first = next(iter(present))
    return _Match(_place(file_names[prefix + first], first), found, missing, unlike)


def _place(file_name: str, short: str) -> str:
    """Return what stands in front of a name in the file, with the wrappers."""
    parts = file_name.split(".")
    for i in range(len(parts) - 1, 0, -1):
        if ".".join(parts[i:]) == short or _unwrapped(".".join(parts[i:])) == short:
            return ".".join(parts[:i])
    return _TOP


def _alike(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    if is_lazy(wanted):
        return True
    # Numbers of one byte are quantized, and mean something else without their scale.
    quantized = wanted.is_floating_point() and (not got.is_floating_point() or got.element_size() == 1)
    return got.shape == wanted.shape and not quantized and got.is_complex() == wanted.is_complex()


def _same(left: _Match, right: _Match) -> bool:
    pairs = [(entry.tensor, right.found.get(name)) for name, entry in left.found.items()]
    return len(left.found) == len(right.found) and all(
        other is not None and tensor.dtype == other.tensor.dtype and torch.equal(tensor, other.tensor)
        for tensor, other in pairs
    )


# ----------------------------------------------------------------------------- the sentences


def _report(path: Path, match: _Match, entries: _Entries, not_made: list[str]) -> None:
    left = match.beside(entries)
    parts = [
        f"took the weights at {match.place}" if match.place != _TOP else "",
        f"left out what the model has no name for: {_listed(left)}" if left else "",
    ]
    if any(parts):
        _LOG.warning("%s: %s%s", path, "; ".join(filter(None, parts)), _not_made(not_made))


def _not_made(names: list[str]) -> str:
    return f"; not read: {', '.join(names)}" if names else ""


def _no_tensors(path: Path, content: object) -> str:
    holds = f" with {_listed(list(map(str, content)))}" if isinstance(content, Mapping) and content else ""
    return f"{path}: wanted named tensors (a state_dict), got a {type(content).__name__}{holds}"


def _misfit(found: list[_Match], entries: _Entries, wanted: State, to: Destination) -> str:
    """Return how the place that comes closest to the model differs from it."""
    match = min(found, key=lambda each: each.faults, default=_Match(_TOP, {}, list(wanted), []))
    shapes = f"of another shape {_listed([_difference(name, match, wanted) for name in match.unlike])}"
    classes = _other_classes(match, wanted)
    if classes:
        got, built = classes
        name, argument = to.source.rpartition(":")[2], to.class_argument
        remedy = f"name a function that returns {name}({argument}={got})" if argument else f"let {name} build {got}"
        example = "" if argument else f", often by an argument such as num_classes={got}"
        return f"the weights are of {got} classes, but {to.source} builds {built} ({shapes}); {remedy}{example}"
    unexpected = match.beside(entries) if match.found else list(entries)
    problems = [
        f"missing {_listed(match.missing)}" if match.missing else "",
        f"unexpected {_listed(unexpected)}" if unexpected else "",
        shapes if match.unlike else "",
    ]
    return f"not the weights of {to.source}: {'; '.join(filter(None, problems))}"


def _other_classes(match: _Match, wanted: State) -> tuple[int, int] | None:
    """Return the classes of the file and of the model, if nothing but their number differs."""
    shapes = [(match.found[name].tensor.shape, wanted[name].shape) for name in match.unlike]
    firsts = {(got[:1], model[:1]) for got, model in shapes}
    if match.missing or len(firsts) != 1 or any(got[1:] != model[1:] for got, model in shapes):
        return None
    got, built = firsts.pop()
    return (got[0], built[0]) if got and built and got != built else None


def _difference(name: str, match: _Match, wanted: State) -> str:
    got, model = match.found[name].tensor, wanted[name]
    if got.shape == model.shape:
        return f"{name} (got {got.dtype}, wanted {model.dtype})"
    return f"{name} (got {list(got.shape)}, wanted {list(model.shape)})"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{', '.join(names[:_NAMES_SHOWN])}{more}"
