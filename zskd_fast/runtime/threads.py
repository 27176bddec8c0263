"""Work of which each piece is too small for all cores of a CPU, done by a thread for each."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch

_T = TypeVar("_T")


def side_by_side(
    work: Callable[[_T], object], items: Sequence[_T], workers: int, stop: threading.Event
) -> None:
    """Calls ``work`` for every item from ``workers`` threads at once, which share torch's threads among them.

    If a call raises, or the caller is interrupted, ``stop`` is set, on which the other calls should end; when they
    have, the exception goes on.
    """
    if workers == 1:
        for item in items:
            work(item)
        return
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    try:
        # torch counts threads for each thread that calls it.
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            try:
                for done in as_completed([pool.submit(work, item) for item in items]):
                    done.result()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        # Threads that start later take the number that was set last.
        torch.set_num_threads(threads)
