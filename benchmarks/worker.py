"""Fresh processes, each stopped just before its work, so that starting up does not count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from benchmarks import machine


class Worker:
    """``python -m MODULE WORDS``, which prints "ready", waits for a line, works, and prints a line of JSON.

    As a context manager it ends the process, however far it came.
    """

    def __init__(self, module: str, *words: object, **environment: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=machine.ROOT,
            env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        )

    def wait_until_ready(self) -> None:
        assert self._process.stdout.readline() == "ready\n", "the worker did not start"

    def go(self) -> None:
        """Lets it work; returns at once."""
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What it says when its work is done."""
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def work_together(workers: list[Worker]) -> list[dict[str, Any]]:
    """Lets all of them work at once, and waits for the slowest."""
    for worker in workers:
        worker.go()
    return [worker.answer() for worker in workers]
