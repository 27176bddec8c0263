"""The results as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from benchmarks.figures import FIGURES
from benchmarks.lookup import Lookup, growth_exponent
from benchmarks.results import Row

_OPS = ("soft_cross_entropy", "distillation_loss", "dirichlet", "impression_update_", "max_pool")
_GROWTH = {"impressions": "impressions", "batch": "batch size", "classes": "classes K"}


def figures_table(lookup: Lookup) -> str:
    """What was wanted and what was reached, for each number of threads."""
    counts = lookup.thread_counts()
    heads = ["figure", "wanted", *(_threads(count) for count in counts)]
    rows = [
        [
            figure.name,
            figure.number(figure.wanted),
            *(figure.shown(figure.measured(lookup, count)) for count in counts),
        ]
        for figure in FIGURES
    ]
    return _table(heads, rows)


def sections(lookup: Lookup) -> str:
    """Every measurement, one section for each op."""
    makers: list[tuple[str, Callable[[], str]]] = [
        ("Figures to reach", lambda: figures_table(lookup)),
        *((f"`{op}`", lambda op=op: _op_table(lookup.of(op))) for op in _OPS),
        ("Bytes moved", lambda: _traffic_table(lookup)),
        ("Synthesis", lambda: _rate_table(lookup.of("synthesis"), "image-steps/s")),
        ("Processes", lambda: _scaling_table(lookup.of("scaling"))),
        ("Time to accuracy", lambda: _accuracy_table(lookup.of("time to accuracy"))),
        ("The teacher's forward and backward pass", lambda: _teacher_table(lookup.of("teacher"))),
        ("Growth", lambda: _growth_table(lookup)),
        ("Copy bandwidth", lambda: _copy_table(lookup.of("copy"))),
    ]
    made = [(title, make()) for title, make in makers]
    return "\n\n".join(f"### {title}\n\n{text}" for title, text in made if text)


def _op_table(rows: list[Row]) -> str:
    """Medians; beside ours the share of the copy bandwidth, beside the others how many times longer they took."""
    providers = _in_order(row.key.provider for row in rows)
    cases = _in_order((row.key.setting, row.key.shape, row.key.threads) for row in rows)
    found = {(row.key.setting, row.key.shape, row.key.threads, row.key.provider): row for row in rows}
    lines = []
    for case in cases:
        ours = found.get((*case, "zskd_fast"))
        cells = [_cell(found.get((*case, provider)), ours) for provider in providers]
        lines.append([case[1], case[0], str(case[2]), *cells])
    return rows and _table(["shape", "setting", "threads", *providers], lines)


def _cell(row: Row | None, ours: Row | None) -> str:
    if row is None:
        return ""
    if row.key.provider.startswith("zskd_fast"):
        return _time(row.median_s) + (f" ({row.copy_share:.0%} of copy)" if row.copy_share else "")
    return _time(row.median_s) + (f" ({row.median_s / ours.median_s:.1f}x)" if ours else "")


def _traffic_table(lookup: Lookup) -> str:
    shapes = {
        "soft_cross_entropy": "65536x100",
        "distillation_loss": "65536x100",
        "impression_update_": "1000x1x32x32",
    }
    rows = [
        [f"`{op}` {shape}", row.key.provider, f"{row.traffic:.2f}"]
        for op, shape in shapes.items()
        for row in lookup.of(op)
        if row.key.shape == shape and row.key.threads == 1 and row.traffic
    ]
    return rows and _table(["op", "provider", "bytes moved / least bytes"], rows)


def _rate_table(rows: list[Row], unit: str) -> str:
    lines = [
        [row.key.setting, row.key.provider, str(row.key.threads), f"{row.items_per_s:,.0f}", _spread(row)]
        for row in rows
    ]
    return rows and _table(["job", "provider", "threads", unit, "seconds, p20 to p80"], lines)


def _scaling_table(rows: list[Row]) -> str:
    """Impressions per second, and against one process that did the same."""
    found = {row.key.provider: row for row in rows}
    lines = []
    for provider, row in found.items():
        one = found.get(provider.replace("2 processes", "1 process"))
        gain = f"{row.items_per_s / one.items_per_s:.2f}x" if one else ""
        lines.append([provider, f"{row.items_per_s:,.0f}", gain, _spread(row)])
    return rows and _table(["of one thread each", "impressions/s", "gain", "seconds, p20 to p80"], lines)


def _accuracy_table(rows: list[Row]) -> str:
    lines = [[row.key.shape, row.key.setting, str(row.key.threads), f"{row.median_s:.0f} s"] for row in rows]
    return rows and _table(["recipe", "first accuracy of at least", "threads", "after"], lines)


def _teacher_table(rows: list[Row]) -> str:
    """Images per second, and against the frozen teacher in batches of 100."""
    frozen = {row.key.setting: row.items_per_s for row in rows if row.key.provider == "frozen"}
    teachers = _in_order(row.key.setting for row in rows)
    found = {(row.key.setting, row.key.provider): row for row in rows}
    lines = []
    for provider in _in_order(row.key.provider for row in rows):
        measured = [(found.get((teacher, provider)), frozen.get(teacher)) for teacher in teachers]
        lines.append([provider, *(_rate_against(row, base) for row, base in measured)])
    return rows and _table(["option", *(f"{teacher}, images/s" for teacher in teachers)], lines)


def _rate_against(row: Row | None, base: float | None) -> str:
    if row is None:
        return ""
    return f"{row.items_per_s:,.0f}" + (f" ({row.items_per_s / base:.2f}x)" if base else "")


def _growth_table(lookup: Lookup) -> str:
    lines = []
    for axis, name in _GROWTH.items():
        rows = sorted(lookup.of(f"growth with {axis}"), key=lambda row: int(row.key.shape))
        lines += [
            [name, f"{int(row.key.shape):,}", _time(row.median_s), f"{row.peak_mb:,.0f} MB"] for row in rows
        ]
        time, memory = growth_exponent(rows, "median_s"), growth_exponent(rows, "peak_mb")
        if time is not None:
            lines.append([name, "fitted exponent", f"{time:.2f}", f"{memory:.2f}"])
    return lines and _table(["grows", "size", "time", "peak memory of the process"], lines)


def _copy_table(rows: list[Row]) -> str:
    lines = [[str(row.key.threads), f"{row.gb_per_s:.1f}", _spread(row)] for row in rows]
    return rows and _table(["threads", "GB/s", "seconds, p20 to p80"], lines)


def _table(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _spread(row: Row) -> str:
    return f"{row.p20_s:.3g} to {row.p80_s:.3g}"


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count > 1 else "")


def _in_order(values: Iterable) -> list:
    """Each value once; zskd_fast first among providers."""
    unique = list(dict.fromkeys(values))
    return sorted(unique, key=lambda value: not str(value).startswith("zskd_fast"))
