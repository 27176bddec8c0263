"""Health: no word about teachers that are well, one sentence about those that are not, and early if x cannot move."""

import dataclasses

import pytest
import torch
from small_models import IMAGE, image_classifier, noise_recipe, open_store, synthesis_recipe
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.config.serialization import from_plain, to_plain
from zskd_fast.errors import InputError
from zskd_fast.models import LeNet5
from zskd_fast.models.checkpoint_files import load_state
from zskd_fast.models.user_models import ASSETS
from zskd_fast.runtime.processes import World
from zskd_fast.store.store import Store
from zskd_fast.synthesis.health import Health
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

DIGITS = InputSpec((1, 32, 32))
FAST, DEMO = (load_recipe(name).synthesis for name in ("fast", "demo"))


class Around(nn.Module):
    """A shipped teacher with a function of its input and one of its logits."""

    def __init__(self, weights="mnist", *, first=lambda x: x, last=lambda z: z):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = LeNet5()
        if weights:
            self.body.load_state_dict(load_state(ASSETS / f"lenet5-{weights}.safetensors"))
        self.first, self.last = first, last

    def forward(self, x):
        return self.last(self.body(self.first(x)))


def _synthesizer(teacher, recipe, **changes):
    small = {"impressions": 100, "shard_size": 50, "batch_size": 50}
    return Synthesizer(teacher, DIGITS, dataclasses.replace(recipe, **small | changes), seed=0)


def _health(synthesizer, folder, world=None) -> Health:
    store = open_store(folder, synthesizer)
    health = synthesize(synthesizer, store, world=world, progress=False).health
    assert health is not None
    return health


# ----------------------------------------------------------------------------------------------- the well and the sick


@pytest.mark.parametrize("weights", ["mnist", "fashion"])
@pytest.mark.parametrize(
    "recipe",
    [
        FAST,
        dataclasses.replace(FAST, steps=15),
        dataclasses.replace(FAST, temperature=1.0, targets="one_hot"),
        dataclasses.replace(DEMO, steps=60),
        dataclasses.replace(load_recipe("paper").synthesis, steps=60),
    ],
    ids=["fast", "15 steps", "one-hot", "demo", "paper"],
)
def test_a_shipped_teacher_gets_no_warning_and_is_far_from_each_limit(weights, recipe, tmp_path):
    health = _health(_synthesizer(Around(weights), recipe), tmp_path / "a")
    assert health.warning == ""
    assert health.impressions == 100
    assert health.reached > 0.85
    assert health.answered_classes == health.wanted_classes == health.num_classes == 10
    assert health.logit_spread > 5
    assert health.fall > 0.4
    assert health.moved > 0.7
    assert health.loss_floor <= health.loss_after < health.loss_before


@pytest.mark.parametrize(
    "teacher",
    [
        Around(None),
        # Scaled, since the probe recognizes probabilities.
        Around(last=lambda z: 0.9 * z.softmax(dim=1)),
        Around(last=lambda z: 0.9 * torch.sigmoid(z)),
    ],
    ids=["forgotten weights", "scaled softmax", "scaled sigmoid"],
)
@pytest.mark.parametrize(
    "recipe", [FAST, dataclasses.replace(FAST, temperature=1.0), dataclasses.replace(FAST, steps=0)]
)
def test_a_nearly_uniform_teacher_gets_a_warning(teacher, recipe, tmp_path):
    health = _health(_synthesizer(teacher, recipe), tmp_path / "a")
    assert health.logit_spread < 0.95
    assert "answers are nearly uniform" in health.warning
    assert "probabilities in place of logits, or were its weights not loaded?" in health.warning


@pytest.mark.parametrize("first", [torch.round, lambda x: torch.sign(x - 0.5)], ids=["rounded", "sign"])
@pytest.mark.parametrize("recipe", [FAST, dataclasses.replace(FAST, l1=0.0, total_variation=0.0)])
def test_a_teacher_without_a_gradient_is_refused_after_the_first_steps(first, recipe):
    """With priors x does move, and to nothing good, so what moved is no sign."""
    steps = []
    with pytest.raises(InputError, match="x does not move: the gradient of the teacher with respect to its input is"):
        _synthesizer(Around(first=first), recipe, parallel_batches=False).run(range(100), progress=steps.append)
    assert steps == [50, 50, 50]


def test_a_run_that_is_shorter_than_the_first_steps_is_refused_too():
    with pytest.raises(InputError, match=r"x does not move.* at step 1;"):
        _synthesizer(Around(first=torch.round), FAST, steps=1).run(range(4))


def test_a_gradient_that_the_priors_lead_to_is_enough():
    """At the start every value is above 0.1, where this teacher is flat; the first steps lower it."""
    model = nn.Sequential(nn.Threshold(-0.1, 0.0), image_classifier())
    teacher = nn.Sequential(Negated(), model)
    noise = noise_recipe(scale=0.1, shift=0.25)
    recipe = synthesis_recipe(start_noise=noise, learning_rate=0.1, final_learning_rate_fraction=1.0, l1=1.0)
    made = Synthesizer(teacher, IMAGE, recipe, seed=0).run(range(4))
    assert (made.x < 0.1).any()
    with pytest.raises(InputError, match="x does not move"):
        Synthesizer(teacher, IMAGE, dataclasses.replace(recipe, l1=0.0), seed=0).run(range(4))


class Negated(nn.Module):
    """-x"""

    def forward(self, x):
        return -x


