"""Run the CUDA kernels of csrc/cuda on the CPU: g++ compiles their sources with tests/emulator/include."""

import atexit
import ctypes
import functools
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from emulated_params import (
    PARAMS,
    DirichletParams,
    ImpressionUpdateParams,
    PhiloxParams,
    RowLossParams,
    ScaleGradParams,
    Traffic,
)
from torch import Tensor

ROOT = Path(__file__).parents[2]
EMULATOR = ROOT / "tests" / "emulator"
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
LIBRARY = [*KERNELS, EMULATOR / "emulator.cpp", EMULATOR / "planted_bugs.cu", EMULATOR / "entry.cpp"]
# As for a device: a multiply-add is fused only where the source calls fma.
FLAGS = ["-std=c++20", "-O1", "-g1", "-fPIC", "-ffp-contract=off", "-fno-math-errno"]
FLAGS += [f"-I{EMULATOR / 'include'}", f"-I{ROOT / 'csrc'}"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
ALL_BLOCKS = 2**32 - 1
MARGIN = 4096  # elements before and after an output that a kernel must not write; keeps 128-bit alignment

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
DISTRIBUTIONS = {"uniform": 0, "normal": 1}


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def build(sources: list[Path], output: str, *, flags: list[str], link: list[str]) -> Path:
    """Compile the sources, two at a time, and link them into a file in a temporary folder.

    The flags apply to all sources, except that -O0 does not apply to emulator.cpp, which schedules the threads.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the emulator is compiled by g++, which this machine lacks")
    folder = tempfile.mkdtemp(prefix="zskd-emulator-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def compile_one(source: Path) -> str:
        target = f"{folder}/{source.name}.o"
        own = [flag for flag in flags if flag != "-O0" or source.name != "emulator.cpp"]
        run([compiler, *FLAGS, *own, "-x", "c++", "-c", str(source), "-o", target])
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    run([compiler, *flags, *link, *objects, "-o", f"{folder}/{output}"])
    return Path(folder, output)


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


@functools.cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(build(LIBRARY, "emulated.so", flags=[], link=["-shared"])))
    for op, params in PARAMS.items():
        getattr(loaded, op).restype = ctypes.c_char_p
        size = getattr(loaded, f"{op}_params_size")
        size.restype = ctypes.c_int64
        assert size() == ctypes.sizeof(params), f"{params.__name__} differs from csrc/params.h"
    loaded.planted_bug.restype = ctypes.c_char_p
    loaded.traffic.restype = Traffic
    return loaded


class LaunchError(RuntimeError):
    """A fault that the emulator found in a launch."""


def call(op: str, params: ctypes.Structure, *, order: int = 0, most_blocks: int = ALL_BLOCKS) -> Traffic:
    """Run the op; `order` seeds the order of threads and blocks, `most_blocks` limits the blocks of a launch."""
    emulated = library()
    emulated.configure(ctypes.c_uint64(order), ctypes.c_uint(most_blocks))
    report = getattr(emulated, op)(ctypes.byref(params)).decode()
    if report:
        raise LaunchError(report)
    return emulated.traffic()


class Output:
    """Memory filled with NaN for the output of a kernel, with margins that the kernel must not write.

    `offset` shifts the first element away from 128-bit alignment.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, offset: int = 0) -> None:
        count = torch.Size(shape).numel()
        self._memory = torch.full((count + 2 * MARGIN,), torch.nan, dtype=dtype)
        self._begin, self._end = MARGIN + offset, MARGIN + offset + count
        self.tensor = self._memory[self._begin : self._end].view(shape)

    def checked(self) -> Tensor:
        """Return the output, after a check that its margins are unchanged."""
        margins = torch.cat([self._memory[: self._begin], self._memory[self._end :]])
        assert margins.isnan().all(), "a kernel wrote outside its output"
        return self.tensor


def planted_bug(name: str, values: Tensor, *, broken: bool, order: int, most_blocks: int = ALL_BLOCKS) -> Tensor:
    """Run a kernel of planted_bugs.cu on float32 values, with or without its bug."""
    emulated = library()
    emulated.configure(ctypes.c_uint64(order), ctypes.c_uint(most_blocks))
    out = Output(values.shape, values.dtype)
    source = torch.cat([values, torch.zeros(MARGIN)])  # no NaN beyond the end, so that a store of it is detected
    count = ctypes.c_int64(values.numel())
    pointers = ctypes.c_void_p(source.data_ptr()), ctypes.c_void_p(out.tensor.data_ptr())
    report = emulated.planted_bug(name.encode(), *pointers, count, ctypes.c_bool(broken)).decode()
    if report:
        raise LaunchError(report)
    return out.checked()


