"""Processes that train together and are stopped: all after the same step, and the first keeps the checkpoint."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from counting_models import steps, teacher
from small_models import IMAGE, open_store, synthesis_recipe

from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

TESTS = Path(__file__).parents[1]
COUNT = 150
RANKS = (0, 1)


def _words(folder):
    models = ["--teacher", "counting_models:teacher", "--student", "counting_models:student", "--threads", "1"]
    sizes = ["--distillation.steps", str(COUNT), "--distillation.batch-size", "9"]
    return ["distill", *models, *sizes, "--impressions", str(folder / "store"), "--out", str(folder / "run")]


def _environment(folder, name, **variables):
    shared = {"PYTHONPATH": f"{TESTS.parent}:{TESTS}/support", "OMP_NUM_THREADS": "1", "STEPS": str(folder / name)}
    return {**os.environ, **shared, **variables}


def _torchrun(folder, name):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "zskd_fast"]
    environment = _environment(folder, name)
    return subprocess.Popen(
        [*words, *_words(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _ranks(folder, name):
    """Start the ranks without torchrun, so that each can be sent a signal."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "zskd_fast", *_words(folder)],
            env=_environment(folder, name, **address, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in RANKS
    ]


def _make_store(folder):
    synthesizer = Synthesizer(teacher(), IMAGE, synthesis_recipe(), seed=1)
    synthesize(synthesizer, open_store(folder / "store", synthesizer), progress=False)


def _wait_for_step(step, folder, name, processes):
    deadline = time.monotonic() + 120
    while steps(folder / name, 1) < step:
        assert all(process.poll() is None for process in processes) and time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The student of two processes of torchrun that were not stopped."""
    folder = tmp_path_factory.mktemp("whole")
    _make_store(folder)
    process = _torchrun(folder, "steps")
    printed, error = process.communicate(timeout=180)
    assert process.returncode == 0, error
    assert printed.count("\nweights ") == 1
    return (folder / "run/student.safetensors").read_bytes()


def _continue(folder, whole):
    done = torch.load(folder / "run/checkpoint")["step"]
    process = _torchrun(folder, "rest")
    _, error = process.communicate(timeout=180)
    assert process.returncode == 0, error
    assert [steps(folder / "rest", rank) for rank in RANKS] == [COUNT - done] * 2
    assert (folder / "run/student.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    ("number", "to", "codes"),
    [
        (signal.SIGTERM, (0, 1), [143, 143]),
        pytest.param(signal.SIGINT, (1, 0), [130, 130], marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, (1,), [143, 143], marks=pytest.mark.slow),
        (signal.SIGINT, (0,), [130, 143]),  # the other has got no signal, and ends as if terminated
    ],
)
def test_a_signal_to_any_process_stops_all_after_the_same_step(tmp_path, whole, number, to, codes):
    _make_store(tmp_path)
    processes = _ranks(tmp_path, "steps")
    _wait_for_step(20, tmp_path, "steps", processes)
    for rank in to:
        processes[rank].send_signal(number)
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == codes, errors
    assert not any("Traceback" in error for error in errors), errors
    done = int(re.search(rf"the same command continues from step ([0-9]+) of {COUNT}", errors[0])[1])
    assert [steps(tmp_path / "steps", rank) for rank in RANKS] == [done] * 2
    assert errors[1].endswith(("zskd-fast: terminated\n", "zskd-fast: interrupted\n")) and "continues" not in errors[1]
    assert 20 <= done < COUNT and torch.load(tmp_path / "run/checkpoint")["step"] == done
    _continue(tmp_path, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_torchrun_passes_a_signal_on(tmp_path, whole, number):
    _make_store(tmp_path)
    process = _torchrun(tmp_path, "steps")
    _wait_for_step(20, tmp_path, "steps", [process])
    if number == signal.SIGINT:  # Ctrl-C reaches every process of the terminal, and torchrun passes it on besides
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    done = torch.load(tmp_path / "run/checkpoint")["step"]
    assert f"the same command continues from step {done} of {COUNT}" in error
    assert [steps(tmp_path / "steps", rank) for rank in RANKS] == [done] * 2
    _continue(tmp_path, whole)
