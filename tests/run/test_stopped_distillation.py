"""A distillation that is stopped by a signal: nothing of it is lost, and what the command line says is true."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from counting_models import steps, student, teacher
from small_models import IMAGE, distillation_recipe, same_tensors

from zskd_fast.distillation.distiller import Distiller
from zskd_fast.errors import InputError

TESTS = Path(__file__).parents[1]
COUNT = 300
WORDS = [
    *("run", "--teacher", "counting_models:teacher", "--student", "counting_models:student", "--threads", "1"),
    *("--input.shape", "1", "8", "8", "--synthesis.impressions", "24", "--synthesis.steps", "2"),
    *("--distillation.steps", str(COUNT), "--distillation.batch-size", "8"),
]
SIGNALS = [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]


def _start(folder, name, **variables):
    """Start the run in FOLDER/run; its steps are counted in FOLDER/name-0."""
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}/support", "OMP_NUM_THREADS": "1"}
    environment |= {"STEPS": str(folder / name)} | variables
    words = [sys.executable, "-m", "zskd_fast", *WORDS, "--out", str(folder / "run")]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process):
    printed, error = process.communicate(timeout=120)
    return process.returncode, printed, error


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Student and losses of a run that was not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    code, _, error = _finish(_start(folder, "steps"))
    assert code == 0 and steps(folder / "steps") == COUNT, error
    return _result(folder)


def _result(folder):
    record = json.loads((folder / "run/run.json").read_text())
    return (folder / "run/student.safetensors").read_bytes(), record["distillation"]["loss"]


def _continue(folder, whole, done):
    """Start the same command again, which must take the steps that are left and end with the same student."""
    code, _, error = _finish(_start(folder, "rest"))
    assert code == 0 and "Traceback" not in error, error
    assert steps(folder / "rest") == COUNT - done
    assert _result(folder) == whole
    assert not (folder / "run/checkpoint").exists()


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
def test_a_signal_in_the_middle_of_a_step_loses_nothing(tmp_path, whole, number, code, word):
    got, _, error = _finish(_start(tmp_path, "steps", SIGNAL_AT="200", SIGNAL=str(int(number))))
    assert got == code and "Traceback" not in error, error
    assert f"zskd-fast: {word}; the same command continues from step 200 of {COUNT}\n" in error
    assert steps(tmp_path / "steps") == 200
    assert not (tmp_path / "run/student.safetensors").exists()
    _continue(tmp_path, whole, 200)


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
def test_a_signal_from_outside_loses_nothing(tmp_path, whole, number, code, word):
    process = _start(tmp_path, "steps")
    deadline = time.monotonic() + 120
    while steps(tmp_path / "steps") < 20:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(number)
    got, _, error = _finish(process)
    assert got == code and "Traceback" not in error, error
    said = re.search(rf"{word}; the same command continues from step (\d+) of {COUNT}", error)
    assert said and 20 <= int(said[1]) == steps(tmp_path / "steps") < COUNT
    assert torch.load(tmp_path / "run/checkpoint")["step"] == int(said[1])
    _continue(tmp_path, whole, int(said[1]))


def test_a_signal_in_the_last_step_leaves_only_the_student_to_be_written(tmp_path, whole):
    got, _, error = _finish(_start(tmp_path, "steps", SIGNAL_AT=str(COUNT), SIGNAL=str(int(signal.SIGTERM))))
    assert got == 143 and f"continues from step {COUNT} of {COUNT}" in error
    _continue(tmp_path, whole, COUNT)


def test_where_nothing_would_continue_nothing_is_said(tmp_path):
    """The first file of a run is its record; before it, and outside of a distillation, there is nothing to keep."""
    (tmp_path / "slow_models.py").write_text(
        "import os, signal\ndef teacher():\n    os.kill(os.getpid(), signal.SIGTERM)\n    import time; time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{tmp_path}"}
    words = ["synthesize", "--teacher", "slow_models:teacher", "--input.shape", "6", "--out", str(tmp_path / "out")]
    run = subprocess.run([sys.executable, "-m", "zskd_fast", *words], env=environment, capture_output=True, text=True)
    assert run.returncode == 143 and run.stderr.endswith("\nzskd-fast: terminated\n")


# ------------------------------------------------------------------------------------------- in this process


def _fit(monkeypatch, tmp_path, name="steps", **options):
    monkeypatch.setenv("STEPS", str(tmp_path / name))
    model = student()
    distiller = Distiller(teacher(), model, IMAGE, distillation_recipe(), seed=1)
    x = torch.rand(16, *IMAGE.shape, generator=torch.Generator().manual_seed(0))
    return model, distiller.fit(x, progress=False, **options)


def _interrupting(step):
    """An evaluation after every step; that of one step is interrupted."""
    done = []

    def evaluate(model):
        done.append(len(done) + 1)
        if done[-1] == step:
            os.kill(os.getpid(), signal.SIGINT)
        return float(done[-1])

    return evaluate


def test_a_signal_in_an_evaluation_keeps_its_value(monkeypatch, tmp_path):
    file = {"checkpoint": tmp_path / "checkpoint", "evaluate_every": 1}
    with pytest.raises(KeyboardInterrupt, match=r"^step 7 of 20$"):
        _fit(monkeypatch, tmp_path, **file, evaluate=_interrupting(7))
    assert torch.load(tmp_path / "checkpoint")["evaluations"] == [(step, float(step)) for step in range(1, 8)]
    resumed, history = _fit(monkeypatch, tmp_path, "rest", **file, evaluate=lambda _: 0.5)
    assert steps(tmp_path / "rest") == 13
    assert [step for step, _ in history.evaluations] == list(range(1, 21))
    plain, _ = _fit(monkeypatch, tmp_path, "plain")
    assert same_tensors(resumed, plain)


def test_an_interrupt_that_is_no_signal_leaves_the_last_checkpoint(monkeypatch, tmp_path):
    """Such as one that a callback raises: the step is not finished then."""

    def evaluate(model):
        raise KeyboardInterrupt

    file = {"checkpoint": tmp_path / "checkpoint", "checkpoint_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt, match=r"^step 4 of 20$"):
        _fit(monkeypatch, tmp_path, **file, evaluate=evaluate, evaluate_every=5)
    assert torch.load(tmp_path / "checkpoint")["step"] == 4
    resumed, _ = _fit(monkeypatch, tmp_path, "rest", **file)
    assert steps(tmp_path / "rest") == 16 and same_tensors(resumed, _fit(monkeypatch, tmp_path, "plain")[0])


def test_without_a_checkpoint_a_signal_acts_at_once(monkeypatch, tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        _fit(monkeypatch, tmp_path, evaluate_every=1, evaluate=_interrupting(7))
    assert steps(tmp_path / "steps") == 7


def test_the_handlers_are_those_of_before(monkeypatch, tmp_path):
    before = [signal.getsignal(number) for number, _, _ in SIGNALS]
    _fit(monkeypatch, tmp_path, checkpoint=tmp_path / "checkpoint")
    assert [signal.getsignal(number) for number, _, _ in SIGNALS] == before


def test_checkpoints_are_written_by_time(monkeypatch, tmp_path):
    """A step of 10 seconds by a clock of its own: a checkpoint after every third, and at the end."""
    from zskd_fast.distillation import checkpoint

    saved, real = [], checkpoint.Checkpoint.save
    monkeypatch.setattr(
        checkpoint.Checkpoint, "save", lambda self, state: (saved.append(state.step), real(self, state))
    )
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: 10.0 * steps(tmp_path / "steps"))
    _fit(monkeypatch, tmp_path, checkpoint=tmp_path / "checkpoint")
    assert saved == [3, 6, 9, 12, 15, 18, 20]
    saved.clear()
    (tmp_path / "steps-0").unlink()
    _fit(monkeypatch, tmp_path, checkpoint=tmp_path / "another", checkpoint_seconds=float("inf"))
    assert saved == [20]


def test_a_lost_student_replaces_no_checkpoint(monkeypatch, tmp_path):
    file = {"checkpoint": tmp_path / "checkpoint", "checkpoint_seconds": 0.0}
    monkeypatch.setenv("STEPS", str(tmp_path / "steps"))
    recipe = distillation_recipe(max_learning_rate=1e38, start_divisor=1.0)
    with pytest.raises(InputError, match=r"NaN or infinite at step (\d+)") as error:
        Distiller(teacher(), student(), IMAGE, recipe, seed=1).fit(torch.rand(16, *IMAGE.shape), progress=False, **file)
    lost = int(re.search(r"step (\d+)", str(error.value))[1])
    assert torch.load(tmp_path / "checkpoint")["step"] == lost - 1


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_time_that_is_none_is_refused(monkeypatch, tmp_path, seconds):
    with pytest.raises(InputError, match="checkpoint_seconds must be 0 or more, got"):
        _fit(monkeypatch, tmp_path, checkpoint=tmp_path / "checkpoint", checkpoint_seconds=seconds)
