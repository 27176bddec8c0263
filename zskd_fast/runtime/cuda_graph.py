"""Capture of a repeated step as a CUDA graph, which is then started by a single launch."""

import warnings
from collections.abc import Callable, Sequence

import torch

from zskd_fast.runtime.timing import PhaseTimer

Step = Callable[[int | torch.Tensor, float | torch.Tensor], None]

WORTH_CAPTURING = 20
"""Number of steps from which a capture pays; the capture itself costs some steps."""

_WARM_UPS = 3  # libraries choose kernels and allocate memory in their first calls; a capture allows neither


def captured(step: Step, changed: Sequence[torch.Tensor], timer: PhaseTimer) -> Step:
    """Return the step as a CUDA graph: ``step(number, rate)`` replays it with new values of both.

    ``changed`` are the tensors, all on one CUDA device, that the step changes in place; the capture restores them.
    Nothing in the step may synchronize with the device, and the memory that it reads must not move. If the step
    cannot be captured, for instance because the teacher synchronizes or branches on a result, warn and return the
    step unchanged. ``timer`` counts the replays as the phase "captured step".
    """
    before = [tensor.clone() for tensor in changed]
    arguments = torch.ones(2, dtype=torch.float64, device=changed[0].device)
    try:
        with torch.cuda.device(arguments.device):
            _warm_up(step, arguments)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step(*arguments)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(f"the step runs without a CUDA graph, which it does not allow: {reason}", stacklevel=2)
        return step
    finally:
        for tensor, value in zip(changed, before, strict=True):
            tensor.copy_(value)

    def replay(number: int | torch.Tensor, rate: float | torch.Tensor) -> None:
        with timer("captured step"):
            arguments[0].fill_(number)
            arguments[1].fill_(rate)
            graph.replay()

    return replay


def _warm_up(step: Step, arguments: torch.Tensor) -> None:
    """Run the step before its capture. Raises RuntimeError if it synchronizes, which would break the capture."""
    side, mode = torch.cuda.Stream(), torch.cuda.get_sync_debug_mode()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                step(*arguments)
            torch.cuda.set_sync_debug_mode("error")
            step(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.current_stream().wait_stream(side)
