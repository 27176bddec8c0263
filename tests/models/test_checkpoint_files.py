"""Files of weights: which are read, and the sentence for one that is not."""

import os
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_models import same_tensors
from torch import nn

from zskd_fast.errors import InputError
from zskd_fast.models import LeNet5, LeNet5Half
from zskd_fast.models.checkpoint_files import load_state, save_weights
from zskd_fast.models.user_models import load_model

SPEC = "zskd_fast.models:LeNet5"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LeNet5()


# --------------------------------------------------------------------------------- files that are read


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_weights_are_loaded(tmp_path, model, name):
    save = save_file if name.endswith("safetensors") else torch.save
    save(model.state_dict(), tmp_path / name)
    assert same_tensors(load_model(SPEC, tmp_path / name), model)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_state_dict_inside_a_checkpoint_is_loaded(tmp_path, model, key):
    torch.save({key: model.state_dict(), "epoch": 3}, tmp_path / "w.pt")
    assert same_tensors(load_model(SPEC, tmp_path / "w.pt"), model)


def test_weights_of_a_data_parallel_model_are_loaded(tmp_path, model):
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    assert same_tensors(load_model(SPEC, tmp_path / "w.safetensors"), model)


def test_saved_weights_and_their_metadata_are_read_back(tmp_path, model):
    save_weights(model, tmp_path / "w.safetensors", {"seed": "0"})
    assert same_tensors(load_model(SPEC, tmp_path / "w.safetensors"), model)
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert file.metadata() == {"seed": "0"}
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_tied_weights_are_saved(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_weights(model, tmp_path / "w.safetensors", {})
    state = load_state(tmp_path / "w.safetensors")
    assert torch.equal(state["0.weight"], state["1.weight"])


# ------------------------------------------------------------------------------ files that are refused


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_a_missing_file(tmp_path, name):
    with pytest.raises(InputError, match=f"{name}: no such file"):
        load_model(SPEC, tmp_path / name)


def test_an_unknown_suffix(tmp_path):
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"w.onnx: wanted a file ending in .safetensors, .pt, .pth or .pt2"):
        load_model(SPEC, tmp_path / "w.onnx")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("kept", [0, 5, 1000, -1000])
def test_a_truncated_file(tmp_path, model, name, kept):
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=rf"{name}: truncated, or not a"):
        load_model(SPEC, path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pt2"])
def test_a_file_of_another_kind(tmp_path, name):
    (tmp_path / name).write_bytes(b"GIF89a" * 100)
    with pytest.raises(InputError, match=rf"{name}: truncated, or not a"):
        load_model(None if name.endswith("pt2") else SPEC, tmp_path / name)


def test_weights_of_another_model_name_the_first_keys(tmp_path):
    save_file(nn.Sequential(nn.Linear(3, 4)).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError) as error:
        load_model(SPEC, tmp_path / "w.safetensors")
    sentence = str(error.value)
    assert "not the weights of zskd_fast.models:LeNet5" in sentence
    assert "missing features.0.weight, features.0.bias, features.3.weight and 7 more" in sentence
    assert "unexpected 0.bias, 0.weight" in sentence


def test_weights_of_another_width_name_the_shapes(tmp_path):
    save_file(LeNet5Half().state_dict(), tmp_path / "w.safetensors")
    sentence = r"of another shape features.0.weight \(got \[3, 1, 5, 5\], wanted \[6, 1, 5, 5\]\)"
    with pytest.raises(InputError, match=sentence):
        load_model(SPEC, tmp_path / "w.safetensors")


class _Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["ZSKD_TEST_EVIL"],)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch, save):
    witness = tmp_path / "witness"
    monkeypatch.setenv("ZSKD_TEST_EVIL", str(witness))
    save({"weight": _Evil()}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w.pt: (holds more than weights.*state_dict|truncated, or not)"):
        load_model(SPEC, tmp_path / "w.pt")
    assert not witness.exists()


def test_the_sentence_for_a_pickled_model_names_the_state_dict(tmp_path, model):
    torch.save(model, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"holds more than weights.*save model.state_dict\(\) instead"):
        load_model(SPEC, tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "kind"), [(torch.zeros(3), "Tensor"), ({"epoch": 3}, "dict"), ({}, "dict")], ids=str
)
def test_content_that_is_no_state_dict(tmp_path, content, kind):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=rf"wanted named tensors .*, got a {kind}"):
        load_state(tmp_path / "w.pt")


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_weights_that_are_not_finite_name_the_tensor(tmp_path, model, value, kind):
    model.features[3].bias.data[2] = value
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=rf"w.safetensors: the tensor features.3.bias holds {kind} values"):
        load_model(SPEC, tmp_path / "w.safetensors")
