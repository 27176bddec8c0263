"""`zskd-fast doctor` compares every op with its reference, and fails for one that is wrong."""

import pytest
import torch

from zskd_fast.cli import doctor
from zskd_fast.cli import main as cli

OPS = [
    "soft_cross_entropy",
    "distillation_loss",
    "dirichlet",
    "philox",
    "impression_update_",
    "total_variation_grad_",
    "max_pool",
    "dead_leaves",
    "augment",
]


def outcome(name: str) -> doctor.Check:
    return next(check for check in doctor.check_ops() if check.name == f"{name} on cpu")


def test_every_op_is_checked_and_passes():
    checks = {check.name: check for check in doctor.check_ops()}
    assert {f"{name} on cpu" for name in OPS} <= set(checks)
    assert all(check.passed for check in checks.values()), checks


@pytest.mark.parametrize("name", OPS)
def test_an_op_with_a_small_error_fails(monkeypatch, name):
    from zskd_fast import ops

    correct = getattr(ops, name)

    def broken(*args, **kwargs):
        result = correct(*args, **kwargs)
        if name.endswith("_"):  # it works in place
            return args[0].add_(1e-3)
        return result * 1.001 + 1e-3

    monkeypatch.setattr(ops, name, broken)
    assert not outcome(name).passed


def test_an_op_that_returns_nan_fails(monkeypatch):
    from zskd_fast import ops

    monkeypatch.setattr(ops, "dirichlet", lambda alpha, ids, *, seed: torch.full_like(alpha, torch.nan))
    assert not outcome("dirichlet").passed


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (RuntimeError("illegal instruction\nmore"), "RuntimeError: illegal instruction"),
        (NotImplementedError(), "NotImplementedError: "),
    ],
    ids=["with a message", "without"],
)
def test_an_op_that_raises_fails_with_its_reason(monkeypatch, error, detail):
    from zskd_fast import ops

    def broken(*args, **kwargs):
        raise error

    monkeypatch.setattr(ops, "philox", broken)
    check = outcome("philox")
    assert not check.passed and check.detail == detail


def test_the_command_prints_the_build_and_returns_0(capsys):
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert torch.__version__ in printed
    assert all(f"{name} on cpu" in printed for name in OPS)


def test_the_command_returns_1_for_a_failed_check(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "check_ops", lambda: [doctor.Check("an op", False, "largest error 1.0")])
    assert cli.main(["doctor"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_an_extension_that_cannot_be_loaded_is_a_failed_check_with_one_sentence(monkeypatch, capsys):
    def unloadable(name, package=None):
        raise ImportError("zskd_fast was built for torch 1, running torch 2; rebuild it")

    monkeypatch.setattr(doctor, "import_module", unloadable)
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr()
    assert "rebuild it" in printed.out and "Traceback" not in printed.err
