"""The first weights of a student that is its teacher with fewer layers."""

import pytest
import torch
from pruned import pruned
from small_models import vector_classifier
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.models import ResNet8, ResNet20
from zskd_fast.synthesis.batch_norm import batch_norms


class Blocks(nn.Module):
    """Residual blocks with batch normalization, the last one called ``times``, and a parameter of the model itself."""

    def __init__(self, blocks, *, width=6, scales=6, times=1, seed=0):
        super().__init__()
        self.times = times
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.scale = nn.Parameter(torch.randn(scales))
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 6))
                for _ in range(blocks)
            )
            self.last = nn.Linear(6, 4)

    def forward(self, x):
        for block in [*self.blocks, *[self.blocks[-1]] * (self.times - 1)]:
            x = x + block(x)
        return self.last(x * self.scale)


def test_a_student_with_some_of_its_teachers_layers_gets_copies_of_them():
    teacher, student = Blocks(3), Blocks(2, seed=1)
    start = pruned(teacher, student)
    assert start.description == "the student's 8 layers are copies of 8 of the teacher's 11"
    student.last.requires_grad_(False)
    last = student.last.weight.clone()
    start.set_weights(lambda: [])
    assert torch.equal(student.scale, teacher.scale) and torch.equal(student.last.weight, last)
    for mine, source in zip(student.blocks, teacher.blocks, strict=False):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), source.parameters(), strict=True))


def test_batch_normalization_gets_the_statistics_only_in_eval_mode_where_it_learns_none():
    teacher, student = Blocks(3), Blocks(2, seed=1)
    for layer in batch_norms(teacher):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.1, 2)
    start = pruned(teacher, student)
    kept, learning = (block[1] for block in student.train().blocks)
    kept.eval()
    start.set_weights(lambda: [], on_batch=True)
    assert torch.equal(kept.running_mean, teacher.blocks[0][1].running_mean)
    assert torch.equal(kept.running_var, teacher.blocks[0][1].running_var)
    assert not learning.running_mean.any()


def test_a_layer_that_both_models_call_several_times_gets_a_copy():
    teacher, student = Blocks(1, times=3), Blocks(1, times=2, seed=1)
    start = pruned(teacher, student)
    assert start.description == "the student's 5 layers are copies of 5 of the teacher's 5"
    start.set_weights(lambda: [])
    assert torch.equal(student.blocks[0][0].weight, teacher.blocks[0][0].weight)


def test_a_residual_network_gets_the_first_block_of_each_stage():
    color = InputSpec((3, 32, 32))
    teacher, student = ResNet20(), ResNet8()
    pruned(teacher, student, color).set_weights(lambda: [])
    for stage in range(3):
        mine, source = student.features[3 + stage], teacher.features[3 + 3 * stage]
        assert torch.equal(mine.residual[3].weight, source.residual[3].weight)
    assert torch.equal(student.features[0].weight, teacher.features[0].weight)
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        (Blocks(2), Blocks(2)),
        (Blocks(2), Blocks(3)),
        (Blocks(3), Blocks(2, width=5)),
        (Blocks(3), Blocks(2, scales=1)),
        (Blocks(3), Blocks(3, times=2)),
        (Blocks(4), Blocks(2, times=2)),
        (torch.jit.script(vector_classifier()), nn.Linear(6, 4)),
    ],
    ids=[
        "as many layers",
        "more layers",
        "other shapes",
        "another shape of a parameter",
        "a layer called twice",
        "a layer that would be two of its teacher's",
        "no modules",
    ],
)
def test_a_student_with_other_layers_than_its_teacher_keeps_its_own_weights(teacher, student):
    assert pruned(teacher, student) is None
