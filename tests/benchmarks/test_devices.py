"""The benchmarks on another device than the CPU, shown by stand-ins for a GPU."""

import dataclasses

import pytest
import torch
from torch import nn

pytest.importorskip("pandas", reason="the benchmarks need the extra `bench`")

from benchmarks import machine, measure
from benchmarks.measure import Bench, Session, device_seconds
from benchmarks.store import bench_growth, bench_scaling
from benchmarks.synthesis import plain_loop
from zskd_fast.config.recipe_files import load_recipe


class Gpu:
    """A queue of work whose clock advances by the seconds that each piece takes."""

    def __init__(self, monkeypatch):
        self.clock, self.log = 0.0, []
        gpu = self

        class Event:
            def __init__(self, *, enable_timing):
                assert enable_timing

            def record(self):
                gpu.log.append("event")
                self.time = gpu.clock

            def elapsed_time(self, end):
                assert gpu.log[-1] == "wait", "a time is known once the host has waited"
                return 1000 * (end.time - self.time)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.log.append("wait"))

    def work(self, seconds, name="call"):
        self.log.append(name)
        self.clock += seconds


class Flushed:
    """Memory whose writing takes a second."""

    device = "cuda"

    def __init__(self, gpu):
        self.zero_ = lambda: gpu.work(1.0, "flush")


class Once:
    """The fixture of pytest-benchmark, without a clock."""

    stats = None

    def pedantic(self, call, *, rounds, iterations):
        for _ in range(rounds * iterations):
            call()


def test_a_gpus_own_clock_times_each_call_after_a_flush_of_its_cache(monkeypatch):
    gpu = Gpu(monkeypatch)
    seconds = device_seconds(lambda: gpu.work(0.25), 3, Flushed(gpu))
    assert seconds == [0.25] * 3
    assert gpu.log == ["flush", "event", "call", "event"] * 3 + ["wait"]


def test_a_benchmark_on_a_gpu_takes_its_clock(monkeypatch):
    gpu = Gpu(monkeypatch)
    monkeypatch.setattr(measure.torch, "empty", lambda *size, dtype, device: Flushed(gpu))
    monkeypatch.setattr(machine, "device_name", lambda device: "a GPU")
    measurement = Bench(Session("cuda", 0.01), Once(), 0)(
        lambda: gpu.work(0.25), op="op", provider="zskd_fast", shape="1", items=1
    )
    assert set(measurement.seconds) == {0.25}


def test_the_clock_of_a_longer_run_is_read_when_the_queue_is_empty(monkeypatch):
    gpu = Gpu(monkeypatch)
    Bench(Session("cuda", 0.01), Once(), 0).wait()
    Bench(Session("cpu", 0.01), Once(), 0).wait()
    assert gpu.log == ["wait"]


def test_the_plain_loop_makes_everything_on_the_device_of_the_teacher(monkeypatch):
    """On the meta device an operation with a tensor of the CPU fails, as on a GPU."""
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: 1.0)
    monkeypatch.setattr(torch.distributions.Dirichlet, "sample", lambda self: self.concentration.clone())
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).to("meta")
    similarity = torch.rand(4, 4, device="meta")
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", False)
    recipe = dataclasses.replace(load_recipe("paper").synthesis, steps=2)
    images, targets = plain_loop.make_impressions(teacher, similarity, (1, 8, 8), recipe, count=200)
    assert images.is_meta and images.shape == (200, 1, 8, 8)
    assert targets.is_meta and targets.shape == (200, 4)


@pytest.mark.parametrize("run", [bench_growth.test_growth, bench_scaling.test_scaling])
def test_processes_of_the_cpu_write_no_rows_under_the_name_of_a_gpu(run, tmp_path):
    bench = Bench(Session("cuda", 0.01), Once(), 0)
    with pytest.raises(pytest.skip.Exception, match="its processes compute on a CPU, not on cuda"):
        run(("impressions", 100), 1, "1 process", bench, tmp_path)
