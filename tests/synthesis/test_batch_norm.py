"""The statistics prior on impressions, and the teacher on the statistics of a batch."""

import copy
import dataclasses

import pytest
import torch
from small_models import open_store, synthesis_recipe
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.distillation.calibration import calibrate
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier, frozen
from zskd_fast.synthesis.batch_norm import StatisticsPrior, batch_norms, on_batch_statistics
from zskd_fast.synthesis.shards import synthesize
from zskd_fast.synthesis.synthesizer import Synthesizer

IMAGE = InputSpec((3, 6, 6))


def _model(seed=0, *, norm=True):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5) if norm else nn.Identity(), nn.Tanh(), nn.Flatten()),
            *(nn.Linear(80, 7), nn.BatchNorm1d(7) if norm else nn.Identity(), nn.Linear(7, 4)),
        )
        for layer in batch_norms(model):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.05, 0.3)
    return model.eval()


def _inputs(count=16, seed=0):
    return torch.rand(count, *IMAGE.shape, generator=torch.Generator().manual_seed(seed))


def _synthesizer(teacher=None, **recipe):
    numbers = {"batch_size": 4, "impressions": 10, "shard_size": 5, "steps": 20, "statistics_prior": 5.0}
    return Synthesizer(teacher or _model(), IMAGE, synthesis_recipe(**numbers | recipe), seed=1)


def _distance(teacher, x):
    prior = StatisticsPrior(teacher)
    with prior.watching(), frozen(teacher):
        prior.begin()
        teacher(x)
        return prior.distance()


# --------------------------------------------------------------------------------------------- the prior


def test_the_distance_is_the_mean_over_layers_and_channels_of_the_shift_and_the_spread():
    teacher, x = _model(), _inputs()
    between = teacher[:1](x), teacher[:5](x)
    expected = []
    for layer, values in zip(batch_norms(teacher), between, strict=True):
        channels = values.transpose(0, 1).flatten(1)
        mean, deviation = channels.mean(1), (channels.var(1, correction=0) + layer.eps).sqrt()
        running = (layer.running_var + layer.eps).sqrt()
        shift, spread = (mean - layer.running_mean) / running, deviation / running - 1
        expected.append((shift**2 + spread**2).mean())
    torch.testing.assert_close(_distance(teacher, x), torch.stack(expected).mean())


def test_a_batch_with_the_running_statistics_has_no_distance():
    teacher, x = _model(), _inputs()
    calibrated = Classifier(copy.deepcopy(teacher), IMAGE)
    calibrated.model.train()
    calibrate(calibrated, x, len(x))
    for layer in batch_norms(calibrated.model):  # the running variance is the unbiased one
        values = len(x) * (16 if isinstance(layer, nn.BatchNorm2d) else 1)
        layer.running_var *= (values - 1) / values
    assert _distance(calibrated.model.eval(), x) < 1e-8 < _distance(teacher, x)


def test_the_prior_brings_the_impressions_closer_to_the_running_statistics():
    ids = range(4)
    with_prior, without = (_synthesizer(statistics_prior=weight).run(ids).x for weight in (5.0, 0.0))
    assert _distance(_model(), with_prior) < _distance(_model(), without) / 2


def test_the_prior_weighs_its_distance_times_the_size_of_the_batch():
    """One step of Adam shows only the sign of a gradient, so epsilon is made large."""
    step = {"steps": 1, "adam_eps": 1e3, "learning_rate": 1e3, "final_learning_rate_fraction": 1.0, "clamp": False}
    start = _synthesizer(steps=0, clamp=False).run(range(4))
    moved = [_synthesizer(**step, l1=0.0, statistics_prior=weight).run(range(4)).x for weight in (5.0, 0.0)]
    x = start.x.clone().requires_grad_()
    teacher = _model()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(5.0 * 4 * _distance(teacher.requires_grad_(False), x), x)
    torch.testing.assert_close(moved[1] - moved[0], gradient, rtol=1e-2, atol=1e-2 * float(gradient.abs().max()))


