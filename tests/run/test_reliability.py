"""Long runs: kills, signals, full disks and deleted folders, a teacher that returns NaN, several processes."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_models import VECTOR, all_impressions, open_store, synthesis_recipe, vector_classifier

from zskd_fast.cli import main as cli
from zskd_fast.errors import InputError
from zskd_fast.store.store import Store
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}/support", "OMP_NUM_THREADS": "1"}
# A run of a few seconds: 12 shards of 8.
WORDS = [
    *("synthesize", "--recipe", "demo", "--teacher", "small_models:vector_classifier"),
    *("--input.shape", "6", "--synthesis.impressions", "96", "--synthesis.shard-size", "8"),
    *("--synthesis.steps", "400", "--synthesis.batch-size", "8", "--threads", "1"),
]


def _synthesizer(model=None):
    return Synthesizer(model or vector_classifier(), VECTOR, synthesis_recipe(shard_size=4), seed=1)


def _fill(folder, synthesizer=None):
    synthesizer = synthesizer or _synthesizer()
    return synthesize(synthesizer, open_store(folder, synthesizer), progress=False)


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(tmp_path):
    """The files of a store whose run was not interrupted."""
    _fill(tmp_path / "whole")
    return _files(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------ kills


@pytest.mark.parametrize("kills", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_resumed_store_is_the_same(tmp_path, kills):
    words = [sys.executable, str(TESTS / "support/killed_runs.py"), str(tmp_path), str(kills), "7"]
    run = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    result = json.loads(run.stdout)
    print(result)
    assert result["kills"] >= kills
    assert result["kills_at_the_disk"] >= kills // 5
    assert result["identical"] == result["stores"]
    assert result["most_redone"] <= 1


# ---------------------------------------------------------------------------------------------- signals


def _start(folder):
    words = [sys.executable, "-m", "zskd_fast", *WORDS, "--out", str(folder)]
    return subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_discards_the_unfinished_shard_and_sets_the_exit_code(tmp_path, number, code, word):
    process = _start(tmp_path / "stopped")
    _wait_for(tmp_path / "stopped" / "shard-000001.safetensors", process)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in error
    assert not list((tmp_path / "stopped").glob("*.tmp"))
    missing = Store.open(tmp_path / "stopped").missing_shards()
    assert 0 < len(missing) < 12
    assert f"{word}; the same command continues from {96 - 8 * len(missing)} of 96 impressions" in error


def test_the_handler_of_sigterm_is_restored():
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["verify", "nowhere"]) == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_two_runs_at_once_share_the_shards(tmp_path):
    runs = [_start(tmp_path / "shared") for _ in range(2)]
    printed = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    made = [int(text.split(" made in")[0].split()[-1]) for text in printed]
    assert sum(made) == 96, printed  # no impression is made twice
    assert cli.main([*WORDS, "--out", str(tmp_path / "alone")]) == 0
    assert _files(tmp_path / "shared") == _files(tmp_path / "alone")


# ------------------------------------------------------------------------------------------------- disks


@contextlib.contextmanager
def _small_disk(folder, size):
    """Mount a tmpfs of this many bytes, as root; yield a function that remounts it with other options."""
    folder.mkdir()

    def mount(*options):
        words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        run = subprocess.run(words, capture_output=True, text=True)
        if run.returncode:
            pytest.skip(f"cannot mount a tmpfs here: {run.stderr.strip()}")

    mount(f"size={size}")
    try:
        yield lambda *options: mount("remount", *options)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_the_run_continues_once_there_is_room(tmp_path, whole):
    with _small_disk(tmp_path / "disk", 20_480) as remount:
        store = tmp_path / "disk" / "store"
        with pytest.raises(OSError, match=r"No space left on device: .*(shard-00000\d|manifest\.json)"):
            _fill(store)
        assert not list(store.glob("*.tmp"))
        assert 0 < len(Store.open(store).missing_shards()) < 5
        remount("size=1m")
        _fill(store)
        assert _files(store) == whole


def test_a_file_that_may_not_grow_is_like_a_full_disk(tmp_path, whole):
    """Works without root: the kernel refuses to write past the limit of the process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    synthesizer = _synthesizer()
    store = open_store(tmp_path / "a", synthesizer)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*shard-000000"):
            synthesize(synthesizer, store, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(_files(tmp_path / "a")) == [".lock", "manifest.json"]
    _fill(tmp_path / "a")
    assert _files(tmp_path / "a") == whole


def test_a_store_in_a_read_only_folder_is_read_but_not_written(tmp_path, whole):
    with _small_disk(tmp_path / "disk", 2**20) as remount:
        store = tmp_path / "disk" / "store"
        _fill(store)
        remount("ro")
        with pytest.raises(InputError, match=r"cannot write the store .*Read-only file system"):
            _fill(store)
        assert Store.open(store).is_complete
        assert len(all_impressions(Store.open(store))) == 20
        assert cli.main(["verify", str(store)]) == 0


def test_a_folder_that_is_deleted_ends_the_run_with_one_sentence(tmp_path, monkeypatch, capsys):
    real = Synthesizer.run

    def delete(self, ids, **options):
        if int(ids[0]) >= 16:
            shutil.rmtree(tmp_path / "a")
        return real(self, ids, **options)

    monkeypatch.setattr(Synthesizer, "run", delete)
    words = [*WORDS, "--synthesis.steps", "2", "--out", str(tmp_path / "a")]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert "No such file or directory" in error and "Traceback" not in error
    assert not (tmp_path / "a").exists()


def test_a_clock_that_jumps_back_changes_nothing(tmp_path, whole, monkeypatch):
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    synthesizer = _synthesizer()
    store = open_store(tmp_path / "a", synthesizer)
    assert synthesize(synthesizer, store, progress=True).seconds > 0
    for path in (tmp_path / "a").iterdir():
        os.utime(path, (2**31, 2**31))  # dated in the future
    assert _fill(tmp_path / "a").reused == 20
    assert _files(tmp_path / "a") == whole


# ------------------------------------------------------------------------------------------------ teacher


def test_a_teacher_that_turns_nan_at_shard_3_leaves_the_other_shards_intact(tmp_path, whole, monkeypatch):
    model, real = vector_classifier(), Synthesizer.run

    def turn_nan(self, ids, **options):
        if int(ids[0]) == 12:
            with torch.no_grad():
                model[0].weight.fill_(float("nan"))
        return real(self, ids, **options)

    monkeypatch.setattr(Synthesizer, "run", turn_nan)
    with pytest.raises(InputError, match="the first is id 12"):
        _fill(tmp_path / "a", _synthesizer(model))
    monkeypatch.undo()
    assert Store.open(tmp_path / "a").missing_shards() == [3, 4]
    assert _fill(tmp_path / "a").reused == 12
    assert _files(tmp_path / "a") == whole


# ---------------------------------------------------------------------------------------------- long runs


@pytest.mark.slow
def test_memory_and_open_files_stay_flat_over_100_000_impressions(tmp_path):
    words = [sys.executable, str(TESTS / "support/long_run.py"), str(tmp_path / "a"), "100000"]
    run = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    samples = {row["impressions"]: row for row in map(json.loads, run.stdout.splitlines())}
    first, last = samples[1000], samples[100_000]
    print(first, last)
    assert last["open_files"] == first["open_files"]
    assert last["resident_bytes"] - first["resident_bytes"] < 32 * 2**20
