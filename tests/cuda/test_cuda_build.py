"""The CUDA kernels compiled by nvcc, without a GPU: no spills, and figures within the budget."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from row_loss_figures import instructions_per_32, row_loss_kernel

ROOT = Path(__file__).parents[2]


def _load_figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "tests" / "cuda" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["figures"] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


figures = _load_figures()


def of_kernel(**changed) -> "figures.Figures":
    facts = dict(
        kernel="op kernel",
        arch=90,
        threads=256,
        registers=32,
        spilled=0,
        shared=0,
        wide_loads=2,
        wide_stores=1,
        instructions=40.0,
    )
    return figures.Figures(**{**facts, **changed})


def test_kernels_compile_within_the_budget(capsys):
    if figures.find_nvcc() is None:
        pytest.skip("no nvcc in PATH or CUDA_HOME, so the kernels cannot be compiled for a device")
    rows = figures.compile_kernels(figures.BUDGET_ARCH)
    with capsys.disabled():
        print(f"\n{figures.table(rows)}")
    assert not figures.over_budget(rows)


@pytest.mark.parametrize(
    ("op", "uses"),
    [
        ("dirichlet", {"add", "mul", "fma", "div", "sqrt"}),
        ("philox", {"add", "mul", "fma", "div", "sqrt"}),
        ("dead_leaves", {"add", "mul", "fma", "div"}),
        ("augment", {"add", "mul", "fma", "sqrt"}),
    ],
)
def test_draws_use_only_correctly_rounded_instructions(op, uses, tmp_path):
    """Equal bits on all devices rest on this: .rn rounds as IEEE demands, and ptxas does not fuse .rn instructions."""
    if figures.find_nvcc() is None:
        pytest.skip("no nvcc in PATH or CUDA_HOME, so there is no PTX to look at")
    source, ptx = ROOT / "csrc" / "cuda" / f"{op}_cuda.cu", tmp_path / "out.ptx"
    command = [figures.find_nvcc(), *figures.FLAGS, "-ptx", "-arch=sm_80", str(source), "-o", str(ptx)]
    subprocess.run(command, check=True, capture_output=True)
    arithmetic = set(re.findall(r"\b([a-z]\w*)((?:\.\w+)*?)\.f(?:32|64)\b", ptx.read_text()))
    moving = {"mov", "ld", "st", "setp", "selp", "neg", "abs", "min", "max"}
    exact = {("cvt", ""), ("cvt", ".rzi.s32")}  # a wider type, and the integer toward zero
    rounding = {(name, how) for name, how in arithmetic if name not in moving} - exact
    assert uses <= {name for name, _ in rounding}
    # cvt names the target type before the source type.
    assert all(how in (".rn", ".rn.f16", ".rn.bf16") for _, how in rounding), rounding


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"spilled": 8}, "op kernel on sm_90 spills 8 bytes"),
        ({"registers": 33}, "op kernel: registers 33, the budget is 32"),
        ({"shared": 4}, "op kernel: shared 4, the budget is 0"),
        ({"wide_stores": 0}, "op kernel: wide_stores 0, the budget asks for 1"),
        ({"instructions": 40.1}, "op kernel: instructions 40.1, the budget is 40.0"),
        (
            {"kernel": "op other"},
            r"kernels with a figure or a budget, but not both: ['op kernel', 'op other']",
        ),
        ({"wide_loads": -1, "wide_stores": -1, "instructions": -1.0}, None),
        ({}, None),
    ],
    ids=lambda value: "+".join(value) or "same" if isinstance(value, dict) else "",
)
def test_message_for_a_kernel_over_the_budget(changed, complaint, tmp_path, monkeypatch):
    budget = tmp_path / "budget.json"
    limits = {"registers": 32, "shared": 0, "wide_loads": 2, "wide_stores": 1, "instructions": 40.0}
    budget.write_text(json.dumps({"op kernel": limits}))
    monkeypatch.setattr(figures, "BUDGET", budget)
    assert figures.over_budget([of_kernel(**changed)]) == ([complaint] if complaint else [])


@pytest.mark.parametrize(
    ("changed", "arch", "occupancy"),
    [
        ({}, 90, 1.0),
        ({"registers": 33}, 90, 0.75),  # allocated as 40 per thread: six blocks of 256
        ({"registers": 168, "threads": 128}, 80, 0.1875),
        ({"shared": 48 * 1024}, 90, 0.5),  # four blocks, with the reserved kilobyte per block
        ({"threads": 128}, 75, 1.0),
        ({"threads": 256}, 86, 1.0),
    ],
)
def test_occupancy_follows_from_registers_and_shared_memory(changed, arch, occupancy):
    assert of_kernel(**{**changed, "arch": arch}).occupancy == occupancy


TWO_LOOPS = """
    /*0000*/  S2R R0, SR_TID.X ;
    /*0010*/  @P0 EXIT ;
    /*0020*/  LDG.E.128 R4, desc[UR4][R2.64] ;
    /*0030*/  SHFL.BFLY PT, R5, R4, R6, 0x1f ;
    /*0040*/  FADD R4, R4, R5 ;
    /*0050*/  @P1 BRA 0x30 ;
    /*0060*/  NOP ;
    /*0070*/  STG.E.128 desc[UR4][R2.64], R4 ;
    /*0080*/  @!P0 BRA 0x20 ;
    /*0090*/  EXIT ;
    /*00a0*/  WARPSYNC.COLLECTIVE R8, 0xb0 ;
    /*00b0*/  BRA 0x30 ;
