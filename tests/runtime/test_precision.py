"""The settings of torch's CUDA libraries hold inside their contexts, and are restored by the last to leave."""

import threading

import pytest
import torch

from zskd_fast.runtime.precision import full_float32, repeatable, tf32_in_use

BACKENDS = torch.backends
NEWER = hasattr(BACKENDS.cudnn, "conv")  # torch 2.9 and later


def _flags():
    flags = {"deterministic": BACKENDS.cudnn.deterministic, "benchmark": BACKENDS.cudnn.benchmark}
    if NEWER:
        owners = BACKENDS.cuda.matmul, BACKENDS.cudnn.conv, BACKENDS.cudnn.rnn
        flags["precisions"] = [owner.fp32_precision for owner in owners]
    return flags | {"older": (BACKENDS.cudnn.allow_tf32, BACKENDS.cuda.matmul.allow_tf32)}


@pytest.fixture(autouse=True)
def _restored():
    before = _flags()
    yield
    assert _flags() == before


@pytest.fixture
def tf32():
    """TF32 in matrix products too, which torch leaves off."""
    before, BACKENDS.cuda.matmul.allow_tf32 = BACKENDS.cuda.matmul.allow_tf32, True
    precision = BACKENDS.cuda.matmul.fp32_precision if NEWER else None
    yield precision
    BACKENDS.cuda.matmul.allow_tf32 = before
    if NEWER:
        BACKENDS.cuda.matmul.fp32_precision = "none"


def test_no_tf32_in_full_float32(tf32):
    before = _flags()
    assert tf32_in_use() == {"convolutions": True, "matrix_products": True}
    with full_float32():
        assert tf32_in_use() == {"convolutions": False, "matrix_products": False}
        with torch.backends.cudnn.flags(enabled=False):  # as some models do; it reads and sets all of them
            pass
        assert not BACKENDS.cudnn.allow_tf32 and not BACKENDS.cuda.matmul.allow_tf32
    assert _flags() == before


@pytest.mark.skipif(not NEWER, reason="needs fp32_precision, of torch 2.9 and later")
def test_a_user_of_the_newer_interface_is_served_too():
    BACKENDS.cudnn.conv.fp32_precision = "ieee"
    try:
        assert not tf32_in_use()["convolutions"]
        with full_float32():
            assert not tf32_in_use()["convolutions"]
        assert BACKENDS.cudnn.conv.fp32_precision == "ieee" and BACKENDS.cudnn.rnn.fp32_precision == "tf32"
    finally:
        BACKENDS.cudnn.conv.fp32_precision = "tf32"


def test_repeatable_is_restored_by_the_last_thread_that_leaves(monkeypatch):
    monkeypatch.setattr(BACKENDS.cudnn, "benchmark", True)
    first_left, second_entered, seen = threading.Event(), threading.Event(), []

    def second():
        with repeatable():
            second_entered.set()
            first_left.wait(10)
            seen.append((BACKENDS.cudnn.deterministic, BACKENDS.cudnn.benchmark))

    thread = threading.Thread(target=second)
    with pytest.raises(KeyError), repeatable():
        thread.start()
        second_entered.wait(10)
        raise KeyError
    first_left.set()
    thread.join()
    assert seen == [(True, False)]
    assert (BACKENDS.cudnn.deterministic, BACKENDS.cudnn.benchmark) == (False, True)
