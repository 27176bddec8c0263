"""The results file, the tables and plots of it, and two benchmarks from measurement to row."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pd = pytest.importorskip("pandas", reason="the benchmarks need the extra `bench`")
pytest.importorskip("matplotlib", reason="the benchmarks need the extra `bench`")

from benchmarks import limits, plots, report, tables  # noqa: E402
from benchmarks.figures import FIGURES, figures_table  # noqa: E402
from benchmarks.measure import Key, Measurement, Session  # noqa: E402
from benchmarks.results import (  # noqa: E402
    COLUMNS,
    KEY,
    RESULTS,
    as_rows,
    growth_exponent,
    machines,
    read_rows,
    times_faster,
    upsert,
)
from benchmarks.traffic import bytes_moved  # noqa: E402
from benchmarks.whole_jobs import COMPILED, FROZEN, RESNET_JOB  # noqa: E402
from zskd_fast import ops  # noqa: E402

ROOT = Path(__file__).parents[2]
_KEY: dict[str, Any] = {
    "op": "soft_cross_entropy",
    "setting": "tau=20",
    "provider": "zskd_fast",
    "shape": "100x10",
    "dtype": "float32",
    "threads": 2,
    "device": "a CPU, of 2 cores",
    "torch": "2.13.0",
}
_VALUES: dict[str, Any] = {
    "median_s": 0.25,
    "p20_s": 0.125,
    "p80_s": 0.5,
    "rounds": 7,
    "items": 100,
    "gb_per_s": 3.5,
    "copy_share": 0.75,
    "traffic": 1.001,
    "peak_mb": None,
    "commit": "1234567",
}


def _rows(*changes: dict[str, Any]) -> Any:
    return as_rows([_KEY | _VALUES | each for each in changes])


def _key(**changes: Any) -> Key:
    return tuple((_KEY | changes)[name] for name in KEY)


# ------------------------------------------------------------------------------------------- the results file


def test_a_row_comes_back_as_it_was_written(tmp_path: Path) -> None:
    upsert(_rows({"setting": ""}), tmp_path / "r.csv")
    pd.testing.assert_frame_equal(read_rows(tmp_path / "r.csv"), _rows({"setting": ""}))
    assert read_rows(tmp_path / "none.csv").empty


def test_the_committed_file_is_in_the_form_that_is_written(tmp_path: Path) -> None:
    """An update changes its own rows alone: no other cell, no order."""
    path = tmp_path / "r.csv"
    upsert(read_rows(RESULTS).sample(frac=1, random_state=0), path)
    assert path.read_bytes() == RESULTS.read_bytes()


@pytest.mark.parametrize("field", KEY)
def test_a_new_measurement_replaces_its_own_row_alone(field: str, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    other = {field: 1 if field == "threads" else "another"}
    upsert(_rows({}, other), path)
    upsert(_rows({"median_s": 0.5, "commit": "def5678"}), path)
    rows = read_rows(path)
    assert len(rows) == 2
    is_other = rows[field] == other[field]
    assert list(rows[is_other]["commit"]) == ["1234567"]
    assert list(rows[~is_other]["commit"]) == ["def5678"]
    assert list(rows[~is_other]["median_s"]) == [0.5]


def test_the_order_of_the_file_does_not_depend_on_the_order_of_the_runs(tmp_path: Path) -> None:
    shapes = ["100x10", "4096x32000", "65536x10"]
    cases = [{"shape": shape, "threads": threads} for shape in shapes for threads in (1, 2)]
    upsert(_rows(*cases), tmp_path / "a.csv")
    for case in reversed(cases):
        upsert(_rows(case), tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert list(read_rows(tmp_path / "a.csv")["shape"])[::2] == shapes


# ---------------------------------------------------------------------------------------- from rounds to rows


def test_a_row_has_the_median_of_all_turns_and_the_share_of_the_copy_with_as_many_threads() -> None:
    session = Session("cpu", 0.1)
    seconds = [1.0, 2.0, 3.0, 4.0, 100.0]
    session.measurements[_key()] = Measurement(items=10, least_bytes=6 * 10**9, seconds=seconds)
    copy = {"op": "copy", "provider": "torch"}
    session.measurements[_key(**copy)] = Measurement(items=1, least_bytes=8 * 10**9, seconds=[1.0])
    session.measurements[_key(op="none")] = Measurement(items=1)
    rows = session.rows(_rows(copy | {"threads": 1, "gb_per_s": 1.0}, copy | {"gb_per_s": 1.0}))
    assert list(rows.columns) == list(COLUMNS)
    assert list(rows["op"]) == ["soft_cross_entropy", "copy"], "without a round there is no row"
    row = rows.iloc[0]
    assert (row["median_s"], row["p20_s"], row["rounds"]) == (3.0, pytest.approx(1.8), 5)
    assert (row["gb_per_s"], row["copy_share"], row["items"]) == (2.0, 0.25, 10)


def test_an_earlier_copy_bandwidth_serves_when_none_was_measured_now() -> None:
    session = Session("cpu", 0.1)
    session.measurements[_key()] = Measurement(items=1, least_bytes=10**9, seconds=[1.0])
    assert session.rows(_rows())["copy_share"].isna().all()
    assert session.rows(_rows({"op": "copy", "gb_per_s": 4.0}))["copy_share"].tolist() == [0.25]


def test_the_fitted_exponent_is_that_of_the_power_law() -> None:
    rows = _rows(*({"median_s": 3e-4 * size**1.5, "shape": str(size)} for size in (100, 1000, 5000, 64000)))
    assert growth_exponent(rows, "median_s") == pytest.approx(1.5)
    assert growth_exponent(rows[:2], "median_s") is None


def test_rows_of_another_machine_or_torch_are_kept_apart() -> None:
    found = machines(_rows({"device": "a GPU"}, {}, {"threads": 1}, {"torch": "2.6.0"}))
    assert [len(rows) for rows in found] == [2, 1, 1]
    assert set(found[0]["threads"]) == {1, 2}


# ------------------------------------------------------------------------------------------------ bytes moved


def test_counts_what_each_op_reads_and_writes() -> None:
    x = torch.ones(1000)
    assert bytes_moved(lambda: x + 1) == 2 * 4000
    assert bytes_moved(lambda: x.view(10, 100).t()) == 0
    assert bytes_moved(lambda: x.add_(1)) == 2 * 4000
    assert bytes_moved(lambda: torch.ones(1).expand(1000) + x) == 2 * 4000 + 2 * 4
    assert bytes_moved(lambda: torch.empty(1000)) == 0


def test_counts_the_backward_pass() -> None:
    x = torch.ones(1000, requires_grad=True)
    forward = bytes_moved(lambda: x.exp())
    both = bytes_moved(lambda: torch.autograd.grad(x.exp(), x, torch.ones(1000)))
    assert both - forward >= 3 * 4000  # the output and its gradient are read, the gradient of x is written


def test_the_loss_with_a_reused_buffer_moves_no_more_than_it_must() -> None:
    logits, target = torch.randn(500, 20), torch.rand(500, 20)
    buffer = torch.empty_like(logits)
    moved = bytes_moved(lambda: ops.soft_cross_entropy_value_and_grad(logits, target, 20.0, out=buffer))
    assert moved == 3 * 4 * logits.numel() + 4


# -------------------------------------------------------------------------------------------- tables and plots


def _measured(ratio: float) -> list[dict[str, Any]]:
    """Rows with which the first figure, against F.cross_entropy, is ``ratio``."""
    case = {"shape": "65536x10"}
    return [case | {"median_s": 1.0}, case | {"median_s": ratio, "provider": "F.cross_entropy"}]


def test_a_figure_states_whether_it_reaches_its_target() -> None:
    first = figures_table(_rows(*_measured(7.0))).splitlines()[2]
    assert "| 6.0x | 7.0x, reached |" in first
    first, second = figures_table(_rows(*_measured(5.0))).splitlines()[2:4]
    assert "| 6.0x | 5.0x, **not reached** |" in first
    assert "not measured" in second


def test_the_share_of_the_copy_is_a_figure_too() -> None:
    rows = _rows({"shape": "65536x1000", "provider": "zskd_fast, out="})
    (line,) = [line for line in figures_table(rows).splitlines() if "copy bandwidth" in line]
    assert "| 80% | 75%, **not reached** |" in line


def _row_loss(shape: str, **change: float) -> list[dict[str, Any]]:
    """Rows of a row loss that is five times faster: 1 s on two threads, and 1 s on one thread in the caches."""
    case = {"shape": shape, "median_s": 1.0}
    caches = case | {"op": "in the caches", "setting": "soft_cross_entropy", "threads": 1}
    return [case, case | {"median_s": 5.0, "provider": "F.cross_entropy"}, caches | change]


def test_a_figure_that_is_not_reached_states_its_limit() -> None:
    copy = {"op": "copy", "setting": "", "provider": "torch", "gb_per_s": 65536 * 1000 * 12 / 1e9}
    buffer = {"shape": "65536x10", "provider": "zskd_fast, out=", "median_s": 0.8}
    table = figures_table(_rows(*_row_loss("65536x10"), buffer, copy | {"gb_per_s": 1e-6}))
    assert "5.0x, **not reached** (at most 10.0x by arithmetic, 6.2x with out=) |" in table, "data in the caches"
    table = figures_table(_rows(*_row_loss("65536x1000"), copy))
    assert "| 12.0x | not measured | 5.0x, **not reached** (at most 5.0x by memory) |" in table
    assert "5.0x, **not reached** |" in figures_table(_rows(*_row_loss("65536x1000"))), "without the copy"
    table = figures_table(_rows(*_row_loss("65536x10", median_s=0.1), *_row_loss("65536x100")))
    assert "| 4.0x | not measured | 5.0x, reached |" in table


def test_the_share_of_the_copy_is_limited_by_arithmetic_beside_memory() -> None:
    share = {"shape": "65536x1000", "provider": "zskd_fast, out="}
    caches = {"op": "in the caches", "setting": "soft_cross_entropy", "shape": "65536x1000", "threads": 1}
    copy = {"op": "copy", "setting": "", "provider": "torch", "gb_per_s": 65536 * 1000 * 12 / 1e9}
    table = figures_table(_rows(share, caches | {"median_s": 2.0}, copy))
    assert "75%, **not reached** (50% if arithmetic and memory did not overlap) |" in table


def test_a_job_is_limited_by_its_convolutions() -> None:
    case = {"op": "distillation", "setting": "LeNet-5 to LeNet-5-Half", "shape": "128"}
    jobs = [case | {"median_s": 1.0}, case | {"median_s": 2.0, "provider": "plain loop"}]
    alone = case | {"op": "convolutions", "shape": "1", "threads": 1, "median_s": 1.6}
    assert "| 2.0x, **not reached** (at most 2.5x by convolutions) |" in figures_table(_rows(*jobs, alone))
    papers = {"op": "synthesis", "setting": "LeNet-5, batch 100, 50 steps", "shape": "400"}
    others = alone | {"setting": "LeNet-5, recipe fast", "median_s": 1.0}
    table = figures_table(_rows(papers, papers | {"median_s": 0.5, "provider": "plain loop"}, others))
    assert "| 2.0x, **not reached** (at most 1.0x by convolutions) |" in table


def test_a_whole_job_is_limited_by_all_of_its_convolutions() -> None:
    loops = {"ours": ("zskd_fast", "zskd_fast", 1000.0, 10.0), "plain": (FROZEN, "plain loop", 800.0, 10.0)}
    rates = _rates((RESNET_JOB.synthesis, RESNET_JOB.distillation), loops)
    alone = {"op": "convolutions", "threads": 1, "items": 1}
    limits_of = [
        alone | {"setting": RESNET_JOB.synthesis, "median_s": 1 / 600},
        alone | {"setting": RESNET_JOB.distillation, "median_s": 0.2},
    ]
    assert figures_table(_rows(*rates, *limits_of)).endswith("| 1.0x, **not reached** (at most 1.1x by convolutions) |")


_DISASSEMBLY = """
0000000000001000 <zskd::other()>:
    1000:	jmp    1000 <zskd::other()>

