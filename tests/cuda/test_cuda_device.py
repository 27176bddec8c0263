"""The ops on a CUDA device: accuracy, repeatability, streams and CUDA graphs. Run by `make gpu-check`."""

import dataclasses
import os
import warnings

import pytest
import torch
from row_losses import CLASSES, DTYPES, TEMPERATURES, assert_close, logits_of, targets_of, value_and_grad
from small_models import IMAGE, image_classifier, synthesis_recipe
from torch import nn

import zskd_fast
from zskd_fast import ops, reference
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.distillation.distiller import Distiller
from zskd_fast.runtime import cuda_graph
from zskd_fast.runtime.timing import PhaseTimer
from zskd_fast.synthesis.synthesizer import Synthesizer

MISSING = (
    "this build of zskd_fast has the CPU backend only"
    if not zskd_fast.build_info()["cuda"]
    else "no CUDA device is visible"
    if not torch.cuda.is_available()
    else ""
)
if MISSING and os.environ.get("ZSKD_NEED_DEVICE") == "1":
    pytest.fail(f"the tests on a CUDA device cannot run: {MISSING}", pytrace=False)
if MISSING:
    pytest.skip(f"{MISSING}; run `make gpu-check` on a machine with a GPU", allow_module_level=True)

DEVICE = "cuda"
ROW_LOSSES = ["soft_cross_entropy", "distillation_loss"]
ALL_CLASSES = [*CLASSES, 8, 20, 128, 129, 512, 513, 1024, 1025, 5000, 16384, 16385, 50257]
UPDATE = dict(betas=(0.9, 0.99), eps=1e-8, l1=0.1, l2=0.2, lo=-1.0, hi=1.0)


def rows_and_others(op, rows, classes, dtype=torch.float32):
    a = logits_of(rows, classes, dtype)
    b = targets_of(rows, classes, dtype) if op == "soft_cross_entropy" else logits_of(rows, classes, dtype, seed=1)
    return a.to(DEVICE), b.to(DEVICE)


@pytest.mark.parametrize("classes", ALL_CLASSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ROW_LOSSES)
def test_row_losses_match_float64(op, dtype, classes):
    a, b = rows_and_others(op, 67, classes, dtype)
    precise = 1e-13 if dtype == torch.float64 else 1e-5  # tau^2 times the rounding of a log-sum-exp
    for temperature in TEMPERATURES:
        loss, grad = value_and_grad(getattr(ops, op), a, b, temperature, "none")
        want = value_and_grad(getattr(reference, op), a.double(), b.double(), temperature, "none")
        if classes == 1:
            assert loss.abs().max() <= 1e-6 and grad.abs().max() <= 1e-6
            continue
        assert_close(loss, want[0], precise, f"loss, tau={temperature}")
        assert_close(grad, want[1], max(precise, torch.finfo(dtype).eps), f"gradient, tau={temperature}")


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("classes", [10, 2000])
def test_row_losses_match_the_cpu_in_every_reduction(classes, reduction):
    for op in ROW_LOSSES:
        named = "batchmean" if op == "distillation_loss" and reduction == "mean" else reduction
        a, b = rows_and_others(op, 300, classes)
        loss, grad = value_and_grad(getattr(ops, op), a, b, 4.0, named)
        want_loss, want_grad = value_and_grad(getattr(ops, op), a.cpu(), b.cpu(), 4.0, named)
        assert loss.device == a.device and loss.shape == want_loss.shape
        assert_close(loss.cpu(), want_loss, 6e-6, "loss")
        assert_close(grad.cpu(), want_grad, 6e-6, "gradient")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_upstream_gradients_scale_the_gradient_as_on_the_cpu(dtype):
    a, b = rows_and_others("soft_cross_entropy", 300, 1000, dtype)
    for scale in (1.0, 3.0, 65536.0):
        for keep in (False, True):  # a kept graph keeps its saved gradient: the second pass gives the same
            grads = []
            for leaf, other in ((a.clone(), b), (a.cpu(), b.cpu())):
                loss = ops.soft_cross_entropy(leaf.requires_grad_(), other, 4.0)
                passes = [torch.autograd.grad(loss * scale, leaf, retain_graph=keep)[0] for _ in range(1 + keep)]
                assert torch.equal(passes[0], passes[-1])
                grads.append(passes[0].cpu())
            assert_close(grads[0], grads[1], max(6e-6, torch.finfo(dtype).eps), f"scale {scale}, keep {keep}")


