"""Checkpoints of every layout: which tensors are the model's weights, and the sentence if none or several are."""

import argparse
import logging

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_models import same_tensors
from torch import nn
from users_checkpoints import ResNet, prefixed, save_old, trained, without_counters

from zskd_fast.errors import InputError
from zskd_fast.models import LeNet5, LeNet5Half
from zskd_fast.models.checkpoint_files import load_state, save_weights
from zskd_fast.models.user_models import load_model

SPEC = "users_checkpoints:four_classes"
LENET = "zskd_fast.models:LeNet5"


@pytest.fixture
def model():
    return trained()


@pytest.fixture
def state(model):
    return model.state_dict()


def loaded(content, path, *, spec=SPEC, key=None, save=torch.save, **options):
    """Save content to a file and load it into a new model."""
    save(content, path)
    return load_model(spec, path, key, **options)


def checkpoint(**sets):
    """Sets of weights beside what training loops save with them."""
    return {"epoch": 3, "best_acc1": 91.25, "arch": "resnet20", "optimizer": {"state": {}, "param_groups": []}, **sets}


# ------------------------------------------------------------------------------- names of files do not matter


@pytest.mark.parametrize("save", [torch.save, save_old, save_file], ids=["zip", "legacy", "safetensors"])
@pytest.mark.parametrize(
    "name",
    [
        "w.th",
        "w.pth.tar",
        "w.tar",
        "w.ckpt",
        "w.bin",
        "w.pkl",
        "w.model",
        "w",
        "w.pt",
        "w.pth",
        "w.safetensors",
        "w.pt2",
    ],
)
def test_the_content_decides_and_not_the_name(tmp_path, model, state, name, save, caplog):
    assert same_tensors(loaded(state, tmp_path / name, save=save), model)
    assert caplog.messages == []


# ---------------------------------------------------------------------------------- where the weights stand


@pytest.mark.parametrize(
    "key", ["net", "weights", "ema", "state_dict", "state_dict_ema", "model_ema", "params", "model", "my own name"]
)
def test_the_one_set_that_fits_is_found_under_any_key(tmp_path, model, state, key, caplog):
    assert same_tensors(loaded(checkpoint(**{key: state}), tmp_path / "w.pth"), model)
    assert caplog.messages == [f"{tmp_path / 'w.pth'}: took the weights at {key}"]


def test_a_set_of_another_model_beside_it_is_not_taken(tmp_path, model, state):
    both = checkpoint(discriminator=LeNet5Half().state_dict(), generator={"net": state})
    assert same_tensors(loaded(both, tmp_path / "w.pth"), model)


def test_a_set_inside_lists_and_mappings_is_found(tmp_path, model, state, caplog):
    assert same_tensors(loaded({"folds": [{"net": {"params": state}}]}, tmp_path / "w.pth"), model)
    assert "took the weights at folds.0.net.params" in caplog.text


def test_a_mapping_that_holds_itself_ends(tmp_path, model, state):
    whole = checkpoint(net=state)
    whole["self"] = whole
    assert same_tensors(loaded(whole, tmp_path / "w.pth"), model)


def test_parts_of_the_model_in_mappings_of_their_own_are_put_together(tmp_path, model, state):
    parts = {
        part: {n.removeprefix(f"{part}."): v for n, v in state.items() if n.startswith(part)}
        for part in ("conv1", "bn1", "layer1", "linear")
    }
    assert same_tensors(loaded(parts, tmp_path / "w.pth"), model)


def test_the_resnet_of_2018_is_loaded(tmp_path, model, state):
    """Legacy format, DataParallel, no counters of BatchNorm, `best_prec1` beside them, and the suffix .th."""
    whole = {"state_dict": prefixed(without_counters(state), "module."), "best_prec1": 91.73}
    result = loaded(whole, tmp_path / "resnet20-12fca82f.th", save=save_old)
    assert same_tensors_but_counters(result, model)
    assert torch.equal(result.eval()(torch.ones(2, 1, 8, 8)), model(torch.ones(2, 1, 8, 8)))


def same_tensors_but_counters(left, right):
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all("num_batches" in name or torch.equal(value, other) for (name, value), (_, other) in pairs)


# ---------------------------------------------------------------------------------------------- several fit


