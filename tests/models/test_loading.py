"""A user's own model and weights: what loads, and the sentence for what does not."""

import os
import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from zskd_fast.errors import InputError
from zskd_fast.models import LeNet5, LeNet5Half
from zskd_fast.models.loading import load_callable, load_model, load_state, weights_metadata

SPEC = "zskd_fast.models:LeNet5"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LeNet5()


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


# ---------------------------------------------------------------------------------------------- what loads


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_weights_come_back(tmp_path, model, name):
    save = save_file if name.endswith("safetensors") else torch.save
    save(model.state_dict(), tmp_path / name)
    assert same_weights(load_model(SPEC, tmp_path / name), model)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_wrapped_state_dict(tmp_path, model, key):
    torch.save({key: model.state_dict(), "epoch": 3}, tmp_path / "w.pt")
    assert same_weights(load_model(SPEC, tmp_path / "w.pt"), model)


def test_weights_saved_from_a_data_parallel_model(tmp_path, model):
    save_file(
        {f"module.{name}": value for name, value in model.state_dict().items()}, tmp_path / "w.safetensors"
    )
    assert same_weights(load_model(SPEC, tmp_path / "w.safetensors"), model)


def test_without_weights_the_callables_own_are_kept():
    assert isinstance(load_model(SPEC), LeNet5)


def test_exported_program_is_a_whole_model_that_can_be_put_in_eval_mode(tmp_path, model):
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model.eval(), (torch.rand(2, 1, 32, 32),), dynamic_shapes=[{0: batch}])
    torch.export.save(program, tmp_path / "teacher.pt2")
    loaded = load_model(None, tmp_path / "teacher.pt2").train().eval()
    x = torch.rand(5, 1, 32, 32, requires_grad=True)
    torch.testing.assert_close(loaded(x), model(x))
    (gradient,) = torch.autograd.grad(loaded(x).sum(), x)
    assert gradient.abs().sum() > 0


def test_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_teacher_module.py").write_text("from zskd_fast.models import LeNet5Half as build\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert isinstance(load_model("my_teacher_module:build"), LeNet5Half)
    assert sys.path == before


def test_metadata_round_trip(tmp_path, model):
    save_file(model.state_dict(), tmp_path / "a.safetensors", metadata={"seed": "0"})
    save_file(model.state_dict(), tmp_path / "b.safetensors")
    assert weights_metadata(tmp_path / "a.safetensors") == {"seed": "0"}
    assert weights_metadata(tmp_path / "b.safetensors") == {}


# ------------------------------------------------------------------------------------------ what does not


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("zskd_fast.models", "wanted package.module:callable"),
        (":LeNet5", "wanted package.module:callable"),
        ("no_such_package.models:build", "cannot import no_such_package.models"),
        ("zskd_fast.models:LeNet7", "module zskd_fast.models has no 'LeNet7'"),
        ("zskd_fast.models:__all__", "wanted something to call, got a list"),
    ],
)
def test_callable_that_cannot_be_found(spec, sentence):
    with pytest.raises(InputError, match=sentence):
        load_callable(spec)


def test_callable_that_gives_no_module():
    with pytest.raises(InputError, match=r"builtins:dict: wanted .* torch.nn.Module, got a dict"):
        load_model("builtins:dict")


def test_callable_that_needs_arguments():
    with pytest.raises(InputError, match=r"torch.nn:Linear: cannot be called without arguments"):
        load_model("torch.nn:Linear")


def test_no_model_at_all(tmp_path):
    with pytest.raises(InputError, match=r"no model: wanted package.module:callable"):
        load_model(None, tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
def test_missing_file(tmp_path, name):
    with pytest.raises(InputError, match=f"{name}: no such file"):
        load_model(SPEC, tmp_path / name)


def test_missing_exported_program(tmp_path):
    with pytest.raises(InputError, match=r"w.pt2: no such file"):
        load_model(None, tmp_path / "w.pt2")


def test_unknown_suffix(tmp_path):
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"w.onnx: wanted a file ending in .safetensors, .pt, .pth or .pt2"):
        load_model(SPEC, tmp_path / "w.onnx")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("kept", [0, 5, 1000, -1000])
def test_truncated_file(tmp_path, model, name, kept):
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=rf"{name}: truncated, or not a"):
        load_model(SPEC, path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pt2"])
def test_a_file_of_something_else(tmp_path, name):
    (tmp_path / name).write_bytes(b"GIF89a" * 100)
    with pytest.raises(InputError, match=rf"{name}: truncated, or not a"):
        load_model(None if name.endswith("pt2") else SPEC, tmp_path / name)


def test_foreign_checkpoint_names_the_first_keys(tmp_path):
    save_file(nn.Sequential(nn.Linear(3, 4)).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError) as error:
        load_model(SPEC, tmp_path / "w.safetensors")
    sentence = str(error.value)
    assert "not the weights of zskd_fast.models:LeNet5" in sentence
    assert "missing features.0.weight, features.0.bias, features.3.weight and 7 more" in sentence
    assert "unexpected 0.bias, 0.weight" in sentence


def test_checkpoint_of_another_width_names_the_shapes(tmp_path):
    save_file(LeNet5Half().state_dict(), tmp_path / "w.safetensors")
    sentence = r"of another shape features.0.weight \(got \[3, 1, 5, 5\], wanted \[6, 1, 5, 5\]\)"
    with pytest.raises(InputError, match=sentence):
        load_model(SPEC, tmp_path / "w.safetensors")


class _Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["ZSKD_TEST_EVIL"],)


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))]
)
def test_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch, save):
    witness = tmp_path / "witness"
    monkeypatch.setenv("ZSKD_TEST_EVIL", str(witness))
    save({"weight": _Evil()}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w.pt: (holds more than weights.*state_dict|truncated, or not)"):
        load_model(SPEC, tmp_path / "w.pt")
    assert not witness.exists()


def test_pickled_whole_model_asks_for_the_state_dict(tmp_path, model):
    torch.save(model, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"holds more than weights.*save model.state_dict\(\) instead"):
        load_model(SPEC, tmp_path / "w.pt")


def test_a_bare_tensor_is_not_a_state_dict(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"wanted named tensors .*, got a Tensor"):
        load_state(tmp_path / "w.pt")


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_weights_that_are_not_finite_name_the_tensor(tmp_path, model, value, kind):
    model.features[3].bias.data[2] = value
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=rf"w.safetensors: the tensor features.3.bias holds {kind} values"):
        load_model(SPEC, tmp_path / "w.safetensors")


def test_exported_program_needs_no_callable(tmp_path):
    with pytest.raises(InputError, match="is the whole model; leave out"):
        load_model(SPEC, tmp_path / "teacher.pt2")
