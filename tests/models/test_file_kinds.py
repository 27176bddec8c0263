"""Files of all kinds: each is known by its content, nothing in it is run, and what cannot be read is named."""

import contextlib
import gzip
import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from users_checkpoints import save_exported, save_old, trained

from zskd_fast.errors import InputError
from zskd_fast.models.file_kinds import FileKind, file_kind, read_checkpoint

SAVES = {"zip": torch.save, "legacy": save_old, "safetensors": save_file}


def save_scripted(model, path):
    torch.jit.save(torch.jit.script(model), path)


def save_traced(model, path):
    torch.jit.save(torch.jit.trace(model, torch.rand(2, 1, 8, 8)), path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pt"


# ------------------------------------------------------------------------------------------ what can be read


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.html", "w"])
@pytest.mark.parametrize(
    ("save", "kind"),
    [
        (lambda model, path: torch.save(model.state_dict(), path), FileKind.TORCH),
        (lambda model, path: save_old(model.state_dict(), path), FileKind.LEGACY_TORCH),
        (lambda model, path: save_file(model.state_dict(), path), FileKind.SAFETENSORS),
        (save_scripted, FileKind.TORCHSCRIPT),
        (save_traced, FileKind.TORCHSCRIPT),
    ],
    ids=["zip", "legacy", "safetensors", "script", "trace"],
)
def test_the_kind_is_told_by_the_content(tmp_path, name, save, kind):
    save(trained(), tmp_path / name)
    assert file_kind(tmp_path / name) is kind


def test_an_exported_program_is_told_by_the_content(tmp_path):
    save_exported(trained(), tmp_path / "w.pt2")
    (tmp_path / "w.pt2").rename(tmp_path / "w.bin")
    assert file_kind(tmp_path / "w.bin") is FileKind.EXPORTED


def test_an_exported_program_of_an_older_torch(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", b"")
    assert file_kind(path) is FileKind.EXPORTED


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_pickle_protocol_is_recognized(path, protocol, zipped):
    torch.save({"w": torch.ones(2)}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert file_kind(path) is (FileKind.TORCH if zipped else FileKind.LEGACY_TORCH)


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_the_content_is_read(path, save):
    save({"w": torch.arange(3.0)}, path)
    content, not_made = read_checkpoint(path)
    assert torch.equal(content["w"], torch.arange(3.0)) and not_made == []


@pytest.mark.parametrize("save", [save_scripted, save_exported], ids=["TorchScript", "torch.export"])
def test_a_program_is_no_checkpoint(path, save):
    save(trained(), path.with_suffix(".pt2"))
    with pytest.raises(
        InputError, match=r"a (TorchScript|torch.export) program is the whole model, wanted weights alone"
    ):
        read_checkpoint(path.with_suffix(".pt2"))


# --------------------------------------------------------------------------------------- what is no such file


def tar_of(*names):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def zip_of(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def npy():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, w=np.zeros(3))
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"an empty file; download the file itself again"),
        (LFS, r"a Git LFS pointer and not the weights themselves; fetch them with `git lfs pull`"),
        (b"<!DOCTYPE html><html>", r"a web page and not a file of weights; download the file itself"),
        (b"\xef\xbb\xbf\n\n <HTML lang=en>", r"a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', r"a web page"),
        (b'{"message": "Not Found"}', r"a JSON text and not a file of weights"),
        (gzip.compress(b"x" * 99), r"a gzip archive; unpack it and give the file of weights inside"),
        (b"BZh91AY&SY", r"a bzip2 archive; unpack it"),
        (b"\xfd7zXZ\x00\x00", r"an xz archive; unpack it"),
        (b"(\xb5/\xfd\x04", r"a zstd archive; unpack it"),
        (b"7z\xbc\xaf\x27\x1c\x00", r"a 7z archive; unpack it"),
        (b"Rar!\x1a\x07", r"a rar archive; unpack it"),
        (tar_of("run/best.pth", "run/log.txt"), r"a tar archive of run/best.pth, run/log.txt; unpack it"),
        (
            tar_of("storages", "tensors", "pickle", "sys_info"),
            r"a file of torch 0.1, which can only be read by running",
        ),
        (zip_of("best.pth", "a", "b", "c"), r"a zip archive of best.pth, a, b and 1 more; unpack it"),
        (zip_of("model/data/aotinductor/model/model.so"), r"a compiled AOTInductor package, which has no gradients"),
        (npy(), r"a numpy array; give a file of torch.save or safetensors"),
        (npz(), r"an archive of numpy arrays; give a file of torch.save or safetensors"),
        (b"\x89HDF\r\n\x1a\n", r"an HDF5 file, as Keras writes it; give a file of"),
        (b"GGUF\x03\x00", r"a GGUF file; give a file of"),
        (b"\x08\x07\x12\x07pytorch", r"an ONNX model or another protobuf file; give a file of"),
        (pickle.dumps({"w": [1.0]}), r"a plain pickle, which can only be read by running code"),
        (b"GIF89a" * 100, r"truncated, or not a file of torch.save, safetensors, TorchScript or torch.export"),
        (b"\x00" * 2000, r"truncated, or not a file of torch.save"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_foreign_file_is_named_for_what_it_is(path, content, words):
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"weights.pt: {words}"):
        file_kind(path)


def test_a_file_that_does_not_exist(path):
    with pytest.raises(InputError, match=r"weights.pt: no such file$"):
        file_kind(path)
    with pytest.raises(InputError, match=r"no such file; it looks like an address: download it first"):
        file_kind(Path("https://example.org/weights.pt"))


def test_a_folder_names_what_it_holds(tmp_path):
    with pytest.raises(InputError, match=r": a folder, wanted a file of weights; the folder holds nothing$"):
        file_kind(tmp_path)
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"the folder holds config.json, model.safetensors$"):
        file_kind(tmp_path)


def test_a_folder_of_a_distributed_checkpoint(tmp_path):
    (tmp_path / ".metadata").touch()
    with pytest.raises(InputError, match=rf"dcp_to_torch {tmp_path} weights.pt"):
        file_kind(tmp_path)


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
@pytest.mark.parametrize("kept", [5, 1000, -1000, -70])
def test_a_truncated_file(path, save, kept):
    save(trained().state_dict(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"weights.pt: truncated, or"):
        read_checkpoint(path)


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES)
def test_a_file_with_any_byte_changed_gives_a_sentence_or_tensors(path, save):
    save({"w": torch.ones(3), "b": torch.zeros(1)}, path)
    whole = path.read_bytes()
    for position in range(0, min(len(whole), 900), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with contextlib.suppress(InputError):
            read_checkpoint(path)


# ------------------------------------------------------------------------------------------ nothing is run


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, function=os.mkdir):
        self.function = function

    def __reduce__(self):
        return self.function, (os.environ["ZSKD_TEST_EVIL"],)


@pytest.fixture
def witness(tmp_path, monkeypatch):
    """The folder that unpickling an `Evil` makes."""
    monkeypatch.setenv("ZSKD_TEST_EVIL", str(tmp_path / "witness"))
    return tmp_path / "witness"


def save_plain(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("save", [torch.save, save_old, save_plain], ids=["zip", "legacy", "pickle"])
@pytest.mark.parametrize("function", [os.mkdir, os.makedirs, eval, exec])
def test_a_file_that_would_run_code_is_refused_with_its_name(path, witness, save, function):
    save({"weight": Evil(function), "other": torch.zeros(1)}, path)
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    assert not witness.exists()
    if save is not save_plain:
        assert f".{function.__name__} beside the weights" in f".{error.value}".replace(": holds ", ".")


@pytest.mark.parametrize("name", ["argparse.Namespace", "numpy.dtype"])
def test_a_stand_in_runs_nothing_whatever_it_is_given(path, name):
    """A pickle that builds an allowed name from hostile arguments and state makes an empty object."""
    module, _, attribute = name.rpartition(".")
    hostile = f"\x80\x02}}U\x04argsc{module}\n{attribute}\n(U\x06ls -laK\x01tR}}U\x0c__setstate__U\x01xsbs.".encode(
        "latin-1"
    )
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, hostile if member.endswith("data.pkl") else content)
    content, not_made = read_checkpoint(path)
    assert not_made == [name]
    (made,) = content.values()
    assert vars(made) == {}


@pytest.mark.parametrize("save", [torch.save, save_old], ids=["zip", "legacy"])
def test_a_whole_pickled_model_is_named_with_the_lines_that_convert_it(path, save):
    save(nn.Sequential(nn.Linear(2, 2)), path)
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    sentence = str(error.value)
    assert "holds a whole pickled model or other object (torch.nn.modules.container.Sequential)" in sentence
    assert converted(sentence).keys() == {"0.weight", "0.bias"}


@pytest.mark.parametrize("save", [torch.save, save_old], ids=["zip", "legacy"])
def test_an_object_beside_the_weights_is_named_with_the_lines_that_convert_it(path, save):
    save({"state_dict": {"w": torch.ones(2)}, "criterion": nn.CrossEntropyLoss()}, path)
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    sentence = str(error.value)
    assert "holds torch.nn.modules.loss.CrossEntropyLoss beside the weights" in sentence
    assert converted(sentence).keys() == {"w"}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [4, 5])
def test_a_newer_pickle_protocol_is_named_with_the_lines_that_convert_it(path, protocol, zipped):
    content = {"state_dict": {"w": torch.ones(2)}}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=rf"weights.pt: of pickle protocol {protocol}, which can only") as error:
        read_checkpoint(path)
    assert torch.equal(converted(str(error.value))["w"], torch.ones(2))


def test_a_plain_pickle_of_arrays_comes_with_the_lines_that_convert_it(path):
    path.write_bytes(pickle.dumps({"w": np.ones(2, dtype=np.float32)}))
    with pytest.raises(InputError) as error:
        read_checkpoint(path)
    assert torch.equal(converted(str(error.value))["w"], torch.ones(2))


def converted(sentence):
    """Run the two lines of a sentence, with another file to write, and read that file."""
    load, save = (line.strip() for line in sentence.splitlines()[1:])
    target = Path(load.split("'")[1]).with_name("converted.pt")
    exec(f"{load}\n{save}".replace('"weights.pt")', f"{str(target)!r})"))
    return read_checkpoint(target)[0]
