"""The step in train mode that a distiller takes first, alone and as one of several processes."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_models import VECTOR, distillation_recipe, vector_classifier
from students import recorded
from torch import nn

import zskd_fast
from zskd_fast.distillation import student_probe
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier
from zskd_fast.runtime.processes import World


def _distiller(student, **recipe):
    return Distiller(vector_classifier(), student, VECTOR, distillation_recipe(**recipe), seed=1)


def _batch_norm():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))


@pytest.mark.parametrize(("batch_size", "processes", "rows"), [(8, 1, 8), (8, 3, 2), (8, 8, 1), (2, 3, 1)])
def test_the_step_has_as_many_rows_as_the_smallest_share_of_a_batch(monkeypatch, batch_size, processes, rows):
    monkeypatch.setattr(student_probe, "joined", lambda: World(processes - 1, processes))
    student = vector_classifier(seed=5)
    seen = []
    student.register_forward_hook(lambda module, args, output: seen.append((module.training, len(args[0]))))
    _distiller(student, batch_size=batch_size)
    assert seen == [(False, 3), (True, rows)]


def test_batch_norm_with_one_row_for_each_process_is_refused(monkeypatch):
    monkeypatch.setattr(student_probe, "joined", lambda: World(0, 4))
    with pytest.raises(
        InputError, match=r"rejects a batch of 1 input .*; a batch of 4 over 4 processes leaves 1 for one"
    ):
        _distiller(_batch_norm(), batch_size=4)
    _distiller(_batch_norm(), batch_size=8)


@pytest.mark.parametrize(("batch_size", "processes"), [(1, 1), (4, 4)])
def test_a_teacher_whose_batch_norm_gets_one_row_is_refused_where_it_labels_on_batches(
    monkeypatch, batch_size, processes
):
    monkeypatch.setattr(student_probe, "joined", lambda: World(0, processes))
    student, recipe = vector_classifier(), distillation_recipe(batch_size=batch_size, batch_statistics=True)
    with pytest.raises(InputError, match=r"no statistics of one input \(Expected more than 1 value.*batch_size, or"):
        Distiller(_batch_norm(), student, VECTOR, recipe, seed=1)
    for changes in ({"batch_statistics": False}, {"batch_size": 2 * processes}):
        Distiller(_batch_norm(), student, VECTOR, dataclasses.replace(recipe, **changes), seed=1)


def test_the_step_keeps_torchs_random_state_and_the_modes():
    student = vector_classifier(seed=5).eval()
    state = torch.get_rng_state()
    _distiller(student)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in student.modules())


def test_shared_modules_are_compared_at_the_cost_of_two_forward_passes_only_if_there_are_any():
    for shared, calls in ((False, 2), (True, 4)):
        teacher, student = vector_classifier(), vector_classifier(seed=5)
        if shared:
            student[1] = teacher[1]
        seen = recorded(teacher)
        Distiller(Classifier(teacher, VECTOR), student, VECTOR, distillation_recipe(), seed=1)
        assert len(seen) == calls


_PROCESS = """
import torch
from small_models import VECTOR, distillation_recipe, vector_classifier
from torch import distributed, nn
from zskd_fast.distillation.distiller import Distiller

distributed.init_process_group("gloo")
class WithUnused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = vector_classifier(seed=5), nn.Linear(3, 3)
    def forward(self, x):
        return self.used(x)

recipe = distillation_recipe(steps=4, batch_size=8)
distiller = Distiller(vector_classifier(), WithUnused(), VECTOR, recipe, seed=1)
history = distiller.fit(torch.rand(16, 6, generator=torch.Generator().manual_seed(0)), progress=False)
print(history.loss[-1] < 1e9)
"""


def test_a_parameter_without_a_gradient_stops_no_group_of_processes():
    """Without find_unused_parameters, torch ends the second step with an error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    package = os.path.dirname(os.path.dirname(zskd_fast.__file__))
    path = os.pathsep.join([package, str(Path(__file__).parents[1] / "support")])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS],
            env={**os.environ, **group, "PYTHONPATH": path, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outcomes = [process.communicate(timeout=180) for process in processes]
    assert [printed.strip() for printed, _ in outcomes] == ["True", "True"], outcomes