def test_several_sets_that_differ_are_named_with_the_option_that_chooses(tmp_path, state):
    ema = trained(1).state_dict()
    with pytest.raises(InputError) as error:
        loaded(checkpoint(state_dict=state, state_dict_ema=ema), tmp_path / "w.pth")
    assert f"2 sets of weights fit {SPEC}, at state_dict, state_dict_ema" in str(error.value)
    assert str(error.value).endswith("choose one of them, such as --weights-key state_dict_ema")
    with pytest.raises(InputError, match=r"such as --student-weights-key state_dict_ema"):
        load_model(SPEC, tmp_path / "w.pth", role="student")


@pytest.mark.parametrize(("key", "seed"), [("state_dict", 0), ("ema.module", 1), ("ema", 1)])
def test_a_key_chooses_and_what_was_taken_is_said(tmp_path, key, seed, caplog):
    whole = checkpoint(state_dict=trained(0).state_dict(), ema={"module": trained(1).state_dict(), "decay": 0.999})
    assert same_tensors(loaded(whole, tmp_path / "w.pth", key=key), trained(seed))
    assert caplog.messages == [f"{tmp_path / 'w.pth'}: took the weights at {'ema.module' if seed else key}"]


@pytest.mark.parametrize("prefix", ["teacher", "module", "_orig_mod"])
def test_a_key_chooses_between_the_top_and_a_prefix_of_one_mapping(tmp_path, prefix):
    flat = {**trained(0).state_dict(), **prefixed(trained(1).state_dict(), f"{prefix}.")}
    with pytest.raises(InputError, match=rf"2 sets of weights fit .*, at \., {prefix}; "):
        loaded(flat, tmp_path / "w.pth")
    assert same_tensors(load_model(SPEC, tmp_path / "w.pth", "."), trained(0))
    assert same_tensors(load_model(SPEC, tmp_path / "w.pth", prefix), trained(1))


def test_sets_of_the_same_values_are_no_choice(tmp_path, model, state):
    copies = {name: value.clone() for name, value in state.items()}
    assert same_tensors(loaded({"net": state, "best": copies}, tmp_path / "w.pth"), model)


def test_a_key_that_the_file_does_not_have(tmp_path, state):
    with pytest.raises(InputError, match=r"w.pth: has no weights at 'emma'; it has some at net, ema"):
        loaded({"net": state, "ema": state}, tmp_path / "w.pth", key="emma")


def test_a_key_of_a_set_that_does_not_fit(tmp_path, state):
    whole = {"net": state, "other": LeNet5().state_dict()}
    with pytest.raises(InputError, match=r"not the weights of .*: missing conv1.weight.*unexpected other.features.0"):
        loaded(whole, tmp_path / "w.pth", key="other")


# ------------------------------------------------------------------------------------- prefixes and leftovers


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "backbone.",
        "net.",
        "student.",
        "module.model.",
        "model.module.",
        "_orig_mod.module.",
        "module._orig_mod.",
        "_fsdp_wrapped_module.",
        "teacher.backbone.net.",
    ],
)
@pytest.mark.parametrize("key", [None, "state_dict"])
def test_a_common_prefix_is_stripped(tmp_path, model, state, prefix, key, caplog):
    names = prefixed(state, prefix)
    assert same_tensors(loaded({key: names} if key else names, tmp_path / "w.pth"), model)
    place = prefix.removesuffix(".") if key is None else f"{key}.{prefix.removesuffix('.')}"
    assert f"took the weights at {place}" in caplog.text


def test_a_wrapper_in_the_middle_of_names_is_stripped(tmp_path, model, state):
    names = {name.replace("layer1.", "layer1.module."): value for name, value in state.items()}
    assert same_tensors(loaded(names, tmp_path / "w.pth"), model)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "net.", "state_dict.net."])
@pytest.mark.parametrize("wrapper", ["wrapped", "parallel"])
def test_a_wrapped_model_takes_bare_names_and_those_of_other_wrappers(tmp_path, model, state, prefix, wrapper):
    result = loaded(prefixed(state, prefix), tmp_path / "w.pth", spec=f"users_checkpoints:{wrapper}")
    inner = result.net if wrapper == "wrapped" else result.module
    assert same_tensors(inner, model)


