"""The phase timer sums seconds per phase and appears in torch's profiler."""

import time

import pytest
from torch.profiler import ProfilerActivity, profile

from zskd_fast.runtime.timing import PhaseTimer


def test_the_seconds_of_each_phase_are_summed():
    timer = PhaseTimer()
    for _ in range(2):
        with timer("loss"):
            time.sleep(0.02)
    with timer("io"):
        pass
    assert 0.04 <= timer.seconds["loss"] < 0.4
    assert timer.seconds["io"] < 0.02


def test_a_phase_that_raises_is_counted_and_its_error_goes_on():
    timer = PhaseTimer()
    with pytest.raises(RuntimeError), timer("loss"):
        raise RuntimeError
    assert "loss" in timer.seconds


def test_an_unknown_phase_is_refused():
    with pytest.raises(KeyError, match="teacher forward"):
        PhaseTimer()("teacher")


def test_a_phase_is_a_range_of_the_profiler():
    timer = PhaseTimer()
    with profile(activities=[ProfilerActivity.CPU]) as profiler, timer("teacher forward"):
        pass
    assert "zskd::teacher forward" in {event.key for event in profiler.key_averages()}
