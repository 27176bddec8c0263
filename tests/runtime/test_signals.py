"""Signals that wait for the end of the work in hand."""

import os
import signal
import threading

import pytest

from zskd_fast.runtime import signals
from zskd_fast.runtime.signals import continuing_from, signals_deferred


class Terminated(KeyboardInterrupt):
    """What the handler of SIGTERM raises in these tests."""


@pytest.fixture(autouse=True)
def handlers():
    """A handler of SIGTERM that raises, as that of the command line; the handlers before the test come back."""

    def stop(*_):
        raise Terminated

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, stop)
    set_by_test = {number: signal.getsignal(number) for number in before}
    yield set_by_test
    assert {number: signal.getsignal(number) for number in before} == set_by_test
    for number, handler in before.items():
        signal.signal(number, handler)


def _send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_is_noted_and_handled_at_the_end(number, kind):
    done = []
    with pytest.raises(KeyboardInterrupt) as stop, signals_deferred() as request:
        assert not request
        _send(number)
        done.append("the rest of the work")
        assert request
    assert done and type(stop.value) is kind


def test_without_a_signal_nothing_happens():
    with signals_deferred() as request:
        pass
    assert not request


def test_the_same_request_sent_twice_waits_as_well():
    """Ctrl-C reaches a launcher and its processes, to which the launcher passes it on as SIGTERM."""
    with pytest.raises(KeyboardInterrupt), signals_deferred():
        _send(signal.SIGINT)
        _send(signal.SIGTERM)
        done = True
    assert done


def test_a_signal_long_after_the_first_is_handled_at_once(monkeypatch, handlers):
    clock = iter([0.0, 4.9, 5.1])
    monkeypatch.setattr(signals.time, "monotonic", lambda: next(clock))
    done = []
    with pytest.raises(KeyboardInterrupt), signals_deferred():
        _send(signal.SIGINT)
        _send(signal.SIGINT)
        done.append("after the second")
        _send(signal.SIGINT)
        done.append("after the third")
    assert done == ["after the second"]


def test_another_process_can_make_the_request():
    with pytest.raises(Terminated), signals_deferred() as request:
        request.make()
        assert request


def test_a_signal_during_an_error_is_not_lost():
    with pytest.raises(Terminated) as stop, signals_deferred():
        _send(signal.SIGTERM)
        raise ValueError("something else")
    assert isinstance(stop.value.__context__, ValueError)


def test_an_error_without_a_signal_passes():
    with pytest.raises(ValueError, match="something else"), signals_deferred():
        raise ValueError("something else")


def test_an_ignored_signal_stays_ignored():
    """A command that a script starts in the background ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals_deferred() as request:
        _send(signal.SIGINT)
        assert not request
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_outside_the_main_thread_nothing_is_deferred():
    seen = []

    def work():
        with signals_deferred() as request:
            seen.append(bool(request))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_the_innermost_work_says_from_where_it_continues():
    with pytest.raises(KeyboardInterrupt) as stop, continuing_from(lambda: "outer"), continuing_from(lambda: "step 3"):
        raise KeyboardInterrupt
    assert str(stop.value) == "step 3"
    with pytest.raises(ValueError, match=r"^5$"), continuing_from(lambda: "step 3"):
        raise ValueError(5)
