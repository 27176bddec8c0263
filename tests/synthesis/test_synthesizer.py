import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from small_models import IMAGE, VECTOR, image_classifier, start_recipe, synthesis_recipe, vector_classifier
from torch import nn

import zskd_fast
from zskd_fast import ops
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.store.store import Store
from zskd_fast.synthesis.class_similarity import class_similarity
from zskd_fast.synthesis.start_noise import start_noise
from zskd_fast.synthesis.synthesizer import Synthesizer, synthesize


def _synthesizer(teacher=None, input_spec=IMAGE, seed=1, layer=None, **recipe):
    teacher = image_classifier() if teacher is None else teacher
    return Synthesizer(teacher, input_spec, synthesis_recipe(**recipe), seed=seed, layer=layer)


def _equal(left, right):
    return all(torch.equal(tensor, right.tensors()[name]) for name, tensor in left.tensors().items())


def _assert_close(left, right):
    for name, tensor in left.tensors().items():
        torch.testing.assert_close(tensor, right.tensors()[name], rtol=1e-4, atol=1e-4, msg=name)


# What an impression is


def test_follows_plain_adam_on_the_tempered_cross_entropy_with_the_priors():
    """The known faults: binary cross-entropy, a temperature left out, targets normalised again."""
    teacher = image_classifier()
    priors = {"l1": 1e-2, "l2": 2e-2, "total_variation": 3e-2}
    few = {"batch_size": 6, "temperature": 1.5} | priors
    recipe = synthesis_recipe(steps=20, learning_rate=0.02, start=start_recipe(scale=0.2, shift=0.4), **few)
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
        without = Synthesizer(teacher, IMAGE, dataclasses.replace(recipe, **{prior: 0.0}), seed=1).run(
            range(6)
        )
        assert (without.x - made.x).abs().mean() > 0.005, f"{prior} made no difference"


def test_without_steps_an_impression_is_its_start_noise_labelled_by_the_teacher():
    teacher, steps = image_classifier(), []
    made = _synthesizer(teacher, steps=0).run(range(20), progress=steps.append)
    assert torch.equal(made.x, start_noise(made.id, synthesis_recipe().start, IMAGE, seed=1))
    torch.testing.assert_close(made.teacher_logits, teacher(made.x).detach())
    assert sum(steps) == 20


def test_class_impressions_have_one_hot_targets():
    made = _synthesizer(image_classifier(classes=4), targets="one_hot").run(range(8))
    assert torch.equal(made.target, torch.eye(4).repeat(2, 1))


def test_total_variation_needs_an_image():
    with pytest.raises(InputError, match=r"shape \[6\] are no images .* total_variation must be 0"):
        _synthesizer(vector_classifier(), VECTOR, total_variation=0.1)


def test_writes_down_what_the_teacher_says_of_the_finished_impression():
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


def test_optimising_lowers_the_loss():
    few = _synthesizer(vector_classifier(), VECTOR, steps=1, temperature=2.0).run(range(20))
    many = _synthesizer(vector_classifier(), VECTOR, steps=100, temperature=2.0).run(range(20))
    assert (many.loss <= few.loss + 1e-4).all()
    assert many.loss.mean() < few.loss.mean() - 0.05


def test_an_impression_starts_from_the_noise_of_the_recipe():
    start = start_recipe(noise="normal", scale=2.0, shift=-1.0)
    made = _synthesizer(steps=0, clamp=False, start=start).run(range(20))
    torch.testing.assert_close(made.x, start_noise(made.id, start, IMAGE, seed=1))


@pytest.mark.parametrize("valid_range", [(0.0, 1.0), (-1.0, 0.25)])
def test_clamp_keeps_the_valid_range_and_without_it_nothing_does(valid_range):
    spec = InputSpec(IMAGE.shape, valid_range)
    low, high = valid_range
    clamped = _synthesizer(input_spec=spec, learning_rate=1.0, l1=0.0).run(range(8))
    assert clamped.x.min() == low
    assert clamped.x.max() == high
    free = _synthesizer(input_spec=spec, learning_rate=1.0, l1=0.0, clamp=False).run(range(8))
    assert free.x.min() < low
    assert free.x.max() > high


def test_the_teacher_sees_normalised_inputs():
    spec = InputSpec(IMAGE.shape, mean=(0.3,), std=(0.2,))
    teacher = image_classifier()
    made = _synthesizer(teacher, spec).run(range(4))
    torch.testing.assert_close(made.teacher_logits, teacher((made.x - 0.3) / 0.2).detach())


