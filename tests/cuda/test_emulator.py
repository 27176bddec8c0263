"""The emulator detects every planted bug, and accepts the correct version of the same kernel."""

import functools
import os
import subprocess
from pathlib import Path

import pytest
import torch
from emulated import EMULATOR, KERNELS, SANITIZE, LaunchError, build, orders, planted_bug

THREADS, WARP = 64, 32
VALUES = torch.arange(4 * THREADS, dtype=torch.float32) * 3 + 1

MIRRORED = VALUES.view(-1, THREADS).flip(1).flatten()
WARP_SUMS = VALUES.view(-1, WARP).sum(dim=1, keepdim=True).expand(-1, WARP).flatten()
OTHER_WARP_SUMS = VALUES.view(-1, 2, WARP).sum(dim=2).flip(1).repeat_interleave(WARP, dim=1).flatten()

CHANGED_RESULTS = {
    "missing_barrier": MIRRORED,
    "missing_barrier_before_reuse": MIRRORED,
    "missing_barrier_after_a_shuffle": OTHER_WARP_SUMS,
    "unwritten_shared_memory": MIRRORED,
    "missing_warp_barrier": WARP_SUMS,
}
REPORTS = {
    "barrier_in_a_branch": (
        MIRRORED,
        r"waits at __syncthreads \(planted_bugs.cu:\d+\), but thread 7 of block \d has",
    ),
    "two_barriers_for_one": (
        MIRRORED,
        r"waits at __syncthreads \(.*\), but thread 32 of block \d waits at __sync",
    ),
    "lane_outside_its_mask": (
        WARP_SUMS,
        r"(its own|lane 31, which is .* at) __shfl_xor_sync \(.*, mask 0x7fffffff\)",
    ),
    "source_outside_the_mask": (WARP_SUMS, r"reads lane \d+, which is not in the mask, at __shfl_xor_sync"),
    "shuffle_without_all_lanes": (
        WARP_SUMS,
        r"waits at __shfl_xor_sync \(reduce.cuh:.*\), but thread \d+ of block",
    ),
    "ballot_without_all_lanes": (
        WARP_SUMS,
        r"waits at __ballot_sync \(.*mask 0xffffffff\), but thread \d+ of block",
    ),
    "misaligned_vector": (WARP_SUMS, r"moves 16 bytes at an address 4 past a multiple of that"),
    "too_large_a_block": (MIRRORED, r"planted bug: a block of 2048 threads"),
    "too_much_dynamic_shared_memory": (None, r"planted bug: 1048576 bytes of dynamic shared memory"),
}
SANITIZER_REPORTS = {
    "one_element_too_far": "heap-buffer-overflow",
    "past_static_shared_memory": "index 64 out of bounds for type 'float [64]'",
    "past_dynamic_shared_memory": "use-after-poison",
}


@pytest.mark.parametrize("kernel", CHANGED_RESULTS)
def test_a_race_changes_the_result_in_some_orders(kernel):
    want = CHANGED_RESULTS[kernel]
    for order in range(12):
        assert torch.equal(planted_bug(kernel, VALUES, broken=False, order=order), want)
    broken = [planted_bug(kernel, VALUES, broken=True, order=order) for order in range(4)]
    assert not all(torch.equal(result, want) for result in broken)


def test_a_kernel_without_a_grid_stride_leaves_outputs_unwritten():
    for order, most_blocks in orders(8):
        run = functools.partial(planted_bug, "no_stride_over_the_grid", VALUES, order=order, most_blocks=most_blocks)
        assert torch.equal(run(broken=False), MIRRORED)
        assert run(broken=True).isnan().sum() == THREADS * max(0, len(MIRRORED) // THREADS - most_blocks)


@pytest.mark.parametrize("kernel", REPORTS)
def test_a_launch_that_would_hang_or_fail_on_a_device_is_reported(kernel):
    want, report = REPORTS[kernel]
    for order, _ in orders(4):
        right = planted_bug(kernel, VALUES, broken=False, order=order)
        assert want is None or torch.equal(right, want)
        with pytest.raises(LaunchError, match=report):
            planted_bug(kernel, VALUES, broken=True, order=order)


def test_the_emulator_works_after_a_failed_launch():
    for _ in range(3):
        with pytest.raises(LaunchError):
            planted_bug("barrier_in_a_branch", VALUES, broken=True, order=0)
        assert torch.equal(planted_bug("missing_barrier", VALUES, broken=False, order=0), MIRRORED)


def test_a_store_outside_the_output_is_detected():
    with pytest.raises(AssertionError, match="wrote outside its output"):
        planted_bug("one_element_too_far", VALUES, broken=True, order=0)


def test_an_order_can_be_repeated():
    """Otherwise a failure could not be reproduced."""
    first, second = (planted_bug("missing_barrier", VALUES, broken=True, order=5) for _ in range(2))
    assert torch.equal(first, second) or torch.equal(first.isnan(), second.isnan())


@functools.cache
def sweep() -> Path:
    sources = [*KERNELS, *(EMULATOR / name for name in ("emulator.cpp", "planted_bugs.cu", "sweep.cpp"))]
    return build(sources, "sweep", flags=["-O0", *SANITIZE], link=[])


def run_sweep(*arguments: str) -> subprocess.CompletedProcess:
    # A failed launch does not free its fibers and what they own.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run([str(sweep()), *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("kernel", SANITIZER_REPORTS)
def test_a_sanitizer_detects_an_access_out_of_bounds(kernel):
    done = run_sweep("bug", kernel)
    assert done.stdout == "the right kernel ran\n", done.stderr
    assert done.returncode != 0 and SANITIZER_REPORTS[kernel] in done.stderr


def test_the_sanitizers_find_nothing_in_the_ops():
    done = run_sweep("ops")
    assert done.returncode == 0 and done.stdout == "nothing found\n", done.stderr
