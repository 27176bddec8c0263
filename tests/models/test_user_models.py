"""Models that a user names: what is built and loaded, what a seed decides, and the sentence for a wrong name."""

import re
import sys
import warnings
import zipfile

import pytest
import torch
from small_models import same_tensors
from torch import nn
from users_checkpoints import save_exported, trained

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models import LeNet5, LeNet5Half
from zskd_fast.models.checkpoint_files import save_weights
from zskd_fast.models.classifier import Classifier
from zskd_fast.models.user_models import ASSETS, ModelSource, build_model, load_callable, load_classifier, load_model

SPEC = "zskd_fast.models:LeNet5"
STUDENT = ModelSource(model="zskd_fast.models:LeNet5Half")
INPUT = InputSpec((1, 32, 32))
PAIR_MODULE = """
from zskd_fast.models import LeNet5

class Pair(LeNet5):
    def forward(self, x):
        return x, super().forward(x)

def second(output):
    return output[1]

def third(output):
    return output[2]
"""


@pytest.fixture
def pair_module(tmp_path, monkeypatch):
    """A module `pair_module` in the current folder: a model that returns a pair, and functions that pick from it."""
    (tmp_path / "pair_module.py").write_text(PAIR_MODULE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("pair_module", None)


# ----------------------------------------------------------------------------- load_model, load_callable


def test_without_a_file_the_weights_of_the_callable_stay():
    assert isinstance(load_model(SPEC), LeNet5)


@pytest.mark.parametrize("name", ["teacher.pt2", "teacher.pt", "teacher"])
def test_an_exported_program_is_a_whole_model_with_train_and_eval(tmp_path, name):
    model = trained()
    save_exported(model, tmp_path / "saved.pt2")
    (tmp_path / "saved.pt2").rename(tmp_path / name)
    loaded = load_model(None, tmp_path / name).train().eval()
    require_same_model(loaded, model)


@pytest.mark.parametrize("name", ["teacher.pt", "teacher.pth", "teacher.torchscript", "teacher"])
@pytest.mark.parametrize("to_script", [torch.jit.script, lambda m: torch.jit.trace(m, torch.rand(2, 1, 8, 8))])
def test_a_torchscript_program_is_a_whole_model(tmp_path, name, to_script):
    model = trained()
    torch.jit.save(to_script(model), tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_model(None, tmp_path / name)
    require_same_model(loaded, model)
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in model.named_parameters()]


def require_same_model(loaded, model):
    x = torch.rand(5, 1, 8, 8, requires_grad=True)
    torch.testing.assert_close(loaded(x), model(x))
    (gradient,) = torch.autograd.grad(loaded(x).sum(), x)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("save", [lambda m, path: torch.jit.save(torch.jit.script(m), path), save_exported])
def test_a_program_with_a_callable(tmp_path, save):
    save(trained(), tmp_path / "teacher.pt2")
    sentence = r"a (TorchScript|torch.export) program is the whole model; leave out zskd_fast\.models:LeNet5"
    with pytest.raises(InputError, match=sentence):
        load_model(SPEC, tmp_path / "teacher.pt2")


@pytest.mark.parametrize("save", [lambda m, path: torch.jit.save(torch.jit.script(m), path), save_exported])
def test_a_damaged_program(tmp_path, save):
    save(trained(), tmp_path / "whole.pt2")
    with zipfile.ZipFile(tmp_path / "whole.pt2") as whole, zipfile.ZipFile(tmp_path / "t.pt", "w") as damaged:
        for name in whole.namelist():
            damaged.writestr(name, whole.read(name)[: None if name.endswith(("constants.pkl", "version")) else 20])
    with pytest.raises(
        InputError, match=r"t.pt: truncated, or not a (TorchScript|torch.export) program that this torch"
    ):
        load_model(None, tmp_path / "t.pt")


def test_a_program_whose_weights_are_not_finite(tmp_path):
    model = trained()
    model.linear.bias.data[1] = float("nan")
    torch.jit.save(torch.jit.script(model), tmp_path / "t.pt")
    with pytest.raises(InputError, match=r"t.pt: the tensor linear.bias holds NaN values"):
        load_model(None, tmp_path / "t.pt")


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_teacher_module.py").write_text("from zskd_fast.models import LeNet5Half as build\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert isinstance(load_model("my_teacher_module:build"), LeNet5Half)
    assert sys.path == before


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
def test_a_callable_that_cannot_be_found(spec, sentence):
    with pytest.raises(InputError, match=sentence):
        load_callable(spec)


@pytest.mark.parametrize("spec", ["teacher.py:build", "./models/teacher.py:build", "models/teacher:build"])
def test_a_file_in_place_of_a_module(spec):
    with pytest.raises(InputError, match=r"wanted the name of a module and not of a file, such as (models\.)?teacher:"):
        load_callable(spec)


def test_weights_without_a_callable(tmp_path):
    torch.save(trained().state_dict(), tmp_path / "w.pt")
    sentence = r"no model: wanted package.module:callable, or a TorchScript .*; got .*w.pt, which holds weights alone"
    with pytest.raises(InputError, match=sentence):
        load_model(None, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"no model: wanted package.module:callable.*; got no weights"):
        load_model(None)


def test_a_missing_file(tmp_path):
    for spec in (None, SPEC):
        with pytest.raises(InputError, match=r"w.pt2: no such file"):
            load_model(spec, tmp_path / "w.pt2")


# --------------------------------------------------------------------------------- what a callable may return

USERS_MODULE = """
import sys
from torch import nn

class Transform(nn.Module):
    pass

def linear(out=2):
    return nn.Linear(3, out)

def pair():
    return linear(), "transform"

def three():
    return linear(), Transform(), Transform()

def two_models():
    return linear(), linear()

def nothing():
    return None

def strings():
    return "model", "transform"

ready = linear()

def raises():
    raise ValueError("set DATA_DIR\\nto a folder")

def raises_in_torch():
    return nn.Linear(-1, 2)

def raises_type_error():
    return linear(2, 3)

def raises_key_error():
    return {}["model"]

def no_message():
    assert False

def ends():
    sys.exit("set DATA_DIR")

def ends_with_code():
    sys.exit(3)

def opens():
    return open("weights/none.pth")

def needs(width, depth=1):
    return linear()

def interrupted():
    raise KeyboardInterrupt
"""


def line_of(words):
    """The line of the module above that holds the words."""
    return 1 + next(i for i, line in enumerate(USERS_MODULE.splitlines()) if words in line)


@pytest.fixture
def users_module(tmp_path, monkeypatch):
    """A module `users_module` in the current folder."""
    (tmp_path / "users_module.py").write_text(USERS_MODULE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("users_module", None)


@pytest.mark.parametrize(
    ("name", "returned"), [("pair", "a tuple of Linear, str"), ("three", "a tuple of Linear, Transform, Transform")]
)
def test_the_model_of_a_tuple_is_taken_and_said(users_module, caplog, name, returned):
    assert isinstance(build_model(f"users_module:{name}"), nn.Linear)
    assert caplog.messages == [f"users_module:{name}: returns {returned}; took the Linear"]


def test_a_model_that_exists_needs_no_call_and_is_not_changed(users_module):
    built = build_model("users_module:ready")
    ready = sys.modules["users_module"].ready
    assert same_tensors(built, ready)
    built.bias.data.fill_(7.0)
    assert not same_tensors(built, ready)


@pytest.mark.parametrize(
    ("spec", "returned"),
    [
        ("users_module:two_models", "a tuple of Linear, Linear"),
        ("users_module:strings", "a tuple of str, str"),
        ("users_module:nothing", "a NoneType"),
        ("builtins:dict", "a dict"),
        ("builtins:list", "a list of nothing"),
    ],
)
def test_a_callable_that_returns_no_single_model(users_module, spec, returned):
    with pytest.raises(InputError, match=rf"{spec}: wanted .* returns one torch.nn.Module, got {returned}$"):
        build_model(spec)


@pytest.mark.parametrize(
    ("spec", "argument"), [("torch.nn:Linear", "'in_features'"), ("users_module:needs", "'width'")]
)
def test_a_callable_that_needs_arguments(users_module, spec, argument):
    sentence = (
        rf"{spec}: cannot be called without arguments \(missing a required argument: {argument}\); write a function"
    )
    with pytest.raises(InputError, match=sentence):
        build_model(spec)


# ------------------------------------------------------------------------------------ what a user's code raises


@pytest.mark.parametrize(
    ("name", "message", "words"),
    [
        ("raises", "ValueError: set DATA_DIR to a folder", "raise ValueError"),
        ("raises_in_torch", "RuntimeError: Trying to create tensor with negative dimension -1: .*", "Linear(-1"),
        (
            "raises_type_error",
            "TypeError: linear() takes from 0 to 1 positional arguments but 2 were given",
            "linear(2, 3)",
        ),
        ("raises_key_error", "KeyError: 'model'", '{}["model"]'),
        ("no_message", "AssertionError", "assert False"),
        ("ends", "it ends the program with: set DATA_DIR", 'set DATA_DIR")'),
        ("ends_with_code", "it ends the program with code 3", "sys.exit(3)"),
        ("opens", "FileNotFoundError: [Errno 2] No such file or directory: 'weights/none.pth'", "open("),
    ],
)
def test_an_error_in_a_callable_keeps_its_message_file_and_line(users_module, name, message, words):
    with pytest.raises(InputError) as error:
        build_model(f"users_module:{name}")
    pattern = message if message.endswith(".*") else re.escape(message)
    where = re.escape(f"(users_module.py:{line_of(words)})")
    assert re.fullmatch(rf"users_module:{name}: {pattern} {where}", str(error.value))


def test_ctrl_c_in_a_callable_is_no_mistake_of_the_user(users_module):
    with pytest.raises(KeyboardInterrupt):
        build_model("users_module:interrupted")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\ndef teacher(:\n    pass\n", r"SyntaxError: invalid syntax \(broken.py:2\)"),
        ("def teacher():\n  x = 1\n    y = 2\n", r"IndentationError: unexpected indent \(broken.py:3\)"),
        ("import not_installed_here\n", r"ModuleNotFoundError: No module named 'not_installed_here' \(broken.py:1\)"),
        ("from torch import no_such_name\n", r"ImportError: cannot import name 'no_such_name' .* \(broken.py:1\)"),
        ("import os\n\nos.environ['NO_DATA_DIR']\n", r"KeyError: 'NO_DATA_DIR' \(broken.py:3\)"),
        ("import sys\nsys.exit('usage: train.py')\n", r"it ends the program with: usage: train.py \(broken.py:2\)"),
        (
            "import argparse\nargparse.ArgumentParser().parse_args(['-x'])\n",
            r"ends the program with code 2 \(broken.py:2\)",
        ),
        ("import helper_with_error\n", r"ZeroDivisionError: division by zero \(helper_with_error.py:2\)"),
    ],
)
def test_an_error_in_the_file_of_a_callable_keeps_its_message_file_and_line(tmp_path, monkeypatch, code, message):
    (tmp_path / "broken.py").write_text(code)
    (tmp_path / "helper_with_error.py").write_text("\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"^broken:teacher: cannot import broken: .*{message}$"):
        load_callable("broken:teacher")


# ------------------------------------------------------------------------------------------------ the note


def test_a_teacher_without_a_file_of_weights_has_a_note():
    assert ModelSource(model=SPEC).note == (
        f"no file of weights was given: a teacher with random weights, unless {SPEC} loads its own"
    )
    assert ModelSource(model=SPEC, weights=ASSETS / "lenet5-mnist.safetensors").note is None
    assert ModelSource(weights=ASSETS / "teacher.pt2").note is None


# ----------------------------------------------------------------------------------------- load_classifier


def test_a_teacher_is_loaded_probed_and_named(tmp_path):
    source = ModelSource(model=SPEC, weights=ASSETS / "lenet5-mnist.safetensors")
    teacher = load_classifier(source, INPUT)
    assert isinstance(teacher, Classifier)
    assert (teacher.name, teacher.role, teacher.num_classes) == ("LeNet5", "teacher", 10)
    assert same_tensors(teacher.model, load_model(source.model, source.weights))


def test_the_name_of_a_whole_model_is_that_of_its_file():
    assert ModelSource(weights=ASSETS / "teacher.pt2").name == "teacher.pt2"


def test_the_seed_decides_the_initial_weights_of_a_student():
    torch.manual_seed(5)
    first = load_classifier(STUDENT, INPUT, role="student", seed=1)
    torch.manual_seed(6)
    again, other = (load_classifier(STUDENT, INPUT, role="student", seed=seed) for seed in (1, 2))
    assert first.role == "student"
    assert same_tensors(first.model, again.model)
    assert first.identity == again.identity != other.identity
    torch.manual_seed(1)
    assert same_tensors(first.model, LeNet5Half())


def test_a_seed_leaves_torchs_random_state_as_it_was():
    before = torch.random.get_rng_state()
    load_classifier(STUDENT, INPUT, role="student", seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(InputError):
        load_classifier(ModelSource(model="torch.nn:Linear"), INPUT, role="student", seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_from_a_file_do_not_depend_on_the_seed(tmp_path):
    model = LeNet5Half()
    save_weights(model, tmp_path / "start.safetensors", {})
    source = ModelSource(model=STUDENT.model, weights=tmp_path / "start.safetensors")
    for seed in (1, 2):
        assert same_tensors(load_classifier(source, INPUT, role="student", seed=seed).model, model)


def test_the_key_of_a_source_chooses_its_weights(tmp_path):
    torch.save({"a": trained(0).state_dict(), "b": trained(1).state_dict()}, tmp_path / "w.pt")
    source = ModelSource(model="users_checkpoints:four_classes", weights=tmp_path / "w.pt", weights_key="b")
    assert same_tensors(load_classifier(source, InputSpec((1, 8, 8))).model, trained(1))


def test_a_torchscript_teacher_is_probed(tmp_path):
    torch.jit.save(torch.jit.script(trained()), tmp_path / "t.pt")
    teacher = load_classifier(ModelSource(weights=tmp_path / "t.pt"), InputSpec((1, 8, 8)))
    x = torch.rand(3, 1, 8, 8)
    assert (teacher.name, teacher.num_classes) == ("t.pt", 4)
    torch.testing.assert_close(teacher.logits(x), trained()(x))


def test_a_named_logits_fn_is_loaded_and_used(pair_module):
    source = ModelSource(model="pair_module:Pair", logits_fn="pair_module:second")
    classifier = load_classifier(source, INPUT)
    x = torch.rand(3, 1, 32, 32)
    assert torch.equal(classifier.logits(x), classifier.model(x)[1])
    assert classifier.num_classes == 10


@pytest.mark.parametrize(
    ("logits_fn", "sentence"),
    [
        (None, "the teacher returns a tuple, wanted one tensor of logits .* give logits_fn"),
        ("pair_module:fourth", "module pair_module has no 'fourth'"),
        ("pair_module:third", "the teacher's logits_fn fails on the model's output, a tuple: tuple index out of range"),
    ],
)
def test_a_logits_fn_that_cannot_be_used(pair_module, logits_fn, sentence):
    with pytest.raises(InputError, match=sentence):
        load_classifier(ModelSource(model="pair_module:Pair", logits_fn=logits_fn), INPUT)


def test_a_model_that_does_not_fit_the_input_is_refused_with_its_role():
    with pytest.raises(InputError, match=r"the student rejects a batch of 3 inputs of shape \[3, 32, 32\]"):
        load_classifier(STUDENT, InputSpec((3, 32, 32)), role="student")
