"""Capture of a step, with a stand-in for torch.cuda that records the step in place of a CUDA graph."""

import contextlib
import warnings

import pytest
import torch

from zskd_fast.runtime import cuda_graph
from zskd_fast.runtime.timing import PhaseTimer


class Stream:
    """A stream with a number; waiting changes nothing."""

    made = 0

    def __init__(self):
        Stream.made += 1
        self.number = Stream.made

    def wait_stream(self, other):
        pass


class Recorder:
    """Stand-in for torch.cuda and its allocator: a step that runs under `graph` is recorded and changes no state.

    As in torch, a capture that fails leaves its stream the current one and the allocator in its pool. Without a stream
    given, the graph of a second device is empty. ``refuses`` is what the device says to a capture.
    """

    def __init__(self, state: torch.Tensor, refuses: str = "", synchronizes: bool = False):
        self.state, self.refuses, self.synchronizes, self.capturing = state, refuses, synchronizes, False
        self.work, self.graph_is_empty, self.steps = None, False, 0
        self.main = self.current = Stream()
        self.mode, self.pools, self.default_stream_used = 0, [], False

    def install(self, monkeypatch):
        for name, fake in {
            "device": contextlib.nullcontext,
            "stream": self.on,
            "Stream": Stream,
            "current_stream": lambda device=None: self.current,
            "set_stream": lambda stream: setattr(self, "current", stream),
            "current_device": lambda: 0,
            "get_sync_debug_mode": lambda: self.mode,
            "set_sync_debug_mode": self.set_mode,
            "CUDAGraph": lambda: self,
            "graph_pool_handle": lambda: (0, 1),
            "graph": self.capture,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)

    def set_mode(self, mode):
        self.mode = mode
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)

    def end(self, device, pool):
        if pool not in self.pools:
            raise RuntimeError("the allocator does not use this pool")
        self.pools.remove(pool)

    @contextlib.contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def capture(self, graph, pool=(0, 0), stream=None):
        self.default_stream_used |= stream is None
        previous, self.current = self.current, stream or Stream()
        self.pools.append(pool)
        before, self.capturing = self.state.clone(), True
        try:
            yield
        finally:
            self.capturing = False
            self.state.copy_(before)
        self.pools.remove(pool)
        self.current = previous

    def replay(self):
        if not self.graph_is_empty:
            self.work()


@pytest.fixture
def state():
    return torch.tensor([1.0, 2.0], dtype=torch.float64)


def values():
    """The memory of a number and a rate."""
    return torch.ones(2, dtype=torch.float64).unbind()


def decay(recorder):
    """A step whose result depends on every number and rate that it was given, and on their order."""

    def step(number, rate):
        recorder.steps += 1
        if recorder.synchronizes and recorder.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        if recorder.capturing:
            if recorder.refuses:
                raise RuntimeError(recorder.refuses)
            recorder.work = lambda: step(number, rate)
        recorder.state.mul_(1 - rate).add_(number)

    return step


def test_a_replay_uses_new_values_and_the_capture_restores_the_state(state, monkeypatch):
    recorder, timer = Recorder(state), PhaseTimer()
    recorder.install(monkeypatch)
    begin, eager = state.clone(), state.clone()
    step = cuda_graph.Graphs().captured(decay(recorder), values(), [state], timer)
    assert torch.equal(state, begin)
    for number in (1, 2, 3):
        step(number, 0.5 / number)
        eager.mul_(1 - 0.5 / number).add_(number)
    torch.testing.assert_close(state, eager, rtol=1e-15, atol=0)
    assert set(timer.seconds) == {"captured step"}


NOT_PERMITTED = "operation not permitted when stream is capturing"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"refuses": f"{NOT_PERMITTED}\nand more"}, NOT_PERMITTED),
        ({"synchronizes": True}, "called a synchronizing CUDA operation"),
    ],
    ids=["at the capture", "before it"],
)
def test_after_a_capture_that_fails_everything_is_as_before_and_no_other_is_tried(options, reason, state, monkeypatch):
    recorder = Recorder(state, **options)
    recorder.install(monkeypatch)
    begin, step, graphs = state.clone(), decay(recorder), cuda_graph.Graphs()
    with pytest.warns(UserWarning) as warned:
        assert graphs.captured(step, values(), [state], PhaseTimer()) is step
    assert [str(warning.message) for warning in warned] == [
        f"the steps run without a CUDA graph, which they do not allow: {reason}"
    ]
    assert torch.equal(state, begin)
    assert (recorder.current, recorder.pools, recorder.mode) == (recorder.main, [], 0)
    taken = recorder.steps
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert graphs.captured(step, values(), [state], PhaseTimer()) is step
    assert recorder.steps == taken


def test_a_graph_that_does_nothing_is_not_used(state, monkeypatch):
    recorder = Recorder(state)
    recorder.install(monkeypatch)
    recorder.graph_is_empty = True
    begin, step = state.clone(), decay(recorder)
    with pytest.warns(UserWarning, match="the graph is empty, its replay changes nothing$"):
        assert cuda_graph.Graphs().captured(step, values(), [state], PhaseTimer()) is step
    assert torch.equal(state, begin)


def test_each_device_has_a_stream_of_its_own_and_later_steps_one_warm_up(state, monkeypatch):
    recorder, graphs = Recorder(state), cuda_graph.Graphs()
    recorder.install(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the check for synchronization must not warn either
        graphs.captured(decay(recorder), values(), [state], PhaseTimer())
        taken, made = recorder.steps, Stream.made
        graphs.captured(decay(recorder), values(), [state], PhaseTimer())
    assert not recorder.default_stream_used
    assert (recorder.steps - taken, Stream.made - made) == (2, 0), "one warm-up and the capture, on the same stream"
    graphs._recorded(lambda: None, torch.device("cuda", 1))
    assert Stream.made == made + 1
