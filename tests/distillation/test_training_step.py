"""One step of the distillation: as a graph it does the same as without one."""

import copy
import dataclasses

import pytest
import recorded_graphs
import torch
from small_models import IMAGE, distillation_recipe, image_classifier, impressions_of, same_tensors
from students import Stopped, images, stop_at
from torch import nn

from zskd_fast import ops
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.distillation.training_step import TrainingStep
from zskd_fast.models import LeNet5, LeNet5Half
from zskd_fast.runtime import cuda_graph

FAST = load_recipe("fast").distillation
WHOLE = {
    "augmentation": FAST.augmentation,
    "fresh_noise": FAST.fresh_noise,
    "dormant_units": FAST.dormant_units,
    "shared_layers": True,
    "batch_statistics": True,
    "calibrate_student": True,
    "feature_weight": FAST.feature_weight,
}


def _color_like(channels, *, seed, dropout=0.0):
    """A classifier with batch normalization, a map that is averaged, and dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4)),
        )


def _distiller(**changes):
    recipe = distillation_recipe(**WHOLE | {"steps": 30} | changes)
    return Distiller(_color_like(6, seed=0), _color_like(5, seed=1, dropout=0.3), IMAGE, recipe, seed=2)


def _student(distiller):
    return distiller._student.model


def test_a_graph_gives_the_bits_of_the_eager_steps(monkeypatch):
    """With all that the recommended recipe has: noise, augmentation, shared layers, batch statistics, a reset."""
    eager = _distiller()
    want = eager.fit(images(40), progress=False)
    graphs = recorded_graphs.install(monkeypatch)
    replayed = _distiller()
    got = replayed.fit(images(40), progress=False)
    assert len(graphs) == 1 and got.loss == want.loss and got.loss[-1] != got.loss[0]
    assert same_tensors(_student(replayed), _student(eager))
    assert "captured step" in got.phase_seconds and "captured step" not in want.phase_seconds


def test_stored_logits_are_read_anew_by_each_replay(monkeypatch):
    teacher = image_classifier()
    data = impressions_of(images(40), teacher(images(40)).detach())

    def fit():
        student = image_classifier(seed=5)
        recipe = distillation_recipe(relabel=False, steps=12)
        return Distiller(teacher, student, IMAGE, recipe, seed=2).fit(data, progress=False).loss

    eager = fit()
    recorded_graphs.install(monkeypatch)
    assert fit() == eager


def test_a_distillation_that_continues_from_a_checkpoint_captures_again(tmp_path, monkeypatch):
    recorded_graphs.install(monkeypatch)
    whole = _distiller()
    want = whole.fit(images(40), progress=False)
    stopped = _distiller()
    keep = {"checkpoint": tmp_path / "state", "checkpoint_seconds": 0, "progress": False}
    with pytest.raises(Stopped):
        stopped.fit(images(40), evaluate=stop_at(2), evaluate_every=7, **keep)
    again = _distiller()
    assert again.fit(images(40), **keep).loss == want.loss
    assert same_tensors(_student(again), _student(whole))


class Waiting(nn.Module):
    """A student that looks at a value on the host."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 4)

    def forward(self, x):
        return self.fc(x.flatten(1)) * (1.0 if bool(x.sum() > -1e9) else 2.0)


def test_a_student_that_waits_for_the_device_is_trained_without_a_graph(monkeypatch):
    recipe, x = distillation_recipe(steps=9), images(40)
    eager, without = Waiting(), Waiting()
    without.load_state_dict(copy.deepcopy(eager.state_dict()))
    Distiller(image_classifier(), eager, IMAGE, recipe, seed=2).fit(x, progress=False)
    recorded_graphs.install(monkeypatch)
    with pytest.warns(UserWarning, match="the steps run without a CUDA graph, which they do not allow"):
        Distiller(image_classifier(), without, IMAGE, recipe, seed=2).fit(x, progress=False)
    assert same_tensors(eager, without)


def test_few_steps_are_not_worth_a_graph():
    device = torch.device("cuda", 0)
    assert cuda_graph.pays(device, cuda_graph.WORTH_CAPTURING)
    assert not cuda_graph.pays(device, cuda_graph.WORTH_CAPTURING - 1)
    assert not cuda_graph.pays(torch.device("cpu"), 10_000)


def test_a_step_launches_little_beside_its_graph(monkeypatch):
    """What differs from step to step is drawn and copied, the parameters are updated: all else is in the graph."""
    graphs = recorded_graphs.install(monkeypatch)
    counted = []

    def counting(owner, name):
        call = getattr(owner, name)

        def count(*args):
            with recorded_graphs.CountedOps() as ops:
                result = call(*args)
            counted.append(ops.launches)
            return result

        monkeypatch.setattr(owner, name, count)

    counting(TrainingStep, "__call__")
    counting(Distiller, "_update")
    monkeypatch.setattr(recorded_graphs.RecordedGraph, "replay", lambda graph: None)
    monkeypatch.setattr(cuda_graph, "_require_same_moves", lambda *_: None)
    _distiller().fit(images(400), progress=False)
    assert len(graphs) == 1 and len(graphs[0].launches) > 100
    outside = counted[2] + counted[3]  # of the second step: the first one also draws the order of the impressions
    assert len(outside) <= 10, outside


def test_the_graph_of_a_step_of_lenet_has_few_kernels(monkeypatch):
    """The batch takes 9 of them; the rest belongs to the models and the loss.

    An op of this package is one kernel, but under a count of torch's ops `dead_leaves` is its reference, so a single op
    takes its place.
    """
    graphs = recorded_graphs.install(monkeypatch)
    monkeypatch.setattr(recorded_graphs.RecordedGraph, "replay", lambda graph: None)
    monkeypatch.setattr(cuda_graph, "_require_same_moves", lambda *_: None)
    monkeypatch.setattr(ops, "dead_leaves", lambda leaves, *size: leaves.new_zeros(len(leaves), 1, *size))
    models, recipe = (LeNet5(), LeNet5Half()), dataclasses.replace(FAST, steps=3)
    Distiller(*models, InputSpec((1, 32, 32)), recipe, seed=0).fit(torch.rand(128, 1, 32, 32), progress=False)
    assert graphs[0].launches.count("augment") == 1
    assert len(graphs[0].launches) < 60, graphs[0].launches
