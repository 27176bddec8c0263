"""What keeps a figure from rising further, from measured rows; and the loops of the compiled kernels.

python -m benchmarks.limits    the vector instructions per element of each loop, from objdump
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd

import zskd_fast
from benchmarks.whole_jobs import WholeJob, rate
from zskd_fast._extension import _C

_LARGER_THAN_CACHES = 64 << 20  # bytes
Limit = Callable[[pd.DataFrame, int], str]
"""Says for the rows of one machine and a number of threads what a figure can be at most; "" if rows are missing."""


def _seconds(rows: pd.DataFrame, op: str, provider: str, shape: str, threads: int) -> float | None:
    found = rows[(rows["op"] == op) & (rows["provider"] == provider)]
    found = found[(found["shape"] == shape) & (found["threads"] == threads)]
    return None if found.empty else float(found["median_s"].iloc[0])


def _in_caches(rows: pd.DataFrame, op: str, shape: str) -> float | None:
    """Return the seconds of a row loss on one thread with its data in the caches."""
    return _seconds(rows[rows["setting"] == op], "in the caches", "zskd_fast", shape, 1)


def _seconds_of_bytes(rows: pd.DataFrame, shape: str, threads: int) -> float | None:
    """Return the seconds that the copy bandwidth allows for two inputs and one output of float32.

    0 where they stay in the caches between two calls.
    """
    copies = rows[(rows["op"] == "copy") & (rows["threads"] == threads)]["gb_per_s"]
    row_count, classes = map(int, shape.split("x"))
    moved = 3 * 4 * row_count * classes
    if moved < _LARGER_THAN_CACHES:
        return 0.0
    return None if copies.empty else moved / (1e9 * float(copies.iloc[0]))


def of_roofline(op: str, shapes: list[str], peer: str) -> Limit:
    """The op takes at least its time on rows in the caches, divided among the threads, and that of its bytes.

    Where the op was also measured into a buffer that is reused, the ratio without new memory is added.
    """

    def limit(rows: pd.DataFrame, threads: int) -> str:
        found: list[tuple[float, str]] = []
        for shape in shapes:
            alone, theirs = _in_caches(rows, op, shape), _seconds(rows, op, peer, shape, threads)
            moving = _seconds_of_bytes(rows, shape, threads)
            if not alone or not theirs or moving is None:
                return ""
            slower = max((alone / threads, "arithmetic"), (moving, "memory"))
            ratio = theirs / slower[0]
            reused = _seconds(rows, op, "zskd_fast, out=", shape, threads)
            more = f", {theirs / reused:.1f}x with out=" if reused else ""
            found.append((ratio, f"at most {ratio:.1f}x by {slower[1]}{more}"))
        return min(found)[1]

    return limit


def without_overlap(op: str, shape: str) -> Limit:
    """The share of the copy bandwidth if memory waited for arithmetic."""

    def limit(rows: pd.DataFrame, threads: int) -> str:
        alone, moving = _in_caches(rows, op, shape), _seconds_of_bytes(rows, shape, threads)
        if not alone or not moving:
            return ""
        return f"{moving / (moving + alone / threads):.0%} if arithmetic and memory did not overlap"

    return limit


def by_convolutions(op: str, setting: str, peer: str, convolutions: str = "") -> Limit:
    """The job takes at least its convolutions, divided among the threads; by default their setting is the job's."""

    def limit(rows: pd.DataFrame, threads: int) -> str:
        alone = rate(rows, "convolutions", convolutions or setting, "zskd_fast", 1)
        theirs = rate(rows, op, setting, peer, threads)
        return _by_convolutions(1 / theirs, 1 / (alone * threads)) if alone and theirs else ""

    return limit


def of_whole_job(job: WholeJob) -> Limit:
    """The same for a synthesis and a distillation together, against the plain loop."""

    def limit(rows: pd.DataFrame, threads: int) -> str:
        images = rate(rows, "convolutions", job.synthesis, "zskd_fast", 1)
        steps = rate(rows, "convolutions", job.distillation, "zskd_fast", 1)
        theirs = job.seconds(rows, "plain loop", threads)
        if not images or not steps or not theirs:
            return ""
        return _by_convolutions(theirs, (job.image_steps / images + job.student_steps / steps) / threads)

    return limit


