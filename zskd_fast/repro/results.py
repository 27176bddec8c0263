"""What a repetition gave: a row of a CSV file for each setup, way and seed; and such files of other rows."""

from __future__ import annotations

import csv
import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from zskd_fast.errors import InputError
from zskd_fast.runtime.files import write_atomically

__all__ = ["Outcome", "read_table", "upsert"]


@dataclass(frozen=True)
class Outcome:
    """A student of one way and one seed; None where something was not measured."""

    setup: str
    way: str
    seed: int
    device: str
    threads: int
    torch: str
    recipe: str
    teacher_accuracy: float
    """Of the real test images, between 0 and 1; so is the student's."""
    student_accuracy: float
    agreement_impressions: float | None
    """Share of held-out impressions to which student and teacher give the same class."""
    agreement_noise: float | None
    """The same of held-out start noise."""
    impressions: int
    image_steps: int
    """Impressions times steps of the synthesis."""
    student_images: int
    """Steps of the student times its batch size."""
    synthesis_seconds: float
    distillation_seconds: float
    version: str

    @property
    def key(self) -> tuple:
        """What another run of the same replaces."""
        return (self.setup, self.way, self.seed, self.recipe, self.device, self.threads, self.torch)

    @property
    def seconds(self) -> float:
        """From the teacher to the student."""
        return self.synthesis_seconds + self.distillation_seconds


_READ = {"int": int, "float": float, "str": str, "float | None": lambda cell: float(cell) if cell else None}


class _Keyed(Protocol):
    """A dataclass of numbers and words."""

    @property
    def key(self) -> tuple: ...


_Row = TypeVar("_Row", bound=_Keyed)


def read_table(path: str | Path, kind: type[_Row]) -> list[_Row]:
    """The rows of a file, in its order; none if it is not there. Raises InputError if it is another kind of file."""
    path = Path(path)
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [
            kind(**{field.name: _READ[field.type](row[field.name]) for field in dataclasses.fields(kind)})
            for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a table with a row for each {kind.__name__}: {error!r}") from error


def upsert(path: str | Path, new: list[_Row]) -> None:
    """Puts rows of one kind into a file, each in the place of the row with its key; the file stays sorted."""
    rows = {row.key: row for row in [*read_table(path, type(new[0])), *new]}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in dataclasses.fields(new[0]))
    for key in sorted(rows):
        writer.writerow("" if cell is None else cell for cell in dataclasses.astuple(rows[key]))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(path), text.getvalue().encode())
