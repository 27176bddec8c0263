"""The first weights of a student that is its teacher with fewer layers."""

import pytest
import torch
from small_models import VECTOR, vector_classifier
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.distillation.pruned_start import pruned_start
from zskd_fast.models import ResNet8, ResNet20
from zskd_fast.models.classifier import Classifier


def _pruned(teacher, student):
    return pruned_start(Classifier(teacher, VECTOR), Classifier(student, VECTOR, role="student"))


class Blocks(nn.Module):
    """Residual blocks with batch normalization, and a parameter of the model itself."""

    def __init__(self, blocks, *, width=6, scales=6, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.scale = nn.Parameter(torch.randn(scales))
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 6))
                for _ in range(blocks)
            )
            self.last = nn.Linear(6, 4)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.last(x * self.scale)


class LastBlockTwice(Blocks):
    """Calls one block twice."""

    def forward(self, x):
        return super().forward(x + self.blocks[-1](x))


def test_a_student_with_some_of_its_teachers_layers_gets_copies_of_them():
    teacher, student = Blocks(3), Blocks(2, seed=1)
    start = _pruned(teacher, student)
    assert start.description == "the student's 8 layers are copies of 8 of the teacher's 11"
    student.last.requires_grad_(False)
    last = student.last.weight.clone()
    start.set_weights(Classifier(teacher, VECTOR), Classifier(student, VECTOR, role="student"), lambda: [])
    assert torch.equal(student.scale, teacher.scale) and torch.equal(student.last.weight, last)
    for mine, source in zip(student.blocks, teacher.blocks, strict=False):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), source.parameters(), strict=True))


def test_a_residual_network_gets_the_first_block_of_each_stage():
    color = InputSpec((3, 32, 32))
    teacher, student = ResNet20(), ResNet8()
    theirs, mine = Classifier(teacher, color), Classifier(student, color, role="student")
    pruned_start(theirs, mine).set_weights(theirs, mine, lambda: [])
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
        (Blocks(3), LastBlockTwice(3)),
        (torch.jit.script(vector_classifier()), nn.Linear(6, 4)),
    ],
    ids=[
        "as many layers",
        "more layers",
        "other shapes",
        "another shape of a parameter",
        "a layer called twice",
        "no modules",
    ],
)
def test_a_student_with_other_layers_than_its_teacher_keeps_its_own_weights(teacher, student):
    assert _pruned(teacher, student) is None
