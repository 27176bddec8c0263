"""All instruction sets of this build and machine: draws with the same bits, losses equal up to rounding."""

import os
import subprocess
import sys

import pytest

ISAS = ["baseline", "avx2", "avx512"]

RUN = """
import hashlib, torch
from zskd_fast import build_info, ops, reference

def bits(*tensors):
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in tensors)).hexdigest()

ids = torch.arange(300) * 1001
g = torch.Generator().manual_seed(0)
draws = [ops.dirichlet(torch.rand(300, k, generator=g, dtype=t) + 0.01, ids, seed=7)
         for k in (1, 7, 10, 33, 600) for t in (torch.float32, torch.float64)]
draws += [ops.philox(ids, 77, seed=3, stream=5, distribution=d, dtype=t)
          for d in ("uniform", "normal") for t in (torch.float32, torch.float64)]
worst = 0.0
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for k in (1, 7, 10, 31, 33, 100, 1000):
        z, t = (torch.randn(53, k, generator=g) * 8).to(dtype), (torch.randn(53, k, generator=g) * 8).to(dtype)
        y = torch.softmax(t.float(), 1).to(dtype)
        for op, other in (("soft_cross_entropy", y), ("distillation_loss", t)):
            got = getattr(ops, op)(z, other, 4.0, reduction="none").double()
            want = getattr(reference, op)(z.double(), other.double(), 4.0, reduction="none")
            error = (got - want).abs().max() / want.abs().max().clamp(min=1.0)
            worst = max(worst, float("inf") if error.isnan() else error.item())
u, m, v = torch.rand(4, 3, 9, 9, generator=g), torch.zeros(4, 3, 9, 9), torch.zeros(4, 3, 9, 9)
for step in (1, 2, 3):
    ops.impression_update_(u, torch.randn(4, 3, 9, 9, generator=g), m, v, step, lr=0.1, l1=0.1, lo=0.0, hi=1.0)
kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
smooth = [torch.randn(4, 3, 9, 11, generator=g).to(kind) for kind in kinds]
for grad in smooth:
    ops.total_variation_grad_(grad, grad.flip(-1).contiguous(), 0.3)
pooled = ops.max_pool(torch.randn(4, 3, 11, 14, generator=g))
leaves = ops.dead_leaves(torch.randn(3, 5, 9, generator=g), 11, 70)
spread = dict(rotation_sigma=0.3, scale_sigma=0.2, shift_sigma=0.2, flip_probability=0.5)
x = torch.rand(40, 3, 11, 70, generator=g)
varied = ops.augment(x, ids[:40], seed=5, stream=1, mix_probability=0.5, noise_max=0.1, clamp=True, **spread)
print(build_info()["isa"], bits(*draws), bits(u, m, v, *(s.float() for s in smooth), pooled, leaves, varied), worst)
"""


def run_on(isa: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "ZSKD_FAST_ISA": isa}
    return subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def chosen():
    return run_on("").stdout.split()


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_results(isa, chosen):
    result = run_on(isa)
    if "this machine or build has no" in result.stderr:
        pytest.skip(f"this machine or build has no {isa}")
    name, draws, update, worst = result.stdout.split()
    assert name == isa
    assert draws == chosen[1], "Dirichlet or Philox draws differ"
    assert update == chosen[2], "impression updates, total variations, max-pools, dead leaves or variations differ"
    assert float(worst) <= 1e-5


def test_error_names_an_unknown_instruction_set():
    result = run_on("sse9")
    assert result.returncode != 0
    assert "ZSKD_FAST_ISA=sse9: wanted baseline, avx2 or avx512" in result.stderr
