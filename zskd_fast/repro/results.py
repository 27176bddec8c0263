"""The results table: a CSV file with one row per student."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zskd_fast.errors import InputError
from zskd_fast.runtime.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A student of one method and one seed; None where a value was not measured."""

    setup: str
    recipe: str
    change: str
    """The options that differ from the named recipe; see `change_text`."""
    method: str
    seed: int
    device: str
    threads: int
    torch: str
    teacher_accuracy: float | None
    """On the real test images, between 0 and 1; likewise the student's."""
    student_accuracy: float
    agreement_impressions: float | None = None
    """Share of the held-out impressions to which student and teacher assign the same class."""
    agreement_noise: float | None = None
    """The same share of held-out start noise."""
    impressions: int | None = 0
    image_steps: int | None = 0
    """Impressions times synthesis steps."""
    student_images: int | None
    """Distillation steps times batch size."""
    synthesis_seconds: float = 0.0
    distillation_seconds: float
    version: str

    @property
    def run(self) -> tuple[str, str, str, str, int]:
        """What was run, on whatever machine."""
        return (self.setup, self.recipe, self.change, self.method, self.seed)

    @property
    def key(self) -> tuple[str | int, ...]:
        """What was run and where; a table has one row per key."""
        return (*self.run, self.device, self.threads, self.torch)

    @property
    def seconds(self) -> float:
        """Synthesis and distillation together."""
        return self.synthesis_seconds + self.distillation_seconds


_FIELDS = {field.name: str(field.type) for field in dataclasses.fields(Outcome)}
_READERS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "int | None": lambda cell: int(cell) if cell else None,
    "float | None": lambda cell: float(cell) if cell else None,
}


def change_text(changes: Mapping[str, object]) -> str:
    """Changed options as the command line spells them, sorted: "distillation.steps=1000 synthesis.betas=1.0,0.1"."""
    return " ".join(f"{key}={_spelled(value)}" for key, value in sorted(changes.items()))


def read_outcomes(path: str | Path) -> list[Outcome]:
    """Read the rows of a table in file order; none if the file does not exist.

    Raises InputError if the file is not a results table.
    """
    path = Path(path)
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [Outcome(**{name: _READERS[kind](row[name]) for name, kind in _FIELDS.items()})
                    for row in csv.DictReader(file)]  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a results table (columns {', '.join(_FIELDS)}): {error!r}; give another file"
        ) from error


def upsert(path: str | Path, new: Iterable[Outcome]) -> None:
    """Put rows into a table, replacing rows with the same key; the file stays sorted by key."""
    rows = {row.key: row for row in [*read_outcomes(path), *new]}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_FIELDS)
    writer.writerows(dataclasses.astuple(rows[key]) for key in sorted(rows))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(path), text.getvalue().encode())


def _spelled(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
