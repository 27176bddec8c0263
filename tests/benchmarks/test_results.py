"""The results file, the figures drawn from it, and one benchmark run for real."""

import csv
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.lookup import Lookup, growth_exponent, lookups
from benchmarks.measure import Measurement, Session
from benchmarks.results import Key, Row, read_rows, upsert
from benchmarks.traffic import bytes_moved
from zskd_fast import ops

ROOT = Path(__file__).parents[2]
KEY = Key("soft_cross_entropy", "tau=20", "zskd_fast", "100x10", "float32", 2, "a CPU, of 2 cores", "2.13.0")
ROW = Row(KEY, 0.25, 0.125, 0.5, 7, 100, 3.5, 0.75, 1.001, None, "abc1234")


def _row(median, **changes):
    return dataclasses.replace(ROW, key=dataclasses.replace(KEY, **changes), median_s=median)


# ------------------------------------------------------------------------------------------- the results file


def test_a_row_comes_back_as_it_was_written(tmp_path):
    upsert([ROW], tmp_path / "r.csv")
    assert read_rows(tmp_path / "r.csv") == {KEY: ROW}
    assert read_rows(tmp_path / "none.csv") == {}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Key)])
def test_a_new_measurement_replaces_its_own_row_alone(field, tmp_path):
    path = tmp_path / "r.csv"
    other = _row(1.0, **{field: 1 if field == "threads" else "another"})
    upsert([ROW, other], path)
    newer = dataclasses.replace(ROW, median_s=0.5, commit="def5678")
    upsert([newer], path)
    assert read_rows(path) == {KEY: newer, other.key: other}


