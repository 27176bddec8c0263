"""The synthesizer: what an impression is, what it depends on, and which teachers are refused."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from counted import counted, once
from small_models import IMAGE, VECTOR, image_classifier, noise_recipe, synthesis_recipe, vector_classifier
from torch import nn

import zskd_fast
from zskd_fast import ops
from zskd_fast.config.identity import ImpressionIdentity
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import ImpressionRecipe, NoiseRecipe
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.runtime import cuda_graph
from zskd_fast.synthesis.class_similarity import class_similarity
from zskd_fast.synthesis.start_noise import start_noise
from zskd_fast.synthesis.synthesizer import Synthesizer


def _synthesizer(teacher=None, input_spec=IMAGE, seed=1, layer=None, **recipe):
    teacher = image_classifier() if teacher is None else teacher
    return Synthesizer(teacher, input_spec, synthesis_recipe(**recipe), seed=seed, layer=layer)


def _equal(left, right):
    return all(torch.equal(tensor, right.tensors()[name]) for name, tensor in left.tensors().items())


def _assert_close(left, right):
    for name, tensor in left.tensors().items():
        torch.testing.assert_close(tensor, right.tensors()[name], rtol=1e-4, atol=1e-4, msg=name)


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
    made = _synthesizer(teacher, steps=0).run(range(20), progress=steps.append)
    assert torch.equal(made.x, start_noise(made.id, synthesis_recipe().start_noise, IMAGE, seed=1))
    torch.testing.assert_close(made.teacher_logits, teacher(made.x).detach())
    assert sum(steps) == 20


def test_a_shortened_synthesizer_has_other_steps_and_its_own_timer():
    synthesizer = _synthesizer()
    short = synthesizer.shortened(2)
    assert _equal(short.run(range(8)), _synthesizer(steps=2).run(range(8)))
    assert short.timer.seconds and not synthesizer.timer.seconds
    assert synthesizer.recipe.steps == 5


def test_class_impressions_have_one_hot_targets():
    made = _synthesizer(image_classifier(classes=4), targets="one_hot").run(range(8))
    assert torch.equal(made.target, torch.eye(4).repeat(2, 1))


def test_total_variation_needs_an_image():
    with pytest.raises(InputError, match=r"shape \[6\] are no images .* total_variation must be 0"):
        _synthesizer(vector_classifier(), VECTOR, total_variation=0.1)


def test_dead_leaves_need_an_image():
    leaves = noise_recipe(kind="dead_leaves", leaves=3, leaf_size=(0.1, 0.5))
    with pytest.raises(InputError, match=r"shape \[6\] are no images .* cannot be dead_leaves"):
        _synthesizer(vector_classifier(), VECTOR, start_noise=leaves)


def test_logits_and_loss_are_those_of_the_finished_impression():
    """The known fault: the soft targets were thrown away."""
    teacher = image_classifier()
    made = _synthesizer(teacher, temperature=7.0).run(range(20))
    logits = teacher(made.x).detach()
    torch.testing.assert_close(made.teacher_logits, logits)
    loss = -(made.target * torch.log_softmax(logits / 7.0, dim=1)).sum(dim=1)
    torch.testing.assert_close(made.loss, loss)


def test_targets_are_dirichlet_draws_of_the_scaled_class_similarity():
    teacher = image_classifier()
    made = _synthesizer(teacher, betas=(1.0, 0.1), concentration_floor=1e-2, seed=5).run(range(20))
    similarity = class_similarity(teacher[4].weight)
    assert torch.equal(made.class_index, torch.arange(20) % 4)
    assert torch.equal(made.beta, torch.tensor(([1.0] * 4 + [0.1] * 4) * 3)[:20])
    alpha = made.beta.unsqueeze(1) * (similarity[made.class_index] + 1e-2)
    assert torch.equal(made.target, ops.dirichlet(alpha, made.id, seed=5))
    torch.testing.assert_close(made.target.sum(dim=1), torch.ones(20))


def test_more_steps_lower_the_loss():
    few = _synthesizer(vector_classifier(), VECTOR, steps=1, temperature=2.0).run(range(20))
    many = _synthesizer(vector_classifier(), VECTOR, steps=100, temperature=2.0).run(range(20))
    assert (many.loss <= few.loss + 1e-4).all()
    assert many.loss.mean() < few.loss.mean() - 0.05


def test_an_impression_starts_from_the_noise_of_the_recipe():
    noise = noise_recipe(kind="normal", scale=2.0, shift=-1.0)
    made = _synthesizer(steps=0, clamp=False, start_noise=noise).run(range(20))
    torch.testing.assert_close(made.x, start_noise(made.id, noise, IMAGE, seed=1))


@pytest.mark.parametrize("valid_range", [(0.0, 1.0), (-1.0, 0.25)])
def test_only_clamp_keeps_the_valid_range(valid_range):
    spec = InputSpec(IMAGE.shape, valid_range)
    low, high = valid_range
    clamped = _synthesizer(input_spec=spec, learning_rate=1.0, l1=0.0).run(range(8))
    assert clamped.x.min() == low
    assert clamped.x.max() == high
    free = _synthesizer(input_spec=spec, learning_rate=1.0, l1=0.0, clamp=False).run(range(8))
    assert free.x.min() < low
    assert free.x.max() > high


def test_the_teacher_sees_normalized_inputs():
    spec = InputSpec(IMAGE.shape, mean=(0.3,), std=(0.2,))
    teacher = image_classifier()
    made = _synthesizer(teacher, spec).run(range(4))
    torch.testing.assert_close(made.teacher_logits, teacher((made.x - 0.3) / 0.2).detach())


@pytest.mark.parametrize("shape", [(6,), (1, 8, 8), (3, 8, 8), (5, 4), (2, 3, 4, 4)])
def test_inputs_have_any_number_of_axes(shape):
    made = _synthesizer(_flat_classifier(math.prod(shape)), InputSpec(shape)).run(range(6))
    assert made.x.shape == (6, *shape)
    assert torch.isfinite(made.x).all()


def _flat_classifier(values):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(values, 3))


# ------------------------------------------------------------------------- what an impression depends on


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_impressions():
    first = _synthesizer().run(range(20))
    torch.rand(3)  # torch's own random state plays no part
    assert _equal(_synthesizer().run(range(20)), first)
    other = _synthesizer(seed=2).run(range(20))
    assert not torch.equal(other.target, first.target)
    assert not torch.equal(other.x, first.x)


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_the_rest_of_the_batch_does_not_matter(batch_size):
    """The known fault: clipping by the extremes of the whole batch."""
    expected = _synthesizer().run(range(20))
    _assert_close(_synthesizer(batch_size=batch_size).run(range(20)), expected)


def test_the_order_and_the_other_ids_do_not_matter():
    expected = _synthesizer().run(range(20))
    ids = torch.tensor([17, 3, 11, 4, 0])
    _assert_close(_synthesizer().run(ids), expected[ids])
    _assert_close(_synthesizer(impressions=1000, shard_size=3).run([19]), expected[19:])


def test_a_run_does_not_change_the_next_one():
    synthesizer = _synthesizer()
    first = synthesizer.run(range(6))
    synthesizer.run(range(13, 20))
    assert _equal(synthesizer.run(range(6)), first)


def test_ids_may_be_large():
    made = _synthesizer().run([2**40, 2**40 + 1])
    assert made.id.tolist() == [2**40, 2**40 + 1]
    assert not torch.equal(made.x[0], made.x[1])


# ------------------------------------------------------------------------------- what the teacher undergoes


def test_the_teacher_runs_in_eval_mode_and_is_restored():
    teacher = vector_classifier().train()
    teacher[0].weight.requires_grad_(False)
    weights = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    first = _synthesizer(teacher, VECTOR).run(range(8))
    assert _equal(_synthesizer(teacher.eval(), VECTOR).run(range(8)), first), "dropout was active"
    teacher.train()

    def stop(count):
        assert not any(module.training for module in teacher.modules())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _synthesizer(teacher, VECTOR).run(range(8), progress=stop)
    assert all(module.training for module in teacher.modules())
    assert [parameter.requires_grad for parameter in teacher.parameters()] == [False, True, True, True]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in teacher.state_dict().items())


def test_a_classifier_is_not_probed_or_hashed_again():
    with counted() as counts:
        teacher = Classifier(image_classifier(), IMAGE)
        synthesizer = _synthesizer(teacher)
        made = synthesizer.run(range(8))
        assert synthesizer.identity.teacher == teacher.identity
    assert counts["probes"] == counts["hashes"] == once(teacher.model)
    assert _equal(made, _synthesizer(teacher.model).run(range(8)))


def test_a_classifier_of_another_input_is_refused():
    teacher = Classifier(image_classifier(), InputSpec(IMAGE.shape, valid_range=(0.0, 255.0)))
    with pytest.raises(InputError, match="the teacher was probed with another input or logits_fn; give the module"):
        _synthesizer(teacher)


def test_a_run_under_no_grad_gives_the_same_bits():
    with torch.no_grad():
        made = _synthesizer().run(range(4))
    assert _equal(made, _synthesizer().run(range(4)))


def test_no_device_is_named_in_the_package():
    """The known fault: .cuda() hard-coded."""
    for path in Path(zskd_fast.__file__).parent.rglob("*.py"):
        assert not re.search(r"\.cuda\(", path.read_text("utf-8")), path


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_is_on_the_device_of_the_teacher():
    made = _synthesizer(image_classifier().cuda()).run(range(8))
    assert {tensor.device.type for tensor in made.tensors().values()} == {"cuda"}
    _assert_close(made.to("cpu"), _synthesizer().run(range(8)))


# ----------------------------------------------------------------------------------------- what is refused


class Wrapped(nn.Module):
    """The small classifier, with a function of its logits as the output."""

    def __init__(self, wrap):
        super().__init__()
        self.inner, self.wrap = image_classifier(), wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


def _first(output):
    return output[0]


def test_a_tuple_needs_logits_fn():
    teacher = Wrapped(lambda logits: (logits, None))
    with pytest.raises(InputError, match="logits_fn"):
        _synthesizer(teacher)
    made = Synthesizer(teacher, IMAGE, synthesis_recipe(), seed=1, logits_fn=_first).run([3])
    assert torch.equal(made.x, _synthesizer(teacher.inner).run([3]).x)


def test_a_teacher_without_a_gradient_is_refused():
    with pytest.raises(InputError, match="no gradient flows"):
        _synthesizer(Wrapped(lambda logits: logits.detach()))


def test_an_input_shape_that_the_teacher_rejects_is_named():
    with pytest.raises(InputError, match=r"rejects a batch of 3 inputs of shape \[1, 12, 12\]"):
        _synthesizer(input_spec=InputSpec((1, 12, 12)))


def test_one_logit_is_a_classifier_of_two_classes_each_similar_to_itself_only():
    with pytest.warns(UserWarning, match="the teacher returns one logit z"):
        synthesizer = _synthesizer(image_classifier(classes=1))
    assert torch.equal(synthesizer.similarity, torch.eye(2))
    assert synthesizer.layer == "4"
    with pytest.warns(UserWarning):
        given = _synthesizer(image_classifier(classes=1), layer=torch.ones(1, 5))
    assert torch.equal(given.similarity, torch.eye(2))


def test_a_backward_pass_that_fails_is_named():
    class Overwritten(nn.Module):
        def forward(self, x):
            y = x.flatten(1).exp()
            z = y.square()
            y.zero_()  # the backward pass of square needs its values
            return z

    with pytest.raises(InputError, match="the teacher's backward pass to its input fails: one of the variables"):
        _synthesizer(Overwritten(), layer=torch.eye(64))


def test_nan_weights_are_named():
    teacher = image_classifier()
    teacher[0].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"0\.weight hold NaN"):
        _synthesizer(teacher)


@pytest.mark.parametrize("ids", [[], [-1], [0.5], [[1, 2]]])
def test_bad_ids_are_refused(ids):
    with pytest.raises(InputError, match="ids must be"):
        _synthesizer().run(ids)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, None, True])
def test_bad_seeds_are_refused(seed):
    with pytest.raises(InputError, match="seed"):
        _synthesizer(seed=seed)


def test_impressions_that_diverge_are_an_error_with_the_first_id():
    with pytest.raises(InputError, match=r"3 of 3 impressions hold NaN .* id 5; lower"):
        _synthesizer(learning_rate=1e38, clamp=False, steps=50, l1=0.0).run([5, 6, 7])


def test_the_classifier_weights_may_be_given():
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_synthesizer(layer=weight).similarity, class_similarity(weight))
    with pytest.raises(InputError, match=r"\[5, 9\], wanted \[4, D\]"):
        _synthesizer(layer=torch.randn(5, 9))


# --------------------------------------------------------------------------------------------- the identity

_LEAVES = noise_recipe(kind="dead_leaves", leaves=3, leaf_size=(0.1, 0.5))
# For each field a value that differs from the small recipe's.
_OTHER_RECIPE = {
    "betas": (1.0,),
    "targets": "one_hot",
    "concentration_floor": 2e-3,
    "temperature": 19.0,
    "steps": 6,
    "learning_rate": 0.2,
    "final_learning_rate_fraction": 0.5,
    "adam_betas": (0.9, 0.99),
    "adam_eps": 1e-7,
    "start_noise": noise_recipe(kind="normal"),
    "clamp": False,
    "l1": 0.0,
    "l2": 1e-3,
    "total_variation": 1e-3,
    "store_dtype": "float16",
    "batch_size": 5,
    "fold_batch_norm": True,
    "statistics_prior": 1.0,
    "teacher_precision": "bfloat16",
    "channels_last": "on",
    "compile_teacher": True,
}
_OTHER_NOISE = {
    "kind": (noise_recipe(), noise_recipe(kind="normal")),
    "scale": (noise_recipe(), noise_recipe(scale=0.5)),
    "shift": (noise_recipe(), noise_recipe(shift=0.5)),
    "leaves": (_LEAVES, dataclasses.replace(_LEAVES, leaves=4)),
    "leaf_size": (_LEAVES, dataclasses.replace(_LEAVES, leaf_size=(0.1, 0.6))),
}
_NORMALIZED = InputSpec((6,), mean=(0.5,), std=(0.25,))
_OTHER_INPUT = {
    "shape": (InputSpec((6,)), InputSpec((2, 3))),
    "valid_range": (InputSpec((6,)), InputSpec((6,), (0.0, 2.0))),
    "mean": (_NORMALIZED, dataclasses.replace(_NORMALIZED, mean=(0.4,))),
    "std": (_NORMALIZED, dataclasses.replace(_NORMALIZED, std=(0.5,))),
}


def _names(kind):
    return {field.name for field in dataclasses.fields(kind)}


def test_the_tests_of_the_identity_below_know_every_field():
    assert set(_OTHER_RECIPE) == _names(ImpressionRecipe)
    assert set(_OTHER_NOISE) == _names(NoiseRecipe)
    assert set(_OTHER_INPUT) == _names(InputSpec)
    assert _names(ImpressionIdentity) == {"seed", "input", "teacher", "layer", "num_classes", "recipe"}


@pytest.mark.parametrize(
    "same", [{"parallel_batches": False}, {"impressions": 21}, {"shard_size": 7}, {}], ids=lambda same: "".join(same)
)
def test_the_identity_does_not_depend_on_the_number_of_impressions_or_how_they_are_made(same):
    assert synthesis_recipe().parallel_batches
    assert _synthesizer(**same).identity == _synthesizer().identity


@pytest.mark.parametrize("field", _OTHER_RECIPE)
def test_the_identity_depends_on_each_field_of_the_recipe(field):
    plain, other = _synthesizer().identity, _synthesizer(**{field: _OTHER_RECIPE[field]}).identity
    assert other != plain
    assert other == dataclasses.replace(
        plain, recipe=dataclasses.replace(plain.recipe, **{field: _OTHER_RECIPE[field]})
    )


@pytest.mark.parametrize("field", _OTHER_NOISE)
def test_the_identity_depends_on_each_field_of_the_start_noise(field):
    one, other = (_synthesizer(start_noise=noise).identity for noise in _OTHER_NOISE[field])
    assert one != other


@pytest.mark.parametrize("field", _OTHER_INPUT)
def test_the_identity_depends_on_each_field_of_the_input(field):
    one, other = (_synthesizer(_flat_classifier(6), spec).identity for spec in _OTHER_INPUT[field])
    assert one != other
    assert one.teacher == other.teacher


def test_the_identity_depends_on_seed_weights_and_layer():
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    one_bit = image_classifier()
    one_bit[0].bias.data[0] = torch.nextafter(one_bit[0].bias.data[0], torch.tensor(9.0))
    runs = [
        _synthesizer(),
        _synthesizer(seed=2),
        _synthesizer(image_classifier(seed=3)),
        _synthesizer(one_bit),
        _synthesizer(layer=weight),
        _synthesizer(layer=weight + 1),
    ]
    identities = [run.identity for run in runs]
    assert all(a != b for i, a in enumerate(identities) for b in identities[:i])
    assert _synthesizer().identity == _synthesizer(layer="4").identity == identities[0]
    assert (identities[0].layer, identities[0].num_classes, identities[0].seed) == ("4", 4, 1)


def test_the_identity_depends_on_the_name_of_the_layer():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            return self.left(x) + self.right(x)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = TwoHeads()
    left, right = (_synthesizer(teacher, VECTOR, layer=layer).identity for layer in ("left", "right"))
    assert left == dataclasses.replace(right, layer="left") != right


def test_every_pass_of_the_teacher_is_repeatable(monkeypatch):
    seen = []

    def forward(model, x):
        seen.append((torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark))
        return model(x)

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    synthesizer = Synthesizer(image_classifier(), IMAGE, synthesis_recipe(), seed=1, forward_fn=forward)
    seen.clear()
    synthesizer.run(range(6))
    assert set(seen) == {(True, False)}
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (False, True)


def test_a_step_is_captured_once_per_shape_of_a_batch_and_makes_the_same_impressions(monkeypatch):
    """10 impressions in batches of 4, 4 and 2; a stand-in for the capture returns the step itself."""
    captured = []

    def capture(graphs, step, arguments, changed, timer):
        captured.append(changed[0].shape)
        return step

    recipe = {"total_variation": 0.01, "parallel_batches": False}
    eager = _synthesizer(**recipe).run(range(10))
    monkeypatch.setattr(cuda_graph, "pays", lambda device, steps: True)
    monkeypatch.setattr(cuda_graph.Graphs, "captured", capture)
    synthesizer = _synthesizer(**recipe)
    made = synthesizer.run(range(10))
    assert [shape[0] for shape in captured] == [4, 2]
    for name, tensor in made.tensors().items():
        assert torch.equal(tensor, eager.tensors()[name]), name
    assert torch.equal(synthesizer.run(range(10)).x, eager.x)
