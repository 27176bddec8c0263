"""Capture of a step, with a stand-in for torch.cuda that records the step in place of a CUDA graph."""

import contextlib

import pytest
import torch

from zskd_fast.runtime import cuda_graph
from zskd_fast.runtime.timing import PhaseTimer


class Recorder:
    """Stand-in for torch.cuda: a step that runs under `graph` does not change the state, as in a capture."""

    def __init__(self, state: torch.Tensor, refuses: bool = False):
        self.state, self.refuses, self.capturing = state, refuses, False
        self.work = None

    def install(self, monkeypatch):
        stream = type("Stream", (), {"wait_stream": lambda self, other: None})
        for name, fake in {
            "device": contextlib.nullcontext,
            "stream": contextlib.nullcontext,
            "Stream": stream,
            "current_stream": stream,
            "get_sync_debug_mode": lambda: 0,
            "set_sync_debug_mode": lambda mode: None,
            "CUDAGraph": lambda: self,
            "graph": self.capture,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    @contextlib.contextmanager
    def capture(self, graph):
        before, self.capturing = self.state.clone(), True
        try:
            yield
        finally:
            self.capturing = False
            self.state.copy_(before)

    def replay(self):
        self.work()


@pytest.fixture
def state():
    return torch.tensor([1.0, 2.0], dtype=torch.float64)


def decay(recorder):
    """A step whose result depends on every number and rate that it was given, and on their order."""

    def step(number, rate):
        if recorder.capturing:
            if recorder.refuses:
                raise RuntimeError("operation not permitted when stream is capturing\nand more")
            recorder.work = lambda: step(number, rate)
        recorder.state.mul_(1 - rate).add_(number)

    return step


def test_a_replay_uses_new_values_and_the_capture_restores_the_state(state, monkeypatch):
    recorder, timer = Recorder(state), PhaseTimer()
    recorder.install(monkeypatch)
    begin, eager = state.clone(), state.clone()
    step = cuda_graph.captured(decay(recorder), [state], timer)
    assert torch.equal(state, begin)
    for number in (1, 2, 3):
        step(number, 0.5 / number)
        eager.mul_(1 - 0.5 / number).add_(number)
    torch.testing.assert_close(state, eager, rtol=1e-15, atol=0)
    assert set(timer.seconds) == {"captured step"}


def test_a_step_that_cannot_be_captured_is_returned_unchanged(state, monkeypatch):
    recorder = Recorder(state, refuses=True)
    recorder.install(monkeypatch)
    begin, step = state.clone(), decay(recorder)
    with pytest.warns(UserWarning, match="without a CUDA graph.*: operation not permitted when stream is capturing$"):
        assert cuda_graph.captured(step, [state], PhaseTimer()) is step
    assert torch.equal(state, begin)
