"""The report of a run: one HTML file that needs nothing beside itself, not even a network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from zskd_fast.errors import InputError
from zskd_fast.run.run_folder import RunFolder
from zskd_fast.runtime.files import write_atomically

__all__ = ["missing_extras", "write_report"]


def write_report(run: RunFolder, out: str | Path | None = None) -> Path:
    """Write the report of a run as one HTML file, by default report.html in its folder; returns its path.

    Raises InputError when the run has not finished, when its impressions are not there, or when matplotlib or
    jinja2 are not installed.
    """
    absent = missing_extras()
    if absent:
        raise InputError(f"the report needs {' and '.join(absent)}: pip install 'zskd_fast[report]'")
    if not run.record.finished:
        raise InputError(f"{run.folder}: the run has not finished; the command that began it goes on with it")
    from zskd_fast.report.page import render

    path = run.report_path if out is None else Path(out)
    write_atomically(path, render(run).encode())
    return path


def missing_extras() -> list[str]:
    """Names of the packages that a report needs and that are not installed."""
    return [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
