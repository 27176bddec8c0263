"""The dropout of a student, switched off while it learns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

_FUNCTIONS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}


class Dropout:
    """What drops values of a student in train mode: its dropout layers, and functions of torch that it calls itself.

    Not found is what other layers drop inside, such as attention and recurrent layers.
    """

    def __init__(self, student: nn.Module):
        layers = (module for module in student.modules() if isinstance(module, nn.modules.dropout._DropoutNd))
        self._layers = [layer for layer in layers if layer.p > 0]
        self._functions = _Functions()
        self._is_seen = False

    @property
    def is_there(self) -> bool:
        """Whether anything would drop values, as far as it was called inside `off`."""
        return bool(self._layers) or self._functions.would_drop

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Drop nothing while the context is active; the layers stay in eval mode afterwards.

        The first such context shows whether the student calls functions: only then later ones look at each call.
        """
        is_watched = self._functions.would_drop or not self._is_seen
        for layer in self._layers:
            layer.eval()
        with self._functions if is_watched else contextlib.nullcontext():
            yield
        self._is_seen = True


class _Functions(TorchFunctionMode):
    """Let the functions of dropout return their input."""

    def __init__(self) -> None:
        super().__init__()
        self.would_drop = False
        """Whether one of them was called that would have dropped something."""

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _FUNCTIONS:
            return func(*args, **kwargs)
        self.would_drop |= kwargs["training"] and kwargs["p"] > 0  # torch passes on both, by name
        return args[0]