def test_leftovers_are_listed_and_not_fatal(tmp_path, model, state, caplog):
    lightning = {
        "epoch": 9,
        "state_dict": {**prefixed(state, "model."), "loss_fn.weight": torch.ones(4), "loss_fn.centers": torch.ones(2)},
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {"EarlyStopping": {"wait_count": 0}},
    }
    assert same_tensors(loaded(lightning, tmp_path / "w.ckpt"), model)
    assert caplog.messages == [
        f"{tmp_path / 'w.ckpt'}: took the weights at state_dict.model; left out what the model has no name for: "
        "state_dict.loss_fn.weight, state_dict.loss_fn.centers"
    ]


def test_the_counter_of_an_averaged_model_is_left_out(tmp_path, model, state, caplog):
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert same_tensors(loaded(averaged.state_dict(), tmp_path / "w.pth"), model)
    assert caplog.messages[0].endswith(
        "took the weights at module; left out what the model has no name for: n_averaged"
    )


def test_what_is_left_out_is_on_stderr_even_if_logging_is_not_configured(tmp_path, state, capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    loaded({**state, "n_averaged": torch.tensor(5)}, tmp_path / "w.pth")
    assert capsys.readouterr().err == f"{tmp_path / 'w.pth'}: left out what the model has no name for: n_averaged\n"


def test_a_name_of_the_model_that_is_missing_is_fatal(tmp_path, state):
    short = {name: value for name, value in state.items() if not name.startswith("linear")}
    with pytest.raises(InputError, match=r"w.pth: not the weights of .*: missing linear.weight, linear.bias$"):
        loaded(prefixed(short, "module."), tmp_path / "w.pth")


# -------------------------------------------------------------------------------------------- older torch


def test_batch_norm_without_counters_is_accepted(tmp_path, model, state):
    result = loaded(without_counters(state), tmp_path / "w.pth")
    assert same_tensors_but_counters(result, model)
    assert result.bn1.num_batches_tracked == 0


def test_batch_norm_without_its_statistics_is_refused(tmp_path, state):
    fewer = {name: value for name, value in state.items() if "running_var" not in name}
    with pytest.raises(InputError, match=r"missing bn1.running_var, layer1.1.running_var$"):
        loaded(fewer, tmp_path / "w.pth")


@pytest.mark.parametrize("save", [torch.save, save_old], ids=["zip", "legacy"])
def test_numpy_and_argparse_beside_the_weights_are_not_made(tmp_path, model, state, save, caplog, monkeypatch):
    beside = {"acc": np.float64(0.5), "mean": np.zeros(3), "path": tmp_path, "args": argparse.Namespace(lr=0.1)}
    save(checkpoint(model=state, **beside), tmp_path / "w.pth")
    monkeypatch.setattr(argparse, "Namespace", None)
    monkeypatch.setattr(np, "dtype", None)
    assert same_tensors(load_model(SPEC, tmp_path / "w.pth"), model)
    (note,) = caplog.messages
    assert "; not read: argparse.Namespace, numpy." in note and "pathlib" in note


def test_what_was_not_read_is_named_if_nothing_fits(tmp_path, state):
    arrays = {name: value.numpy() for name, value in state.items()}
    with pytest.raises(InputError, match=r"not the weights of .*; not read: numpy.*\._reconstruct"):
        loaded({"net": arrays, "step": torch.tensor(1)}, tmp_path / "w.pth")


# ------------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize(
    ("callable_name", "remedy"),
    [
        ("resnet", "name a function that returns resnet(num_classes=100)"),
        ("four_classes", "let four_classes build 100, often by an argument such as num_classes=100"),
    ],
)
def test_weights_of_other_classes_name_both_and_the_argument(tmp_path, callable_name, remedy):
    spec, state = f"users_checkpoints:{callable_name}", trained(num_classes=100).state_dict()
    with pytest.raises(InputError) as error:
        loaded({"state_dict": prefixed(state, "module.")}, tmp_path / "w.pth", spec=spec)
    assert f"the weights are of 100 classes, but {spec} builds 4 (of another shape linear.weight" in str(error.value)
    assert "linear.bias (got [100], wanted [4])" in str(error.value) and str(error.value).endswith(remedy)


