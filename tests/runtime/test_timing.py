import time

import pytest
from torch.profiler import ProfilerActivity, profile

from zskd_fast.runtime.timing import PhaseTimer


def test_adds_up_the_seconds_of_each_phase():
    timer = PhaseTimer()
    for _ in range(2):
        with timer("loss"):
            time.sleep(0.02)
    with timer("io"):
        pass
    assert 0.04 <= timer.seconds["loss"] < 0.4
    assert timer.seconds["io"] < 0.02


def test_counts_a_phase_that_raises_and_lets_the_error_through():
    timer = PhaseTimer()
    with pytest.raises(RuntimeError), timer("loss"):
        raise RuntimeError
    assert "loss" in timer.seconds


def test_refuses_a_phase_that_no_report_knows():
    with pytest.raises(KeyError, match="teacher forward"):
        PhaseTimer()("teacher")


def test_shows_up_in_the_profiler():
    timer = PhaseTimer()
    with profile(activities=[ProfilerActivity.CPU]) as profiler, timer("teacher forward"):
        pass
    assert "zskd::teacher forward" in {event.key for event in profiler.key_averages()}
