"""Stand-in for CUDA graphs on a CPU: a capture records the ops of a step and the memory that they use."""

import contextlib
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zskd_fast.runtime import cuda_graph

_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "lift_fresh")
# Ops that return a view, or memory that is not yet written.
_VIEWS = (
    r"(new_)?empty.*|_?(unsafe_|reshape_)?(alias|view)|as_strided|detach|diagonal|expand|permute|select|slice|split.*|t"
)
_LAUNCHES_NOTHING = re.compile(rf"{_VIEWS}|transpose|unbind|unfold|(un)?squeeze|_record_function.*")


class CountedOps(TorchDispatchMode):
    """Keep the ops of torch and of this package that are called inside."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @property
    def launches(self):
        """The names of the calls that would launch at least one kernel each."""
        names = [func.name().partition("::")[2].partition(".")[0] for func, *_ in self.calls]
        return [name for name in names if not _LAUNCHES_NOTHING.fullmatch(name)]


class RecordedGraph(CountedOps):
    """A replay calls the recorded ops again on the recorded memory: no Python of the step runs, as on a GPU.

    A call for which a host would wait for the device, or copy to it, is refused as in a capture.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().partition("::")[2].partition(".")[0]
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        if name in _WAITS or any(index is not None and index.dtype == torch.bool for index in indices):
            raise RuntimeError(f"{func.name()} is not permitted when the stream is capturing")
        return super().__torch_dispatch__(func, types, args, kwargs)

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, result in self.calls:
                for kept, again in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(kept, torch.Tensor) and kept.data_ptr() != again.data_ptr():
                        kept.copy_(again)


def install(monkeypatch: pytest.MonkeyPatch) -> list[RecordedGraph]:
    """Let every step that is worth a capture be recorded; return the graphs, as they are made."""
    graphs = []

    def recorded(self, work, device):
        work()
        graphs.append(RecordedGraph())
        with graphs[-1]:
            work()
        return graphs[-1]

    monkeypatch.setattr(cuda_graph, "pays", lambda device, steps: steps > 0)
    monkeypatch.setattr(cuda_graph.Graphs, "_recorded", recorded)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    return graphs
