"""Builds the package with its CUDA backend into the interpreter's own environment, and tests what was installed.

    python tests/cuda/check.py cpu      what a machine without a GPU can tell: the build, and every test of the CPU
    python tests/cuda/check.py device   what only a device can tell

TORCH_CUDA_ARCH_LIST picks the architectures. The tests run on a copy of tests/ without the source tree beside it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# Wheel and build folders stay out of the copy; the package's own extension would be that of another environment.
LEFT_OUT = shutil.ignore_patterns(
    ".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "_built_for_torch.txt"
)
FIGURES_FOR = ["75", "80", "86", "89", "90", "100", "120"]


def run(*command: object, cwd: Path = ROOT, **environment: str) -> None:
    print(f"$ {' '.join(map(str, command))}", flush=True)
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**os.environ, "PATH": path, **environment}
    )
    if done.returncode:
        sys.exit(done.returncode)


def install(source: Path) -> None:
    """Into the environment of this interpreter, from a copy: the build folder of the clone is another environment's."""
    extras = f"{source}[report,test]"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", extras, ZSKD_CUDA="1")
    reinstall = ["--force-reinstall", "--no-deps"]
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "-v",
        "--no-build-isolation",
        *reinstall,
        source,
        ZSKD_CUDA="1",
    )


def check_cpu(copy: Path) -> None:
    run(BIN / "pytest", "tests", cwd=copy)
    run(sys.executable, copy / "tests" / "cuda" / "figures.py", "--arch", *FIGURES_FOR)


def check_device(copy: Path) -> None:
    run(BIN / "pytest", "tests/cuda/test_cuda_device.py", cwd=copy, ZSKD_NEED_DEVICE="1")
    run(BIN / "zskd-fast", "doctor", cwd=copy)
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("skipped compute-sanitizer: it is not in PATH")
        return
    for tool in ("memcheck", "racecheck", "synccheck"):
        tests = ["tests/cuda/test_cuda_device.py", "-k", "match and float32 or philox or update"]
        run(sanitizer, f"--tool={tool}", "--error-exitcode=1", BIN / "pytest", *tests, cwd=copy)


def main() -> None:
    checks = {"cpu": check_cpu, "device": check_device}
    if len(sys.argv) != 2 or sys.argv[1] not in checks:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(prefix="zskd-cuda-") as folder:
        copy = Path(folder, "zskd_fast")
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        install(copy)
        shutil.rmtree(copy / "zskd_fast")  # what is tested is what was installed
        checks[sys.argv[1]](copy)


if __name__ == "__main__":
    main()
