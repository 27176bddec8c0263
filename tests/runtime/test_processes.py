"""Several processes: the store does not depend on their number, the student only up to rounding."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from command_line import (
    INPUT,
    MODELS,
    PACKAGE,
    RECIPE,
    RUN,
    STUDENT,
    contents,
    main,
    record,
    workplace,  # noqa: F401 (a fixture for every test here)
)
from safetensors.torch import load_file
from small_models import IMAGE, distillation_recipe, image_classifier, synthesis_recipe

from zskd_fast.distillation.distiller import Distiller
from zskd_fast.errors import InputError
from zskd_fast.runtime.processes import World, launched
from zskd_fast.store.store import Store
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

SYNTHESIZE = [
    *("synthesize", *RECIPE, *MODELS, *INPUT, "--synthesis.steps", "3"),
    *("--synthesis.impressions", "38", "--synthesis.shard-size", "8"),
]
# No mixing: each process would mix inputs of its own share of the batch only.
DISTILL = [
    *("distill", *RECIPE, *MODELS, *STUDENT, "--impressions", "store"),
    *("--distillation.batch-size", "7", "--distillation.augmentation.mix-probability", "0"),
]


def _set_world(monkeypatch, **variables):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


# The command line with a checkpoint five times a second.
OFTEN = """
import inspect, sys
from zskd_fast.cli.main import main
from zskd_fast.distillation.distiller import Distiller
inspect.unwrap(Distiller.fit).__kwdefaults__["checkpoint_seconds"] = 0.2
sys.exit(main())
"""


def _start(words, size, *, program=("-m", "zskd_fast")):
    """Start the ranks without torchrun, so that a test can kill them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(size)}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, *program, *map(str, words)],
            env={**os.environ, **shared, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def _finish(processes):
    printed = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), printed
    return printed


# --------------------------------------------------------------------------------------------- the world


def test_the_environment_gives_the_rank_and_the_number_of_processes(monkeypatch):
    _set_world(monkeypatch)
    assert launched() == World(0, 1, 0)
    _set_world(monkeypatch, RANK="5", WORLD_SIZE="8", LOCAL_RANK="1")
    assert launched() == World(5, 8, 1)


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("-1", "2"), ("0", "0"), ("one", "2")])
def test_a_contradictory_environment_is_shown(monkeypatch, rank, size):
    _set_world(monkeypatch, RANK=rank, WORLD_SIZE=size)
    with pytest.raises(InputError, match=f"RANK={rank}, WORLD_SIZE={size}, LOCAL_RANK=0"):
        launched()


@pytest.mark.parametrize("command", ["run", "demo", "train-teacher"])
def test_a_command_for_one_process_refuses_several(monkeypatch, capsys, command):
    _set_world(monkeypatch, RANK="1", WORLD_SIZE="2")
    rest = {"run": RUN[1:], "demo": [], "train-teacher": ["--data", "x"]}[command]
    out = "t.safetensors" if command == "train-teacher" else "out"
    assert main(command, *rest, "--out", out) == 2
    assert "works in one process, got WORLD_SIZE=2" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- synthesis


