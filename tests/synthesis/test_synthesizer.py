"""The synthesizer: what an impression is, and what it depends on."""

import dataclasses
import math

import pytest
import torch
from small_models import (
    IMAGE,
    VECTOR,
    flat_classifier,
    image_classifier,
    noise_recipe,
    synthesis_recipe,
    vector_classifier,
)
from synthesizers import assert_close_impressions, same_impressions, small_synthesizer

from zskd_fast import ops
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.runtime import cuda_graph
from zskd_fast.synthesis.class_similarity import class_similarity
from zskd_fast.synthesis.start_noise import start_noise
from zskd_fast.synthesis.synthesizer import Synthesizer

# ------------------------------------------------------------------------------- what an impression is


def test_an_impression_is_that_of_plain_adam_on_the_tempered_cross_entropy_with_the_priors():
    """The known faults: binary cross-entropy, a temperature left out, targets normalized again."""
    teacher = image_classifier()
    priors = {"l1": 1e-2, "l2": 2e-2, "total_variation": 3e-2}
    few = {"batch_size": 6, "temperature": 1.5} | priors
    recipe = synthesis_recipe(steps=20, learning_rate=0.02, start_noise=noise_recipe(scale=0.2, shift=0.4), **few)
    made = Synthesizer(teacher, IMAGE, recipe, seed=1).run(range(6))
    started = Synthesizer(teacher, IMAGE, dataclasses.replace(recipe, steps=0), seed=1).run(range(6))

    x = started.x.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=recipe.learning_rate, betas=recipe.adam_betas, eps=recipe.adam_eps)
    for step in range(recipe.steps):
        fraction = 1 + (recipe.final_learning_rate_fraction - 1) * step / (recipe.steps - 1)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * fraction
        log_p = torch.log_softmax(teacher(x) / recipe.temperature, dim=1)
        loss = -(made.target * log_p).sum() + recipe.l1 * x.abs().sum() + recipe.l2 * x.square().sum()
        squares = x.diff(dim=-1).square().sum() + x.diff(dim=-2).square().sum()
        loss = loss + recipe.total_variation * squares
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            x.clamp_(0, 1)
    torch.testing.assert_close(made.x, x.detach(), rtol=0, atol=1e-4)
    assert ((made.x > 0) & (made.x < 1)).float().mean() > 0.3, "nearly all values are at a limit"
    for prior in priors:
        without = Synthesizer(teacher, IMAGE, dataclasses.replace(recipe, **{prior: 0.0}), seed=1).run(range(6))
        assert (without.x - made.x).abs().mean() > 0.005, f"{prior} made no difference"


def test_without_steps_an_impression_is_its_start_noise_labeled_by_the_teacher():
    teacher, steps = image_classifier(), []
    made = small_synthesizer(teacher, steps=0).run(range(20), progress=steps.append)
    assert torch.equal(made.x, start_noise(made.id, synthesis_recipe().start_noise, IMAGE, seed=1))
    torch.testing.assert_close(made.teacher_logits, teacher(made.x).detach())
    assert sum(steps) == 20


def test_a_shortened_synthesizer_has_other_steps_and_its_own_timer():
    synthesizer = small_synthesizer()
    short = synthesizer.shortened(2)
    assert same_impressions(short.run(range(8)), small_synthesizer(steps=2).run(range(8)))
    assert short.timer.seconds and not synthesizer.timer.seconds
    assert synthesizer.recipe.steps == 5


def test_class_impressions_have_one_hot_targets():
    made = small_synthesizer(image_classifier(classes=4), targets="one_hot").run(range(8))
    assert torch.equal(made.target, torch.eye(4).repeat(2, 1))


def test_total_variation_needs_an_image():
    with pytest.raises(InputError, match=r"shape \[6\] are no images .* total_variation must be 0"):
        small_synthesizer(vector_classifier(), VECTOR, total_variation=0.1)


def test_dead_leaves_need_an_image():
    leaves = noise_recipe(kind="dead_leaves", leaves=3, leaf_size=(0.1, 0.5))
    with pytest.raises(InputError, match=r"shape \[6\] are no images .* cannot be dead_leaves"):
        small_synthesizer(vector_classifier(), VECTOR, start_noise=leaves)


def test_logits_and_loss_are_those_of_the_finished_impression():
    """The known fault: the soft targets were thrown away."""
    teacher = image_classifier()
    made = small_synthesizer(teacher, temperature=7.0).run(range(20))
    logits = teacher(made.x).detach()
    torch.testing.assert_close(made.teacher_logits, logits)
    loss = -(made.target * torch.log_softmax(logits / 7.0, dim=1)).sum(dim=1)
    torch.testing.assert_close(made.loss, loss)


