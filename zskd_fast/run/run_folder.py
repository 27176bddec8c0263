"""The folder of a run: its record, its impressions, its student and its report."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors

from zskd_fast.config.identity import RunIdentity
from zskd_fast.config.serialization import by_another_version, differences, from_plain, to_plain
from zskd_fast.errors import InputError
from zskd_fast.runtime.files import TEMPORARY_SUFFIX, require_writable, sha256, write_atomically
from zskd_fast.runtime.lock import LOCK_NAME, locked
from zskd_fast.synthesis.class_similarity import ClassSimilarity
from zskd_fast.synthesis.health import Health

FORMAT = 3
_CLASS_SIMILARITY = "class_similarity"
_CLASSES_KEPT = 2048


@dataclass
class SynthesisRecord:
    """The cost of making the impressions; after an interruption, of those made since the last start."""

    made: int = 0
    seconds: float = 0.0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    health: Health | None = None
    """Of all impressions of the run; None after `distill`, which makes none."""
    notes: dict[str, str] = field(default_factory=dict)
    """What followed from the teacher; see `Synthesizer.notes`."""

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
    notes: dict[str, str] = field(default_factory=dict)
    """What followed from the two models; see `DistillationHistory.notes`."""


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
    synthesis: SynthesisRecord = field(default_factory=SynthesisRecord)
    distillation: DistillationRecord = field(default_factory=DistillationRecord)
    accuracy: Accuracy | None = None
    impressions: str = "impressions"
    student_sha256: str = ""
    peak_memory_bytes: int = 0
    environment: dict[str, Any] = field(default_factory=dict)


class RunFolder:
    """The folder of a run: run.json, impressions/, class-similarity.safetensors, student.safetensors and report.html.

    A folder belongs to one run, told by its identity. A run with more impressions, or with other numbers of the
    student, takes the folder over: it keeps the impressions that exist and trains the student from the start. Nothing
    of the run before is lost: its files are kept under names with its short identity, such as
    student-1a2b3c4d.safetensors, and are found again when it is asked for again. A folder of any other run, or with
    other files, is refused before anything is written.
    """

    def __init__(self, folder: Path, record: RunRecord, *, name: str = "", before: RunRecord | None = None) -> None:
        self.folder = folder
        self.record = record
        self.before = before
        """The run whose folder this one takes over."""
        self.remark = ""
        """What the summary says of a run that was finished before."""
        self._name = name

    @classmethod
    def read(cls, folder: str | Path) -> RunFolder:
        """Open the folder of an earlier run.

        Raises InputError if there is none, or if its record is damaged or another version's.
        """
        folder = Path(folder)
        return cls(folder, _read_record(folder / "run.json"))

    @classmethod
    def open_or_create(cls, folder: str | Path, identity: RunIdentity) -> RunFolder:
        """Open the folder of the run with this identity, take over that of a smaller one, or start a new one.

        Raises InputError when the folder is another run's (one line per differing field), holds other files or cannot
        be written. A folder that is taken over is unchanged until ``begin``.
        """
        folder = Path(folder)
        require_writable(folder)
        if (folder / "run.json").exists():
            return cls.read(folder)._run_of(identity)
        _require_empty(folder)
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder, RunRecord(identity=identity))
        run.save()
        return run

    def begin(self) -> None:
        """Start the work on an unfinished run, with the lock held: set aside what the run before left.

        An interruption at any point leaves a folder in which either run continues.
        """
        if self.before is not None:
            earlier = RunFolder(self.folder, self.before, name=short_identity(self.before.identity))
            if RunFolder(self.folder, self.before).is_finished:
                earlier.save()
            _move(self.student_path, earlier.student_path)
            _move(self.report_path, earlier.report_path)
            _move(self.checkpoint_path, earlier.checkpoint_path)
            self.save()
            self.before = None
        if not self.checkpoint_path.exists():
            name = short_identity(self.record.identity)
            _move(RunFolder(self.folder, self.record, name=name).checkpoint_path, self.checkpoint_path)

    @property
    def student_path(self) -> Path:
        """File of the student's weights."""
        return self._path("student.safetensors")

    @property
    def checkpoint_path(self) -> Path:
        """File of the checkpoint, which exists while the run is unfinished."""
        return self._path("checkpoint")

    @staticmethod
    def checkpoint_of(folder: str | Path) -> Path:
        """Return the path of the checkpoint, for a process that reads it but does not keep the folder."""
        return Path(folder) / "checkpoint"

    @property
    def report_path(self) -> Path:
        """File of the report."""
        return self._path("report.html")

    @property
    def impressions_path(self) -> Path:
        """Folder of the store."""
        return self.folder / self.record.impressions

    @property
    def class_similarity_path(self) -> Path:
        """File of the class similarity."""
        return self.folder / "class-similarity.safetensors"

    def save_class_similarity(self, similarity: ClassSimilarity) -> None:
        """Write the class similarity, at most its first 2,048 rows and columns (16 MiB)."""
        matrix = similarity.matrix(_CLASSES_KEPT).cpu()
        write_atomically(self.class_similarity_path, safetensors.save({_CLASS_SIMILARITY: matrix}))

    def class_similarity(self) -> torch.Tensor | None:
        """Return what `save_class_similarity` wrote, [k, k] float32; None if nothing was written.

        Raises InputError if the file is damaged.
        """
        path = self.class_similarity_path
        if not path.exists():
            return None
        try:
            return safetensors.load_file(path)[_CLASS_SIMILARITY]
        except (OSError, SafetensorError, KeyError) as error:
            raise InputError(f"{path} is not the class similarity of a run: {error}; remove it") from error

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended and its student's file is as it was written."""
        if not self.record.finished or not self.student_path.is_file():
            return False
        return sha256(self.student_path.read_bytes()) == self.record.student_sha256

    def save(self) -> None:
        """Write the record; a reader sees the old one or the new one."""
        text = json.dumps(to_plain(self.record), indent=1)
        write_atomically(self._path("run.json"), text.encode())

    @property
    def changes(self) -> list[str]:
        """One line per field in which the run whose folder this one takes over differs; none if there is none."""
        return [] if self.before is None else _differences(self.record.identity, self.before.identity)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from working in the folder; raises InputError if one is working there."""
        with locked(self.folder / LOCK_NAME) as free:
            if not free:
                raise InputError(f"another process is working in {self.folder}; wait until it has ended")
            yield

    def _path(self, file: str) -> Path:
        stem, dot, suffix = file.partition(".")
        return self.folder / (f"{stem}-{self._name}{dot}{suffix}" if self._name else file)

    def _run_of(self, identity: RunIdentity) -> RunFolder:
        """Return the run with this identity: this one, one that was set aside finished, or one that takes over."""
        aside = RunFolder(self.folder, self.record, name=short_identity(identity))
        if aside._path("run.json").exists():
            aside.record = _read_record(aside._path("run.json"))
            if aside.record.identity == identity and aside.is_finished:
                return aside
        if self.record.identity == identity:
            return self
        self._require_smaller(identity)
        return RunFolder(self.folder, RunRecord(identity=identity), before=self.record)

    def _require_smaller(self, identity: RunIdentity) -> None:
        """Raise InputError unless this run has the same or fewer impressions, and differs in nothing else but numbers
        of the student."""
        mine = self.record.identity
        student = replace(identity.student, recipe=mine.student.recipe)
        if replace(identity, num_impressions=mine.num_impressions, student=student) != mine:
            shown = "\n  ".join(_differences(identity, mine))
            raise InputError(f"{self.folder} belongs to another run; choose another --out. It differs in:\n  {shown}")
        if identity.num_impressions < mine.num_impressions:
            counts = f"{mine.num_impressions:,} impressions, wanted {identity.num_impressions:,}"
            raise InputError(f"{self.folder} holds a run of {counts}; a run can only grow, so choose another --out")


def short_identity(identity: RunIdentity) -> str:
    """Return eight hexadecimal digits that stand for an identity in the names of files."""
    # As it would be read from a file, where 4 has become 4.0: equal identities must have equal names.
    read = from_plain(RunIdentity, to_plain(identity), "identity")
    return sha256(json.dumps(to_plain(read), sort_keys=True).encode())[:8]


def _differences(now: RunIdentity, before: RunIdentity) -> list[str]:
    return differences(now, before, here="in this run", there="in the folder")


def _move(path: Path, to: Path) -> None:
    if path.exists():
        path.replace(to)


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
    if not isinstance(values, dict) or not isinstance(values.get("format"), int):
        raise InputError(f"{path} is not the record of a run")
    other_version = by_another_version(path, "folder")
    if values["format"] != FORMAT:
        raise InputError(f"{other_version}: got format {values['format']}, wanted {FORMAT}")
    return from_plain(RunRecord, values, other_version)
