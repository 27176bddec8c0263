"""The folder of a run: its record, its impressions, its student and its report."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zskd_fast.config.identity import RunIdentity
from zskd_fast.config.serialization import differences, from_plain, to_plain
from zskd_fast.errors import InputError
from zskd_fast.runtime.files import TEMPORARY_SUFFIX, require_writable, sha256, write_atomically
from zskd_fast.runtime.lock import LOCK_NAME, locked

FORMAT = 2


@dataclass
class SynthesisRecord:
    """The cost of making the impressions; after an interruption, of those made since the last start."""

    made: int = 0
    seconds: float = 0.0
    phase_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Impressions per second; 0 if all existed already."""
        return self.made / self.seconds if self.made else 0.0


@dataclass
class DistillationRecord:
    """The course of the distillation. loss, learning_rate: one per step; accuracies: (step, test accuracy)."""

    seconds: float = 0.0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    accuracies: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class Accuracy:
    """Accuracies on real test images, which are used for nothing else."""

    source: str
    images: int
    teacher: float
    student: float


@dataclass
class RunRecord:
    """Everything about a run that its report shows."""

    identity: RunIdentity
    format: int = FORMAT
    finished: bool = False
    names: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    class_similarity: list[list[float]] = field(default_factory=list)
    synthesis: SynthesisRecord = field(default_factory=SynthesisRecord)
    distillation: DistillationRecord = field(default_factory=DistillationRecord)
    accuracy: Accuracy | None = None
    impressions: str = "impressions"
    student_sha256: str = ""
    peak_memory_bytes: int = 0
    environment: dict[str, Any] = field(default_factory=dict)


class RunFolder:
    """The folder of a run: run.json, impressions/, student.safetensors and report.html.

    A folder belongs to one run, told by its identity; a folder of another run, or with other files, is refused before
    anything is written.
    """

    def __init__(self, folder: Path, record: RunRecord) -> None:
        self.folder = folder
        self.record = record

    @classmethod
    def read(cls, folder: str | Path) -> RunFolder:
        """Open the folder of an earlier run. Raises InputError if there is none or its record is damaged."""
        folder = Path(folder)
        return cls(folder, _read_record(folder / "run.json"))

    @classmethod
    def open_or_create(cls, folder: str | Path, identity: RunIdentity) -> RunFolder:
        """Open the folder of the run with this identity, or start a new one.

        Raises InputError when the folder is another run's (one line per differing field), holds other files or cannot
        be written.
        """
        folder = Path(folder)
        require_writable(folder)
        if (folder / "run.json").exists():
            run = cls.read(folder)
            run._require_same(identity)
            return run
        _require_empty(folder)
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder, RunRecord(identity=identity))
        run.save()
        return run

    @property
    def student_path(self) -> Path:
        """File of the student's weights."""
        return self.folder / "student.safetensors"

    @property
    def checkpoint_path(self) -> Path:
        """File of the checkpoint, which exists while the run is unfinished."""
        return self.checkpoint_of(self.folder)

    @staticmethod
    def checkpoint_of(folder: str | Path) -> Path:
        """Return the path of the checkpoint, for a process that reads it but does not keep the folder."""
        return Path(folder) / "checkpoint"

    @property
    def report_path(self) -> Path:
        """File of the report."""
        return self.folder / "report.html"

    @property
    def impressions_path(self) -> Path:
        """Folder of the store."""
        return self.folder / self.record.impressions

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended and its student's file is as it was written."""
        if not self.record.finished or not self.student_path.is_file():
            return False
        return sha256(self.student_path.read_bytes()) == self.record.student_sha256

    def save(self) -> None:
        """Write the record; a reader sees the old one or the new one."""
        text = json.dumps(to_plain(self.record), indent=1)
        write_atomically(self.folder / "run.json", text.encode())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working in the folder; raises InputError if one is working there."""
        with locked(self.folder / LOCK_NAME) as free:
            if not free:
                raise InputError(f"another process is working in {self.folder}; wait until it has ended")
            yield

    def _require_same(self, identity: RunIdentity) -> None:
        lines = differences(identity, self.record.identity, here="in this run", there="in the folder")
        if lines:
            shown = "\n  ".join(lines)
            raise InputError(f"{self.folder} belongs to another run; choose another --out. It differs in:\n  {shown}")


def _require_empty(folder: Path) -> None:
    if not folder.exists():
        return
    names = (entry.name for entry in folder.iterdir() if not entry.name.endswith(TEMPORARY_SUFFIX))
    foreign = sorted(name for name in names if name != LOCK_NAME)
    if foreign:
        raise InputError(f"{folder} is not the folder of a run: it holds {foreign[0]} but no run.json")


def _read_record(path: Path) -> RunRecord:
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} is not the folder of a run: it has no run.json") from error
    except ValueError as error:
        raise InputError(f"{path}: truncated, or not the record of a run ({error})") from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: got format {found}, wanted {FORMAT}")
    return from_plain(RunRecord, values, f"{path}: truncated, or not the record of a run")
