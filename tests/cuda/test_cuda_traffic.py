"""The bytes that the CUDA kernels load and store, counted by the emulator, compared with the minimum."""

import json
import re
from pathlib import Path

import emulated
import emulated_images
import pytest
import torch
from emulated import Output, accumulate_dtype
from row_loss_figures import CLASSES, row_loss_kernel
from row_losses import DTYPES, logits_of, targets_of

ROWS = 20
ROW_LOSSES = ["soft_cross_entropy", "distillation_loss"]
LENGTHS = (10, 100, 1000, 5000, 20000)
UPDATE = dict(lr=0.05, betas=(0.9, 0.99), eps=1e-8, l1=0.1, l2=0.2)


def row_loss_traffic(op, classes, dtype) -> emulated.Traffic:
    moved = []
    a, b = logits_of(ROWS, classes, dtype), targets_of(ROWS, classes, dtype)
    emulated.row_loss(op, a, b, 4.0, traffic=moved)
    return moved[0]


@pytest.mark.parametrize("classes", [3, 8, 10, 16, 20, 33, 100, 128, 500, 512, 1000, 1025, 2048, 4096, 16384])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ROW_LOSSES)
def test_every_element_is_read_once_and_written_once(op, dtype, classes):
    if dtype == torch.float64 and classes > 4096:
        pytest.skip("a row of float64 does not fit into the registers of a block")
    moved, matrix = row_loss_traffic(op, classes, dtype), ROWS * classes * dtype.itemsize
    assert moved.load_bytes == 2 * matrix
    assert moved.store_bytes == matrix + ROWS * accumulate_dtype(dtype).itemsize
    # Up to 32 classes the rows of a tile are one piece of memory, whose vectors may cross the ends of rows.
    vectors = matrix // 16 if classes <= 32 or classes * dtype.itemsize % 16 == 0 else 0
    assert (moved.wide_loads, moved.wide_stores) == (2 * vectors, vectors)


@pytest.mark.parametrize("op", ROW_LOSSES)
def test_longer_row_is_read_twice_and_written_once(op):
    moved, matrix = row_loss_traffic(op, 16388, torch.float32), ROWS * 16388 * 4
    assert (moved.load_bytes, moved.store_bytes) == (4 * matrix, matrix + 4 * ROWS)
    assert moved.wide_loads == moved.loads and moved.wide_stores == matrix // 16


@pytest.mark.parametrize("op", ROW_LOSSES)
def test_tile_of_rows_with_gaps_is_read_once(op):
    a = logits_of(ROWS, 12, torch.float32)[:, :10]
    moved = []
    emulated.row_loss(op, a, targets_of(ROWS, 10, torch.float32), 4.0, traffic=moved)
    assert (moved[0].loads, moved[0].load_bytes) == (2 * 10 * ROWS, 2 * 4 * 10 * ROWS)