def test_an_impression_depends_on_its_batch_but_not_on_the_ids_asked_for():
    synthesizer = _synthesizer()
    whole = synthesizer.run(range(12))
    for ids in ([9], [2, 1], [11, 0, 5], [3, 1, 0, 2], [5, 5, 4, 4], [4, 4, 4, 7]):
        some = synthesizer.run(ids)
        assert some.id.tolist() == ids
        assert torch.equal(some.x, whole.x[ids]) and torch.equal(some.teacher_logits, whole.teacher_logits[ids])


def test_a_store_does_not_depend_on_its_shards(tmp_path):
    """Ten impressions in batches of four: the last batch is made as a whole, and shards of five cut batches."""
    stores = []
    for size in (4, 5):
        synthesizer = _synthesizer(shard_size=size)
        store = open_store(tmp_path / str(size), synthesizer)
        assert synthesize(synthesizer, store, progress=False).made == 10
        stores.append(torch.cat([store.read_shard(shard).x for shard in range(store.num_shards)]))
    assert torch.equal(*stores)


def test_the_progress_counts_the_impressions_asked_for(tmp_path, capsys):
    """The bar of tqdm fails where more is done than its total."""
    counts = []
    _synthesizer().run([9, 11, 2], progress=counts.append)
    assert sorted(counts) == [1] * 20 + [2] * 20
    synthesizer = _synthesizer()
    synthesize(synthesizer, open_store(tmp_path, synthesizer), progress=True)
    assert "100%" in capsys.readouterr().err


def test_several_batches_at_once_do_not_mix_their_statistics():
    one, several = (_synthesizer(parallel_batches=parallel).run(range(12)) for parallel in (False, True))
    assert torch.equal(one.x, several.x)


def test_a_teacher_without_batch_normalization_gets_no_prior():
    teacher = _model(norm=False)
    with_prior, without = (_synthesizer(teacher, statistics_prior=weight).run([3]).x for weight in (5.0, 0.0))
    assert torch.equal(with_prior, without)


def test_a_folded_teacher_has_no_statistics_left():
    with pytest.raises(InputError, match="fold_batch_norm leaves no statistics for statistics_prior; set one of them"):
        _synthesizer(fold_batch_norm=True)
    _synthesizer(fold_batch_norm=True, statistics_prior=0.0)
    _synthesizer(_model(norm=False), fold_batch_norm=True)


def test_a_flat_teacher_is_refused_although_the_prior_would_move_the_impressions():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = _model()

        def forward(self, x):
            return self.body(x).sign() + 0 * self.body(x)

    with pytest.raises(InputError, match="x does not move"):
        _synthesizer(Flat()).run(range(4))


# ------------------------------------------------------------------------------------- batch statistics


def test_on_batch_statistics_the_logits_are_those_of_train_mode_and_nothing_changes():
    teacher, x = _model(), _inputs()
    before = copy.deepcopy(teacher.state_dict())
    wanted = copy.deepcopy(teacher).train()(x)
    with on_batch_statistics(teacher):
        torch.testing.assert_close(teacher(x), wanted)
    assert list(before) == list(teacher.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_the_statistics_come_back_after_an_error():
    teacher = _model()
    with pytest.raises(ZeroDivisionError), on_batch_statistics(teacher):
        raise ZeroDivisionError
    assert all(layer.running_mean is not None for layer in batch_norms(teacher))


def test_the_identity_holds_the_weight_of_the_prior():
    assert _synthesizer().identity != _synthesizer(statistics_prior=1.0).identity
    assert dataclasses.asdict(_synthesizer().identity)["recipe"]["statistics_prior"] == 5.0


def test_a_teacher_in_bfloat16_makes_impressions_of_the_same_statistics_and_labels_them_in_float32():
    teacher = _model()
    full, half = (_synthesizer(teacher, teacher_precision=precision) for precision in ("float32", "bfloat16"))
    made, rough = full.run(range(8)), half.run(range(8))
    assert not torch.equal(rough.x, made.x)
    assert torch.equal(rough.teacher_logits, teacher(rough.x).detach())
    assert rough.loss.mean() == pytest.approx(float(made.loss.mean()), rel=0.02)
    of_noise, of_made, of_rough = (float(_distance(teacher, x)) for x in (_inputs(4), made.x[:4], rough.x[:4]))
    assert of_rough == pytest.approx(of_made, rel=0.1) and of_made < 0.5 * of_noise
