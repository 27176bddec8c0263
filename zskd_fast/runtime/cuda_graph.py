"""A step of the driver as a CUDA graph: captured once, then started by a single launch."""

import warnings
from collections.abc import Callable, Sequence

import torch

from zskd_fast.runtime.timing import PhaseTimer

Step = Callable[[float | torch.Tensor, float | torch.Tensor], None]

WORTH_CAPTURING = 20
"""Steps from which on a capture, which costs some steps itself, pays."""

_WARM_UPS = 3  # libraries choose their kernels and take their memory before the capture, which allows neither


def captured(step: Step, changed: Sequence[torch.Tensor], timer: PhaseTimer) -> Step:
    """The same step as a graph: ``step(number, rate)`` replays it with new values of both.

    ``changed`` are the tensors on one CUDA device that the step changes in place; they come back as they were. Nothing
    in the step may wait for the device, and all that it reads must stay where it is. A step that cannot be captured,
    because the teacher waits for the device or branches on a result, say, comes back itself, with a warning. ``timer``
    has the replays as the phase "captured step".
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

    def replay(number, rate):
        with timer("captured step"):
            arguments[0].fill_(number)
            arguments[1].fill_(rate)
            graph.replay()

    return replay


def _warm_up(step, arguments):
    """Raises RuntimeError if the step waits for the device: here, since within a capture that would leave it open."""
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
