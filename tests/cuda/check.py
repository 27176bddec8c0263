"""Build the package with its CUDA backend and test it.

    python tests/cuda/check.py cpu        all that needs no GPU: install, all tests, the compiler's figures
    python tests/cuda/check.py look       which driver, GPU, nvcc and torch are here; exit code 1 without a GPU
    python tests/cuda/check.py device     all that needs a GPU, in 8 minutes and without a network
    python tests/cuda/check.py sanitize   compute-sanitizer on what `device` built, in 8 minutes

`cpu` installs into the environment of this interpreter and needs a network. `device` uses this interpreter as it is,
with the wheels of --wheels FOLDER beside it, builds in a copy of the clone in build/gpu-check, and writes one file,
build/gpu-check.json, after each step. `device --dry-run` takes the same steps on a CPU, with a build without CUDA.
TORCH_CUDA_ARCH_LIST chooses the architectures; `device` builds for the GPU that it finds.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# Not copied: build folders, and the extension module, which is built for another environment.
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "_built_for_torch.txt")
FIGURES_FOR = ["75", "80", "86", "89", "90", "100", "120"]
TAIL = 4000  # characters of a step's output in the result
SHARDS = "shard-*.safetensors"
ASK_TORCH = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"


@dataclass(frozen=True)
class Facts:
    """What this machine has. None is missing or does not answer."""

    gpu: str | None
    driver: str | None
    architecture: str | None
    nvcc: str | None
    torch: str | None


@dataclass(frozen=True)
class Step:
    name: str
    command: list[str]
    limit: float
    """Seconds after which it is stopped."""


@dataclass(frozen=True)
class Outcome:
    name: str
    command: str
    outcome: str
    """ok, failed, or out of time"""
    seconds: float
    tail: str


# --- what is here ---


def answer(*command: str, limit: float = 30) -> str | None:
    """Return what a command prints, or None if it is missing, fails or does not end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def look() -> Facts:
    smi = answer("nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader")
    gpu, driver, architecture = ([word.strip() for word in smi.splitlines()[0].split(",")] if smi else [None] * 3)[:3]
    nvcc = shutil.which("nvcc") or f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/nvcc"
    release = next((line for line in (answer(nvcc, "--version") or "").splitlines() if "release" in line), None)
    return Facts(gpu, driver, architecture, release, answer(sys.executable, "-c", ASK_TORCH, limit=90))


def obstacle(facts: Facts) -> str | None:
    """Return why the checks on a GPU cannot run here, in one sentence."""
    if facts.gpu is None:
        return "no GPU here: nvidia-smi is missing or names none, so nothing was built or tested"
    if facts.nvcc is None:
        return "no nvcc in PATH or CUDA_HOME, so the CUDA backend cannot be built"
    if facts.torch is None:
        return f"{sys.executable} cannot import torch"
    if not facts.torch.endswith("True"):
        return f"torch sees no GPU (its version, its CUDA, whether it sees a GPU: {facts.torch})"
    return None


# --- the steps ---


def bounded(step: Step, cwd: Path, environment: dict[str, str]) -> Outcome:
    """Run a step; stop it with all its children when its time is over."""
    print(f"$ {' '.join(step.command)}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            child = subprocess.Popen(
                step.command, cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            return Outcome(step.name, " ".join(step.command), "failed", 0.0, str(error))
        try:
            outcome = "failed" if child.wait(step.limit) else "ok"
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            outcome = "out of time"
        seconds = round(time.monotonic() - began, 1)
        output.seek(0)
        tail = output.read()[-TAIL:]
    print(f"{tail}\n{step.name}: {outcome} after {seconds} s", flush=True)
    return Outcome(step.name, " ".join(step.command), outcome, seconds, tail)


def device_steps(work: Path, wheels: Path | None, dry_run: bool) -> list[Step]:
    """Return the steps of `device`; together they may take 8 minutes."""
    python = [sys.executable, "-m"]
    device = "cpu" if dry_run else "cuda"
    small = ["--synthesis.impressions", "40"] if dry_run else []
    steps = []
    if wheels is not None:
        files = sorted(map(str, wheels.glob("*.whl")))
        install = [*python, "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade", "--target"]
        steps.append(Step("wheels", [*install, str(work / "site"), *files], 30))
    steps.append(Step("build", [sys.executable, "setup.py", "build_ext", "--inplace"], 120))
    tests = "tests/ops/test_dispatch.py" if dry_run else "tests/cuda/test_cuda_device.py"
    steps.append(Step("device tests", [*python, "pytest", "-q", tests], 90))
    demo = [*python, "zskd_fast", "demo", "--device", device, "--out", str(work / "demo"), *small]
    steps.append(Step("demo", [*demo, *(["--distillation.steps", "20"] if dry_run else [])], 90))
    store = [
        *python,
        "zskd_fast",
        "synthesize",
        "--recipe",
        "demo",
        "--device",
        device,
        "--input.shape",
        "1",
        "32",
        "32",
    ]
    store += ["--teacher", "zskd_fast.models:LeNet5", "--weights", "zskd_fast/assets/lenet5-mnist.safetensors"]
    store += ["--synthesis.impressions", "40" if dry_run else "800"]
    steps += [Step(name, [*store, "--out", str(work / name)], 30) for name in ("store-1", "store-2")]
    bench = [*python, "pytest", "-q", "benchmarks/ops/bench_soft_cross_entropy.py", "benchmarks/ops/bench_dirichlet.py"]
    bench += ["--device", device, "--results", str(work / "results.csv"), *(["--quick"] if dry_run else [])]
    return [*steps, Step("benchmarks", bench, 90)]


def sanitizer_steps() -> list[Step]:
    """Return the steps of `sanitize`. API errors are not reported: torch makes some by asking what a GPU can do."""
    pytest = [sys.executable, "-m", "pytest", "-q", "tests/cuda/test_cuda_device.py"]
    chosen = ["-k", "match and float32 or philox or update"]
    options = ["--error-exitcode=1", "--report-api-errors", "no"]
    return [
        Step(tool, ["compute-sanitizer", f"--tool={tool}", *options, *pytest, *chosen], 160)
        for tool in ("memcheck", "racecheck", "synccheck")
    ]


def same_shards(one: Path, other: Path) -> bool | None:
    """Return whether two stores hold the same shards, byte for byte; None if the first holds none."""
    first, second = ({file.name: _hash(file) for file in folder.glob(SHARDS)} for folder in (one, other))
    return first == second if first else None


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def run_steps(steps: list[Step], work: Path, facts: Facts, result: Path, **environment: str) -> bool:
    """Run the steps in the copy of the clone and write the result after each. Without a build, nothing else is run."""
    copy = work / "clone"
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    everything = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": os.pathsep.join([str(copy), str(work / "site")]),
        **environment,
    }
    outcomes: list[Outcome] = []
    for step in steps:
        outcomes.append(bounded(step, copy, everything))
        write_result(result, facts, outcomes, work)
        if outcomes[-1].outcome != "ok" and step.name in ("wheels", "build"):
            break
    return all(each.outcome == "ok" for each in outcomes) and len(outcomes) == len(steps)