@pytest.mark.parametrize("shape", [(6,), (1, 8, 8), (3, 8, 8), (5, 4), (2, 3, 4, 4)])
def test_inputs_of_any_rank(shape):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3))
    made = _synthesizer(teacher, InputSpec(shape)).run(range(6))
    assert made.x.shape == (6, *shape)
    assert torch.isfinite(made.x).all()


# What an impression depends on


def test_same_seed_same_bits_and_another_seed_another_impression():
    first = _synthesizer().run(range(20))
    torch.rand(3)  # torch's own random numbers play no part
    assert _equal(_synthesizer().run(range(20)), first)
    other = _synthesizer(seed=2).run(range(20))
    assert not torch.equal(other.target, first.target)
    assert not torch.equal(other.x, first.x)


@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_batch_mates_do_not_matter(batch_size):
    """The known fault: clipping by the extremes of the whole batch."""
    expected = _synthesizer().run(range(20))
    _assert_close(_synthesizer(batch_size=batch_size).run(range(20)), expected)


def test_neither_order_nor_company_matters():
    expected = _synthesizer().run(range(20))
    ids = torch.tensor([17, 3, 11, 4, 0])
    _assert_close(_synthesizer().run(ids), expected[ids])
    _assert_close(_synthesizer(impressions=1000, shard_size=3).run([19]), expected[19:])


def test_a_run_leaves_nothing_behind_that_changes_the_next():
    synthesizer = _synthesizer()
    first = synthesizer.run(range(6))
    synthesizer.run(range(13, 20))
    assert _equal(synthesizer.run(range(6)), first)


def test_ids_may_be_large():
    made = _synthesizer().run([2**40, 2**40 + 1])
    assert made.id.tolist() == [2**40, 2**40 + 1]
    assert not torch.equal(made.x[0], made.x[1])


# What it does to the teacher


def test_the_teacher_is_evaluated_and_comes_back_as_it_was():
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


def test_works_under_no_grad():
    with torch.no_grad():
        made = _synthesizer().run(range(4))
    assert _equal(made, _synthesizer().run(range(4)))


def test_no_device_is_named_in_the_package():
    """The known fault: .cuda() hard-coded."""
    for path in Path(zskd_fast.__file__).parent.rglob("*.py"):
        assert not re.search(r"\.cuda\(", path.read_text("utf-8")), path


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_runs_where_the_teacher_lies():
    made = _synthesizer(image_classifier().cuda()).run(range(8))
    assert {tensor.device.type for tensor in made.tensors().values()} == {"cuda"}
    _assert_close(made.to("cpu"), _synthesizer().run(range(8)))


# What it refuses


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.inner, self.wrap = image_classifier(), wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


def test_a_tuple_needs_logits_fn():
    teacher = Wrapped(lambda logits: (logits, None))
    with pytest.raises(InputError, match="logits_fn"):
        _synthesizer(teacher)
    made = Synthesizer(teacher, IMAGE, synthesis_recipe(), seed=1, logits_fn=lambda output: output[0]).run(
        [3]
    )
    assert torch.equal(made.x, _synthesizer(teacher.inner).run([3]).x)


def test_a_teacher_without_a_gradient_is_refused():
    with pytest.raises(InputError, match="no gradient flows"):
        _synthesizer(Wrapped(lambda logits: logits.detach()))


def test_an_input_shape_that_the_teacher_rejects_is_named():
    with pytest.raises(InputError, match=r"rejects a batch of 2 inputs of shape \[1, 12, 12\]"):
        _synthesizer(input_spec=InputSpec((1, 12, 12)))


def test_one_class_and_a_wrong_class_count_are_refused():
    with pytest.raises(InputError, match="K = 1"):
        _synthesizer(image_classifier(classes=1))
    with pytest.raises(InputError, match="4 classes, but num_classes says 10"):
        Synthesizer(image_classifier(), IMAGE, synthesis_recipe(), seed=1, num_classes=10)


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


def test_impressions_that_diverge_are_an_error_not_a_file():
    with pytest.raises(InputError, match=r"3 of 3 impressions came out with NaN .* id 5; lower"):
        _synthesizer(learning_rate=1e38, clamp=False, steps=50, l1=0.0).run([5, 6, 7])


def test_the_classifier_weights_may_be_given():
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_synthesizer(layer=weight).similarity, class_similarity(weight))
    with pytest.raises(InputError, match=r"\[5, 9\], wanted \[4, D\]"):
        _synthesizer(layer=torch.randn(5, 9))


