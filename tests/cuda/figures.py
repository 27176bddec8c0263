"""Figures of the compiled kernels: registers, spills, shared memory, occupancy and instructions.

    python tests/cuda/figures.py [--arch 80 90] [--write]

Prints a table and compares it with budget.json in this folder; --write replaces that file by the figures found.
Needs nvcc. The instructions are counted if cuobjdump is found, in PATH or in an installed triton.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from row_loss_figures import CLASSES, bytes_per_element, dynamic_shared, instructions_per_32, row_loss_kernel

ROOT = Path(__file__).parents[2]
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
BUDGET = Path(__file__).with_name("budget.json")
BUDGET_ARCH = 90  # the architecture of the budget; on the others no kernel may spill
FLAGS = ["-std=c++20", "-O3", "--fmad=false", "-diag-suppress=1675", f"-I{ROOT / 'csrc'}"]
THREADS = {"tile_rows": 64, "group_rows": 128, "block_rows": 32, "long_rows": 256}  # block_rows: the fewest
THREADS |= {"short_rows": 128, "fill": 256, "update": 256, "paint": 128, "vary": 256, "add": 256, "scale": 256}
THREADS_OF = {("dirichlet", "long_rows"): 128}

_ENTRY = re.compile(
    r"Compiling entry function '(?P<symbol>\w+)'.*?(?P<spill>\d+) bytes spill stores, (?P<fill>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)


@dataclass(frozen=True)
class Device:
    """Limits of a multiprocessor (CUDA C++ Programming Guide, table of technical specifications)."""

    threads: int
    blocks: int
    shared_kib: int


DEVICES = {
    75: Device(1024, 16, 64),
    80: Device(2048, 32, 164),
    86: Device(1536, 16, 100),
    89: Device(1536, 24, 100),
    90: Device(2048, 32, 228),
    100: Device(2048, 32, 228),
    120: Device(1536, 24, 100),
}


@dataclass(frozen=True)
class Figures:
    """Figures of one kernel on one architecture. wide_loads, wide_stores and instructions are -1 if not counted."""

    kernel: str
    arch: int
    threads: int
    registers: int
    spilled: int
    shared: int
    wide_loads: int
    wide_stores: int
    instructions: float = -1.0  # of a row loss, per 32 elements

    @property
    def occupancy(self) -> float:
        """Threads that a multiprocessor holds, as a fraction of its limit."""
        device, warps = DEVICES[self.arch], self.threads // 32
        registers_a_warp = -(-self.registers * 32 // 256) * 256
        reserved = 1024 if self.arch >= 80 else 0
        by_registers = 65536 // (registers_a_warp * warps)
        by_shared = device.shared_kib * 1024 // max(1, self.shared + reserved)
        return (
            min(device.threads // self.threads, device.blocks, by_registers, by_shared) * self.threads / device.threads
        )


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


def find_cuobjdump() -> str | None:
    triton = importlib.util.find_spec("triton")
    beside = f"{Path(triton.origin).parent}/backends/nvidia/bin" if triton and triton.origin else None
    return shutil.which("cuobjdump") or (shutil.which("cuobjdump", path=beside) if beside else None)


def compile_kernels(arch: int) -> list[Figures]:
    """Compile all kernels and return their figures. Raises CalledProcessError if nvcc fails."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        return [figures for of_file in pool.map(lambda k: _of_file(k, arch, folder), KERNELS) for figures in of_file]


def _of_file(source: Path, arch: int, folder: str) -> list[Figures]:
    cubin = f"{folder}/{source.stem}.{arch}.cubin"
    target = ["-cubin", f"-arch=sm_{arch}", "-Xptxas", "-v", str(source), "-o", cubin]
    command = [find_nvcc() or "nvcc", *FLAGS, *target]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
        done.check_returncode()
    op, sass = source.stem.removesuffix("_cuda"), _instructions(cubin)
    return [_figures(op, arch, entry, sass) for entry in _ENTRY.finditer(done.stderr)]


def _figures(op: str, arch: int, entry: re.Match, sass: dict[str, str]) -> Figures:
    kernel = _readable(entry["symbol"])
    shared = re.search(r"(\d+) bytes smem", entry["rest"])
    code = sass.get(entry["symbol"])
    base, row_loss = kernel.split("<")[0], row_loss_kernel(f"{op} {kernel}")
    counted = row_loss and code and arch == BUDGET_ARCH  # the shape of the assembly differs between architectures
    return Figures(
        kernel=f"{op} {kernel}",
        arch=arch,
        threads=THREADS_OF.get((op, base), THREADS[base]),
        registers=int(entry["registers"]),
        spilled=int(entry["spill"]) + int(entry["fill"]),
        shared=(int(shared[1]) if shared else 0) + (dynamic_shared(row_loss) if row_loss else 0),
        wide_loads=len(re.findall(r"\bLDG\.E\S*\.128", code)) if code else -1,
        wide_stores=len(re.findall(r"\bSTG\.E\S*\.128", code)) if code else -1,
        instructions=round(instructions_per_32(row_loss, code, CLASSES[base]), 1) if counted else -1.0,
    )