def write_result(result: Path, facts: Facts, outcomes: list[Outcome], work: Path) -> None:
    rows = work / "results.csv"
    found = {
        "facts": asdict(facts),
        "steps": [asdict(each) for each in outcomes],
        "stores_equal": same_shards(work / "store-1", work / "store-2"),
        "benchmarks": list(csv.DictReader(rows.read_text().splitlines())) if rows.exists() else [],
    }
    result.write_text(json.dumps(found, indent=1) + "\n")


def check_device(facts: Facts, build: Path, wheels: Path | None, dry_run: bool) -> int:
    """Take all steps of `device` in a new folder; return the exit code."""
    work = build / "gpu-check"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(ROOT, work / "clone", ignore=LEFT_OUT)
    environment = {"ZSKD_CUDA": "0"} if dry_run else {"ZSKD_CUDA": "1", "ZSKD_NEED_DEVICE": "1"}
    if facts.architecture and not dry_run:
        environment["TORCH_CUDA_ARCH_LIST"] = os.environ.get("TORCH_CUDA_ARCH_LIST", facts.architecture)
    result = build / "gpu-check.json"
    passed = run_steps(device_steps(work, wheels, dry_run), work, facts, result, **environment)
    equal = same_shards(work / "store-1", work / "store-2")
    print(f"stores equal: {equal}; all of it: {result}")
    return 0 if passed and equal else 1


def check_sanitize(facts: Facts, build: Path) -> int:
    work = build / "gpu-check"
    if not (work / "clone").exists():
        sys.exit("nothing is built: run `check.py device` first")
    result = build / "gpu-check-sanitize.json"
    return 0 if run_steps(sanitizer_steps(), work, facts, result, ZSKD_NEED_DEVICE="1") else 1


# --- the check without a GPU ---


def run(*command: object, cwd: Path = ROOT, **environment: str) -> None:
    print(f"$ {' '.join(map(str, command))}", flush=True)
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([str(word) for word in command], cwd=cwd, env={**os.environ, "PATH": path, **environment})
    if done.returncode:
        sys.exit(done.returncode)


def install(source: Path) -> None:
    """Install from a copy of the clone: first the dependencies, by a short build, then the package by nvcc."""
    extras = f"{source}[report,test,bench]"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", extras, ZSKD_CUDA="0")
    reinstall = ["--force-reinstall", "--no-deps"]
    verbose = [sys.executable, "-m", "pip", "install", "-v", "--no-build-isolation"]
    run(*verbose, *reinstall, source, ZSKD_CUDA="1")


def check_cpu() -> int:
    """Test in a copy of the clone without the folder zskd_fast, so that the tests import the installed package."""
    with tempfile.TemporaryDirectory(prefix="zskd-cuda-") as folder:
        copy = Path(folder, "zskd_fast")
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        install(copy)
        shutil.rmtree(copy / "zskd_fast")
        run(BIN / "pytest", "tests", cwd=copy)
        run(sys.executable, copy / "tests" / "cuda" / "figures.py", "--arch", *FIGURES_FOR)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=["cpu", "look", "device", "sanitize"])
    parser.add_argument("--dry-run", action="store_true", help="take the steps of `device` on a CPU")
    parser.add_argument("--wheels", type=Path, help="folder of wheels of the Python dependencies")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="folder for what is made")
    options = parser.parse_args()
    if options.check == "cpu":
        return check_cpu()
    facts = look()
    print("\n".join(f"{name:<14}{value or 'none'}" for name, value in asdict(facts).items()), flush=True)
    # Makefile looks before it installs torch, so `look` asks for a GPU only.
    stop = obstacle(facts) if options.check != "look" or facts.gpu is None else None
    if stop:
        print(stop)
        if not options.dry_run:
            return 1
    if options.check == "device":
        wheels = options.wheels.resolve() if options.wheels else None
        return check_device(facts, options.build.resolve(), wheels, options.dry_run)
    return check_sanitize(facts, options.build.resolve()) if options.check == "sanitize" else 0


if __name__ == "__main__":
    sys.exit(main())