0000000000001010 <zskd::kernel(int)>:
    1010:	vmovaps %zmm0,%zmm1
    1016:	vmovups (%rsi,%rax,4),%zmm2
    1020:	vfmadd132ps %zmm6,%zmm13,%zmm2
    1026:	vshufps $0x44,%zmm2,%zmm2,%zmm4
    102c:	cmp    %rdx,%rax
    1030:	jne    1020 <zskd::kernel(int)+0x10>
    1036:	jne    1010 <zskd::kernel(int)>
    103c:	ret
"""


def test_the_innermost_loops_are_found_in_a_disassembly(monkeypatch: pytest.MonkeyPatch) -> None:
    ((body,),) = ([*limits.functions(_DISASSEMBLY, "kernel")],)
    (loop,) = limits.innermost_loops(body)
    assert [text.split()[0] for text in loop.instructions] == ["vfmadd132ps", "vshufps", "cmp", "jne"]
    assert limits.describe(loop) == ""
    monkeypatch.setattr(limits, "_FEWEST", 2)
    assert limits.describe(loop) == "4 instructions: 2 on 16 floats, 1 fused multiplications, 1 shuffles"


def test_a_figure_without_a_target_states_its_value_alone() -> None:
    case = {"op": "distillation", "setting": "AlexNet to AlexNetHalf", "shape": "128"}
    rows = _rows(case | {"median_s": 1.0}, case | {"median_s": 1.5, "provider": "plain loop"})
    (line,) = [line for line in figures_table(rows).splitlines() if "AlexNet to AlexNetHalf" in line]
    assert line.startswith("| distillation, AlexNet to AlexNetHalf, against the plain loop |  | 1.5x |")


def test_against_several_the_fastest_counts_and_over_several_shapes_the_worst() -> None:
    peers = [{"median_s": 5.0, "provider": "a"}, {"median_s": 3.0, "provider": "b"}]
    rows = _rows({"median_s": 1.0}, *peers)
    assert times_faster(rows, "soft_cross_entropy", ["a", "b"], "100x10", 2) == 3.0
    assert times_faster(rows, "soft_cross_entropy", ["a", "c"], "100x10", 2) is None
    shapes = {"65536x10": 3.0, "65536x100": 1.2, "65536x1000": 2.0}
    ours = [{"median_s": 1.0, "shape": shape} for shape in shapes]
    theirs = [{"median_s": ratio, "shape": shape, "provider": "torch.compile"} for shape, ratio in shapes.items()]
    figure = next(figure for figure in FIGURES if "the least against torch.compile" in figure.name)
    assert figure.measured(_rows(*ours, *theirs), 2) == pytest.approx(1.2)


def test_an_op_has_a_line_per_case_and_a_column_per_provider() -> None:
    theirs = {"provider": "F.cross_entropy", "copy_share": None, "median_s": 0.5}
    lines = tables.sections(_rows({}, theirs, {"threads": 1, "median_s": 2e-4, "copy_share": None})).splitlines()
    assert "| shape | setting | threads | zskd_fast | F.cross_entropy |" in lines
    assert "| 100x10 | tau=20 | 2 | 250 ms (75% of copy) | 500 ms (2.0x) |" in lines
    assert "| 100x10 | tau=20 | 1 | 200 us |  |" in lines


def _rates(settings: tuple[str, str], loops: dict[str, tuple[str, str, float, float]]) -> list[dict[str, Any]]:
    """Rows of a synthesis and a distillation: loop -> their providers and their items per second."""
    return [
        {"op": op, "setting": setting, "provider": provider, "median_s": 100 / rate}
        for synthesis, distillation, images, steps in loops.values()
        for op, setting, provider, rate in (
            ("synthesis", settings[0], synthesis, images),
            ("distillation", settings[1], distillation, steps),
        )
    ]


def test_a_whole_job_is_derived_from_its_two_rates() -> None:
    loops = {"ours": ("zskd_fast", "zskd_fast", 1000.0, 10.0), "plain": (FROZEN, "plain loop", 500.0, 5.0)}
    rows = _rows(*_rates((RESNET_JOB.synthesis, RESNET_JOB.distillation), loops))
    assert (RESNET_JOB.image_steps, RESNET_JOB.student_steps) == (120_000, 5000)
    assert RESNET_JOB.seconds(rows, "zskd_fast", 2) == pytest.approx(120 + 500)
    assert RESNET_JOB.seconds(rows, "zskd_fast", 1) is None
    assert "| ResNet-20 to ResNet-8 | 2 | 620 s | 1,240 s (2.0x) |" in tables.sections(rows)
    assert "| 1.5x | 2.0x, reached |" in figures_table(rows).splitlines()[-1]


def test_the_time_to_an_accuracy_is_derived_for_the_loops_that_did_not_run() -> None:
    """240,000 image-steps and the student steps after which the accuracy was reached."""
    loops = {"plain": (FROZEN, "plain loop", 1000.0, 10.0), "compiled": (COMPILED, COMPILED, 2000.0, 20.0)}
    papers = {"op": "synthesis", "setting": "LeNet-5, batch 100, 50 steps", "provider": "plain loop"}
    ours = {"op": "time to accuracy", "setting": "98.5%", "shape": "fast-mnist", "median_s": 85.0, "items": 1000}
    rates = _rates(("LeNet-5, recipe fast", "LeNet-5 to LeNet-5-Half"), loops)
    rows = _rows(*rates, ours, ours | {"provider": "plain loop", "median_s": 425.0}, papers | {"median_s": 0.1})
    line = next(line for line in tables.sections(rows).splitlines() if line.startswith("| MNIST | 98.5%"))
    derived = "340 s (4.0x) | 170 s (2.0x) | 36,000 s (423.5x) | 425 s (5.0x)"
    assert line == f"| MNIST | 98.5% | 2 | 85 s | 1,000 | {derived} |"


def test_processes_are_compared_with_one_that_did_the_same() -> None:
    seconds = {
        "1 process": 2.0,
        "2 processes": 1.25,
        "1 process, no store": 1.5,
        "2 processes, no store": 0.75,
    }
    each = [{"op": "scaling", "provider": name, "median_s": median} for name, median in seconds.items()]
    lines = tables.sections(_rows(*each)).splitlines()
    assert "| 2 processes | 80 | 1.60x | 0.125 to 0.5 |" in lines
    assert "| 2 processes, no store | 133 | 2.00x | 0.125 to 0.5 |" in lines


def test_teachers_are_compared_with_the_frozen_one() -> None:
    each = {"frozen": 1.0, "batch 25": 0.5}
    rows = _rows(*({"op": "teacher", "setting": "LeNet-5", "provider": name, "median_s": median}
                   for name, median in each.items()))  # fmt: skip
    lines = tables.sections(rows).splitlines()
    assert "| option | LeNet-5, images/s |" in lines
    assert "| batch 25 | 200 (2.00x) |" in lines


def test_only_the_marked_place_is_redrawn(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nafter\n")
    for text in ("new", "newer"):
        report.fill(path, text)
        assert path.read_text() == f"before\n<!-- benchmarks -->\n\n{text}\n\n<!-- /benchmarks -->\nafter\n"
    path.write_text("no marks")
    with pytest.raises(ValueError, match=r"README\.md must hold <!-- benchmarks -->"):
        report.fill(path, "new")
    assert path.read_text() == "no marks"


def test_the_same_rows_give_the_same_plots(tmp_path: Path) -> None:
    growth = [
        {"op": "growth with impressions", "shape": str(size), "median_s": size / 1e4, "peak_mb": 400.0}
        for size in (1000, 4000, 16000)
    ]
    rows = _rows(*_measured(5.0), *growth)
    first = {path.name: path.read_bytes() for path in plots.draw_plots(rows, tmp_path / "a")}
    again = {path.name: path.read_bytes() for path in plots.draw_plots(rows, tmp_path / "b")}
    assert first.keys() == {"speed.svg", "growth.svg"}
    assert first == again
    assert b"seconds ~ impressions^1.00" in first["growth.svg"]
    assert b"peak MB ~ impressions^0.00" in first["growth.svg"]


# ----------------------------------------------------------------------------------------- a benchmark, really


def test_a_benchmark_checks_times_and_writes_its_rows(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark", reason="the benchmarks need the extra `bench`")
    path = tmp_path / "results.csv"
    words = [f"benchmarks/ops/bench_{name}.py" for name in ("copy", "impression_update")]
    words += ["--quick", "--results", str(path), "-q", "-p", "no:cacheprovider", "-k", "not compile"]
    subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["provider"] for row in rows if row["op"] == "impression_update_"] == [
        "Adam foreach, prior, clamp",
        "Adam fused, prior, clamp",
        "zskd_fast",
    ]
    for row in rows:
        assert 0 < float(row["p20_s"]) <= float(row["median_s"]) <= float(row["p80_s"])
        assert float(row["copy_share"]) > 0
        assert row["device"] and row["commit"] and row["torch"] == torch.__version__
    traffic = {row["provider"]: float(row["traffic"]) for row in rows if row["traffic"]}
    assert traffic["zskd_fast"] < 1.1 < traffic["Adam fused, prior, clamp"]
