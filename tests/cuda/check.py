"""Build the package with its CUDA backend, install it into the environment of this interpreter and test it.

    python tests/cuda/check.py cpu      everything that needs no GPU: the build, all tests and the compiler's figures
    python tests/cuda/check.py device   the tests that need a GPU

TORCH_CUDA_ARCH_LIST chooses the architectures. The tests run in a copy of the clone without the folder zskd_fast, so
that they import the installed package.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# Not copied: build folders, and the extension module, which is built for another environment.
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "_built_for_torch.txt")
FIGURES_FOR = ["75", "80", "86", "89", "90", "100", "120"]


def run(*command: object, cwd: Path = ROOT, **environment: str) -> None:
    print(f"$ {' '.join(map(str, command))}", flush=True)
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([str(word) for word in command], cwd=cwd, env={**os.environ, "PATH": path, **environment})
    if done.returncode:
        sys.exit(done.returncode)


def install(source: Path) -> None:
    """Install from a copy of the clone: first with the dependencies, then once more to be sure that it is rebuilt."""
    extras = f"{source}[report,test]"
    run(sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", extras, ZSKD_CUDA="1")
    reinstall = ["--force-reinstall", "--no-deps"]
    verbose = [sys.executable, "-m", "pip", "install", "-v", "--no-build-isolation"]
    run(*verbose, *reinstall, source, ZSKD_CUDA="1")


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
        shutil.rmtree(copy / "zskd_fast")  # so that the tests import the installed package
        checks[sys.argv[1]](copy)


if __name__ == "__main__":
    main()
