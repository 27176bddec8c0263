"""The check on a GPU (tests/cuda/check.py) with fakes in place of the GPU and of its steps."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _load_check():
    spec = importlib.util.spec_from_file_location("check", ROOT / "tests" / "cuda" / "check.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["check"] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


check = _load_check()
ALL = check.Facts("NVIDIA T4", "580.1", "7.5", "release 13.0", "2.14.1 13.0 True")


def with_smi(folder: Path, script: str) -> dict[str, str]:
    """Return an environment whose nvidia-smi is this shell script."""
    folder.mkdir(parents=True, exist_ok=True)
    smi = folder / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_without_a_gpu_one_sentence_ends_the_check_and_nothing_is_built(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "cuda" / "check.py"), "device", "--build", str(tmp_path / "build")]
    done = subprocess.run(command, capture_output=True, text=True, env=with_smi(tmp_path / "bin", "exit 9"), timeout=60)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("no GPU here: ")
    assert [line.split()[0] for line in done.stdout.splitlines()[:5]] == list(asdict(ALL))
    assert not (tmp_path / "build").exists()


def test_make_looks_for_a_gpu_before_it_installs(tmp_path):
    venv = tmp_path / "venv"
    command = ["make", "-C", str(ROOT), "gpu-check", f"CUDA_VENV={venv}", f"PYTHON={sys.executable}"]
    environment = {**with_smi(tmp_path / "bin", "exit 9"), "PIP_NO_INDEX": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode != 0 and "no GPU here: " in done.stdout
    assert not venv.exists()


def test_facts_come_from_the_tools(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", with_smi(tmp_path, "echo 'NVIDIA T4, 580.1, 7.5'")["PATH"])
    facts = check.look()
    assert (facts.gpu, facts.driver, facts.architecture) == ("NVIDIA T4", "580.1", "7.5")
    assert facts.torch.split()[0].startswith("2.")


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ({}, None),
        ({"gpu": None}, "no GPU here"),
        ({"nvcc": None}, "no nvcc"),
        ({"torch": None}, "cannot import torch"),
        ({"torch": "2.14.1+cpu None False"}, "torch sees no GPU"),
    ],
    ids=str,
)
def test_what_is_missing_is_named(missing, sentence):
    found = check.obstacle(replace(ALL, **missing))
    assert found is None if sentence is None else sentence in found


def test_all_steps_fit_into_eight_minutes(tmp_path):
    steps = check.device_steps(tmp_path, tmp_path, dry_run=False)
    wanted = ["wheels", "build", "device tests", "demo", "store-1", "store-2", "benchmarks"]
    assert [step.name for step in steps] == wanted == [s.name for s in check.device_steps(tmp_path, tmp_path, True)]
    for each in (steps, check.sanitizer_steps()):
        assert sum(step.limit for step in each) <= 480
    assert all("--report-api-errors no" in " ".join(step.command) for step in check.sanitizer_steps())
    assert all("cuda" in step.command for step in steps if step.name in ("demo", "store-1", "benchmarks"))


def fake(name: str, code: str, limit: float = 20) -> "check.Step":
    return check.Step(name, [sys.executable, "-c", code], limit)


def fake_steps(work: Path) -> list:
    shard = "import pathlib; p = pathlib.Path({!r}); p.mkdir(); (p / 'shard-000000.safetensors').write_text('{}')"
    return [
        fake("build", "import os; print('built with', os.environ['ZSKD_CUDA'], os.environ['PYTHONPATH'])"),
        fake("device tests", "raise SystemExit(3)"),
        fake("demo", "import subprocess; subprocess.run(['sleep', '60'])", limit=1),
        fake("store-1", shard.format(str(work / "store-1"), 1)),
        fake("store-2", shard.format(str(work / "store-2"), 1)),
        fake("benchmarks", f"open({str(work / 'results.csv')!r}, 'w').write('op,median\\nphilox,3\\n')"),
    ]


def test_result_holds_every_step_the_stores_and_the_benchmarks(tmp_path):
    (tmp_path / "clone").mkdir()
    result, began = tmp_path / "result.json", time.monotonic()
    passed = check.run_steps(fake_steps(tmp_path), tmp_path, ALL, result, ZSKD_CUDA="1")
    assert time.monotonic() - began < 30  # the step that ran out of time was stopped with its child
    found = json.loads(result.read_text())
    assert not passed and found["facts"]["gpu"] == "NVIDIA T4"
    outcomes = {step["name"]: step["outcome"] for step in found["steps"]}
    assert outcomes.pop("device tests") == "failed" and outcomes.pop("demo") == "out of time"
    assert set(outcomes.values()) == {"ok"} and len(outcomes) == 4
    assert found["steps"][0]["tail"].startswith(f"built with 1 {tmp_path / 'clone'}")
    assert found["stores_equal"] is True and found["benchmarks"] == [{"op": "philox", "median": "3"}]


def test_stores_of_other_bytes_are_not_equal(tmp_path):
    for name, text in (("store-1", "1"), ("store-2", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shard-000000.safetensors").write_text(text)
    assert check.same_shards(tmp_path / "store-1", tmp_path / "store-2") is False
    assert check.same_shards(tmp_path / "none", tmp_path / "store-2") is None


def test_nothing_runs_after_a_failed_build(tmp_path):
    (tmp_path / "clone").mkdir()
    steps = [fake("build", "raise SystemExit(1)"), fake("device tests", "pass")]
    assert not check.run_steps(steps, tmp_path, ALL, tmp_path / "result.json")
    assert [step["name"] for step in json.loads((tmp_path / "result.json").read_text())["steps"]] == ["build"]
