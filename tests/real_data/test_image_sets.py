"""Readers accept the common folder layouts, and an error names the file and its fault."""

import gzip
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import idx_bytes

from zskd_fast.errors import InputError
from zskd_fast.real_data.idx import read_idx
from zskd_fast.real_data.image_sets import LabelledImages, load_folder, to_input

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (7, 28, 28), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 7, dtype=np.uint8)


def write_idx(folder: Path, prefix: str = "t10k", suffix: str = ".gz", separator: str = "-") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, array in (("images", IMAGES), ("labels", LABELS)):
        content = idx_bytes(array)
        name = f"{prefix}-{kind}{separator}idx{array.ndim}-ubyte{suffix}"
        (folder / name).write_bytes(gzip.compress(content) if suffix else content)
    return folder


# -------------------------------------------------------------------------------------------------- IDX


@pytest.mark.parametrize("subfolder", ["", "MNIST/raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("separator", ["-", "."])
def test_idx_layouts(tmp_path, subfolder, suffix, separator):
    write_idx(tmp_path / subfolder, suffix=suffix, separator=separator)
    read = load_folder(tmp_path, "test")
    assert read.images.dtype == torch.uint8 and read.labels.dtype == torch.int64
    assert np.array_equal(read.images.numpy(), IMAGES[:, None])
    assert np.array_equal(read.labels.numpy(), LABELS)


def test_splits_are_not_mixed_up(tmp_path):
    write_idx(tmp_path, prefix="train")
    assert len(load_folder(tmp_path, "train")) == 7
    with pytest.raises(InputError, match=r"no test images in .*t10k-images-idx3-ubyte"):
        load_folder(tmp_path, "test")


def test_two_sets_in_one_folder_are_ambiguous(tmp_path):
    write_idx(tmp_path / "MNIST/raw")
    write_idx(tmp_path / "FashionMNIST/raw")
    with pytest.raises(InputError, match=r"more than one image set.*MNIST.*FashionMNIST"):
        load_folder(tmp_path, "test")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        load_folder(tmp_path / "nowhere", "test")


def test_missing_labels_file_is_named(tmp_path):
    (write_idx(tmp_path) / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"holds t10k-images-idx3-ubyte.gz but not its labels"):
        load_folder(tmp_path, "test")


@pytest.mark.parametrize("kept", [0, 3, 15, 16, 100, -1])
def test_truncated_idx_file_is_refused(tmp_path, kept):
    path = write_idx(tmp_path, suffix="") / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte: truncated, got \d+ .*wanted"):
        load_folder(tmp_path, "test")


def test_truncated_gzip_stream_is_refused(tmp_path):
    path = write_idx(tmp_path) / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"ubyte.gz: truncated"):
        load_folder(tmp_path, "test")


def test_damaged_gzip_stream_is_refused(tmp_path):
    path = write_idx(tmp_path) / "t10k-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # inside the checksum
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged gzip stream"):
        load_folder(tmp_path, "test")


def test_trailing_bytes_are_refused(tmp_path):
    path = write_idx(tmp_path, suffix="") / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(InputError, match="too long, got 5489 data bytes, wanted 5488"):
        load_folder(tmp_path, "test")


def test_wrong_magic_is_shown_beside_the_wanted_one(tmp_path):
    path = tmp_path / "labels"
    path.write_bytes(idx_bytes(IMAGES))
    with pytest.raises(InputError, match="got magic 0x00000803, wanted 0x00000801"):
        read_idx(path, ndim=1)


def test_label_count_must_match(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(LABELS[:5])))
    with pytest.raises(InputError, match="got 5 labels, wanted 7"):
        load_folder(tmp_path, "test")


def test_empty_image_set_is_read(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(IMAGES[:0]))
    assert read_idx(path, ndim=3).shape == (0, 28, 28)


# --------------------------------------------------------------------------------------------- CIFAR-10

CIFAR_IMAGES = RNG.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
CIFAR_LABELS = [3, 0, 9, 1]


def cifar_batch(images: np.ndarray = CIFAR_IMAGES) -> dict:
    return {b"labels": CIFAR_LABELS, b"data": images.reshape(len(images), -1), b"batch_label": b"test"}


