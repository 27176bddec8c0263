"""The environment of a run is fit for JSON, and threads and device are set or refused."""

import json

import pytest
import torch

from zskd_fast.errors import InputError
from zskd_fast.runtime.environment import cuda_facts, environment, set_up


def test_environment_is_fit_for_json():
    facts = environment("cpu")
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == torch.__version__


def test_set_up_sets_the_threads_and_returns_the_device():
    before = torch.get_num_threads()
    try:
        assert set_up(threads=before + 1, device="cpu") == torch.device("cpu")
        assert torch.get_num_threads() == before + 1
        set_up(threads=0, device="cpu")
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device", ["cuda:99", "warp"])
def test_a_device_that_cannot_be_used_is_refused(device):
    with pytest.raises(InputError, match=f"the device '{device}' cannot be used here"):
        set_up(threads=0, device=device)


def test_what_decides_the_bits_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    assert cuda_facts(torch.device("cuda", 1)) == {
        "device": "Some GPU",
        "cuda": "12.8",
        "cudnn": "91002",
        "tf32_convolutions": "on",
        "tf32_matrix_products": "off",
    }
    assert cuda_facts(torch.device("cpu")) == {}


@pytest.mark.parametrize(("rank", "visible", "number"), [(1, 8, 1), (1, 1, 0), (3, 2, 1)])
def test_each_process_of_a_machine_gets_a_visible_gpu(rank, visible, number, monkeypatch):
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": str(rank)}.items():
        monkeypatch.setenv(name, value)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    assert set_up(threads=0, device="cuda") == torch.device("cuda", number)
    assert chosen == [number]