"""


def test_instructions_count_inner_loops_as_often_as_they_run():
    kernel = row_loss_kernel("soft_cross_entropy group_rows<float, float, 4>")
    assert row_loss_kernel("philox fill<float, normal, true>") is None
    # 6 instructions in the loop over rows; 128 classes on 8 lanes take 3 shuffles, two more than counted, of 3
    # instructions each. A warp computes 4 rows.
    assert instructions_per_32(kernel, TWO_LOOPS, 128) == (6 + 2 * 3) / (4 * 128 / 32)


# --- which backends a build gets ---


def configure(tmp_path: Path, choice: str, **environment: str) -> subprocess.CompletedProcess:
    build = ["-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja"]
    command = ["cmake", *build, f"-DPython_EXECUTABLE={sys.executable}"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [*command, f"-DZSKD_CUDA={choice}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path, **environment},
    )


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a CUDA build")
def test_cpu_build_of_torch_gives_the_cpu_backend_and_the_reason(tmp_path):
    done = configure(tmp_path, "AUTO")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "zskd_fast:" in line]
    assert line.endswith(f"building the CPU backend (torch {torch.__version__} is a build without CUDA)")


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a CUDA build")
def test_requesting_cuda_without_it_is_an_error(tmp_path):
    done = configure(tmp_path, "ON")
    assert done.returncode != 0
    assert "ZSKD_CUDA=1 asks for the CUDA backend, but torch" in " ".join(done.stderr.split())


def fake_toolchain(folder: Path, *, torch_cuda: str, nvcc_says: str) -> dict[str, str]:
    """Return the environment in which CMake finds a torch for `torch_cuda` and an nvcc whose --version prints this."""
    nvcc = folder / "toolkit" / "bin" / "nvcc"
    utils = folder / "python" / "torch" / "utils"
    for made in (nvcc.parent, utils):
        made.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho '{nvcc_says}'\n")
    nvcc.chmod(0o755)
    (utils / "__init__.py").write_text("")
    (utils / "cpp_extension.py").write_text("include_paths = library_paths = lambda: []\n")
    (utils.parent / "__init__.py").write_text(
        "from types import SimpleNamespace\n"
        "__version__ = '2.6.0'\n"
        f"version = SimpleNamespace(cuda={torch_cuda!r})\n"
        "compiled_with_cxx11_abi = lambda: True\n"
    )
    return {"PYTHONPATH": str(folder / "python"), "CUDA_HOME": str(folder / "toolkit")}


MISMATCH = (
    "nvcc is release 13.0 and torch 2.6.0 is for CUDA 12.4; wanted one major version: "
    "set CUDA_HOME to a CUDA 12 toolkit or install a torch for CUDA 13"
)


def test_nvcc_of_another_major_version_than_torchs_gives_the_cpu_backend_and_both_versions(tmp_path):
    found = fake_toolchain(tmp_path, torch_cuda="12.4", nvcc_says="Cuda compilation tools, release 13.0, V13.0.88")
    done = configure(tmp_path / "build", "AUTO", **found)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "zskd_fast:" in line]
    assert "building the CPU backend (" in line and line.endswith(f"{MISMATCH})")


def test_requesting_cuda_with_nvcc_of_another_major_version_is_an_error(tmp_path):
    found = fake_toolchain(tmp_path, torch_cuda="12.4", nvcc_says="Cuda compilation tools, release 13.0, V13.0.88")
    done = configure(tmp_path / "build", "ON", **found)
    assert done.returncode != 0
    assert MISMATCH in " ".join(done.stderr.split())


def test_another_cuda_home_counts_in_a_build_folder_that_was_used_before(tmp_path):
    for release in ("11.8", "13.0"):
        found = fake_toolchain(tmp_path / release, torch_cuda="12.4", nvcc_says=f"tools, release {release}, V{release}")
        assert f"nvcc is release {release} and torch" in configure(tmp_path / "build", "AUTO", **found).stdout


def test_nvcc_without_a_version_gives_the_cpu_backend(tmp_path):
    found = fake_toolchain(tmp_path, torch_cuda="12.4", nvcc_says="no toolkit installed")
    assert "nvcc --version names no release)" in configure(tmp_path / "build", "AUTO", **found).stdout


@pytest.fixture
def torch_for_nvcc(tmp_path):
    """The environment in which CMake finds a torch for the CUDA of the real nvcc, but of another minor version."""
    if figures.find_nvcc() is None:
        pytest.skip("no nvcc in PATH or CUDA_HOME, and CMake compiles a program with it")
    said = subprocess.run([figures.find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    major = re.search(r"release (\d+)", said)[1]
    found = fake_toolchain(tmp_path / "fake", torch_cuda=f"{major}.99", nvcc_says="")
    return {"PYTHONPATH": found["PYTHONPATH"]}


def test_minor_versions_of_nvcc_and_torch_may_differ(tmp_path, torch_for_nvcc):
    done = configure(tmp_path, "ON", **torch_for_nvcc)
    assert re.search(r"building the CPU and CUDA backends \(nvcc (\d+).* for CUDA \1\.99\)", done.stdout), done.stderr


def test_architectures_come_from_torch_cuda_arch_list(tmp_path, torch_for_nvcc):
    done = configure(tmp_path, "ON", TORCH_CUDA_ARCH_LIST="9.0 10.0+PTX", **torch_for_nvcc)
    assert "for 9.0 10.0+PTX, torch for CUDA" in done.stdout, done.stderr
    done = configure(tmp_path / "bad", "ON", TORCH_CUDA_ARCH_LIST="Hopper", **torch_for_nvcc)
    assert done.returncode != 0 and "TORCH_CUDA_ARCH_LIST has 'Hopper'" in " ".join(done.stderr.split())


def default_architectures(folder: Path, *listed: int) -> str:
    """Return the default list that the build makes for an nvcc that knows these architectures; raise its message."""
    nvcc, script = folder / "nvcc", folder / "ask.cmake"
    nvcc.write_text(f"#!/bin/sh\n[ $1 = --list-gpu-arch ] && printf 'compute_%s\\n' {' '.join(map(str, listed))}\n")
    nvcc.chmod(0o755)
    script.write_text(
        f"include({ROOT / 'csrc' / 'cuda' / 'architectures.cmake'})\n"
        f"zskd_default_architectures({nvcc} found)\n"
        'message("${found}")\n'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["cmake", "-P", str(script)], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.split()))
    return done.stderr.strip()


@pytest.mark.parametrize(
    ("listed", "wanted"),
    [
        ((75, 80, 86, 87, 88, 89, 90, 100, 110, 103, 120, 121), "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"),  # nvcc 13.0
        ((50, 60, 70, 75, 80, 86, 87, 89, 90), "7.5;8.0;8.6;8.9;9.0+PTX"),  # nvcc 12.4
    ],
    ids=["13.0", "12.4"],
)
def test_default_architectures_are_those_that_nvcc_knows(tmp_path, listed, wanted):
    assert default_architectures(tmp_path, *listed) == wanted


def test_nvcc_that_knows_no_default_architecture_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="set TORCH_CUDA_ARCH_LIST"):
        default_architectures(tmp_path, 50)


def test_build_without_a_list_is_for_the_default_architectures(tmp_path, torch_for_nvcc, monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    said = configure(tmp_path, "ON", **torch_for_nvcc)
    listed = subprocess.run([figures.find_nvcc(), "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    (tmp_path / "asked").mkdir()
    wanted = default_architectures(tmp_path / "asked", *map(int, re.findall(r"compute_(\d+)", listed)))
    assert f"for {wanted.replace(';', ' ')}, torch for CUDA" in said.stdout, said.stderr


def test_reason_for_a_cpu_build_is_printed_if_cuda_is_disabled(tmp_path):
    assert "building the CPU backend (ZSKD_CUDA=0)" in configure(tmp_path, "OFF").stdout