def _by_convolutions(theirs: float, convolutions: float) -> str:
    return f"at most {theirs / convolutions:.1f}x by convolutions"


def always(text: str) -> Limit:
    """A reason without a number."""
    return lambda rows, threads: text


# ------------------------------------------------------------------------------ the loops of the compiled kernels

# Kernel -> what its functions are called in the disassembly.
_KERNELS = {
    "soft_cross_entropy, long rows": "RowLossKernel<zskd::math::SoftCrossEntropy, float, float>::long_row",
    "soft_cross_entropy, short rows": "RowLossKernel<zskd::math::SoftCrossEntropy, float, float>::packed_rows",
    "distillation_loss, long rows": "RowLossKernel<zskd::math::DistillationLoss, float, float>::long_row",
    "distillation_loss, short rows": "RowLossKernel<zskd::math::DistillationLoss, float, float>::packed_rows",
    "dirichlet": "draw<float>",
}
_FEWEST = 6  # vector instructions of a loop that is shown; the loops for the rows that are left over have fewer
Instruction = tuple[int, str]


@dataclass(frozen=True)
class Loop:
    """An innermost loop of a function."""

    instructions: list[str]

    def count(self, pattern: str) -> int:
        """Return the number of instructions that match a pattern."""
        return sum(bool(re.search(pattern, each)) for each in self.instructions)


def functions(disassembly: str, name: str) -> Iterator[list[Instruction]]:
    """Yield the instructions of each function whose name contains ``name``: address and text."""
    for part in re.split(r"\n\n(?=[0-9a-f]+ <)", disassembly):
        head, _, body = part.partition("\n")
        if name in head:
            yield [(int(address, 16), text) for address, text in re.findall(r"^\s+([0-9a-f]+):\s+(.*)$", body, re.M)]


def innermost_loops(body: list[Instruction]) -> list[Loop]:
    """Return the stretches between a jump back and its target that hold no other one."""
    places = {address: place for place, (address, _) in enumerate(body)}
    found = []
    for place, (_, text) in enumerate(body):
        jump = re.match(r"j\w+\s+([0-9a-f]+)", text)
        target = places.get(int(jump[1], 16)) if jump else None
        if target is not None and target <= place:
            found.append((target, place))
    inner = [(a, b) for a, b in found if not any((a, b) != (c, d) and a <= c and d <= b for c, d in found)]
    return [Loop([text for _, text in body[a : b + 1]]) for a, b in inner]


def main() -> int:
    """Print the vector loops of the kernels for the instruction set in use."""
    isa = str(zskd_fast.build_info()["isa"])
    if isa not in ("avx2", "avx512"):
        print(f"the loops of {isa} cannot be told from scalar code", file=sys.stderr)
        return 1
    command = ["objdump", "-d", "-C", "--no-show-raw-insn", str(_C.__file__)]
    disassembly = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(f"{isa}: the loops of each kernel, by the float32 that a register holds")
    for kernel, name in _KERNELS.items():
        for body in functions(disassembly, name):
            whole = Loop([text for _, text in body])
            if bool(whole.count("zmm")) == (isa == "avx512"):
                described = dict.fromkeys(describe(loop) for loop in innermost_loops(body))
                print("\n".join(f"{kernel}: {text}" for text in described if text))
    return 0


def describe(loop: Loop) -> str:
    """Return how many instructions a loop has, and of which kinds; "" without vectors."""
    register, lanes = ("zmm", 16) if loop.count("zmm") else ("ymm", 8)
    vectors, fused = loop.count(register), loop.count(r"^vfn?m(add|sub)")
    shuffles = loop.count(r"^v(perm|unpck|shuf|insert|extract)")
    kinds = f"{vectors} on {lanes} floats, {fused} fused multiplications, {shuffles} shuffles"
    return f"{len(loop.instructions)} instructions: {kinds}" if vectors >= _FEWEST else ""


if __name__ == "__main__":
    sys.exit(main())
