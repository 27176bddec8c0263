"""--profile: it writes a small trace with the phases of the job, and does not change the result of the job."""

import gzip
import json
from types import SimpleNamespace

import pytest
import torch
from command_line import (
    DISTILLATION,
    INPUT,
    MODELS,
    RECIPE,
    RUN,
    SYNTHESIS,
    contents,
    main,
    workplace,  # noqa: F401 (a fixture for every test here)
)

from zskd_fast.run.profiling import STEPS, profile_synthesis
from zskd_fast.runtime.cuda_graph import WORTH_CAPTURING

SYNTHESIZE = ["synthesize", *RECIPE, *MODELS, *INPUT, *SYNTHESIS]
SYNTHESIS_PHASES = {"targets", "teacher forward", "teacher backward", "loss", "update"}
DISTILLATION_PHASES = {"augmentation", "teacher forward", "student", "loss", "update"}


def _phases(text):
    names = [event.get("name", "") for event in json.loads(text)["traceEvents"] if event.get("ph") == "X"]
    return [name.removeprefix("zskd::") for name in names if name.startswith("zskd::")]


def test_a_synthesis_writes_its_trace(tmp_path):
    assert main(*SYNTHESIZE, "--out", "plain") == 0
    assert main(*SYNTHESIZE, "--out", "profiled", "--profile", "traces/trace.json") == 0
    assert contents(tmp_path / "profiled") == contents(tmp_path / "plain")
    phases = _phases((tmp_path / "traces/trace.json").read_text())
    assert set(phases) == SYNTHESIS_PHASES
    assert phases.count("update") == STEPS
    assert (tmp_path / "traces/trace.json").stat().st_size < 2e6


def test_a_run_writes_its_trace_compressed(tmp_path, capsys):
    assert main(*RUN, "--out", "plain") == 0
    assert main(*RUN, "--out", "profiled", "--profile", "trace.json.gz") == 0
    assert "trace.json.gz, 5 steps of one batch" in capsys.readouterr().out
    assert contents(tmp_path / "profiled") == contents(tmp_path / "plain"), "the steps of the trace changed the result"
    phases = _phases(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))
    assert set(phases) == SYNTHESIS_PHASES | DISTILLATION_PHASES
    assert phases.count("update") == 2 * STEPS


@pytest.mark.parametrize(
    ("device", "steps", "traced"),
    [("cuda", WORTH_CAPTURING, WORTH_CAPTURING), ("cuda", WORTH_CAPTURING - 1, STEPS), ("cpu", 1000, STEPS)],
)
def test_a_trace_on_a_gpu_shows_the_graph_if_the_run_uses_one(device, steps, traced, tmp_path):
    recipe, taken = SimpleNamespace(steps=steps, batch_size=2), []
    short = SimpleNamespace(recipe=recipe, run=lambda ids: None)
    synthesizer = SimpleNamespace(
        device=torch.device(device), recipe=recipe, shortened=lambda steps: taken.append(steps) or short
    )
    assert profile_synthesis(synthesizer, tmp_path / "trace.json") == traced
    assert taken == [traced]


def test_a_warmup_fraction_of_one_step_of_the_trace_is_accepted():
    share = ["--distillation.warmup-fraction", str(1 / STEPS)]
    assert main(*RUN, *share, *DISTILLATION, "--out", "run", "--profile", "trace.json") == 0


@pytest.mark.parametrize("command", [SYNTHESIZE, RUN], ids=["synthesize", "run"])
@pytest.mark.parametrize("path", ["folder", "file/trace.json"])
def test_a_trace_that_cannot_be_written_is_refused_before_any_work(command, path, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    assert main(*command, "--out", "out", "--profile", path) == 2
    error = capsys.readouterr().err
    assert "cannot write" in error and path.partition("/")[0] in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