def test_weights_of_another_model_name_the_first_keys(tmp_path):
    with pytest.raises(InputError) as error:
        loaded(
            {"head": torch.zeros(3), "0.scale": torch.zeros(4)}, tmp_path / "w.safetensors", spec=LENET, save=save_file
        )
    sentence = str(error.value)
    assert "not the weights of zskd_fast.models:LeNet5" in sentence
    assert "missing features.0.weight, features.0.bias, features.3.weight and 7 more" in sentence
    assert "unexpected 0.scale, head" in sentence


def test_weights_of_another_width_name_the_shapes(tmp_path):
    sentence = r"of another shape features.0.weight \(got \[3, 1, 5, 5\], wanted \[6, 1, 5, 5\]\)"
    with pytest.raises(InputError, match=sentence):
        loaded(LeNet5Half().state_dict(), tmp_path / "w.safetensors", spec=LENET, save=save_file)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_quantized_weights_are_not_taken_for_their_values(tmp_path, state, dtype):
    state["linear.weight"] = state["linear.weight"].to(dtype)
    with pytest.raises(InputError, match=rf"linear.weight \(got {dtype}, wanted torch.float32\)"):
        loaded(state, tmp_path / "w.pth")


def test_half_precision_is_taken(tmp_path, state):
    result = loaded({name: value.half() for name, value in state.items()}, tmp_path / "w.pth")
    assert torch.equal(result.linear.weight, state["linear.weight"].half().float())


def test_a_lazy_layer_takes_its_shape_from_the_file(tmp_path, monkeypatch):
    (tmp_path / "lazy_module.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.LazyLinear(3))"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    model = nn.Sequential(nn.Linear(5, 3))
    result = loaded(model.state_dict(), tmp_path / "w.pth", spec="lazy_module:build")
    assert torch.equal(result(torch.ones(2, 5)), model(torch.ones(2, 5)))


def test_a_model_whose_weights_are_no_tensors_keeps_no_random_ones(tmp_path, monkeypatch, state):
    (tmp_path / "packed_module.py").write_text(
        "from users_checkpoints import ResNet\n"
        "class Packed(ResNet):\n"
        "    def get_extra_state(self): return {'packed': 1}\n"
        "    def set_extra_state(self, state): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=r"whose state _extra_state is no tensor; let the callable load its weights"):
        loaded(state, tmp_path / "w.pth", spec="packed_module:Packed")


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinite")])
def test_weights_that_are_not_finite_name_the_tensor(tmp_path, state, value, kind):
    state["linear.bias"][2] = value
    with pytest.raises(InputError, match=rf"w.pth: the tensor linear.bias holds {kind} values"):
        loaded(state, tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(3), "got a Tensor"),
        ({"epoch": 3}, "got a dict with epoch"),
        ({}, "got a dict"),
        ([1, 2], "got a list"),
        ({"history": {"loss": [1.0]}}, "got a dict with history"),
    ],
    ids=str,
)
def test_content_without_named_tensors(tmp_path, content, words):
    with pytest.raises(InputError, match=rf"w.pt: wanted named tensors \(a state_dict\), {words}$"):
        loaded(content, tmp_path / "w.pt")


# --------------------------------------------------------------------------------- own files, read and written


def test_saved_weights_and_their_metadata_are_read_back(tmp_path):
    model = LeNet5()
    save_weights(model, tmp_path / "w.safetensors", {"seed": "0"})
    assert same_tensors(load_model(LENET, tmp_path / "w.safetensors"), model)
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert file.metadata() == {"seed": "0"}
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_tied_weights_are_saved(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_weights(model, tmp_path / "w.safetensors", {})
    state = load_state(tmp_path / "w.safetensors")
    assert torch.equal(state["0.weight"], state["1.weight"])


@pytest.mark.parametrize("content", [{}, {"epoch": 3, "weight": torch.zeros(2)}, {"net": {"weight": torch.zeros(2)}}])
def test_load_state_takes_named_tensors_and_nothing_else(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"wanted named tensors \(a state_dict\), got a dict"):
        load_state(tmp_path / "w.pt")


def test_the_model_of_these_tests_is_changed_by_loading():
    assert not same_tensors(ResNet(), trained())
