"""Large outputs ask Linux for huge pages, without which page faults take longer than the kernels."""

from pathlib import Path

import pytest
import torch

from zskd_fast import ops

SMAPS = Path("/proc/self/smaps")
ROWS, CLASSES = 9_000, 1_000  # 36 MB of float32


def _is_advised(tensor):
    """Whether the mapping that holds the middle of the tensor carries the flag of MADV_HUGEPAGE."""
    middle, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in SMAPS.read_text().splitlines():
        head = line.split()[0]
        if not head.endswith(":"):
            first, last = (int(bound, 16) for bound in head.split("-"))
            inside = first <= middle < last
        elif inside and head == "VmFlags:":
            return "hg" in line.split()
    raise AssertionError("no mapping holds the tensor")


def _gradient(loss, rows):
    logits, other = torch.zeros(rows, CLASSES), torch.full((rows, CLASSES), 1 / CLASSES)
    return loss(logits, other, 4.0, reduction="sum")[1]


LARGE = {
    "soft_cross_entropy": lambda rows: _gradient(ops.soft_cross_entropy_value_and_grad, rows),
    "philox": lambda rows: ops.philox(torch.arange(rows), CLASSES, seed=0, stream=0),
    "dirichlet": lambda rows: ops.dirichlet(torch.ones(rows, CLASSES), torch.arange(rows), seed=0),
    "dead_leaves": lambda rows: ops.dead_leaves(torch.zeros(rows, 1, 7), 20, 50),
    "augment": lambda rows: ops.augment(torch.zeros(rows, CLASSES), torch.arange(rows), seed=0, stream=0),
    "max_pool": lambda rows: ops.max_pool(torch.zeros(rows, 4, 20, 50)),
}


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a system without huge pages")
@pytest.mark.parametrize("op", LARGE)
def test_large_outputs_ask_for_huge_pages(op):
    """Nothing can be said of small outputs here: they may lie where a large one was before."""
    assert _is_advised(LARGE[op](ROWS))
