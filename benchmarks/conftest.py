"""Options, the order of the providers, and the rows written at the end.

A benchmark module names its cases in plain lists: a test that takes `shape`, `setting` or `provider` runs once for each
entry of the module's SHAPES, SETTINGS or PROVIDERS; with `--quick` for each of QUICK_SHAPES, ..., where there are any.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import machine
from benchmarks.measure import Bench, Session
from benchmarks.results import RESULTS, read_rows, upsert

_TURNS = 3
_SESSION = pytest.StashKey[Session]()


def pytest_addoption(parser):
    group = parser.getgroup("zskd_fast")
    group.addoption(
        "--quick", action="store_true", help="small shapes and one short turn: does it run at all?"
    )
    group.addoption("--device", default="cpu", help="device of torch to measure, such as cpu or cuda")
    group.addoption("--results", type=Path, help="the file of rows to put the results into, not results.csv")
    group.addoption(
        "--to-accuracy", action="store_true", help="also the demo, until 95 %% and 97 %%: takes minutes"
    )


def pytest_configure(config):
    config.stash[_SESSION] = Session(
        config.getoption("--device"), 0.01 if config.getoption("--quick") else 0.3
    )


def pytest_generate_tests(metafunc):
    """Case by case, and in a case turn by turn: what slows the machine for a while slows every provider alike.

    What is parametrized first varies slowest.
    """
    _parametrize(metafunc, "shape", "setting")
    if "threads" in metafunc.fixturenames:
        metafunc.parametrize("threads", _thread_counts(metafunc.config, metafunc.module), indirect=True)
    if "bench" in metafunc.fixturenames:
        turns = 1 if metafunc.config.getoption("--quick") else getattr(metafunc.module, "TURNS", _TURNS)
        metafunc.parametrize("bench", range(turns), indirect=True, ids=lambda turn: f"turn{turn + 1}")
    _parametrize(metafunc, "provider")


def _parametrize(metafunc, *axes):
    for axis in axes:
        if axis in metafunc.fixturenames:
            name = f"{axis.upper()}S"
            quick = metafunc.config.getoption("--quick") and getattr(metafunc.module, f"QUICK_{name}", None)
            metafunc.parametrize(axis, quick or getattr(metafunc.module, name), ids=_shown)


def _thread_counts(config, module):
    if config.getoption("--quick") or torch.device(config.getoption("--device")).type == "cuda":
        return [1]
    return getattr(module, "THREADS", sorted({1, machine.all_threads()}))


def _shown(entry):
    return "x".join(map(str, entry)) if isinstance(entry, tuple) else str(entry)


@pytest.fixture
def threads(request):
    """How many CPU threads torch uses meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def bench(request, benchmark):
    """Times one call and notes its row; see `benchmarks.measure.Bench`."""
    return Bench(request.config.stash[_SESSION], benchmark, request.param)


def pytest_sessionfinish(session):
    config = session.config
    path = config.getoption("--results") or (None if config.getoption("--quick") else RESULTS)
    if path is None:
        print("\nThe rows are not kept: --quick measures too little for results.csv; give --results FILE")
        return
    rows = config.stash[_SESSION].rows(read_rows(path))
    if rows:
        upsert(rows, path)
        print(f"\n{len(rows)} rows put into {path}")
