"""How many bytes the ops of a call read and write, to show what fusing them saves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def bytes_moved(call: Callable[[], object]) -> int:
    """Return the bytes that the torch ops of a call read and write, each tensor once per op, backward pass included.

    Caches and temporaries inside an op are not seen: a fused op counts its arguments and results. Views move nothing.
    """
    with _Counter() as counter:
        call()
    return counter.bytes


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _MOVES_NOTHING:
            written = _written(func, args, kwargs or {})
            read = _tensors((args, kwargs))
            if name.endswith("_out"):  # an op with this name does not read what it writes
                read = _without(read, written)
            self.bytes += _size(read) + _size(written) + _size(_without(_tensors(result), written))
        return result


_MOVES_NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "detach")


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the arguments that the schema marks as written."""
    schema = func._schema.arguments
    named = dict(zip([argument.name for argument in schema], args, strict=False)) | dict(kwargs)
    written = [a.name for a in schema if a.alias_info is not None and a.alias_info.is_write]
    return _tensors([named.get(name) for name in written])


def _without(tensors: Iterable[torch.Tensor], others: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    known = {id(tensor) for tensor in others}
    return [tensor for tensor in tensors if id(tensor) not in known]


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _size(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the elements in memory: an expanded axis holds one."""
    total = 0
    for tensor in tensors:
        axes = zip(tensor.shape, tensor.stride(), strict=True)
        total += tensor.element_size() * math.prod(size if stride else min(size, 1) for size, stride in axes)
    return total
