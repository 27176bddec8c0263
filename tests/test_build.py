"""The installed package: its import, its build information, its errors and its source distribution."""

import importlib
import os
import re
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

import zskd_fast

PACKAGE = Path(zskd_fast.__file__).parent


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_import_is_light_and_does_not_initialize_cuda():
    bare = run_python("import sys, zskd_fast; print('torch' in sys.modules)")
    assert bare.stdout.strip() == "False", bare.stderr
    ops = run_python("import zskd_fast.ops, torch; print(torch.cuda.is_initialized())")
    assert ops.stdout.strip() == "False", ops.stderr


def test_build_info_names_the_torch_that_runs():
    info = zskd_fast.build_info()
    assert info["running_torch"] == torch.__version__
    assert info["torch"].split(".")[:2] == torch.__version__.split(".")[:2]
    assert info["isa"] in ("baseline", "avx2", "avx512")


def test_every_exported_name_exists():
    for name in zskd_fast.__all__:
        assert getattr(zskd_fast, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = zskd_fast.nothing


@pytest.fixture
def loader():
    return importlib.import_module("zskd_fast._extension")


def test_another_torch_is_named_with_the_command_to_rebuild(loader, monkeypatch):
    monkeypatch.setattr(loader, "_built_for", lambda: "1.9.1+cpu")
    with pytest.raises(ImportError, match=rf"built for torch 1\.9\.1\+cpu, but torch {torch.__version__[:4]}.*rebuild"):
        loader.load()


@pytest.mark.parametrize(
    ("built", "versions"),
    [
        (f"{torch.__version__}.other", r"built for torch .*\.other, but torch .* is running"),
        (torch.__version__, "for torch"),
    ],
    ids=["a patch release", "the same torch"],
)
def test_an_extension_that_does_not_load_says_why_and_blames_only_another_torch(loader, monkeypatch, built, versions):
    def undefined_symbol(name):
        raise ImportError("undefined symbol: _ZN3c10")

    monkeypatch.setattr(loader, "_built_for", lambda: built)
    monkeypatch.setattr(loader.importlib, "import_module", undefined_symbol)
    why = rf"^zskd_fast's extension, {versions}.*, does not load: undefined symbol: _ZN3c10; rebuild with: pip"
    with pytest.raises(ImportError, match=why) as refused:
        loader.load()
    assert ("is running" in str(refused.value)) == (built != torch.__version__)


def test_a_missing_extension_is_named(loader, monkeypatch):
    monkeypatch.setattr(loader, "_built_for", lambda: None)
    with pytest.raises(ImportError, match="extension is not built; build it with"):
        loader.load()


@pytest.fixture
def run_cmake(monkeypatch):
    """The function of setup.py that runs CMake."""
    script = PACKAGE.parent / "setup.py"
    if not script.exists():
        pytest.skip("the package is installed without its source tree")
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    return runpy.run_path(str(script))["run_cmake"]


def test_the_build_finds_cmake_beside_an_interpreter_whose_environment_is_not_active(run_cmake, tmp_path, monkeypatch):
    cmake = tmp_path / "bin" / "cmake"
    cmake.parent.mkdir()
    cmake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    cmake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(cmake.with_name("python")))
    run_cmake("--build", "here")
    assert (tmp_path / "called").read_text() == "--build here\n"


def test_a_missing_cmake_is_named_with_the_command_to_install_it(run_cmake, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="no cmake in PATH; pip install cmake ninja pybind11"):
        run_cmake("--version")


def test_no_second_openmp_runtime_is_linked():
    """Two of them in one process are undefined behavior; the extension uses the one that torch has loaded."""
    (extension,) = PACKAGE.glob("_C*.so")
    needed = subprocess.run(["readelf", "-d", str(extension)], capture_output=True, text=True).stdout
    assert "NEEDED" in needed
    assert "gomp" not in needed and "iomp" not in needed


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The names of the files in a source distribution."""
    root, folder = PACKAGE.parent, tmp_path_factory.mktemp("sdist")
    if not (root / "setup.py").exists():
        pytest.skip("the package is installed without its source tree")
    # Beside the sources there may be the list of files of an earlier build, which is packed as well.
    options = {"--global-option": ["egg_info", "--egg-base", str(folder)]}
    build = f"import setuptools.build_meta as build; build.build_sdist({str(folder)!r}, {options!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_the_source_distribution_holds_all_sources_recipes_and_assets(packed):
    root = PACKAGE.parent
    sources = {str(path.relative_to(root)) for path in (root / "csrc").rglob("*") if path.is_file()}
    assert sources | {"CMakeLists.txt", "setup.py", "pyproject.toml"} <= packed
    assert {f"zskd_fast/recipes/{name}.toml" for name in zskd_fast.recipe_names()} <= packed
    assert {"zskd_fast/assets/lenet5-mnist.safetensors", "zskd_fast/report/template.html"} <= packed


def test_the_source_distribution_holds_what_the_readme_links_to(packed):
    links = re.findall(r"\]\(([^):]+)\)", (PACKAGE.parent / "README.md").read_text("utf-8"))
    assert links
    assert {link for link in links if link.rstrip("/") not in packed} == set()


def test_type_checkers_are_told_of_the_annotations(packed):
    assert "zskd_fast/py.typed" in packed and (PACKAGE / "py.typed").exists()