def write_cifar_pickle(folder: Path, batch: object, protocol: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "test_batch"
    path.write_bytes(pickle.dumps(batch, protocol=protocol))
    return path


def write_cifar_binary(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.array(CIFAR_LABELS, dtype=np.uint8)[:, None]
    for name in names:
        (folder / name).write_bytes(np.hstack([labels, CIFAR_IMAGES.reshape(4, -1)]).tobytes())


def assert_is_cifar(read: LabelledImages) -> None:
    assert np.array_equal(read.images.numpy(), CIFAR_IMAGES)
    assert read.labels.tolist() == CIFAR_LABELS


@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-py"])
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cifar_python_version(tmp_path, subfolder, protocol):
    write_cifar_pickle(tmp_path / subfolder, cifar_batch(), protocol)
    assert_is_cifar(load_folder(tmp_path, "test"))


def test_cifar_python_version_as_python_2_wrote_it(tmp_path):
    """Python 2 spelled bytes as str: opcodes SHORT_BINSTRING and BINSTRING, module numpy.core.multiarray."""

    def text(value: bytes) -> bytes:
        return b"T" + struct.pack("<I", len(value)) + value

    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    state = b"(K\x01K\x04M\x00\x0c\x86" + dtype + b"\x89" + text(CIFAR_IMAGES.tobytes()) + b"tb"
    labels = b"](" + b"".join(bytes((ord("K"), label)) for label in CIFAR_LABELS) + b"e"
    content = b"\x80\x02}(U\x04data" + array + state + b"U\x06labels" + labels + b"u."
    (tmp_path / "test_batch").write_bytes(content)
    assert_is_cifar(load_folder(tmp_path, "test"))


@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-bin"])
def test_cifar_binary_version(tmp_path, subfolder):
    write_cifar_binary(tmp_path / subfolder, ["test_batch.bin"])
    assert_is_cifar(load_folder(tmp_path, "test"))


def test_cifar_training_batches_are_joined_in_order(tmp_path):
    write_cifar_binary(tmp_path, [f"data_batch_{i}.bin" for i in range(1, 6)])
    assert load_folder(tmp_path, "train").labels.tolist() == CIFAR_LABELS * 5


def test_cifar_missing_training_batch_is_named(tmp_path):
    write_cifar_binary(tmp_path, [f"data_batch_{i}.bin" for i in (1, 2, 4, 5)])
    with pytest.raises(InputError, match=r"missing data_batch_3.bin"):
        load_folder(tmp_path, "train")


def test_cifar_truncated_binary_is_refused(tmp_path):
    write_cifar_binary(tmp_path, ["test_batch.bin"])
    path = tmp_path / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="got 12291 bytes, wanted a multiple of 3073"):
        load_folder(tmp_path, "test")


def test_cifar_truncated_pickle_is_refused(tmp_path):
    path = write_cifar_pickle(tmp_path, cifar_batch())
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match="test_batch: not a CIFAR-10 batch, or truncated"):
        load_folder(tmp_path, "test")


class _Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["ZSKD_TEST_EVIL"],)


def test_cifar_pickle_cannot_run_code(tmp_path, monkeypatch):
    witness = tmp_path / "witness"
    monkeypatch.setenv("ZSKD_TEST_EVIL", str(witness))
    write_cifar_pickle(tmp_path, {**cifar_batch(), b"extra": _Evil()})
    with pytest.raises(InputError, match=r"test_batch: the pickle calls posix\.mkdir"):
        load_folder(tmp_path, "test")
    assert not witness.exists()


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        ([1, 2], "wanted a dictionary with 'data' and 'labels'"),
        ({b"data": 1, b"labels": CIFAR_LABELS}, "'data' must be an array"),
        (cifar_batch(CIFAR_IMAGES[:3]), r"\(3, 3072\).*wanted \(4, 3072\)"),
        (cifar_batch(CIFAR_IMAGES.astype(np.float32)), "uint8 array, got dtype f4"),
        (cifar_batch(np.asfortranarray(CIFAR_IMAGES.reshape(4, -1))), "got dtype u1, fortran_order=True"),
        ({**cifar_batch(), b"labels": [0, 1, 2, 10]}, "got labels from 0 to 10, wanted 0 to 9"),
        ({**cifar_batch(), b"labels": ["cat"] * 4}, "test_batch: not a CIFAR-10 batch"),
    ],
    ids=[
        "no dictionary",
        "no array",
        "row missing",
        "float data",
        "Fortran order",
        "label out of range",
        "labels are words",
    ],
)
def test_cifar_pickle_with_other_content_is_refused(tmp_path, batch, sentence):
    write_cifar_pickle(tmp_path, batch)
    with pytest.raises(InputError, match=sentence):
        load_folder(tmp_path, "test")


# --------------------------------------------------------------------------------------------- to_input


def test_to_input_scales_and_pads_evenly():
    inputs = to_input(torch.from_numpy(IMAGES[:, None]))
    assert inputs.shape == (7, 1, 32, 32) and inputs.dtype == torch.float32
    np.testing.assert_allclose(inputs[:, 0, 2:30, 2:30].numpy(), IMAGES / 255.0, rtol=1e-6)
    assert inputs.sum() == pytest.approx(inputs[:, :, 2:30, 2:30].sum())


def test_to_input_refuses_images_that_do_not_fit():
    with pytest.raises(InputError, match="images of 40x28 do not fit into 32x32"):
        to_input(torch.zeros(1, 1, 40, 28, dtype=torch.uint8))
    with pytest.raises(InputError, match="must be uint8"):
        to_input(torch.zeros(1, 1, 28, 28))


def test_real_mnist_test_split():
    folder = Path(os.environ.get("ZSKD_DATA", Path(__file__).parents[3] / "shared/data")) / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no real MNIST in {folder}; set ZSKD_DATA")
    read = load_folder(folder, "test")
    assert read.images.shape == (10_000, 1, 28, 28)
    assert read.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
