"""The options that make the teacher faster change the rounding of an impression only."""

import copy

import pytest
import torch
from small_models import distillation_recipe, rough_forward, synthesis_recipe
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.errors import InputError
from zskd_fast.models import fast_copy
from zskd_fast.synthesis.synthesizer import Synthesizer

IMAGE = InputSpec(shape=(3, 8, 8))


class BatchNormTeacher(nn.Module):
    """Convolutions with batch normalization that has statistics to fold in."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Tanh()),
            *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten()),
        )
        self.classifier = nn.Linear(128, 4)

    def forward(self, x):
        return self.classifier(self.body(x))


def _teacher(kind=BatchNormTeacher):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = kind()
        for module in teacher.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return teacher


def _made(teacher, **options):
    return Synthesizer(teacher, IMAGE, synthesis_recipe(**options), seed=1).run(range(6))


@pytest.mark.parametrize(
    "options",
    [
        {"fold_batch_norm": True},
        {"channels_last": "on"},
        {"fold_batch_norm": True, "channels_last": "on"},
        {"compile_teacher": True},
    ],
    ids=" ".join,
)
def test_the_impressions_differ_by_rounding_only(options):
    expected = _made(_teacher())
    made = _made(_teacher(), **options)
    assert torch.equal(made.target, expected.target)
    torch.testing.assert_close(made.x, expected.x, rtol=0, atol=1e-4)
    torch.testing.assert_close(made.teacher_logits, expected.teacher_logits, rtol=1e-4, atol=1e-4)


def test_the_copy_is_compared_without_tf32():
    Synthesizer(_teacher(), IMAGE, synthesis_recipe(fold_batch_norm=True), seed=1, forward_fn=rough_forward())


def test_a_copy_in_bfloat16_may_differ_by_its_rounding(monkeypatch):
    monkeypatch.setattr(fast_copy, "relative_error", lambda got, wanted: 0.05)
    fold = synthesis_recipe(fold_batch_norm=True)
    with pytest.raises(InputError, match=r"changes the logits of an input by 5\.0e-02"):
        Synthesizer(_teacher(), IMAGE, fold, seed=1)
    Synthesizer(_teacher().bfloat16(), IMAGE, fold, seed=1)


def test_folding_removes_every_batch_norm_of_the_copy_and_none_of_the_teacher():
    teacher = _teacher().train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    synthesizer = Synthesizer(teacher, IMAGE, synthesis_recipe(fold_batch_norm=True), seed=1)
    fast = synthesizer._fast_teacher.model
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in teacher.modules()) == 2
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_channels_last_changes_the_layout_of_the_copy_only():
    teacher = _teacher()
    fast = Synthesizer(teacher, IMAGE, synthesis_recipe(channels_last="on"), seed=1)._fast_teacher.model
    assert fast.body[3].weight.is_contiguous(memory_format=torch.channels_last)
    assert not teacher.body[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_the_synthesizer_calls_the_compiled_teacher():
    synthesizer = Synthesizer(_teacher(), IMAGE, synthesis_recipe(compile_teacher=True), seed=1)
    assert isinstance(synthesizer._fast_teacher.model, torch._dynamo.OptimizedModule)


class Branching(BatchNormTeacher):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class TwoNorms(BatchNormTeacher):
    """One convolution whose output goes through another normalization at its second call."""

    def __init__(self):
        super().__init__()
        self.again = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
        self.second = nn.BatchNorm2d(3)

    def forward(self, x):
        return super().forward(self.second(self.again[0](self.again(x))))


def test_a_teacher_that_cannot_be_traced_is_refused_for_folding_only():
    with pytest.raises(InputError, match=r"cannot be copied for fold_batch_norm and channels_last: .*control flow"):
        _made(_teacher(Branching), fold_batch_norm=True, channels_last="on")
    _made(_teacher(Branching), channels_last="on")


def test_folding_that_changes_the_logits_is_refused():
    with pytest.raises(InputError, match="does not allow fold_batch_norm: it changes the logits"):
        _made(_teacher(TwoNorms), fold_batch_norm=True)


class Viewing(nn.Module):
    """`view` needs the channels first; `in_train_mode` has it in that mode only."""

    def __init__(self, *, in_train_mode=False):
        super().__init__()
        self.convolution, self.classifier = nn.Conv2d(3, 8, 3), nn.Linear(288, 4)
        self.in_train_mode = in_train_mode

    def forward(self, x):
        maps = self.convolution(x).tanh()
        views = self.training or not self.in_train_mode
        return self.classifier(maps.view(len(x), -1) if views else maps.flatten(1))


def _distilled(teacher, student):
    recipe = distillation_recipe(batch_statistics=False)
    Distiller(teacher, student, IMAGE, recipe, seed=0).fit(torch.rand(8, *IMAGE.shape), progress=False)
    return student


def test_a_teacher_that_runs_with_the_channels_first_only_keeps_its_layout():
    with pytest.raises(InputError, match="cannot be copied for channels_last: view size is not compatible"):
        _made(_teacher(Viewing), channels_last="on")
    made = [_made(_teacher(Viewing), channels_last=layout) for layout in ("auto", "off")]
    assert torch.equal(made[0].x, made[1].x)
    _distilled(_teacher(Viewing), _teacher())


@pytest.mark.parametrize("in_train_mode", [False, True])
def test_a_student_that_learns_with_the_channels_first_only_keeps_its_layout(in_train_mode):
    before = _teacher(lambda: Viewing(in_train_mode=in_train_mode))
    after = _distilled(_teacher(), copy.deepcopy(before))
    assert not torch.equal(after.convolution.weight, before.convolution.weight)
    assert after.convolution.weight.is_contiguous()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda model: torch.jit.trace(model, torch.rand(2, 3, 8, 8))])
def test_a_torchscript_teacher_of_color_images(compiled):
    teacher = _teacher().eval()
    torch.testing.assert_close(_made(compiled(teacher)).x, _made(teacher).x, rtol=0, atol=1e-4)
    _distilled(compiled(teacher), _teacher())
