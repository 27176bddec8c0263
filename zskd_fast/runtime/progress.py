"""Progress bars: redrawn in place on a terminal, printed as whole lines elsewhere."""

import sys
from typing import Any

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


def progress_bar(
    description: str, *, total: float, done: float = 0, unit: str, shown: bool = True, **format: Any
) -> tqdm:
    """Return a tqdm bar on stderr that starts at ``done`` of ``total``; use it as a context manager.

    Where stderr is no terminal (a log file, a CI job) the bar prints a line at most every ten seconds, and a last line
    when it closes. ``format`` goes to tqdm (``unit_scale``, ``bar_format``). Change the postfix with
    ``set_postfix(..., refresh=False)``: a refresh would print a line at once.
    """
    kind = tqdm if sys.stderr.isatty() else _Lines
    bar = kind(desc=description, total=total, initial=done, unit=unit, disable=not shown, **format)
    # tqdm computes the mean rate as (n * unit_scale - initial) / seconds.
    bar.initial = done * format.get("unit_scale", 1)
    return bar


class _Lines(tqdm):
    """A tqdm bar that prints a line where tqdm redraws the bar, and only if the bar has moved since the last line."""

    monitor_interval = 0  # no monitor thread, which would refresh bars by itself

    def __init__(self, **options: Any) -> None:
        # Without `leave` tqdm ends no line of its own; without smoothing the rate is the mean rate of the run.
        lines = {"mininterval": _SECONDS_BETWEEN_LINES, "miniters": 1, "leave": False, "smoothing": 0}
        super().__init__(**options, **lines)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Print the state of the bar; ``msg`` and ``pos`` are tqdm's and have no meaning for lines."""
        if self.n == self.last_print_n:
            return False
        self.fp.write(f"{self}\n")
        self.fp.flush()
        return False
