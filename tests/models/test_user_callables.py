"""A user's callable: what it may return, and what of its errors is said."""

import re
import sys

import pytest
from small_models import same_tensors
from torch import nn

from zskd_fast.errors import InputError
from zskd_fast.models.user_models import build_model, load_callable

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
