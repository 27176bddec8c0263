"""The input of a teacher is read from what timm and transformers keep beside the weights."""

import json

import pytest
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models.input_facts import PROCESSOR_FILE, find_input_spec

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.2, 0.1]


def _processor(tmp_path, **values):
    (tmp_path / PROCESSOR_FILE).write_text(json.dumps({"image_mean": MEAN, "image_std": STD, **values}))
    return find_input_spec(nn.Identity(), tmp_path / "model.safetensors")


def test_timm_models_describe_their_input():
    model = nn.Identity()
    model.pretrained_cfg = {"input_size": (3, 160, 160), "mean": tuple(MEAN), "std": tuple(STD), "crop_pct": 0.9}
    assert find_input_spec(model, None) == InputSpec((3, 160, 160), (0.0, 1.0), tuple(MEAN), tuple(STD))


@pytest.mark.parametrize(
    "size, wanted",
    [
        ({"size": {"height": 30, "width": 40}}, (30, 40)),
        ({"size": {"shortest_edge": 48}}, (48, 48)),
        ({"size": 64}, (64, 64)),
        ({"size": [20, 24]}, (20, 24)),
        ({"size": {"shortest_edge": 48}, "crop_size": {"height": 32, "width": 32}}, (32, 32)),
    ],
    ids=str,
)
def test_the_size_of_an_image_processor(tmp_path, size, wanted):
    assert _processor(tmp_path, **size) == InputSpec((3, *wanted), (0.0, 1.0), tuple(MEAN), tuple(STD))


def test_the_range_of_an_image_processor_follows_its_rescaling(tmp_path):
    assert _processor(tmp_path, size=8, do_rescale=False).valid_range == (0.0, 255.0)
    assert _processor(tmp_path, size=8, rescale_factor=2 / 255).valid_range == (0.0, 2.0)
    assert _processor(tmp_path, size=8, do_normalize=False) == InputSpec((3, 8, 8))


@pytest.mark.parametrize("text", ["{", "[]", '{"image_mean": [0.5]}', '{"size": {"depth": 3}}'])
def test_a_damaged_image_processor_is_named(tmp_path, text):
    (tmp_path / PROCESSOR_FILE).write_text(text)
    with pytest.raises(InputError, match=f"{PROCESSOR_FILE} does not describe an image input.*--input.shape"):
        find_input_spec(nn.Identity(), tmp_path / "model.pt")


def test_without_any_description_the_option_is_named(tmp_path):
    for weights in (None, tmp_path / "model.pt"):
        with pytest.raises(InputError, match=r"--input.shape 3 32 32"):
            find_input_spec(nn.Linear(2, 2), weights)
