"""The report of a run: one self-contained HTML file that loads nothing from outside."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from zskd_fast.errors import InputError
from zskd_fast.run.run_folder import RunFolder
from zskd_fast.runtime.files import write_atomically

__all__ = ["missing_extras", "write_report"]


def write_report(run: RunFolder, out: str | Path | None = None) -> Path:
    """Write the report of a finished run, by default to report.html in its folder, and return the path.

    Raises InputError if the run has not finished, if its impressions are missing, or if matplotlib or jinja2 is not
    installed.
    """
    absent = missing_extras()
    if absent:
        raise InputError(f"the report needs {' and '.join(absent)}: pip install 'zskd_fast[report]'")
    if not run.record.finished:
        raise InputError(f"{run.folder}: the run has not finished; give its command again to resume it")
    from zskd_fast.report.page import render

    path = run.report_path if out is None else Path(out)
    write_atomically(path, render(run).encode())
    return path


def missing_extras() -> list[str]:
    """Return the names of the packages that a report needs and that are not installed."""
    return [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
