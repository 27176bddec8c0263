"""Progress bars write whole lines, and few of them, where stderr is no terminal."""

import io
import sys
import threading

import pytest
import tqdm.std

from zskd_fast.runtime.progress import progress_bar

SYNTHESIS_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}, {rate_fmt}]"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves, in place of tqdm's."""
    now = [1000.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    return now


def feed(clock, updates=5000, seconds=1 / 64, **options):
    """A bar with so many updates, one each `seconds`."""
    options = {"total": updates, "unit": "step", **options}
    with progress_bar("distillation", **options) as bar:
        for step in range(updates):
            clock[0] += seconds
            bar.set_postfix(loss=f"{step:.4f}", refresh=False)
            bar.update()


def test_thousands_of_updates_give_a_line_every_ten_seconds_and_a_last_one(clock, capsys):
    feed(clock, updates=3600)
    printed = capsys.readouterr().err
    lines = printed.split("\n")
    assert lines.pop() == ""  # the output ends in a newline
    assert [line.partition("|")[0] for line in lines] == [
        f"distillation: {percent:3d}%" for percent in (18, 36, 53, 71, 89, 100)
    ]
    assert "3600/3600 [00:56<00:00, 64.00step/s, loss=3599.0000]" in lines[-1]
    assert "\r" not in printed


def test_a_short_job_gives_its_last_line_alone(clock, capsys):
    feed(clock, updates=50)
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "50/50" in printed


def test_slow_updates_give_one_line_each_and_no_second_last_line(clock, capsys):
    feed(clock, updates=3, seconds=60)
    printed = capsys.readouterr().err
    assert [line.split("|")[2].split()[0] for line in printed.splitlines()] == ["1/3", "2/3", "3/3"]


@pytest.mark.parametrize("options", [{"shown": False}, {"done": 7, "updates": 0, "total": 7}])
def test_a_hidden_bar_and_one_that_never_moves_print_nothing(clock, capsys, options):
    feed(clock, **options)
    printed = capsys.readouterr().err
    assert printed == ""


def test_an_interrupted_job_shows_how_far_it_came(clock, capsys):
    with pytest.raises(KeyboardInterrupt), progress_bar("teacher", total=100, unit="step") as bar:
        bar.update(40)
        raise KeyboardInterrupt
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and " 40%" in printed


def test_the_rate_of_a_resumed_job_counts_its_own_updates_in_scaled_units(clock, capsys):
    scaled = {"unit": "impression", "unit_scale": 1 / 5, "bar_format": SYNTHESIS_FORMAT}
    feed(clock, updates=320, total=1000, done=680, **scaled)
    printed = capsys.readouterr().err
    assert "| 200/200 [00:05<00:00, 12.80impression/s]\n" in printed


def test_on_a_terminal_the_bar_is_redrawn_in_place(clock, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    feed(clock, updates=500)
    printed = stream.getvalue()
    assert printed.startswith("\rdistillation:   0%") and printed.count("\r") > 10 and printed.count("\n") == 1


def test_lines_need_no_thread_of_their_own(clock, capsys):
    before = set(threading.enumerate())
    feed(clock, updates=10)
    assert set(threading.enumerate()) == before
