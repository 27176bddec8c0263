"""Collects what the report shows and fills its template."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup

from zskd_fast.report import figures
from zskd_fast.run.run_folder import RunFolder, RunRecord
from zskd_fast.store.impressions import Impressions
from zskd_fast.store.store import Store

__all__ = ["render"]

_CLASSES_SHOWN = 10
_IMPRESSIONS_PER_CLASS = 8


def render(run: RunFolder) -> str:
    """The HTML text of the report of a finished run."""
    record, store = run.record, Store.open(run.impressions_path)
    fingerprint = store.manifest["fingerprint"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("template.html").render(
        record=record,
        cards=list(_cards(record, store)),
        classes=_classes(store, fingerprint),
        num_classes=len(record.class_similarity),
        similarity=Markup(figures.similarity_map(record.class_similarity)),
        curves=[Markup(svg) for svg in _curves(record)],
        phases=list(_phases(record)),
        recipe=_recipe_tables(record.identity["recipe"]),
        facts=dict(_flat({**record.identity, **record.environment}, skip="recipe")),
    )


def _cards(record: RunRecord, store: Store) -> Iterator[tuple[str, str, str]]:
    """(caption, value, remark) of each figure at the top."""
    if record.accuracy is not None:
        images = f"on {record.accuracy.images:,} real test images"
        gap = 100.0 * (record.accuracy.student - record.accuracy.teacher)
        yield "student accuracy", f"{record.accuracy.student:.2%}", f"{gap:+.2f} points from the teacher"
        yield "teacher accuracy", f"{record.accuracy.teacher:.2%}", images
    sizes = record.parameters
    yield "student parameters", f"{sizes['student']:,}", f"teacher: {sizes['teacher']:,}"
    rate = f"{record.synthesis.rate:.1f} per second" if record.synthesis.made else "made by another run"
    yield "impressions", f"{store.num_impressions:,}", rate
    total = record.synthesis.seconds + record.distillation.seconds
    yield "time", _duration(total), _machine(record.environment)
    yield "peak memory", f"{record.peak_memory_bytes / 2**20:,.0f} MiB", "of the whole process"


def _machine(environment: dict[str, Any]) -> str:
    threads = environment["threads"]
    return f"{environment['device']}, {threads} thread{'s' if threads != 1 else ''}"


def _classes(store: Store, fingerprint: dict[str, Any]) -> list[dict[str, Any]]:
    """Some impressions of each of the first classes; the plan makes the first ids a balanced sample."""
    num_classes = fingerprint["plan"]["num_classes"]
    sample = _first(store, num_classes * _IMPRESSIONS_PER_CLASS)
    answers = (sample.teacher_logits / fingerprint["recipe"]["temperature"]).softmax(dim=1)
    return [
        {"index": k, "impressions": [_shown(sample, answers, row, fingerprint) for row in rows]}
        for k in range(min(num_classes, _CLASSES_SHOWN))
        if (rows := (sample.class_index == k).nonzero().flatten().tolist())
    ]


def _first(store: Store, count: int) -> Impressions:
    shards = range(min(store.num_shards, -(-count // store.shard_size)))
    return Impressions.concatenate([store.read_shard(shard) for shard in shards])[:count]


def _shown(
    sample: Impressions, answers: torch.Tensor, row: int, fingerprint: dict[str, Any]
) -> dict[str, object]:
    target, answer = sample.target[row].tolist(), answers[row].tolist()
    return {
        "id": int(sample.id[row]),
        "beta": f"{float(sample.beta[row]):g}",
        "loss": f"{float(sample.loss[row]):.3f}",
        "image": figures.picture(sample.x[row].numpy(), tuple(fingerprint["input"]["valid_range"])),
        "bars": Markup(figures.target_bars(target, answer, int(sample.class_index[row]))),
    }


def _curves(record: RunRecord) -> Iterator[str]:
    yield figures.loss_curve(record.distillation.loss)
    if record.accuracy is not None and record.distillation.accuracies:
        yield figures.accuracy_curve(record.distillation.accuracies, record.accuracy.teacher)


def _phases(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Seconds and share of each phase, for the making of the impressions and for the distillation."""
    for title, part in (("Impressions", record.synthesis), ("Distillation", record.distillation)):
        if not part.seconds:
            continue
        spent = dict(sorted(part.phase_seconds.items(), key=lambda item: -item[1]))
        spent["rest"] = max(0.0, part.seconds - sum(spent.values()))
        rows = [(phase, seconds, seconds / part.seconds) for phase, seconds in spent.items()]
        yield {"title": title, "total": _duration(part.seconds), "rows": rows}


def _recipe_tables(recipe: dict[str, Any]) -> dict[str, dict[str, object]]:
    tables: dict[str, dict[str, object]] = {}
    for section, values in recipe.items():
        if not isinstance(values, dict):
            continue
        plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
        tables[section] = {key.replace("_", " "): _plain(value) for key, value in plain.items()}
        nested = {key: value for key, value in values.items() if isinstance(value, dict)}
        tables.update(_recipe_tables(nested))
    return tables


def _flat(values: dict[str, Any], skip: str = "", prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and key != skip:
            yield from _flat(value, prefix=f"{name} ")
        elif key != skip:
            yield name, _plain(value)


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