@pytest.mark.parametrize("classes", [*CLASSES, 256, 1024, 1025, 2500, 5056, 5057, 11200, 11201])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dirichlet_matches_the_bits_of_the_cpu(dtype, classes):
    alpha = (torch.rand(500, classes, generator=torch.Generator().manual_seed(classes)) * 2 + 0.01).to(dtype)
    ids = torch.arange(500) * 3 + 2**33
    for log in (False, True):
        got = ops.dirichlet(alpha.to(DEVICE), ids.to(DEVICE), seed=2**62 + 9, log=log)
        assert torch.equal(got.cpu(), ops.dirichlet(alpha, ids, seed=2**62 + 9, log=log))


@pytest.mark.parametrize("count", [1, 5, 32, 784])
@pytest.mark.parametrize("distribution", ["uniform", "normal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_philox_matches_the_bits_of_the_cpu(dtype, distribution, count):
    ids, how = torch.arange(1000) * 7 + 2**40, dict(seed=3, stream=5, distribution=distribution, dtype=dtype)
    assert torch.equal(ops.philox(ids.to(DEVICE), count, **how).cpu(), ops.philox(ids, count, **how))


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (28, 30), (224, 224)], ids=str)
@pytest.mark.parametrize("leaves", [1, 10, 300])
def test_dead_leaves_match_the_bits_of_the_cpu(leaves, size):
    for channels in (1, 3):
        numbers = torch.randn(20, leaves, 5 + channels, generator=torch.Generator().manual_seed(leaves))
        got = ops.dead_leaves(numbers.to(DEVICE), *size)
        assert got.is_cuda and torch.equal(got.cpu(), ops.dead_leaves(numbers, *size))
    assert ops.dead_leaves(numbers[:0].to(DEVICE), *size).shape == (0, 3, *size)


VARIATION = dict(rotation_sigma=0.3, scale_sigma=0.2, shift_sigma=0.2, flip_probability=0.5)
VARIATION |= dict(mix_probability=0.5, noise_max=0.2, clamp=True)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (128, 1, 32, 32), (20, 3, 7, 9), (5, 3, 224, 224)], ids=str)
def test_augment_matches_the_bits_of_the_cpu(shape):
    x, positions = torch.rand(shape, generator=torch.Generator().manual_seed(0)), torch.arange(shape[0]) + 2**40
    got = ops.augment(x.to(DEVICE), positions.to(DEVICE), seed=3, stream=5, **VARIATION)
    assert got.is_cuda and torch.equal(got.cpu(), ops.augment(x, positions, seed=3, stream=5, **VARIATION))


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (3, 3, 5, 5), (64, 1, 28, 28)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_impression_update_matches_the_cpu(dtype, shape):
    def after_three_steps(device):
        g = torch.Generator().manual_seed(0)
        state_dtype = torch.float32 if dtype.itemsize == 2 else dtype
        x, grad = (torch.randn(shape, generator=g).to(dtype).to(device) for _ in range(2))
        m, v = (torch.zeros(shape, dtype=state_dtype, device=device) for _ in range(2))
        lo = torch.linspace(-1, 0, shape[1])  # on the CPU: the op copies it to the device
        for step in (1, 2, 3):
            ops.impression_update_(x, grad, m, v, step, lr=0.05, **{**UPDATE, "lo": lo})
        return x.cpu(), m.cpu(), v.cpu()

    for got, want in zip(after_three_steps(DEVICE), after_three_steps("cpu"), strict=True):
        assert_close(got, want, 8 * torch.finfo(got.dtype).eps, "update")


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (3, 3, 5, 5), (64, 1, 28, 28), (2, 3, 1, 1)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_total_variation_grad_matches_the_bits_of_the_cpu(dtype, layout, shape):
    g = torch.Generator().manual_seed(0)
    x, want = (torch.randn(shape, generator=g).to(dtype).contiguous(memory_format=layout) for _ in range(2))
    got = want.to(DEVICE)
    ops.total_variation_grad_(got, x.to(DEVICE), 0.3)
    ops.total_variation_grad_(want, x, 0.3)
    assert torch.equal(got.cpu(), want)