def test_the_look_at_the_gradient_changes_no_bit(monkeypatch):
    seen = _synthesizer(Around(), FAST, steps=3).run(range(10))
    monkeypatch.setattr(Synthesizer, "_look_at_gradient", lambda *_: None)
    unseen = _synthesizer(Around(), FAST, steps=3).run(range(10))
    assert all(torch.equal(tensor, unseen.tensors()[name]) for name, tensor in seen.tensors().items())


def test_without_steps_nothing_need_move(tmp_path):
    health = _health(_synthesizer(Around(), FAST, steps=0), tmp_path / "a")
    assert health.moved == 0 and health.loss_before == health.loss_after
    assert health.warning == ""


GOOD = Health(
    impressions=400,
    reached=0.97,
    answered_classes=10,
    wanted_classes=10,
    num_classes=10,
    logit_spread=30.0,
    loss_before=2.31,
    loss_after=1.32,
    loss_floor=0.65,
    moved=0.78,
    steps=60,
)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, ""),
        ({"moved": 0.0}, "x does not move (0.0% of its values did): the gradient of the teacher with respect to its"),
        ({"logit_spread": 0.9}, "the teacher's answers are nearly uniform (the largest logit is 0.9 above the mean)"),
        ({"answered_classes": 4}, "the impressions have only 4 of the 10 classes that they were made for"),
        ({"reached": 0.4}, "only 40.0% of the impressions reach their class"),
        ({"loss_after": 2.3}, "the loss hardly fell: 2.31 before and 2.3 after 60 steps, of 0.65 that are possible"),
        ({"loss_after": 3.0}, "the loss hardly fell"),
        ({"reached": 0.1, "moved": 0.0, "steps": 0}, ""),
    ],
)
def test_each_sickness_has_its_sentence(changes, sentence):
    warning = dataclasses.replace(GOOD, **changes).warning
    assert warning.startswith(sentence) and bool(warning) == bool(sentence)
    assert "\n" not in warning


def test_the_line_of_health_is_one_line():
    assert str(GOOD) == (
        "97.0% reach their class, 10 of 10 classes answered, loss 2.31 -> 1.32 (at best 0.65), 78.0% of x moved"
    )
    assert from_plain(Health, to_plain(GOOD), "health") == GOOD


# ------------------------------------------------------------------------------------------------- how it is measured


def _small(**changes):
    return Synthesizer(image_classifier(), IMAGE, synthesis_recipe(**changes), seed=1)


def test_the_numbers_are_those_of_the_impressions(tmp_path):
    health = _health(_small(), tmp_path / "a")
    made, start = _small().run(range(20)), _small(steps=0).run(range(20))
    answer, wanted = made.teacher_logits.argmax(dim=1), made.target.argmax(dim=1)
    reached = (answer == wanted) | (answer == made.class_index)
    assert health.reached == pytest.approx(float(reached.float().mean()))
    assert health.answered_classes == len(answer.unique()) and health.wanted_classes == len(wanted.unique())
    spread = made.teacher_logits.amax(dim=1) - made.teacher_logits.mean(dim=1)
    assert health.logit_spread == pytest.approx(float(spread.mean()))
    first = slice(0, 4)  # the first batch
    assert health.loss_before == pytest.approx(float(start.loss[first].mean()))
    assert health.loss_after == pytest.approx(float(made.loss[first].mean()))
    entropy = torch.distributions.Categorical(made.target[first].double()).entropy().mean()
    assert health.loss_floor == pytest.approx(float(entropy))
    assert health.moved == float((made.x != start.x)[first].float().mean())


def test_a_resumed_store_has_the_health_of_an_uninterrupted_one(tmp_path):
    whole = _health(_small(), tmp_path / "whole")
    for done in ([0], [1], [0, 1, 2]):
        synthesizer = _small()
        store = open_store(tmp_path / f"{done}", synthesizer)
        for shard in done:
            store.write_shard(shard, synthesizer.run(store.shard_ids(shard)))
        resumed = synthesize(synthesizer, store, progress=False).health
        if 0 in done:
            assert resumed == whole
        else:  # the first batch is that of the first shard that was found
            assert (resumed.reached, resumed.answered_classes) == (whole.reached, whole.answered_classes)
        assert _health(_small(), tmp_path / f"{done}") == whole


def test_each_process_measures_its_share(tmp_path):
    whole = _health(_small(), tmp_path / "whole")
    parts = [_health(_small(), tmp_path / "shared", World(rank, 2)) for rank in range(2)]
    assert [part.impressions for part in parts] == [12, 8]
    assert sum(part.reached * part.impressions for part in parts) == pytest.approx(20 * whole.reached)
    late = synthesize(_small(), Store.open(tmp_path / "whole"), world=World(5, 9), progress=False)
    assert late.health is None


def test_a_shard_that_another_process_is_making_is_left_out(tmp_path):
    synthesizer = _small()
    store = open_store(tmp_path / "a", synthesizer)
    with Store.open(tmp_path / "a").claim(0):
        health = synthesize(synthesizer, store, progress=False).health
    assert health is not None and health.impressions == 12


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_to_the_type_of_the_store_is_no_move(dtype, tmp_path):
    assert _health(_small(store_dtype=dtype, steps=0), tmp_path / "a").moved == 0
    _health(_small(store_dtype=dtype), tmp_path / "b")
    made = _health(_small(store_dtype=dtype), tmp_path / "c")
    assert _health(_small(store_dtype=dtype), tmp_path / "c") == made  # now of the files


def test_the_phases_of_a_run_do_not_count_its_health(tmp_path):
    synthesizer = _small()
    summary = synthesize(synthesizer, open_store(tmp_path / "a", synthesizer), progress=False)
    again = synthesize(_small(), Store.open(tmp_path / "a"), progress=False)
    assert summary.phase_seconds and not again.phase_seconds
