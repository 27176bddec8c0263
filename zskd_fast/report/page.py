"""The content of a report: selects what the page shows and fills the template."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup

from zskd_fast.config.identity import ImpressionIdentity, RunIdentity
from zskd_fast.config.serialization import to_plain
from zskd_fast.report import figures
from zskd_fast.run.run_folder import RunFolder, RunRecord
from zskd_fast.store.impressions import Impressions
from zskd_fast.store.store import Store

_CLASSES_SHOWN = 10
_IMPRESSIONS_PER_CLASS = 8
_CLASSES_IN_MAP = 100
_CLASSES_IN_BARS = 20


def render(run: RunFolder) -> str:
    """Return the HTML text of the report of a finished run."""
    record, store = run.record, Store.open(run.impressions_path)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("template.html").render(
        record=record,
        cards=list(_cards(record)),
        classes=_classes(store),
        num_classes=store.identity.num_classes,
        bars=_CLASSES_IN_BARS,
        health=record.synthesis.health,
        **_similarity(run),
        curves=[Markup(svg) for svg in _curves(record)],
        phases=list(_phases(record)),
        recipe=_tables(_recipe(record.identity, store)),
        facts=dict(_flat(_provenance(record))),
    )


def _similarity(run: RunFolder) -> dict[str, Any]:
    """Return the map of the class similarity of the first classes.

    There is none after `distill` from a store that was made with a weight matrix in place of a layer.
    """
    matrix = run.class_similarity()
    if matrix is None:
        return {"similarity": None, "similarity_classes": 0}
    shown = matrix[:_CLASSES_IN_MAP, :_CLASSES_IN_MAP]
    return {"similarity": Markup(figures.similarity_map(shown.tolist())), "similarity_classes": len(shown)}


def _cards(record: RunRecord) -> Iterator[tuple[str, str, str]]:
    """Yield (caption, value, remark) of each card at the top of the page."""
    if record.accuracy is not None:
        images = f"on {record.accuracy.images:,} real test images"
        gap = 100.0 * (record.accuracy.student - record.accuracy.teacher)
        yield "student accuracy", f"{record.accuracy.student:.2%}", f"{gap:+.2f} points from the teacher"
        yield "teacher accuracy", f"{record.accuracy.teacher:.2%}", images
    sizes = record.parameters
    yield "student parameters", f"{sizes['student']:,}", f"teacher: {sizes['teacher']:,}"
    rate = f"{record.synthesis.rate:.1f} per second" if record.synthesis.made else "made by another run"
    yield "impressions", f"{record.identity.num_impressions:,}", rate
    health = record.synthesis.health
    if health is not None:
        answered = f"{health.answered_classes:,} of {health.wanted_classes:,} classes answered"
        yield "reach their class", f"{health.reached:.1%}", answered
    total = record.synthesis.seconds + record.distillation.seconds
    device, threads = record.environment["device"], record.environment["threads"]
    yield "time", _duration(total), f"{device}, {threads} thread{'s' if threads != 1 else ''}"
    yield "peak memory", f"{record.peak_memory_bytes / 2**20:,.0f} MiB", "of the whole process"


def _classes(store: Store) -> list[dict[str, Any]]:
    """Return the first impressions of each of the first classes; the classes take turns, see ``Plan``."""
    identity = store.identity
    shown = range(min(identity.num_classes, _CLASSES_SHOWN))
    sample = _rows(store, [row * identity.num_classes + k for row in range(_IMPRESSIONS_PER_CLASS) for k in shown])
    answers = (sample.teacher_logits / identity.recipe.temperature).softmax(dim=1)
    return [
        {"index": k, "impressions": [_shown(sample, answers, row, identity) for row in rows]}
        for k in shown
        if (rows := (sample.class_index == k).nonzero().flatten().tolist())
    ]


def _rows(store: Store, ids: list[int]) -> Impressions:
    """Return the impressions with these ids, in order, as far as the store has them; one shard is in memory at once."""
    parts = []
    for shard in sorted({i // store.shard_size for i in ids if i < store.num_impressions}):
        first = shard * store.shard_size
        held = len(store.shard_ids(shard))
        rows = [i - first for i in sorted(ids) if 0 <= i - first < held]
        parts.append(store.read_shard(shard)[torch.tensor(rows)])
    return Impressions.concatenate(parts)


def _shown(sample: Impressions, answers: torch.Tensor, row: int, identity: ImpressionIdentity) -> dict[str, object]:
    own = int(sample.class_index[row])
    shown = bar_classes(sample.target[row], answers[row], own)
    target, answer = sample.target[row, shown].tolist(), answers[row, shown].tolist()
    return {
        "id": int(sample.id[row]),
        "beta": f"{float(sample.beta[row]):g}",
        "loss": f"{float(sample.loss[row]):.3f}",
        "image": figures.picture(sample.x[row].numpy(), identity.input.valid_range),
        "bars": Markup(figures.target_bars(target, answer, shown.index(own))),
    }


def bar_classes(target: torch.Tensor, answer: torch.Tensor, own_class: int) -> list[int]:
    """Return the classes that the bars of an impression show: its own one and the most probable, in order."""
    largest = torch.maximum(target, answer)
    largest[own_class] = 2.0  # above every probability
    return sorted(largest.topk(min(len(largest), _CLASSES_IN_BARS)).indices.tolist())


def _curves(record: RunRecord) -> Iterator[str]:
    yield figures.loss_curve(record.distillation.loss)
    if record.accuracy is not None and record.distillation.accuracies:
        yield figures.accuracy_curve(record.distillation.accuracies, record.accuracy.teacher)


def _phases(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield the seconds and the share of each phase, for the synthesis and for the distillation."""
    for title, part in (("Impressions", record.synthesis), ("Distillation", record.distillation)):
        if not part.seconds:
            continue
        spent = dict(sorted(part.phase_seconds.items(), key=lambda item: -item[1]))
        spent["rest"] = max(0.0, part.seconds - sum(spent.values()))
        rows = [(phase, seconds, seconds / part.seconds) for phase, seconds in spent.items()]
        yield {"title": title, "total": _duration(part.seconds), "rows": rows}


def _recipe(identity: RunIdentity, store: Store) -> dict[str, dict[str, Any]]:
    impressions = identity.impressions
    return {
        "input": to_plain(impressions.input),
        "synthesis": {
            "impressions": identity.num_impressions,
            "shard_size": store.shard_size,
            **to_plain(impressions.recipe),
        },
        "distillation": to_plain(identity.student.recipe),
    }


def _tables(sections: dict[str, dict[str, Any]]) -> dict[str, dict[str, object]]:
    """Return one table for each section and for each section inside it."""
    tables: dict[str, dict[str, object]] = {}
    for title, values in sections.items():
        nested = {key: value for key, value in values.items() if isinstance(value, dict)}
        tables[title] = {key: _plain(value) for key, value in values.items() if key not in nested}
        tables.update(_tables(nested))
    return tables


def _provenance(record: RunRecord) -> dict[str, Any]:
    impressions, student = record.identity.impressions, record.identity.student
    return {
        "seed": student.seed,
        "synthesis seed": impressions.seed,
        "teacher": {**to_plain(impressions.teacher), "layer": impressions.layer},
        "untrained student": to_plain(student.student),
        **record.environment,
    }


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, prefix=f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", _plain(value)


def _plain(value: object) -> object:
    if isinstance(value, list):
        return ", ".join(str(_plain(item)) for item in value) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else value


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{seconds:.1f} s"
