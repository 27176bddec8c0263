"""Instructions and bytes per element of the row-loss kernels, from their assembly (SASS) and from their types.

The instructions are those that a warp issues in one trip of the loop over rows, divided by the elements that it
computes in this trip, times 32 (the elements of one instruction). An inner loop counts as often as it runs for the
number of classes in CLASSES. All other instructions count once, also rare paths and the ends of odd rows, so that the
figure is an upper bound.
"""

import re
from dataclasses import dataclass

WARP = 32
CLASSES = {"tile_rows": 10, "group_rows": 128, "block_rows": 1024, "long_rows": 20000}
BYTES = {"float": 4, "double": 8, "f16": 2, "bf16": 2}

_KERNEL = re.compile(r"(?:soft_cross_entropy|distillation_loss) (\w+)<(\w+), (\w+), (\d+)>")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][^;]*?)\s*;")


@dataclass(frozen=True)
class Kernel:
    """What a name such as `soft_cross_entropy tile_rows<float, float, 4>` says."""

    family: str
    a_bytes: int
    b_bytes: int
    width: int

    @property
    def items(self) -> int:
        """Elements of each matrix per lane: kGroupItems or kBlockItems of csrc/cuda/row_loss/register_rows.cuh."""
        return (128 if self.family == "block_rows" else 64) // max(4, self.a_bytes)


def row_loss_kernel(name: str) -> Kernel | None:
    """Return what the name says, or None for a kernel of another op."""
    found = _KERNEL.fullmatch(name)
    return Kernel(found[1], BYTES[found[2]], BYTES[found[3]], int(found[4])) if found else None


def bytes_per_element(kernel: Kernel, classes: int) -> float:
    """Bytes read and written if each element is moved once; long_rows reads the matrices twice."""
    read = (kernel.a_bytes + kernel.b_bytes) * (2 if kernel.family == "long_rows" else 1)
    return read + kernel.a_bytes + max(4, kernel.a_bytes) / classes


def dynamic_shared(kernel: Kernel) -> int:
    """Bytes of dynamic shared memory of a block: tile_rows keeps the tiles of 64 rows of both matrices there."""
    pitch = CLASSES["tile_rows"] | 1
    return 64 * pitch * 2 * max(4, kernel.a_bytes) if kernel.family == "tile_rows" else 0


def instructions_per_32(kernel: Kernel, code: str, classes: int) -> float:
    rows_loop, inner = _loops(code)
    if kernel.family == "long_rows":  # long rows: the two loops over the classes outweigh the rest
        return sum(len(loop) for loop in inner if _has(loop, "LDG")) / kernel.width
    issued = len(rows_loop) + sum((_trips(kernel, loop, classes) - 1) * len(loop) for loop in inner)
    return issued / (_elements_per_trip(kernel, classes) / WARP)


def _elements_per_trip(kernel: Kernel, classes: int) -> float:
    """Elements that a warp computes in one trip of the loop over rows."""
    if kernel.family == "tile_rows":
        return WARP * classes
    if kernel.family == "group_rows":
        return WARP // _lanes(kernel, classes) * classes
    return classes / -(-classes // (kernel.items * WARP))


def _lanes(kernel: Kernel, classes: int) -> int:
    lanes = 2
    while lanes * kernel.items < classes:
        lanes *= 2
    return lanes


def _trips(kernel: Kernel, loop: list[str], classes: int) -> int:
    """Trips of an inner loop of tile_rows, over the elements of a tile or of a row, or of group_rows, over shuffles."""
    if kernel.family == "group_rows":
        return _lanes(kernel, classes).bit_length() - 1
    if kernel.family == "block_rows":
        raise ValueError("the loop over rows of block_rows has no inner loop")
    if _has(loop, "LDG") or _has(loop, "STG"):
        if kernel.width > 1 and not any(re.match(r"(LDG|STG)\S*\.128", text) for text in loop):
            return 0  # the rest of a tile that is not full
        return -(-classes // kernel.width)
    per_trip = sum(text.startswith("STS") for text in loop) or sum(text.startswith("LDS") for text in loop)
    return classes // per_trip  # an element is read and written by one instruction


def _has(loop: list[str], name: str) -> bool:
    return any(text.startswith(name) for text in loop)


def _loops(code: str) -> tuple[list[str], list[list[str]]]:
    """Return the instructions of the longest loop, and of each innermost loop in it."""
    lines = [(int(at, 16), guard, text) for at, guard, text in _INSTRUCTION.findall(code)]
    end = next(at for at, guard, text in lines if text == "EXIT" and not guard)  # rare paths follow
    ends: dict[int, int] = {}
    for at, _, text in lines:
        target = re.search(r"0x([0-9a-f]+)", text) if text.startswith("BRA") else None
        if target and int(target[1], 16) <= at < end:
            ends[int(target[1], 16)] = at  # the last of several branches to the same start
    spans = sorted(ends.items(), key=lambda span: span[0] - span[1])
    inner = [a for a in spans[1:] if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans)]

    def body(span: tuple[int, int]) -> list[str]:
        return [text for at, _, text in lines if span[0] <= at <= span[1] and text != "NOP"]

    return body(spans[0]), [body(span) for span in sorted(inner)]
