"""The folder of a run: its record, its impressions, its student and its report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dacite

from zskd_fast.config.identity import differences
from zskd_fast.errors import InputError
from zskd_fast.runtime.files import TEMPORARY_SUFFIX, sha256, write_atomically
from zskd_fast.runtime.lock import LOCK_NAME, locked

__all__ = [
    "Accuracy",
    "DistillationRecord",
    "RunFolder",
    "RunRecord",
    "SynthesisRecord",
    "require_writable",
]

FORMAT = 1


@dataclass
class SynthesisRecord:
    """What the making of the impressions cost; after an interruption, of those made by the last go."""

    made: int = 0
    seconds: float = 0.0
    phase_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Impressions per second; 0 if all were there already."""
        return self.made / self.seconds if self.made else 0.0


@dataclass
class DistillationRecord:
    """How the student learned. loss, learning_rate: one per step; accuracies: (step, test accuracy)."""

    seconds: float = 0.0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    accuracies: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class Accuracy:
    """Measured on real test images, which nothing else ever sees."""

    source: str
    images: int
    teacher: float
    student: float


@dataclass
class RunRecord:
    """Everything about a run that its report shows; `identity` tells it from other runs."""

    identity: dict[str, Any]
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

    A folder is opened for one run, told by its identity; another run's folder, or one with foreign files, is
    refused before anything is written.
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
    def open_or_create(cls, folder: str | Path, identity: dict[str, Any]) -> RunFolder:
        """Open the folder of the run with this identity, or start a new one.

        Raises InputError when the folder is another run's (one line per differing key), holds other files or
        cannot be written.
        """
        folder = Path(folder)
        identity = json.loads(json.dumps(identity))  # as it will be read back: tuples become lists
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
    def record_path(self) -> Path:
        return self.folder / "run.json"

    @property
    def student_path(self) -> Path:
        return self.folder / "student.safetensors"

    @property
    def checkpoint_path(self) -> Path:
        return self.checkpoint_of(self.folder)

    @staticmethod
    def checkpoint_of(folder: str | Path) -> Path:
        """Where the checkpoint of a run lies, for a process that shares it but does not keep the folder."""
        return Path(folder) / "checkpoint"

    @property
    def report_path(self) -> Path:
        return self.folder / "report.html"

    @property
    def impressions_path(self) -> Path:
        return self.folder / self.record.impressions

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end and its student is still there as it was written."""
        if not self.record.finished or not self.student_path.is_file():
            return False
        return sha256(self.student_path.read_bytes()) == self.record.student_sha256

    def save(self) -> None:
        """Write the record; a reader sees the old one or the new one."""
        text = json.dumps(dataclasses.asdict(self.record), indent=1)
        write_atomically(self.record_path, text.encode())

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Keeps other processes from working in the folder meanwhile; InputError if one does already."""
        with locked(self.folder / LOCK_NAME) as free:
            if not free:
                raise InputError(f"another process is at work in {self.folder}; wait for it")
            yield

    def _require_same(self, identity: dict[str, Any]) -> None:
        lines = differences(identity, self.record.identity, here="in this run", there="in the folder")
        if lines:
            shown = "\n  ".join(lines)
            raise InputError(
                f"{self.folder} belongs to another run; choose another --out. It differs in:\n  {shown}"
            )


def require_writable(folder: str | Path) -> None:
    """Raise InputError if files cannot be made in `folder` or its first parent that exists; leaves none."""
    existing = Path(folder).absolute()
    try:
        while not existing.exists():
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error


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
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT:
            raise InputError(f"{path}: got format {found}, wanted {FORMAT}")
        return dacite.from_dict(RunRecord, values, dacite.Config(strict=True, cast=[tuple]))
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} is not the folder of a run: it has no run.json") from error
    except (ValueError, dacite.DaciteError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: truncated, or not the record of a run ({error})") from error
