"""A folder as a user of the command line has it, and the command line called in process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from zskd_fast.cli import main as cli

# A module as a user would have it in the current folder.
USERS_MODELS = """
import torch
from torch import nn

def teacher():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))

def student():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

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
RECIPE = ["--recipe", "demo-mnist"]
RUN = ["run", *RECIPE, *MODELS, *STUDENT, *INPUT, *SYNTHESIS, *DISTILLATION]
DEMO = ["demo", *SYNTHESIS, *DISTILLATION]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A folder with the user's module and weights; it is the current folder."""
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
    return cli.main([str(word) for word in argv])


def python(*argv: str) -> str:
    """Runs another Python where zskd_fast can be imported, and returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run(
        [sys.executable, *argv], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return run.stdout


def record(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


def contents(folder) -> dict[str, bytes]:
    """Every file below a folder that the seed decides: the store and the student."""
    files = [*folder.rglob("*.safetensors"), *folder.rglob("manifest.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
