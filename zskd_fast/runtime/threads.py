"""Threads for work whose items are too small to use all CPU cores one at a time."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch

_T = TypeVar("_T")


def run_in_threads(work: Callable[[_T], object], items: Sequence[_T], workers: int, stop: threading.Event) -> None:
    """Call ``work`` on every item, from ``workers`` threads at once, which divide torch's threads among them.

    If a call raises or the caller is interrupted, set ``stop``, which should make the other calls return early; wait
    for them, then raise the exception again. Items that have not begun are dropped.
    """
    if workers == 1:
        for item in items:
            work(item)
        return
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    try:
        # torch.set_num_threads applies to the thread that calls it.
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            try:
                for done in as_completed([pool.submit(work, item) for item in items]):
                    done.result()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        # Threads that start later inherit the number that was set last.
        torch.set_num_threads(threads)


def one_at_a_time(progress: Callable[[int], object] | None) -> Callable[[int], None]:
    """Return the callback, or one that does nothing, in a form that several threads may call."""
    lock = threading.Lock()

    def call(count: int) -> None:
        if progress is not None:
            with lock:
                progress(count)

    return call
