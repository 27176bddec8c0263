"""What a run prints: at its start, how it differs from the run whose folder it takes over; at its end, a summary."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from zskd_fast.run.run_folder import RunFolder, short_identity
from zskd_fast.synthesis.health import Health


def print_change(run: RunFolder) -> None:
    """Say on stderr what happens to the run whose folder this one takes over, if it does."""
    if run.before is None:
        return
    name, kept = short_identity(run.before.identity), ""
    if run.before.finished:
        kept = f"; the earlier one is kept as student-{name}.safetensors"
    elif run.checkpoint_path.exists():
        kept = f"; the checkpoint of the earlier one is kept as checkpoint-{name}"
    changes = "".join(f"\n  {line}" for line in run.changes)
    print(f"{run.folder} holds an earlier run, which differs in:{changes}", file=sys.stderr)
    print(f"The student is trained from the start{kept}.", file=sys.stderr)


def print_warning(health: Health | None) -> None:
    """Say on stderr, before the student learns, what is wrong with the impressions, if anything is."""
    if health is not None and health.warning:
        print(f"warning: {health.warning}", file=sys.stderr)


def print_run(run: RunFolder, *, teacher_note: str | None = None) -> None:
    """Print accuracies, impressions per second, seconds per phase, peak memory and the path of the student.

    ``teacher_note`` is what the loader has to say about the teacher's weights.
    """
    record = run.record
    if run.remark:
        _line("run", run.remark)
    for role in ("teacher", "student"):
        _line(role, f"{record.names[role]}, {record.parameters[role]:,} parameters{_accuracy(run, role)}")
        if role == "teacher" and teacher_note:
            _line("", teacher_note)
    made, seconds = record.synthesis.made, record.synthesis.seconds
    if made:
        _line("impressions", f"{made:,} in {seconds:.1f} s, {record.synthesis.rate:.1f} per second")
        _line("", _phases(record.synthesis.phase_seconds))
    print_health(record.synthesis.health, record.synthesis.notes)
    steps = len(record.distillation.loss)
    _line("distillation", f"{steps:,} steps in {record.distillation.seconds:.1f} s")
    _line("", _phases(record.distillation.phase_seconds))
    for caption, note in record.distillation.notes.items():
        _line(caption, note)
    _line("peak memory", f"{record.peak_memory_bytes / 2**20:,.0f} MiB")
    _line("weights", str(run.student_path))


def print_health(health: Health | None, notes: Mapping[str, str], who: str = "") -> None:
    """Print what followed from the teacher, the health of the impressions, and a warning if they are sick.

    ``who`` stands in front of every line.
    """
    for caption, note in notes.items():
        _line(caption, note, who)
    if health is None:
        return
    _line("health", str(health), who)
    if health.warning:
        _line("warning", health.warning, who)


def _accuracy(run: RunFolder, role: str) -> str:
    measured = run.record.accuracy
    if measured is None:
        return ""
    return f", {getattr(measured, role):.2%} of {measured.images:,} real test images"


def _phases(seconds: dict[str, float]) -> str:
    longest_first = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{phase} {spent:.1f} s" for phase, spent in longest_first)


def _line(caption: str, text: str, who: str = "") -> None:
    print(f"{who}{caption:<14}{text}")