def _instructions(cubin: str) -> dict[str, str]:
    """Return the assembly of each kernel by its symbol; empty without cuobjdump."""
    tool = find_cuobjdump()
    if tool is None:
        return {}
    text = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"Function : (\w+)", text)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _readable(symbol: str) -> str:
    """Return the name of a kernel without namespaces, op and parameters: register_rows<float, float, 4, 1>."""
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(
        r"zskd::|cuda::|math::|\(anonymous namespace\)::|^void |SoftCrossEntropy, |DistillationLoss, ",
        "",
        name,
    )
    name = name.replace("__nv_bfloat16", "bf16").replace("__half", "f16")
    name = name.replace("(Distribution)0", "uniform").replace("(Distribution)1", "normal")
    return name.split("(")[0]


def table(rows: list[Figures]) -> str:
    lines = [
        f"{'kernel':<56}{'sm':>4}{'threads':>9}{'regs':>6}{'spill':>7}{'smem':>7}{'occup.':>8}{'128-bit ld/st':>15}"
        f"{'instr.':>8}"
    ]
    for r in rows:
        wide = f"{r.wide_loads}/{r.wide_stores}" if r.wide_loads >= 0 else "not counted"
        instructions = f"{r.instructions:.1f}" if r.instructions >= 0 else ""
        lines.append(
            f"{r.kernel:<56}{r.arch:>4}{r.threads:>9}{r.registers:>6}{r.spilled:>7}{r.shared:>7}{r.occupancy:>8.0%}{wide:>15}{instructions:>8}"
        )
    return "\n".join(lines)


def over_budget(rows: list[Figures]) -> list[str]:
    """Return one sentence per fault: a spill on any architecture, or figures over the budget on BUDGET_ARCH."""
    wrong = [f"{r.kernel} on sm_{r.arch} spills {r.spilled} bytes" for r in rows if r.spilled]
    budget = json.loads(BUDGET.read_text())
    on_budget = {r.kernel: r for r in rows if r.arch == BUDGET_ARCH}
    if on_budget and on_budget.keys() != budget.keys():
        wrong.append(f"kernels with a figure or a budget, but not both: {sorted(on_budget.keys() ^ budget.keys())}")
    for kernel in on_budget.keys() & budget.keys():
        wrong += _over(on_budget[kernel], budget[kernel])
    return wrong


def _over(found: Figures, allowed: dict[str, float]) -> list[str]:
    wrong = []
    for name in ("registers", "shared", "instructions"):
        if getattr(found, name) > allowed.get(name, getattr(found, name)):
            wrong.append(f"{found.kernel}: {name} {getattr(found, name)}, the budget is {allowed[name]}")
    for name in ("wide_loads", "wide_stores"):
        if 0 <= getattr(found, name) < allowed[name]:
            wrong.append(f"{found.kernel}: {name} {getattr(found, name)}, the budget asks for {allowed[name]}")
    return wrong


def write_budget(rows: list[Figures]) -> None:
    lines = [
        f"  {json.dumps(r.kernel)}: {json.dumps(_budget(r))}"
        for r in sorted(rows, key=lambda r: r.kernel)
        if r.arch == BUDGET_ARCH
    ]
    BUDGET.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _budget(found: Figures) -> dict[str, float]:
    budget = {name: getattr(found, name) for name in ("registers", "shared", "wide_loads", "wide_stores")}
    if kernel := row_loss_kernel(found.kernel):
        budget["instructions"] = found.instructions
        budget["bytes"] = round(bytes_per_element(kernel, CLASSES[kernel.family]), 4)
    return budget


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=DEVICES, default=[BUDGET_ARCH])
    parser.add_argument("--write", action="store_true", help="replace the budget by the figures found")
    arguments = parser.parse_args()
    if find_nvcc() is None:
        print("no nvcc in PATH or CUDA_HOME")
        return 1
    rows = [figures for arch in arguments.arch for figures in compile_kernels(arch)]
    print(table(rows))
    if arguments.write:
        write_budget(rows)
    wrong = over_budget(rows)
    print("\n".join(wrong) or f"{len(rows)} kernels within the budget, none spills")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
