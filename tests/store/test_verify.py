"""`zskd-fast verify` names what is wrong with a store, and the next synthesis repairs only that."""

import json

import pytest
import torch
from command_line import (
    DISTILLATION,
    INPUT,
    MODELS,
    RECIPE,
    RUN,
    STUDENT,
    SYNTHESIS,
    contents,
    main,
    workplace,  # noqa: F401 (a fixture for every test here)
)
from safetensors.torch import save_file
from small_models import IMAGE, image_classifier, open_store, rough_forward, synthesis_recipe

from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.runtime.files import sha256
from zskd_fast.store import manifest
from zskd_fast.store.manifest import shard_name
from zskd_fast.store.store import Store
from zskd_fast.store.verify import shard_faults, teacher_faults
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

SYNTHESIZE = ["synthesize", *RECIPE, *MODELS, *INPUT, *SYNTHESIS, "--out", "store"]


@pytest.fixture
def store(tmp_path):
    synthesizer = Synthesizer(image_classifier(), IMAGE, synthesis_recipe(), seed=1)
    made = open_store(tmp_path / "a", synthesizer)
    synthesize(synthesizer, made, progress=False)
    return made


def _change_logits(store, shard, change):
    """Write a shard with other logits, whose hash is in the manifest: made wrong, not damaged later."""
    impressions = store.read_shard(shard)
    impressions.teacher_logits.add_(change)
    store.write_shard(shard, impressions)


def test_an_intact_store_has_no_faults(store):
    assert list(shard_faults(store)) == []
    assert list(teacher_faults(store, Classifier(image_classifier(), IMAGE))) == []


def test_the_logits_of_a_store_are_made_and_compared_without_tf32(tmp_path):
    teacher = Classifier(image_classifier(), IMAGE, forward_fn=rough_forward())
    synthesizer = Synthesizer(teacher, IMAGE, synthesis_recipe(), seed=1)
    made = open_store(tmp_path / "b", synthesizer)
    synthesize(synthesizer, made, progress=False)
    assert list(teacher_faults(made, teacher)) == []


def test_a_missing_and_a_changed_shard_are_named(store):
    (store.folder / shard_name(0)).unlink()
    path = store.folder / shard_name(2)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert list(shard_faults(store)) == [
        "shard-000000.safetensors is missing or cut short",
        "shard-000002.safetensors is not the file that was written (its SHA-256 differs)",
    ]


@pytest.mark.parametrize("change", [0.1, float("nan")])
def test_logits_that_the_teacher_does_not_give_are_named(store, change):
    _change_logits(store, 1, change)
    assert list(shard_faults(store)) == []
    (fault,) = teacher_faults(store, Classifier(image_classifier(), IMAGE))
    assert "shard-000001.safetensors holds other logits" in fault


def test_another_teacher_is_refused(store):
    with pytest.raises(InputError, match="impressions of another teacher"):
        list(teacher_faults(store, Classifier(image_classifier(seed=9), IMAGE)))


def test_verify_finds_a_changed_bit_and_synthesize_repairs_it(tmp_path, capsys):
    assert main(*SYNTHESIZE) == 0
    before = contents(tmp_path / "store")
    assert main("verify", "store", *MODELS) == 0
    assert "faults        0; logits compared with the teacher's" in capsys.readouterr().out
    path = tmp_path / "store" / shard_name(1)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert main("verify", "store") == 1
    printed = capsys.readouterr()
    assert "shard-000001.safetensors is not the file that was written" in printed.err
    assert "faults        1; no teacher given to compare logits" in printed.out
    assert main(*SYNTHESIZE) == 0
    assert "8 made" in capsys.readouterr().out
    assert contents(tmp_path / "store") == before
    assert main("verify", "store") == 0


def test_a_store_of_16_bits_is_made_verified_and_distilled(capsys):
    assert main(*SYNTHESIZE, "--synthesis.store-dtype", "bfloat16") == 0
    assert Store.open("store").x_dtype == torch.bfloat16
    assert main("verify", "store", *MODELS) == 0
    assert "faults        0; logits compared with the teacher's" in capsys.readouterr().out
    distill = ["distill", *RECIPE, *MODELS, *STUDENT, *DISTILLATION, "--impressions", "store"]
    assert main(*distill, "--out", "run") == 0
    assert "student" in capsys.readouterr().out


def test_verify_of_a_damaged_manifest_and_of_another_teacher(tmp_path, capsys):
    import users_models

    assert main(*SYNTHESIZE) == 0
    torch.manual_seed(9)
    save_file(users_models.teacher().state_dict(), "teacher.safetensors")
    assert main("verify", "store", *MODELS) == 2
    assert "impressions of another teacher" in capsys.readouterr().err
    path = tmp_path / "store" / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert main("verify", "store") == 2
    assert "manifest.json was changed" in capsys.readouterr().err


def test_the_manifest_can_be_checked_without_this_package(store):
    listing = json.loads((store.folder / "manifest.json").read_text())
    for name, listed in listing["shards"].items():
        data = (store.folder / name).read_bytes()
        assert (len(data), sha256(data)) == (listed["bytes"], listed["sha256"])
    vouched = listing.pop("sha256")
    assert sha256(json.dumps(listing, sort_keys=True).encode()) == vouched


def test_both_commands_that_make_a_store_name_its_device(monkeypatch):
    monkeypatch.setattr(manifest, "cuda_facts", lambda device: {"device": f"a {device}"})
    assert main(*SYNTHESIZE) == 0
    assert main(*RUN, "--out", "run") == 0
    for folder in ("store", "run/impressions"):
        assert Store.open(folder).manifest.versions["device"] == "a cpu"