def test_the_order_of_the_file_does_not_depend_on_the_order_of_the_runs(tmp_path):
    rows = [
        _row(1.0, shape=shape, threads=threads)
        for shape in ("100x10", "4096x32000", "65536x10")
        for threads in (1, 2)
    ]
    upsert(rows, tmp_path / "a.csv")
    for row in reversed(rows):
        upsert([row], tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert [row.key.shape for row in read_rows(tmp_path / "a.csv").values()][::2] == [
        "100x10",
        "4096x32000",
        "65536x10",
    ]


# ---------------------------------------------------------------------------------------- from rounds to rows


def test_a_row_has_the_median_of_all_turns_and_the_share_of_the_copy_with_as_many_threads():
    session = Session("cpu", 0.1)
    seconds = [1.0, 2.0, 3.0, 4.0, 100.0]
    session.measurements[KEY] = Measurement(items=10, least_bytes=6 * 10**9, seconds=seconds)
    copy = dataclasses.replace(KEY, op="copy", provider="torch")
    session.measurements[copy] = Measurement(items=1, least_bytes=8 * 10**9, seconds=[1.0])
    one_thread = dataclasses.replace(copy, threads=1)
    earlier = {one_thread: dataclasses.replace(ROW, key=one_thread, gb_per_s=1.0)}
    row = next(row for row in session.rows(earlier) if row.key == KEY)
    assert (row.median_s, row.p20_s, row.rounds) == (3.0, pytest.approx(1.8), 5)
    assert (row.gb_per_s, row.copy_share) == (2.0, 0.25)
    assert row.items_per_s == pytest.approx(10 / 3)


def test_an_earlier_copy_bandwidth_serves_when_none_was_measured_now():
    session = Session("cpu", 0.1)
    session.measurements[KEY] = Measurement(items=1, least_bytes=10**9, seconds=[1.0])
    assert session.rows({})[0].copy_share is None
    copy = dataclasses.replace(KEY, op="copy", provider="torch")
    assert session.rows({copy: dataclasses.replace(ROW, key=copy, gb_per_s=4.0)})[0].copy_share == 0.25


def test_the_fitted_exponent_is_that_of_the_power_law():
    rows = [_row(3e-4 * size**1.5, shape=str(size)) for size in (100, 1000, 5000, 64000)]
    assert growth_exponent(rows, "median_s") == pytest.approx(1.5)
    assert growth_exponent(rows[:2], "median_s") is None


def test_rows_of_another_machine_or_torch_are_kept_apart():
    rows = [ROW, _row(1.0, threads=1), _row(2.0, torch="2.6.0"), _row(3.0, device="a GPU")]
    found = lookups({row.key: row for row in rows})
    assert [len(lookup.rows) for lookup in found] == [2, 1, 1]
    assert found[0].find("soft_cross_entropy", "zskd_fast", "100x10", 2) == ROW
    assert found[0].find("soft_cross_entropy", "zskd_fast", "100x10", 4) is None


# ------------------------------------------------------------------------------------------------ bytes moved


def test_counts_what_each_op_reads_and_writes():
    x = torch.ones(1000)
    assert bytes_moved(lambda: x + 1) == 2 * 4000
    assert bytes_moved(lambda: x.view(10, 100).t()) == 0
    assert bytes_moved(lambda: x.add_(1)) == 2 * 4000
    assert bytes_moved(lambda: torch.ones(1).expand(1000) + x) == 2 * 4000 + 2 * 4
    assert bytes_moved(lambda: torch.empty(1000)) == 0


def test_counts_the_backward_pass():
    x = torch.ones(1000, requires_grad=True)
    forward = bytes_moved(lambda: x.exp())
    both = bytes_moved(lambda: torch.autograd.grad(x.exp(), x, torch.ones(1000)))
    assert both - forward >= 3 * 4000  # the output and its gradient are read, the gradient of x is written


def test_the_loss_with_a_reused_buffer_moves_no_more_than_it_must():
    logits, target = torch.randn(500, 20), torch.rand(500, 20)
    buffer = torch.empty_like(logits)
    moved = bytes_moved(lambda: ops.soft_cross_entropy_value_and_grad(logits, target, 20.0, out=buffer))
    assert moved == 3 * 4 * logits.numel() + 4


# -------------------------------------------------------------------------------------------- tables and plots


def _measured(ratio):
    """Rows by which the first figure, against F.cross_entropy, comes out as ``ratio``."""
    ours = _row(1.0, shape="65536x10")
    return Lookup("a CPU", "2.13", [ours, _row(ratio, shape="65536x10", provider="F.cross_entropy")])


def test_a_figure_says_plainly_whether_it_was_reached():
    from benchmarks.tables import figures_table

    first = figures_table(_measured(7.0)).splitlines()[2]
    assert "| 6.0x | 7.0x, reached |" in first
    first, second = figures_table(_measured(5.0)).splitlines()[2:4]
    assert "| 6.0x | 5.0x, **not reached** |" in first
    assert "not measured" in second


def test_against_several_the_fastest_counts_and_over_several_shapes_the_worst():
    from benchmarks.figures import FIGURES, times_faster

    rows = [_row(1.0), _row(5.0, provider="a"), _row(3.0, provider="b")]
    assert times_faster(Lookup("a CPU", "2.13", rows), KEY.op, ["a", "b"], KEY.shape, 2) == 3.0
    shapes = {"65536x10": 3.0, "65536x100": 1.2, "65536x1000": 2.0}
    rows = [_row(1.0, shape=shape) for shape in shapes]
    rows += [_row(ratio, shape=shape, provider="torch.compile") for shape, ratio in shapes.items()]
    figure = next(figure for figure in FIGURES if "torch.compile" in figure.name)
    assert figure.measured(Lookup("a CPU", "2.13", rows), 2) == pytest.approx(1.2)


def test_processes_are_compared_with_one_that_did_the_same():
    from benchmarks.tables import sections

    seconds = {
        "1 process": 2.0,
        "2 processes": 1.25,
        "1 process, no store": 1.5,
        "2 processes, no store": 0.75,
    }
    rows = [_row(median, op="scaling", provider=provider) for provider, median in seconds.items()]
    lines = sections(Lookup("a CPU", "2.13", rows)).splitlines()
    assert "| 2 processes | 80 | 1.60x | 0.125 to 0.5 |" in lines
    assert "| 2 processes, no store | 133 | 2.00x | 0.125 to 0.5 |" in lines


def test_only_the_marked_place_is_redrawn(tmp_path):
    pytest.importorskip("matplotlib", reason="the plots need the extra `bench`")
    from benchmarks.report import fill

    path = tmp_path / "README.md"
    path.write_text("before\n<!-- benchmarks -->\nold\n<!-- /benchmarks -->\nafter\n")
    for text in ("new", "newer"):
        fill(path, text)
        assert path.read_text() == f"before\n<!-- benchmarks -->\n\n{text}\n\n<!-- /benchmarks -->\nafter\n"
    path.write_text("no marks")
    with pytest.raises(ValueError, match="must hold <!-- benchmarks -->"):
        fill(path, "new")
    assert path.read_text() == "no marks"


def test_the_same_rows_give_the_same_plots(tmp_path):
    pytest.importorskip("matplotlib", reason="the plots need the extra `bench`")
    from benchmarks.plots import draw_plots

    growth = [
        dataclasses.replace(_row(size / 1e4, op="growth with impressions", shape=str(size)), peak_mb=400.0)
        for size in (1000, 4000, 16000)
    ]
    lookup = Lookup("a CPU", "2.13", [*_measured(5.0).rows, *growth])
    first = {path.name: path.read_bytes() for path in draw_plots(lookup, tmp_path / "a")}
    again = {path.name: path.read_bytes() for path in draw_plots(lookup, tmp_path / "b")}
    assert first.keys() == {"speed.svg", "growth.svg"}
    assert first == again
    assert b"seconds ~ impressions^1.00" in first["growth.svg"]
    assert b"peak MB ~ impressions^0.00" in first["growth.svg"]


# ----------------------------------------------------------------------------------------- a benchmark, really


def test_a_benchmark_checks_times_and_writes_its_rows(tmp_path):
    pytest.importorskip("pytest_benchmark", reason="the benchmarks need the extra `bench`")
    path = tmp_path / "results.csv"
    words = [
        "benchmarks/bench_copy.py",
        "benchmarks/bench_impression_update.py",
        "--quick",
        "--results",
        path,
    ]
    words += ["-q", "-p", "no:cacheprovider", "-k", "not compile"]
    subprocess.run(
        [sys.executable, "-m", "pytest", *map(str, words)], cwd=ROOT, check=True, stdout=subprocess.PIPE
    )
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
