"""Models of the kinds that people have, on the command line."""

import pytest
import torch
from command_line import (
    DISTILLATION,
    INPUT,
    MODELS,
    RECIPE,
    STUDENT,
    SYNTHESIS,
    contents,
    main,
    workplace,  # noqa: F401 (a fixture for every test here)
)
from safetensors.torch import load_file

ODD = """
import torch
from torch import nn
from users_models import student, teacher

class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = teacher()
    def forward(self, batch):
        return self.body(batch["pixels"])

class Small(Keyword):
    def __init__(self):
        super().__init__()
        self.body = student()

def call(model, x):
    return model({"pixels": x})

def softmax():
    return nn.Sequential(*teacher(), nn.Softmax(1))

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(4))

def quantized():
    return torch.ao.quantization.quantize_dynamic(teacher(), {nn.Linear})
"""
SIZES = [*INPUT, *SYNTHESIS, *DISTILLATION]


@pytest.fixture
def odd(tmp_path):
    (tmp_path / "odd_users_models.py").write_text(ODD)


def test_forward_fn_of_teacher_and_student(odd, tmp_path, capsys):
    functions = ["--forward-fn", "odd_users_models:call", "--student-forward-fn", "odd_users_models:call"]
    teacher = ["--teacher", "odd_users_models:Keyword", "--student", "odd_users_models:Small"]
    torch.manual_seed(0)
    import odd_users_models

    torch.save(odd_users_models.Keyword().state_dict(), "keyword.pt")
    words = [*teacher, *functions, "--weights", "keyword.pt"]
    assert main("run", *RECIPE, *words, *SIZES, "--out", "keyword") == 0
    assert main("run", *RECIPE, *MODELS, *STUDENT, *SIZES, "--out", "plain") == 0
    for shard in ("shard-000000", "shard-000001"):
        keyword, plain = (load_file(f"{run}/impressions/{shard}.safetensors") for run in ("keyword", "plain"))
        assert keyword.keys() == plain.keys() and all(torch.equal(keyword[name], plain[name]) for name in plain)
    distill = ["distill", *RECIPE, *words, *DISTILLATION, "--impressions", "keyword/impressions", "--out", "again"]
    assert main(*distill) == 0
    assert main("verify", "keyword/impressions", *words[:2], "--weights", "keyword.pt", *functions[:2]) == 0
    capsys.readouterr()
    assert main("run", *RECIPE, *teacher, *SIZES, "--out", "none") == 2
    assert "give forward_fn (--forward-fn package.module:callable)" in capsys.readouterr().err


def test_what_was_done_with_probabilities_is_printed(odd, capsys):
    words = ["--teacher", "odd_users_models:softmax", "--weights", "teacher.safetensors", *STUDENT]
    assert main("run", *RECIPE, *words, *SIZES, "--out", "out") == 0
    assert "teacher       returns probabilities, rows that sum to 1" in capsys.readouterr().out


def test_the_seed_decides_the_weights_of_a_lazy_student(odd, tmp_path):
    words = [*MODELS, "--student", "odd_users_models:lazy", *SIZES]
    for out, state in (("one", 1), ("two", 2)):
        torch.manual_seed(state)
        assert main("run", *RECIPE, *words, "--out", out) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert main("run", *RECIPE, *words, "--seed", "1", "--out", "three") == 0


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_teacher_is_named(odd, capsys):
    assert main("run", *RECIPE, "--teacher", "odd_users_models:quantized", *STUDENT, *SIZES, "--out", "out") == 2
    assert "module '1' (Linear, quantized) passes no gradient" in capsys.readouterr().err
