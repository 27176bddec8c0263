"""Work in threads: every item once, torch's threads divided, and an error or an interruption ends it."""

import threading

import pytest
import torch
from small_models import IMAGE, image_classifier, synthesis_recipe

from zskd_fast.runtime.threads import run_in_threads
from zskd_fast.runtime.timing import PhaseTimer
from zskd_fast.synthesis.synthesizer import Synthesizer


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_item_is_processed_once(workers):
    seen = []
    run_in_threads(seen.append, range(20), workers, threading.Event())
    assert sorted(seen) == list(range(20))


def test_the_threads_of_torch_are_divided_and_restored():
    meeting, counts = threading.Barrier(2, timeout=30), []

    def work(_):
        meeting.wait()  # until both threads are here
        counts.append(torch.get_num_threads())

    run_in_threads(work, range(2), 2, threading.Event())
    assert counts == [2, 2]
    assert torch.get_num_threads() == 4
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [4], "a thread that starts later has too few threads"


def test_an_error_stops_the_other_calls_and_is_raised_again():
    stop, begun = threading.Event(), threading.Event()

    def work(item):
        if item == 0:
            assert begun.wait(30)
            raise ValueError("item 0")
        begun.set()
        assert stop.wait(30), "stop was not set"

    with pytest.raises(ValueError, match="item 0"):
        run_in_threads(work, range(2), 2, stop)
    assert torch.get_num_threads() == 4


def test_items_that_have_not_begun_at_an_error_are_dropped():
    done = []

    def work(item):
        if item == 0:
            raise ValueError
        done.append(item)
        stop.wait(30)

    stop = threading.Event()
    with pytest.raises(ValueError):
        run_in_threads(work, range(100), 2, stop)
    assert len(done) < 99


def _made(parallel, progress=None, **recipe):
    recipe = synthesis_recipe(parallel_batches=parallel, steps=20, impressions=30, **recipe)
    # A square saves its input for the backward pass, which autograd refuses if batches share memory.
    teacher = torch.nn.Sequential(_Square(), image_classifier())
    synthesizer = Synthesizer(teacher, IMAGE, recipe, seed=1)
    return synthesizer.run(range(30), progress=progress), synthesizer.timer


class _Square(torch.nn.Module):
    def forward(self, x):
        return x * x


def test_impressions_from_parallel_batches_equal_those_from_one_batch_at_a_time():
    parallel, serial = _made(True)[0], _made(False)[0]
    for name, tensor in serial.tensors().items():
        torch.testing.assert_close(parallel.tensors()[name], tensor, rtol=1e-4, atol=1e-4, msg=name)


def test_progress_is_reported_by_one_thread_at_a_time():
    inside, counts = threading.Lock(), []

    def progress(count):
        assert inside.acquire(blocking=False), "two threads report at once"
        counts.append(count)
        inside.release()

    _made(True, progress)
    assert sum(counts) == 30 * 20


def test_an_interruption_ends_every_batch_at_its_next_step():
    calls = []

    def progress(count):
        calls.append(count)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _made(True, progress, batch_size=2)
    assert len(calls) < 30


def test_threads_that_time_a_phase_at_once_count_as_shares_of_the_wall_clock():
    timer = PhaseTimer()
    with timer.shared_by(4):
        for _ in range(4):
            timer.add("update", 1.0)
    timer.add("update", 1.0)
    assert timer.seconds["update"] == 2.0