def test_targets_are_dirichlet_draws_of_the_scaled_class_similarity():
    teacher = image_classifier()
    made = small_synthesizer(teacher, betas=(1.0, 0.1), concentration_floor=1e-2, seed=5).run(range(20))
    similarity = class_similarity(teacher[4].weight)
    assert torch.equal(made.class_index, torch.arange(20) % 4)
    assert torch.equal(made.beta, torch.tensor(([1.0] * 4 + [0.1] * 4) * 3)[:20])
    alpha = made.beta.unsqueeze(1) * (similarity[made.class_index] + 1e-2)
    assert torch.equal(made.target, ops.dirichlet(alpha, made.id, seed=5))
    torch.testing.assert_close(made.target.sum(dim=1), torch.ones(20))


def test_more_steps_lower_the_loss():
    few = small_synthesizer(vector_classifier(), VECTOR, steps=1, temperature=2.0).run(range(20))
    many = small_synthesizer(vector_classifier(), VECTOR, steps=100, temperature=2.0).run(range(20))
    assert (many.loss <= few.loss + 1e-4).all()
    assert many.loss.mean() < few.loss.mean() - 0.05


def test_an_impression_starts_from_the_noise_of_the_recipe():
    noise = noise_recipe(kind="normal", scale=2.0, shift=-1.0)
    made = small_synthesizer(steps=0, clamp=False, start_noise=noise).run(range(20))
    torch.testing.assert_close(made.x, start_noise(made.id, noise, IMAGE, seed=1))


@pytest.mark.parametrize("valid_range", [(0.0, 1.0), (-1.0, 0.25)])
def test_only_clamp_keeps_the_valid_range(valid_range):
    spec = InputSpec(IMAGE.shape, valid_range)
    low, high = valid_range
    clamped = small_synthesizer(input_spec=spec, learning_rate=1.0, l1=0.0).run(range(8))
    assert clamped.x.min() == low
    assert clamped.x.max() == high
    free = small_synthesizer(input_spec=spec, learning_rate=1.0, l1=0.0, clamp=False).run(range(8))
    assert free.x.min() < low
    assert free.x.max() > high


def test_the_teacher_sees_normalized_inputs():
    spec = InputSpec(IMAGE.shape, mean=(0.3,), std=(0.2,))
    teacher = image_classifier()
    made = small_synthesizer(teacher, spec).run(range(4))
    torch.testing.assert_close(made.teacher_logits, teacher((made.x - 0.3) / 0.2).detach())


@pytest.mark.parametrize("shape", [(6,), (1, 8, 8), (3, 8, 8), (5, 4), (2, 3, 4, 4)])
def test_inputs_have_any_number_of_axes(shape):
    made = small_synthesizer(flat_classifier(math.prod(shape)), InputSpec(shape)).run(range(6))
    assert made.x.shape == (6, *shape)
    assert torch.isfinite(made.x).all()


# ------------------------------------------------------------------------- what an impression depends on


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_impressions():
    first = small_synthesizer().run(range(20))
    torch.rand(3)  # torch's own random state plays no part
    assert same_impressions(small_synthesizer().run(range(20)), first)
    other = small_synthesizer(seed=2).run(range(20))
    assert not torch.equal(other.target, first.target)
    assert not torch.equal(other.x, first.x)


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_the_rest_of_the_batch_does_not_matter(batch_size):
    """The known fault: clipping by the extremes of the whole batch."""
    expected = small_synthesizer().run(range(20))
    assert_close_impressions(small_synthesizer(batch_size=batch_size).run(range(20)), expected)


def test_the_order_and_the_other_ids_do_not_matter():
    expected = small_synthesizer().run(range(20))
    ids = torch.tensor([17, 3, 11, 4, 0])
    assert_close_impressions(small_synthesizer().run(ids), expected[ids])
    assert_close_impressions(small_synthesizer(impressions=1000, shard_size=3).run([19]), expected[19:])


def test_a_run_does_not_change_the_next_one():
    synthesizer = small_synthesizer()
    first = synthesizer.run(range(6))
    synthesizer.run(range(13, 20))
    assert same_impressions(synthesizer.run(range(6)), first)


def test_ids_may_be_large():
    made = small_synthesizer().run([2**40, 2**40 + 1])
    assert made.id.tolist() == [2**40, 2**40 + 1]
    assert not torch.equal(made.x[0], made.x[1])


def test_a_step_is_captured_once_per_shape_of_a_batch_and_makes_the_same_impressions(monkeypatch):
    """10 impressions in batches of 4, 4 and 2; a stand-in for the capture returns the step itself."""
    captured = []

    def capture(graphs, step, arguments, changed, timer):
        captured.append(changed[0].shape)
        return step

    recipe = {"total_variation": 0.01, "parallel_batches": False}
    eager = small_synthesizer(**recipe).run(range(10))
    monkeypatch.setattr(cuda_graph, "pays", lambda device, steps: True)
    monkeypatch.setattr(cuda_graph.Graphs, "captured", capture)
    synthesizer = small_synthesizer(**recipe)
    made = synthesizer.run(range(10))
    assert [shape[0] for shape in captured] == [4, 2]
    for name, tensor in made.tensors().items():
        assert torch.equal(tensor, eager.tensors()[name]), name
    assert torch.equal(synthesizer.run(range(10)).x, eager.x)