# The fingerprint


def test_the_fingerprint_tells_apart_all_that_changes_the_impressions():
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    runs = [
        _synthesizer(),
        _synthesizer(seed=2),
        _synthesizer(steps=6),
        _synthesizer(image_classifier(seed=3)),
        _synthesizer(input_spec=InputSpec(IMAGE.shape, (0.0, 2.0))),
        _synthesizer(layer=weight),
        _synthesizer(layer=weight + 1),
    ]
    fingerprints = [run.fingerprint() for run in runs]
    assert all(a != b for i, a in enumerate(fingerprints) for b in fingerprints[:i])
    assert _synthesizer().fingerprint() == fingerprints[0]


# Filling a store


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_store_stopped_in_the_middle_ends_up_as_if_it_was_not(tmp_path):
    whole = _synthesizer()
    summary = synthesize(whole, Store.open_or_create(tmp_path / "whole", whole.fingerprint()), progress=False)
    assert (summary.made, summary.reused) == (20, 0)

    stopped = _synthesizer()
    store = Store.open_or_create(tmp_path / "stopped", stopped.fingerprint())
    store.write_shard(1, stopped.run(store.shard_ids(1)))
    again = _synthesizer()
    store = Store.open_or_create(tmp_path / "stopped", again.fingerprint())
    summary = synthesize(again, store, progress=False)
    assert (summary.made, summary.reused) == (12, 8)
    assert _files(tmp_path / "stopped") == _files(tmp_path / "whole")

    summary = synthesize(again, store, progress=False)
    assert (summary.made, summary.reused) == (0, 20)


def test_a_changed_bit_is_healed_and_nothing_else_is_written(tmp_path):
    synthesizer = _synthesizer()
    store = Store.open_or_create(tmp_path / "a", synthesizer.fingerprint())
    synthesize(synthesizer, store, progress=False)
    before = _files(tmp_path / "a")
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "a").glob("shard-*")}
    damaged = tmp_path / "a" / "shard-000001.safetensors"
    damaged.write_bytes(before[damaged.name][:-1] + b"\xff")
    summary = synthesize(synthesizer, store, progress=False)
    assert (summary.made, summary.reused, summary.elsewhere) == (8, 12, 0)
    assert _files(tmp_path / "a") == before
    changed = [name for name, stamp in stamps.items() if (tmp_path / "a" / name).stat().st_mtime_ns != stamp]
    assert changed == [damaged.name]


def test_a_shard_that_another_process_makes_is_left_to_it(tmp_path):
    synthesizer = _synthesizer()
    store = Store.open_or_create(tmp_path / "a", synthesizer.fingerprint())
    with Store.open(tmp_path / "a").claim(1):
        summary = synthesize(synthesizer, store, progress=False)
    assert (summary.made, summary.reused, summary.elsewhere) == (12, 0, 8)
    assert store.missing_shards() == [1]


def test_a_store_holds_what_run_makes(tmp_path):
    synthesizer = _synthesizer()
    store = Store.open_or_create(tmp_path / "a", synthesizer.fingerprint())
    synthesize(synthesizer, store, progress=False)
    # Batches are cut inside a shard of 8, so that the run below cuts the same ones.
    assert _equal(store.read_all(), synthesizer.run(range(20)))


def test_the_store_of_another_synthesizer_is_not_written(tmp_path):
    store = Store.open_or_create(tmp_path / "a", _synthesizer().fingerprint())
    with pytest.raises(InputError, match="seed: 2 in this run, 1 in the store"):
        synthesize(_synthesizer(seed=2), store, progress=False)
    assert store.missing_shards() == [0, 1, 2]


def test_times_the_phases_and_shows_progress_only_when_asked(tmp_path, capsys):
    synthesizer = _synthesizer()
    store = Store.open_or_create(tmp_path / "a", synthesizer.fingerprint())
    summary = synthesize(synthesizer, store, progress=True)
    shown = capsys.readouterr().err
    assert "20/20" in shown
    assert "impression/s" in shown
    wanted = {"targets", "teacher forward", "teacher backward", "loss", "update", "io"}
    assert set(summary.phase_seconds) == wanted
    assert 0 < sum(summary.phase_seconds.values()) <= summary.seconds
    silent = Store.open_or_create(tmp_path / "b", synthesizer.fingerprint())
    synthesize(synthesizer, silent, progress=False)
    assert capsys.readouterr().err == ""
