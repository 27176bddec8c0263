"""The convolutions of a job alone, as zskd_fast calls them: no job can be faster than these.

One thread, since a job shares its work between threads in another way. Time on other layers, losses and updates is not
in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.distillation.jobs import PAIRS
from benchmarks.measure import Bench
from benchmarks.synthesis.bench_synthesis import JOBS
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.models.cpu_overrides import cpu_overrides
from zskd_fast.models.fast_copy import prefers_channels_last

THREADS = [1]
PROVIDERS = ["zskd_fast"]
_SYNTHESIS = ["LeNet-5, recipe fast", "AlexNet, recipe fast", "ResNet-20, recipe fast"]
SETTINGS = [*_SYNTHESIS, *PAIRS]
QUICK_SETTINGS = [SETTINGS[0], SETTINGS[3]]
_Calls = list[Callable[[], object]]


def _calls(model: nn.Module, x: Tensor, *, with_gradient: bool) -> _Calls:
    """Return a call per convolution of a model, on the input that it gets from x."""
    inputs: list[tuple[nn.Conv2d, Tensor]] = []
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    with contextlib.ExitStack() as hooks:
        for layer in convolutions:
            hook = layer.register_forward_hook(lambda layer, args, _: inputs.append((layer, args[0])))
            hooks.callback(hook.remove)
        model(x)
    assert len(inputs) == len(convolutions) > 0
    return [_call(layer, given, with_gradient=with_gradient) for layer, given in inputs]


def _call(layer: nn.Conv2d, given: Tensor, *, with_gradient: bool) -> Callable[[], object]:
    leaf = given.detach().requires_grad_(with_gradient and given.requires_grad)
    if not with_gradient:
        return torch.no_grad()(lambda: layer(leaf))
    wanted = [tensor for tensor in (leaf, *layer.parameters()) if tensor.requires_grad]
    grad = torch.rand_like(layer(leaf))
    return lambda: torch.autograd.grad(layer(leaf), wanted, grad)


def _to_fast_layout(model: nn.Module, input_spec: InputSpec) -> None:
    if prefers_channels_last(input_spec, next(model.parameters()).device):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _synthesis(setting: str, device: str) -> tuple[_Calls, int]:
    """Return the calls of a step of the synthesis, and the images of it."""
    job, size = JOBS[setting], load_recipe("fast").synthesis.batch_size
    teacher = job.teacher(device).requires_grad_(False)
    _to_fast_layout(teacher, job.input_spec)
    x = torch.rand(size, *job.input_spec.shape, device=device).requires_grad_()
    return _calls(teacher, x, with_gradient=True), size


def _distillation(setting: str, device: str) -> tuple[_Calls, int]:
    """Return the calls of a student step."""
    pair = PAIRS[setting]
    teacher, student = pair.models(device)
    x = torch.rand(load_recipe("fast").distillation.batch_size, *pair.input_spec.shape, device=device)
    for model in (teacher, student.train()):
        _to_fast_layout(model, pair.input_spec)
    return _calls(teacher, x, with_gradient=False) + _calls(student, x, with_gradient=True), 1


def test_convolutions(setting: str, threads: int, provider: str, bench: Bench) -> None:
    calls, items = (_synthesis if setting in JOBS else _distillation)(setting, bench.device)

    def all_calls() -> None:
        with cpu_overrides(torch.device(bench.device)):
            for call in calls:
                call()

    bench(all_calls, op="convolutions", setting=setting, provider=provider, shape=str(items), items=items)
