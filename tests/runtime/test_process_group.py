"""The group of cooperating processes, around work that an exception ends."""

import weakref

import pytest
import torch

from zskd_fast.runtime import processes


class _Wrapper:
    """Stands for torch's wrapper of a shared model, which holds the group and is held by a circle of references."""

    def __init__(self):
        self.itself = self


def test_what_an_ended_function_held_is_freed_before_the_group(monkeypatch):
    """Freed later, it waits for a thread of gloo that waits for the interpreter: the process never exits."""
    alive, at_the_end = [], []

    def work():
        wrapper = _Wrapper()
        alive.append(weakref.ref(wrapper))
        try:
            raise ValueError
        except ValueError:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(processes, "launched", lambda: processes.World(0, 2))
    monkeypatch.setattr(processes.dist, "init_process_group", lambda backend: None)
    monkeypatch.setattr(processes.dist, "destroy_process_group", lambda: at_the_end.append(alive[0]()))
    with pytest.raises(KeyboardInterrupt), processes.process_group(torch.device("cpu")):
        work()
    assert at_the_end == [None]
