"""Models that a user names: what is built and loaded, what a seed decides, and the sentence for a wrong name."""

import sys
import warnings
import zipfile

import pytest
import torch
from small_models import same_tensors
from users_checkpoints import save_exported, trained

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models import LeNet5, LeNet5Half
from zskd_fast.models.checkpoint_files import save_weights
from zskd_fast.models.classifier import Classifier
from zskd_fast.models.user_models import ASSETS, ModelSource, load_callable, load_classifier, load_model

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
    sentence = r"no teacher: give --teacher package.module:callable, or .* as --weights; .*w.pt holds weights alone"
    with pytest.raises(InputError, match=sentence):
        load_model(None, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"no teacher: give --teacher package.module:callable.* as --weights$"):
        load_model(None)


def test_a_missing_file(tmp_path):
    for spec in (None, SPEC):
        with pytest.raises(InputError, match=r"w.pt2: no such file"):
            load_model(spec, tmp_path / "w.pt2")


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
