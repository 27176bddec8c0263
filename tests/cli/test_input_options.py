"""The input of a teacher on the command line: a shape, a preset, or what the teacher's own files say."""

import json

import numpy as np
import pytest
import torch
from command_line import DISTILLATION, MODELS, STUDENT, SYNTHESIS, main, record, workplace  # noqa: F401

from zskd_fast import __version__
from zskd_fast.cli.main import parse
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.models.input_facts import PROCESSOR_FILE

RUN = ["run", *MODELS, *STUDENT, *SYNTHESIS, *DISTILLATION]


def test_a_preset_fills_the_input_and_options_overrule_it():
    chosen = parse([*RUN, "--input", "cifar10", "--input.std", "1", "1", "1"]).input
    assert (chosen.shape, chosen.valid_range) == ((3, 32, 32), (0.0, 1.0))
    assert chosen.mean == (0.4914, 0.4822, 0.4465) and chosen.std == (1.0, 1.0, 1.0)
    assert parse([*RUN, "--input=signed", "--input.shape", "1", "8", "8"]).input.spec().valid_range == (-1.0, 1.0)


def test_an_unknown_preset_is_one_sentence(capsys):
    assert main(*RUN, "--input", "imagenet21k") == 2
    assert "no input is named 'imagenet21k'; the names are imagenet, cifar10" in capsys.readouterr().err


def test_without_a_shape_the_option_is_named(capsys):
    assert main(*RUN) == 2
    assert "give --input.shape, such as --input.shape 3 32 32, or a preset" in capsys.readouterr().err


def test_a_normalization_without_a_shape_is_refused(capsys):
    assert main(*RUN, "--input.mean", "0.5", "--input.std", "0.5") == 2
    assert "--input.std need --input.shape beside them" in capsys.readouterr().err


def test_a_processor_file_beside_the_weights_gives_the_input(workplace, capsys):  # noqa: F811
    facts = {"size": 8, "image_mean": [0.5], "image_std": [0.25]}
    (workplace / PROCESSOR_FILE).write_text(json.dumps(facts))
    assert main(*RUN, "--recipe", "demo", "--out", "run") == 0
    assert "from the teacher's own files" in capsys.readouterr().out
    assert record(workplace / "run")["identity"]["impressions"]["input"]["mean"] == [0.5]


def test_inputs_that_are_no_images_run_with_the_recommended_recipe(workplace, capsys):  # noqa: F811
    assert main(*RUN, "--input.shape", "8", "8", "--out", "run") == 0
    printed = capsys.readouterr().out
    assert "inputs of shape [8, 8] are no images: uniform start noise in place of dead leaves" in printed
    recipe = record(workplace / "run")["identity"]["student"]["recipe"]
    assert recipe["fresh_noise"]["kind"] == "uniform" and recipe["augmentation"]["rotation_sigma"] == 0


@pytest.mark.parametrize("suffix", [".npy", ".pt"])
def test_classifier_weights_from_a_file(workplace, suffix):  # noqa: F811
    matrix = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    file = workplace / f"matrix{suffix}"
    if suffix == ".npy":
        np.save(file, matrix.numpy())
    else:
        torch.save({"weight": matrix}, file)
    assert main(*RUN, "--input.shape", "1", "8", "8", "--layer-weights", file, "--out", "run") == 0
    assert record(workplace / "run")["identity"]["impressions"]["layer"].startswith("matrix ")


def test_classifier_weights_of_another_shape_are_refused(workplace, capsys):  # noqa: F811
    np.save(workplace / "matrix.npy", np.zeros((2, 3, 4), np.float32))
    assert main(*RUN, "--input.shape", "1", "8", "8", "--layer-weights", "matrix.npy") == 2
    assert "wanted one matrix [classes, features] of floats, got 1 tensors: [2, 3, 4]" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["fast", "demo", "paper"])
def test_recipe_prints_a_file_that_is_the_same_recipe(name, workplace, capsys):  # noqa: F811
    assert main("recipe", name) == 0
    (workplace / "mine.toml").write_text(capsys.readouterr().out)
    assert load_recipe(workplace / "mine.toml") == load_recipe(name)


def test_version(capsys):
    assert main("--version") == 0
    assert capsys.readouterr().out == f"zskd_fast {__version__}\n"
