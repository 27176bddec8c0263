"""Turn environment variables into CMake options and run CMake with ninja; CMakeLists.txt says what is built.

ZSKD_CUDA   1: a missing nvcc or a CPU build of torch is an error; 0: no CUDA; unset: CUDA if both are found
MAX_JOBS    number of compilers at once (default: ninja's choice)
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CUDA_CHOICES = {None: "AUTO", "": "AUTO", "0": "OFF", "1": "ON"}


def cmake_options() -> list[str]:
    choice = os.environ.get("ZSKD_CUDA")
    if choice not in CUDA_CHOICES:
        raise SystemExit(f"ZSKD_CUDA is {choice!r}, wanted 0, 1 or unset")
    return [f"-DZSKD_CUDA={CUDA_CHOICES[choice]}", f"-DPython_EXECUTABLE={sys.executable}"]


def environment() -> dict[str, str]:
    """Put the interpreter's folder first in PATH: it has cmake and ninja, even if its environment is not active."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path}


def run_cmake(*arguments: str) -> None:
    try:
        subprocess.run(["cmake", *arguments], check=True, env=environment())
    except FileNotFoundError:
        raise SystemExit("zskd_fast: no cmake in PATH; pip install cmake ninja pybind11") from None


class CMakeBuild(build_ext):
    def build_extension(self, extension: Extension) -> None:
        package_folder = Path(self.get_ext_fullpath(extension.name)).resolve().parent
        build_folder = Path(self.build_temp).resolve()
        run_cmake("-S", str(ROOT), "-B", str(build_folder), "-G", "Ninja", *cmake_options())
        jobs = os.environ.get("MAX_JOBS")
        run_cmake("--build", str(build_folder), *(["--parallel", jobs] if jobs else []))
        # An editable install runs from the source tree, where setuptools copies the extension but not its record.
        for prefix in [package_folder.parent, *([ROOT] if self.editable_mode else [])]:
            run_cmake("--install", str(build_folder), "--prefix", str(prefix))

    def copy_extensions_to_source(self) -> None:
        """Copy the record too after `build_ext --inplace`, without which the loader takes the extension as missing."""
        super().copy_extensions_to_source()
        build_folder = Path(self.build_temp).resolve()
        run_cmake("--install", str(build_folder), "--prefix", str(ROOT))


setup(ext_modules=[Extension("zskd_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
