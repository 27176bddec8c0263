"""Ctrl-C and SIGTERM: work that must not stop halfway, and how far a stopped command came."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A launcher passes on a signal that its processes have got themselves, so a second one soon after means the same.
_SECONDS_OF_ONE_REQUEST = 5.0


class StopRequest:
    """Whether a signal has arrived; it is handled when the context of ``signals_deferred`` ends."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._since = 0.0
        self._before: dict[int, Callable[[int, FrameType | None], object] | int] = {}

    def __bool__(self) -> bool:
        return self._number is not None

    def make(self) -> None:
        """Request the stop as SIGTERM does, because another process got a signal."""
        self._number = self._number or signal.SIGTERM

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._number is None:
            self._number, self._since = number, now
        elif now - self._since > _SECONDS_OF_ONE_REQUEST:  # the user does not want to wait
            self._handle()

    def _defer(self) -> None:
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if handler is not None and handler != signal.SIG_IGN:  # None: a handler that is not Python's
                signal.signal(number, self._note)
                self._before[number] = handler

    def _handle(self) -> None:
        """Restore the handlers and, if a signal has arrived, call the one that it was for."""
        number, self._number = self._number, None
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before = {}
        if number is not None:
            signal.raise_signal(number)


@contextlib.contextmanager
def signals_deferred() -> Iterator[StopRequest]:
    """Note SIGINT and SIGTERM while the context is active, and handle them at its end, as if they arrived then.

    The work inside asks the request that it is given whether to stop. A second signal more than five seconds after the
    first is handled at once. Outside the main thread, which alone gets signals, nothing is deferred.
    """
    request = StopRequest()
    with contextlib.suppress(ValueError):  # not the main thread
        request._defer()
    try:
        yield request
    finally:
        request._handle()


@contextlib.contextmanager
def continuing_from(where: Callable[[], str]) -> Iterator[None]:
    """Put into a KeyboardInterrupt that leaves the context from where the same work would continue."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = stop.args or (where(),)
        raise