def row_loss(
    op: str,
    a: Tensor,
    b: Tensor,
    temperature: float,
    *,
    grad: bool = True,
    grad_weight: float = 1.0,
    grad_dtype: torch.dtype | None = None,
    offset: int = 0,
    traffic: list[Traffic] | None = None,
    **how: int,
) -> tuple[Tensor, Tensor | None]:
    """Return the loss [N] and the gradient [N, K] or None. The rows of `a` and `b` may be any distance apart."""
    rows, classes = a.shape
    loss = Output((rows,), accumulate_dtype(a.dtype))
    gradient = Output((rows, classes), grad_dtype or a.dtype, offset)
    moved = call(
        op,
        RowLossParams(
            a=a.data_ptr(),
            b=b.data_ptr(),
            a_stride=a.stride(0),
            b_stride=b.stride(0),
            a_dtype=DTYPES[a.dtype],
            b_dtype=DTYPES[b.dtype],
            grad_dtype=DTYPES[gradient.tensor.dtype],
            loss=loss.tensor.data_ptr(),
            grad=gradient.tensor.data_ptr() if grad else None,
            rows=rows,
            classes=classes,
            temperature=temperature,
            grad_weight=grad_weight,
        ),
        **how,
    )
    if traffic is not None:
        traffic.append(moved)
    return loss.checked(), gradient.checked() if grad else None


def scale_grad_(grad: Tensor, weight: Tensor, *, offset: int = 0, **how: int) -> Traffic:
    """Update grad in place; `offset` shifts it in memory."""
    held = Output(tuple(grad.shape), grad.dtype, offset)
    held.tensor.copy_(grad)
    pointers = dict(grad=held.tensor.data_ptr(), weight=weight.data_ptr())
    moved = call("scale_grad", ScaleGradParams(**pointers, dtype=DTYPES[grad.dtype], size=grad.numel()), **how)
    grad.copy_(held.checked())
    return moved


def dirichlet(
    concentration: Tensor,
    ids: Tensor,
    *,
    seed: int,
    log: bool = False,
    traffic: list[Traffic] | None = None,
    **how: int,
) -> Tensor:
    rows, classes = concentration.shape
    out = Output((rows, classes), concentration.dtype)
    moved = call(
        "dirichlet",
        DirichletParams(
            concentration=concentration.data_ptr(),
            concentration_stride=concentration.stride(0),
            dtype=DTYPES[concentration.dtype],
            ids=ids.data_ptr(),
            ids_stride=ids.stride(0),
            seed=seed,
            out=out.tensor.data_ptr(),
            log=log,
            rows=rows,
            classes=classes,
        ),
        **how,
    )
    if traffic is not None:
        traffic.append(moved)
    return out.checked()


def philox(
    ids: Tensor,
    count: int,
    *,
    seed: int,
    stream: int,
    distribution: str = "uniform",
    dtype: torch.dtype = torch.float32,
    offset: int = 0,
    **how: int,
) -> Tensor:
    out = Output((len(ids), count), dtype, offset)
    call(
        "philox",
        PhiloxParams(
            ids=ids.data_ptr(),
            ids_stride=ids.stride(0),
            seed=seed,
            stream=stream,
            distribution=DISTRIBUTIONS[distribution],
            dtype=DTYPES[dtype],
            out=out.tensor.data_ptr(),
            rows=len(ids),
            count=count,
        ),
        **how,
    )
    return out.checked()


def impression_update_(
    x: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int | Tensor,
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    l1: float,
    l2: float,
    lo: Tensor,
    hi: Tensor,
    **how: int,
) -> Traffic:
    """Update in place. `lo` and `hi` are [1] or [C] float64. The kernel reads `step` and `lr` if they are tensors."""
    per_channel = lo.numel() > 1
    channels = x.shape[1] if per_channel else 1
    return call(
        "impression_update",
        ImpressionUpdateParams(
            x=x.data_ptr(),
            grad=grad.data_ptr(),
            exp_avg=exp_avg.data_ptr(),
            exp_avg_sq=exp_avg_sq.data_ptr(),
            dtype=DTYPES[x.dtype],
            size=x.numel(),
            lo=lo.data_ptr(),
            hi=hi.data_ptr(),
            channels=channels,
            channel_size=x.numel() // (x.shape[0] * channels) if per_channel else x.numel(),
            lr=0.0 if isinstance(lr, Tensor) else lr,
            beta1=betas[0],
            beta2=betas[1],
            eps=eps,
            l1=l1,
            l2=l2,
            step=0.0 if isinstance(step, Tensor) else step,
            device_lr=lr.data_ptr() if isinstance(lr, Tensor) else None,
            device_step=step.data_ptr() if isinstance(step, Tensor) else None,
            device_bounds=per_channel,
        ),
        **how,
    )


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def orders(count: int = 8) -> Iterator[tuple[int, int]]:
    """Return pairs of a seed for the order of threads and blocks and a limit on the number of blocks."""
    return zip(range(count), itertools.cycle([ALL_BLOCKS, 1, 2, 3]), strict=False)