@pytest.mark.parametrize("size", [2, 3, 7])
def test_the_store_is_the_same_for_any_number_of_processes(tmp_path, size):
    synthesizer = Synthesizer(image_classifier(), IMAGE, synthesis_recipe(shard_size=4), seed=1)
    for name, count in (("one", 1), ("many", size)):
        for rank in reversed(range(count)):
            store = Store.open_or_create(tmp_path / name, synthesizer.identity, impressions=20, shard_size=4)
            summary = synthesize(synthesizer, store, world=World(rank, count), progress=False)
            assert summary.made == sum(len(store.shard_ids(s)) for s in range(rank, 5, count))
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_torchrun_makes_the_same_store_as_one_process(tmp_path):
    assert main(*SYNTHESIZE, "--threads", "1", "--out", "one") == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [*torchrun, "-m", "zskd_fast", *SYNTHESIZE, "--threads", "1", "--out", "two"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    assert "rank 0: impressions   22 made" in run.stdout
    assert "rank 1: impressions   16 made" in run.stdout
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_any_number_of_processes_completes_the_store_of_a_lost_process(tmp_path, monkeypatch, capsys):
    assert main(*SYNTHESIZE, "--out", "one") == 0
    _set_world(monkeypatch, RANK="1", WORLD_SIZE="2")
    assert main(*SYNTHESIZE, "--out", "lost") == 0
    assert Store.open("lost").missing_shards() == [0, 2, 4]
    for rank in range(3):
        _set_world(monkeypatch, RANK=str(rank), WORLD_SIZE="3")
        assert main(*SYNTHESIZE, "--out", "lost") == 0
    assert contents(tmp_path / "lost") == contents(tmp_path / "one")


# A teacher that kills the second process once, in the middle of its second shard.
FRAGILE = """
import os, signal
from pathlib import Path
from users_models import teacher as sound

def teacher():
    model = sound()
    model.register_forward_hook(lambda *_: _die_once())
    return model

def _die_once():
    if os.environ["RANK"] == "1" and Path("store/shard-000001.safetensors").exists() and not Path("died").exists():
        Path("died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_torchrun_restarts_after_a_death_and_the_store_is_completed(tmp_path):
    (tmp_path / "fragile_models.py").write_text(FRAGILE)
    assert main(*SYNTHESIZE, "--threads", "1", "--out", "one") == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [
        *torchrun,
        "--max-restarts=1",
        "-m",
        "zskd_fast",
        *SYNTHESIZE,
        "--threads",
        "1",
        "--out",
        "store",
    ]
    environment = {**os.environ, "PYTHONPATH": f"{PACKAGE.parent}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    words += ["--teacher", "fragile_models:teacher"]
    run = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    assert (tmp_path / "died").exists()
    again = re.findall(r"([0-9]+) existed already", run.stdout)
    assert sum(map(int, again)) >= 8, run.stdout  # the first shard of the process that died, at least
    assert contents(tmp_path / "store") == contents(tmp_path / "one")


def test_resume_never_is_for_one_process(tmp_path, monkeypatch, capsys):
    _set_world(monkeypatch, RANK="0", WORLD_SIZE="2")
    assert main(*SYNTHESIZE, "--out", "new", "--resume", "never") == 2
    assert 'resume "never" is for one process' in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


# ------------------------------------------------------------------------------------------ distillation


def test_two_processes_distill_the_same_student_as_one(tmp_path):
    assert main(*SYNTHESIZE, "--out", "store") == 0
    words = [*DISTILL, "--distillation.steps", "30", "--threads", "1"]
    assert main(*words, "--out", "one") == 0
    printed = _finish(_start([*words, "--out", "two"], 2))
    assert "student" in printed[0] and printed[1].count("\n") == 0  # one process prints the summary
    one, two = (load_file(tmp_path / name / "student.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-4)
    losses = [torch.tensor(record(tmp_path / name)["distillation"]["loss"]) for name in ("one", "two")]
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-4)
    assert len(losses[0]) == 30


def test_every_process_stops_at_a_damaged_shard(tmp_path):
    """Each process hashes a share of the shards; one that did not stop would wait for the others forever."""
    assert main(*SYNTHESIZE, "--out", "store") == 0
    damaged = tmp_path / "store" / "shard-000001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    processes = _start([*DISTILL, "--threads", "1", "--out", "run"], 2)
    printed = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], printed
    assert "another process found a shard that is missing or was changed" in printed[0]
    assert "shard-000001.safetensors is not the file that was written" in printed[1]
    assert not (tmp_path / "run").exists()


def test_processes_take_over_a_folder_or_refuse_it_together(tmp_path):
    """The first process alone opens the folder; the others must hear of its refusal."""
    assert main(*SYNTHESIZE, "--out", "store") == 0
    words = [*DISTILL, "--threads", "1", "--out", "run", "--distillation.steps"]
    _finish(_start([*words, "6"], 2))
    earlier = (tmp_path / "run/student.safetensors").read_bytes()
    printed = _finish(_start([*words, "9"], 2))
    assert "steps: 9 in this run, 6 in the folder" in printed[0] and printed[1] == ""
    assert len(record(tmp_path / "run")["distillation"]["loss"]) == 9
    kept = [path.read_bytes() for path in (tmp_path / "run").glob("student-*.safetensors")]
    assert kept == [earlier]
    processes = _start([*words, "9", "--seed", "1"], 2)
    printed = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], printed
    assert all("run belongs to another run" in text and "Traceback" not in text for text in printed), printed


@pytest.mark.slow
def test_killed_processes_resume_to_the_weights_of_an_uninterrupted_run(tmp_path):
    assert main(*SYNTHESIZE, "--out", "store") == 0
    words = [*DISTILL, "--distillation.steps", "700", "--threads", "1"]
    _finish(_start([*words, "--out", "whole"], 2))
    killed = _start([*words, "--out", "killed"], 2, program=("-c", OFTEN))
    checkpoint = tmp_path / "killed" / "checkpoint"
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert time.monotonic() < deadline and all(process.poll() is None for process in killed)
        time.sleep(0.005)
    for process in killed:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert checkpoint.exists() and not (tmp_path / "killed" / "student.safetensors").exists()
    assert main(*words, "--out", "killed") == 2  # another number of processes rounds differently
    _finish(_start([*words, "--out", "killed"], 2))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    again = _finish(_start([*words, "--out", "killed"], 2))
    assert "student" in again[0] and again[1] == ""  # finished: the first process prints the summary again


def test_more_processes_than_rows_are_refused(monkeypatch):
    monkeypatch.setattr("zskd_fast.distillation.distiller.joined", lambda: World(0, 9))
    recipe = distillation_recipe(batch_size=8)
    distiller = Distiller(image_classifier(), image_classifier(seed=1), IMAGE, recipe, seed=0)
    with pytest.raises(InputError, match="9 processes for a batch of 8"):
        distiller.fit(torch.rand(8, 1, 8, 8))