def every_op(seed=0):
    a, b = rows_and_others("soft_cross_entropy", 257, 1000)
    ids = torch.arange(257, device=DEVICE)
    x, m, v = (torch.zeros(257, 1000, device=DEVICE) for _ in range(3))
    loss, grad = ops.soft_cross_entropy_value_and_grad(a, b, 4.0)
    ops.impression_update_(x, grad, m, v, 1, lr=0.1, **UPDATE)
    ops.total_variation_grad_(m.reshape(257, 1, 25, 40), x.reshape(257, 1, 25, 40), 0.1)
    return [
        loss,
        grad,
        ops.distillation_loss(a, b, 4.0),
        ops.dirichlet(b + 0.1, ids, seed=seed),
        ops.philox(ids, 100, seed=seed, stream=1),
        ops.dead_leaves(ops.philox(ids, 90, seed=seed, stream=2).reshape(257, 10, 9), 32, 32),
        ops.augment(b.reshape(257, 1, 25, 40), ids, seed=seed, stream=3, **VARIATION),
        x,
        m,
    ]


def test_repeated_calls_give_the_same_bits():
    first = every_op()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(every_op(), first, strict=True))


def test_no_op_waits_for_the_device():
    a, b = rows_and_others("soft_cross_entropy", 64, 10)
    ids, moments = torch.arange(64, device=DEVICE), torch.zeros(2, 64, 10, device=DEVICE)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.soft_cross_entropy(a, b, 4.0)
        ops.distillation_loss(a, b, 4.0)
        ops.dirichlet(b + 0.1, ids, seed=1)
        ops.dead_leaves(ops.philox(ids, 90, seed=1, stream=1).reshape(64, 10, 9), 32, 32)
        ops.augment(b.reshape(64, 1, 2, 5), ids, seed=1, stream=2, **VARIATION)
        ops.impression_update_(a, b, *moments, 1, lr=0.1, **UPDATE)
        ops.total_variation_grad_(a.reshape(64, 1, 2, 5), b.reshape(64, 1, 2, 5), 0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_current_stream_is_used():
    """The side stream waits long before it copies the input, so that an op on another stream would read zeros."""
    a, b = rows_and_others("soft_cross_entropy", 512, 1000)
    want = ops.soft_cross_entropy(a, b, 4.0)
    late = torch.zeros_like(a)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        late.copy_(a)
        got = ops.soft_cross_entropy(late, b, 4.0)
    torch.cuda.synchronize()
    assert torch.equal(got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device or none is visible")
def test_tensors_on_a_device_that_is_not_the_current_one():
    other = torch.device("cuda:1")
    with torch.cuda.device(0):
        a, b = (t.to(other) for t in rows_and_others("soft_cross_entropy", 8, 10))
        assert torch.equal(
            ops.soft_cross_entropy(a, b, 4.0).cpu(), ops.soft_cross_entropy(a.cuda(0), b.cuda(0), 4.0).cpu()
        )
        with pytest.raises(TypeError, match="target is on cuda:0, wanted cuda:1 as logits"):
            ops.soft_cross_entropy(a, b.cuda(0), 4.0)


def test_replayed_graph_uses_the_current_step_and_learning_rate():
    a, b = rows_and_others("soft_cross_entropy", 64, 100)
    x, state = a.clone(), torch.zeros(2, 64, 100, device=DEVICE)
    step, lr = (torch.ones((), dtype=torch.float64, device=DEVICE) for _ in range(2))

    def one_step():
        _, grad = ops.soft_cross_entropy_value_and_grad(x, b, 4.0)
        ops.impression_update_(x, grad, *state, step, lr=lr, **UPDATE)

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        one_step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        one_step()
    x.copy_(a)
    state.zero_()
    for number in range(1, 6):
        step.fill_(number)
        lr.fill_(0.1 / number)
        graph.replay()
    replayed = x.clone()
    x.copy_(a)
    state.zero_()
    for number in range(1, 6):
        _, grad = ops.soft_cross_entropy_value_and_grad(x, b, 4.0)
        ops.impression_update_(x, grad, *state, number, lr=0.1 / number, **UPDATE)
    assert_close(replayed, x, 1e-6, "five replayed steps")


def synthesize_on(device, monkeypatch, *, graph: bool):
    monkeypatch.setattr(cuda_graph, "WORTH_CAPTURING", 1 if graph else 10**9)
    recipe = synthesis_recipe(steps=30, batch_size=6)
    return Synthesizer(image_classifier().to(device), IMAGE, recipe, seed=1).run(range(16))


def test_impressions_of_captured_and_eager_steps_match(monkeypatch):
    """The last batch is shorter than the others. Targets have the bits of the CPU; the rest is close."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a step that could not be captured warns
        replayed = synthesize_on(DEVICE, monkeypatch, graph=True)
    eager, cpu = (
        synthesize_on(DEVICE, monkeypatch, graph=False),
        synthesize_on("cpu", monkeypatch, graph=False),
    )
    for name, tensor in replayed.tensors().items():
        assert_close(tensor, eager.tensors()[name], 1e-4, name)
        assert_close(tensor.cpu(), cpu.tensors()[name], 2e-2, name)
    assert torch.equal(replayed.target.cpu(), cpu.target)


def distill_on(device, monkeypatch, *, graph: bool):
    monkeypatch.setattr(cuda_graph, "WORTH_CAPTURING", 1 if graph else 10**9)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        student = nn.Sequential(
            *(nn.Conv2d(1, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(180, 4))
        )
    recipe = dataclasses.replace(load_recipe("fast").distillation, steps=40, batch_size=16)
    teacher = image_classifier().to(device)
    distiller = Distiller(teacher, student.to(device), IMAGE, recipe, seed=1)
    x = torch.rand(50, *IMAGE.shape, generator=torch.Generator().manual_seed(3))
    return torch.tensor(distiller.fit(x, progress=False).loss), student


def test_students_of_captured_and_eager_steps_match(monkeypatch):
    """With dropout, whose draws a graph takes from the same generator, and batch normalization."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a step that could not be captured warns
        losses, student = distill_on(DEVICE, monkeypatch, graph=True)
        again, _ = distill_on(DEVICE, monkeypatch, graph=True)
    assert torch.equal(losses, again)
    eager_losses, eager = distill_on(DEVICE, monkeypatch, graph=False)
    assert_close(losses, eager_losses, 1e-3, "losses")
    for name, value in student.state_dict().items():
        assert_close(value.double(), eager.state_dict()[name].double(), 1e-2, name)


def test_step_that_waits_for_the_device_runs_without_a_graph():
    x = torch.zeros(3, device=DEVICE)

    def step(number, rate):
        x.add_(float(number))

    with pytest.warns(UserWarning, match="run without a CUDA graph"):
        same = cuda_graph.Graphs().captured(step, torch.ones(2, device=DEVICE).unbind(), [x], PhaseTimer())
    assert same is step and torch.equal(x.cpu(), torch.zeros(3))
    same(2, 0.0)
    assert torch.equal(x.cpu(), torch.full((3,), 2.0))


def test_row_with_an_invalid_concentration_is_nan():
    alpha = torch.ones(5, 10, device=DEVICE)
    alpha[2, 3] = -1.0
    y = ops.dirichlet(alpha, torch.arange(5, device=DEVICE), seed=0)
    assert y[2].isnan().all() and y[[0, 1, 3, 4]].isfinite().all()


def test_empty_batch():
    a = torch.empty(0, 10, device=DEVICE)
    assert ops.soft_cross_entropy(a, a, 4.0).isnan() and ops.soft_cross_entropy(a, a, 4.0, reduction="sum") == 0
    assert ops.dirichlet(a, torch.empty(0, dtype=torch.int64, device=DEVICE), seed=0).shape == (0, 10)


def test_more_than_2_to_the_31_elements():
    rows = 2**31 // 1000 + 5
    needed = 3 * rows * 1000 * 2
    free = torch.cuda.mem_get_info()[0]
    if free < 1.2 * needed:
        pytest.skip(f"needs {1.2 * needed / 2**30:.0f} GiB of free device memory, has {free / 2**30:.0f}")
    row = logits_of(1, 1000, torch.float16).to(DEVICE)
    logits = row.repeat(rows, 1)
    _, grad = ops.soft_cross_entropy_value_and_grad(logits, row.softmax(1).expand(rows, -1), 4.0, reduction="none")
    assert torch.equal(grad[-1], grad[0]) and torch.equal(grad[rows // 2], grad[0])