BUDGET = json.loads(Path(__file__).with_name("budget.json").read_text())
DTYPE_OF = {"float": torch.float32, "double": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("name", [name for name in BUDGET if row_loss_kernel(name)])
def test_bytes_of_a_row_loss_are_those_of_its_budget(name):
    op, family, a, b, width = re.fullmatch(r"(\w+) (\w+)<(\w+), (\w+), (\d+)>", name).groups()
    classes = CLASSES[family]
    rows = 2048 // classes if classes <= 1024 else 1
    logits, other = logits_of(rows, classes, DTYPE_OF[a]), targets_of(rows, classes, DTYPE_OF[b])
    moved = []
    # A gradient at an odd address rules out vectors.
    emulated.row_loss(op, logits, other, 4.0, offset=int(width == "1"), traffic=moved)
    assert (moved[0].wide_loads > 0) == (width != "1")
    measured = (moved[0].load_bytes + moved[0].store_bytes) / (rows * classes)
    assert measured == pytest.approx(BUDGET[name]["bytes"], abs=1e-4)


def update_traffic(*, shape=(4, 3, 8, 8), offset=0, bounds=1) -> emulated.Traffic:
    x, grad, m, v = (torch.rand(shape) for _ in range(4))
    shifted = Output(shape, grad.dtype, offset)
    shifted.tensor.copy_(grad)
    lo = torch.zeros(bounds, dtype=torch.float64)
    return emulated.impression_update_(x, shifted.tensor, m, v, 1, lo=lo, hi=lo + 1, **UPDATE)


def test_impression_update_uses_vectors_only_if_all_tensors_allow_it():
    elements = 4 * 3 * 8 * 8
    wide = update_traffic()
    assert (wide.load_bytes, wide.store_bytes) == (16 * elements, 12 * elements)
    assert (wide.wide_loads, wide.wide_stores) == (elements, 3 * elements // 4)
    narrow = update_traffic(offset=1)
    assert (narrow.wide_loads, narrow.wide_stores, narrow.loads) == (0, 0, 4 * elements)
    assert update_traffic(bounds=3).wide_loads == elements  # 64 elements per channel
    assert update_traffic(shape=(4, 3, 7, 7), bounds=3).wide_loads == 0


def test_gradient_is_neither_read_nor_written_for_a_weight_of_1():
    one, two = (emulated.scale_grad_(torch.rand(64, 100), torch.tensor(weight)) for weight in (1.0, 2.0))
    threads = 256  # of the only block; each reads the weight
    assert (one.load_bytes, one.store_bytes) == (4 * threads, 0)
    assert (two.load_bytes, two.store_bytes) == (4 * threads + 4 * 6400, 4 * 6400)
    assert two.wide_stores == two.stores


def test_total_variation_grad_uses_vectors_for_all_but_the_neighbors_in_the_row():
    moved = []
    for shape in ((4, 3, 8, 8), (4, 3, 7, 7)):
        emulated_images.total_variation_grad_(torch.rand(shape), torch.rand(shape), 0.1, traffic=moved)
    wide, narrow = moved
    vectors = 4 * 3 * 8 * 8 // 4
    assert (wide.wide_stores, wide.stores) == (vectors, vectors)
    # The gradient, x and the rows above and below; then the left and right neighbors, which the ends of a row lack.
    assert (wide.wide_loads, wide.loads) == (4 * vectors, 4 * vectors + 2 * (4 * 3 * 8 * 7))
    assert (narrow.wide_loads, narrow.stores) == (0, 4 * 3 * 7 * 7)


def test_dead_leaves_write_each_pixel_once():
    moved = []
    leaves = torch.ones(ROWS, 10, 8) * torch.tensor([0, 0, 9, 9, 0, 1, 1, 1])  # they cover every pixel
    for width in (32, 30):
        emulated_images.dead_leaves(leaves, 32, width, traffic=moved)
    wide, narrow = moved
    assert wide.store_bytes == 4 * ROWS * 3 * 32 * 32 and narrow.store_bytes == 4 * ROWS * 3 * 32 * 30
    assert wide.wide_stores == wide.stores and narrow.wide_stores == 0
    # A value for each element, and the shapes of the leaves for each block.
    assert wide.load_bytes == 4 * ROWS * (3 * 32 * 32 + 2 * 10 * 5)


def test_augment_reads_a_row_that_stays_in_place_once_and_a_mixed_one_with_its_partner():
    moved = []
    positions, draw = torch.arange(ROWS), dict(seed=1, stream=0)
    for x, numbers in (
        (torch.rand(ROWS, 512), {"noise_max": 0.1}),
        (torch.rand(ROWS, 512), {"mix_probability": 1.0}),
        (torch.rand(ROWS, 510), {"mix_probability": 1.0}),
    ):
        emulated_images.augment(x, positions, **draw, **numbers, traffic=moved)
    noisy, mixed, narrow = moved
    assert [each.store_bytes for each in moved] == [4 * ROWS * 512, 4 * ROWS * 512, 4 * ROWS * 510]
    assert noisy.load_bytes == 4 * ROWS * 512 and mixed.load_bytes == 2 * 4 * ROWS * 512
    assert mixed.wide_loads == mixed.loads and mixed.wide_stores == mixed.stores
    assert narrow.wide_loads == narrow.wide_stores == 0 and narrow.load_bytes == 2 * 4 * ROWS * 510


def dirichlet_traffic(classes: int) -> emulated.Traffic:
    moved = []
    emulated.dirichlet(torch.ones(ROWS, classes), torch.arange(ROWS), seed=1, traffic=moved)
    return moved[0]


def test_bytes_per_element(capsys):
    """Bytes per element of the matrix or image. "least": every input is read once, every output written once."""
    cases = [
        *((op, k, row_loss_traffic(op, k, torch.float32), ROWS * k, 12) for op in ROW_LOSSES for k in LENGTHS),
        *(("dirichlet", k, dirichlet_traffic(k), ROWS * k, 8) for k in (10, 1000, 5000, 12000)),
        ("impression_update_", 64, update_traffic(), 4 * 3 * 64, 28),
    ]
    lines = [f"{'op, float32':<22}{'K':>6}{'read':>8}{'written':>9}{'least':>7}{'times':>7}"]
    for op, classes, moved, elements, least in cases:
        read, written = moved.load_bytes / elements, moved.store_bytes / elements
        times = (read + written) / least
        lines.append(f"{op:<22}{classes:>6}{read:>8.2f}{written:>9.2f}{least:>7}{times:>7.2f}")
        # A row is read more than once if it is too long: twice by a loss, for the registers of a block, three times by
        # a draw, for its shared memory.
        once = classes <= (16384 if op in ROW_LOSSES else 5000)
        assert times <= (1.04 if once else 1.67 if op in ROW_LOSSES else 2.0)
    with capsys.disabled():
        print("\n" + "\n".join(lines))
