"""How many bytes a call's ops read and write: what fusing them saves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def bytes_moved(call: Callable[[], object]) -> int:
    """Bytes that the torch ops inside a call read and write, each tensor once per op, backward pass included.

    What an op keeps to itself, in caches or in temporaries, is not seen: a fused op counts its arguments and
    results. Views move nothing.
    """
    with _Counter() as counter:
        call()
    return counter.bytes


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _MOVES_NOTHING:
            changed = _changed(func, args, kwargs or {})
            read = _tensors((args, kwargs))
            if name.endswith("_out"):  # what an op of that name writes, it does not read
                read = _without(read, changed)
            self.bytes += _size(read) + _size(changed) + _size(_without(_tensors(result), changed))
        return result


_MOVES_NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "detach")


def _changed(func, args, kwargs) -> list[torch.Tensor]:
    """The arguments that the schema says are written."""
    named = dict(zip([argument.name for argument in func._schema.arguments], args, strict=False)) | kwargs
    written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return _tensors([named.get(name) for name in written])


def _without(tensors, others) -> list[torch.Tensor]:
    known = {id(tensor) for tensor in others}
    return [tensor for tensor in tensors if id(tensor) not in known]


def _tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _size(tensors: list[torch.Tensor]) -> int:
    """Bytes of the elements that exist: an expanded axis holds one."""
    return sum(_elements(tensor) * tensor.element_size() for tensor in tensors)


def _elements(tensor: torch.Tensor) -> int:
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count
