"""Capture of a repeated step as a CUDA graph, which is then started by a single launch."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch

from zskd_fast.runtime.timing import PhaseTimer

Step = Callable[..., None]

WORTH_CAPTURING = 20
"""Number of steps from which a capture pays; the capture itself costs some steps."""

_WITHOUT_GRAPH = "the steps run without a CUDA graph, which they do not allow: "


def pays(device: torch.device, steps: int) -> bool:
    """Whether so many steps on this device are worth a capture."""
    return device.type == "cuda" and steps >= WORTH_CAPTURING


class Graphs:
    """CUDA graphs of the steps of one model. The first step shows whether they can be captured at all."""

    def __init__(self) -> None:
        self._is_refused = self._is_proven = False
        # torch's own default is one stream for all devices: of a second device it would record nothing.
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def captured(
        self, step: Step, arguments: Sequence[torch.Tensor], changed: Sequence[torch.Tensor], timer: PhaseTimer
    ) -> Step:
        """Return the step as a CUDA graph: called with new values, it puts them into ``arguments`` and replays.

        ``changed`` are the tensors that the step changes in place; the capture restores them. All are on one CUDA
        device. Nothing in the step may synchronize with the device, and the memory that it reads must not move. If a
        step cannot be captured, for instance because a model synchronizes or branches on a result, warn once; this step
        and all later ones are returned unchanged. ``timer`` counts the replays as the phase "captured step".
        """
        if self._is_refused:
            return step
        before, device = [tensor.clone() for tensor in changed], changed[0].device
        try:
            with torch.cuda.device(device):
                graph = self._recorded(lambda: step(*arguments), device)
                if not self._is_proven:
                    _require_same_moves(lambda: step(*arguments), graph.replay, changed, before)
        except RuntimeError as error:
            self._is_refused = True
            warnings.warn(_WITHOUT_GRAPH + str(error).partition("\n")[0], stacklevel=2)
            return step
        finally:
            _copy(changed, before)
        self._is_proven = True

        def replay(*values: float | torch.Tensor) -> None:
            with timer("captured step"):
                for argument, value in zip(arguments, values, strict=True):
                    argument.copy_(value) if isinstance(value, torch.Tensor) else argument.fill_(value)
                graph.replay()

        return replay

    def _recorded(self, work: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph:
        """Return a graph of the work. Raises RuntimeError if the work synchronizes or cannot be captured."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream()
        stream = self._streams[device]
        self._warm_up(work, stream)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        with _left_as_found(device, pool), torch.cuda.graph(graph, pool=pool, stream=stream):
            work()
        return graph

    def _warm_up(self, work: Callable[[], None], stream: torch.cuda.Stream) -> None:
        """Do the work before its capture: libraries choose kernels and allocate memory in their first calls.

        Of an unproven model do it twice, the second time to raise RuntimeError before it synchronizes: while a graph is
        captured that would leave torch in a state that only `_left_as_found` mends.
        """
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                work()
                if not self._is_proven:
                    with _synchronization_refused():
                        work()
        finally:
            torch.cuda.current_stream().wait_stream(stream)


@contextlib.contextmanager
def _left_as_found(device: torch.device, pool: tuple[int, int]) -> Iterator[None]:
    """Leave the current stream and the allocator as they were if a capture fails.

    torch's own context then leaves its stream the current one, and up to torch 2.11 its allocator takes all memory from
    the pool of the graph from then on.
    """
    stream = torch.cuda.current_stream(device)
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(stream)
        end = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if end is not None:
            with contextlib.suppress(RuntimeError):  # the allocator has left the pool already
                end(torch.cuda.current_device(), pool)
        raise


@contextlib.contextmanager
def _synchronization_refused() -> Iterator[None]:
    """Let torch raise RuntimeError instead of waiting for the device."""
    mode = torch.cuda.get_sync_debug_mode()
    try:
        _set_sync_debug_mode("error")
        yield
    finally:
        _set_sync_debug_mode(mode)


def _set_sync_debug_mode(mode: int | str) -> None:
    with warnings.catch_warnings():
        # torch warns that it does not find every synchronization; the capture finds the others.
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        torch.cuda.set_sync_debug_mode(mode)


def _require_same_moves(
    eager: Callable[[], None],
    replay: Callable[[], None],
    changed: Sequence[torch.Tensor],
    before: Sequence[torch.Tensor],
) -> None:
    """Raise RuntimeError if a replay leaves all tensors as they were although the step itself changes some."""
    if _moves(eager, changed, before) and not _moves(replay, changed, before):
        raise RuntimeError("the graph is empty, its replay changes nothing")


def _moves(work: Callable[[], None], changed: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> bool:
    _copy(changed, before)
    work()
    return not all(torch.equal(tensor, value) for tensor, value in zip(changed, before, strict=True))


def _copy(tensors: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
