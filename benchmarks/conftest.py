"""Options, the order of the providers, and the rows written at the end.

A benchmark module names its cases in lists: a test with an argument `shape`, `setting` or `provider` runs once per
entry of the module's SHAPES, SETTINGS or PROVIDERS; with `--quick` once per entry of QUICK_SHAPES, ..., if present.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import machine
from benchmarks.measure import Bench, Session
from benchmarks.results import RESULTS, read_rows, upsert

_TURNS = 3
_SESSION = pytest.StashKey[Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the benchmarks."""
    group = parser.getgroup("zskd_fast")
    group.addoption("--quick", action="store_true", help="small shapes and one short turn, to see that all run")
    group.addoption("--device", default="cpu", help="device of torch to measure, such as cpu or cuda")
    group.addoption("--results", type=Path, help="results file to put the rows into, in place of results.csv")
    group.addoption("--to-accuracy", action="store_true", help="also time jobs until given accuracies (half an hour)")


def pytest_configure(config: pytest.Config) -> None:
    """Start the session in which the measurements are collected."""
    seconds_per_turn = 0.01 if config.getoption("--quick") else 0.3
    config.stash[_SESSION] = Session(config.getoption("--device"), seconds_per_turn)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Order by case, then by turn, then by provider, so that a slow phase of the machine affects all providers.

    The argument that is parametrized first varies slowest.
    """
    config, module = metafunc.config, metafunc.module
    _parametrize(metafunc, "shape", "setting")
    if "threads" in metafunc.fixturenames:
        metafunc.parametrize("threads", _thread_counts(config, module), indirect=True)
    if "bench" in metafunc.fixturenames:
        turns = 1 if config.getoption("--quick") else getattr(module, "TURNS", _TURNS)
        metafunc.parametrize("bench", range(turns), indirect=True, ids=lambda turn: f"turn{turn + 1}")
    _parametrize(metafunc, "provider")


def _parametrize(metafunc: pytest.Metafunc, *axes: str) -> None:
    for axis in axes:
        if axis in metafunc.fixturenames:
            name = f"{axis.upper()}S"
            quick = metafunc.config.getoption("--quick") and getattr(metafunc.module, f"QUICK_{name}", None)
            metafunc.parametrize(axis, quick or getattr(metafunc.module, name), ids=_shown)


def _thread_counts(config: pytest.Config, module: ModuleType) -> list[int]:
    if config.getoption("--quick") or torch.device(config.getoption("--device")).type == "cuda":
        return [1]
    return getattr(module, "THREADS", sorted({1, machine.all_threads()}))


def _shown(entry: object) -> str:
    return "x".join(map(str, entry)) if isinstance(entry, tuple) else str(entry)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Set the number of CPU threads that torch uses."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def bench(request: pytest.FixtureRequest, benchmark: Any) -> Bench:
    """Time one call and collect its row; see `benchmarks.measure.Bench`."""
    return Bench(request.config.stash[_SESSION], benchmark, request.param)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Put the rows into the results file."""
    config = session.config
    path = config.getoption("--results") or (None if config.getoption("--quick") else RESULTS)
    if path is None:
        print("\nNo rows are written: --quick measures too little for results.csv; give --results FILE")
        return
    rows = config.stash[_SESSION].rows(read_rows(path))
    if len(rows):
        upsert(rows, path)
        print(f"\n{len(rows)} rows put into {path}")
