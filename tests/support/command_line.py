"""A folder with a user's models and weights, and calls of the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from zskd_fast.cli import main as cli

# The module of a user, in the current folder.
USERS_MODELS = """
import torch
from torch import nn

def teacher():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))

def student():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 4))

def one_class():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))

def three_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

class Tuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = teacher()
    def forward(self, x):
        return self.body(x), x

def first(output):
    return output[0]

class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(64, 4), nn.Linear(64, 4)
    def forward(self, x):
        return self.left(x.flatten(1)) + self.right(x.flatten(1))

def nan():
    model = teacher()
    model[3].bias.data[0] = float("nan")
    return model
"""

PACKAGE = Path(cli.__file__).parents[1]
INPUT = ["--input.shape", "1", "8", "8"]
SYNTHESIS = ["--synthesis.impressions", "16", "--synthesis.steps", "3", "--synthesis.shard-size", "8"]
DISTILLATION = ["--distillation.steps", "4", "--distillation.batch-size", "8"]
MODELS = ["--teacher", "users_models:teacher", "--weights", "teacher.safetensors"]
STUDENT = ["--student", "users_models:student"]
RECIPE = ["--recipe", "demo"]
RUN = ["run", *RECIPE, *MODELS, *STUDENT, *INPUT, *SYNTHESIS, *DISTILLATION]
DEMO = ["demo", *SYNTHESIS, *DISTILLATION]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder of a test, with a user's module and weights."""
    (tmp_path / "users_models.py").write_text(USERS_MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "users_models", raising=False)
    import users_models

    torch.manual_seed(0)
    save_file(users_models.teacher().state_dict(), tmp_path / "teacher.safetensors")
    yield tmp_path
    sys.modules.pop("users_models", None)


def main(*argv: object) -> int:
    """Call the command line in this process and return its exit code."""
    return cli.main([str(word) for word in argv])


def python(*argv: str) -> str:
    """Run another Python that can import zskd_fast, and return its output."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run([sys.executable, *argv], check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return run.stdout


def record(folder: Path) -> dict[str, Any]:
    """Return the record of a run."""
    return json.loads((folder / "run.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder that the seed decides: those of the store, and the student."""
    files = [*folder.rglob("shard-*"), *folder.rglob("student.safetensors"), *folder.rglob("manifest.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
