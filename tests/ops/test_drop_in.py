"""The faces of the ops in the place of torch's classes: published loops, shapes, class indices, torch.func, meta."""

import math

import pytest
import torch
import torch.nn.functional as F
from row_losses import assert_close, logits_of
from torch.autograd import forward_ad
from torch.distributions.dirichlet import _Dirichlet_backward

import zskd_fast
from zskd_fast import ops

TorchDirichlet, Dirichlet = torch.distributions.Dirichlet, zskd_fast.distributions.Dirichlet
TorchCrossEntropy, SoftCrossEntropy = torch.nn.CrossEntropyLoss, zskd_fast.nn.SoftCrossEntropyLoss
Distillation = zskd_fast.nn.DistillationLoss


class TorchDistillation(torch.nn.KLDivLoss):
    """The loss of published distillation loops: KLDivLoss of tempered softmaxes, "batchmean", times T^2."""

    def __init__(self, temperature=4.0, reduction="batchmean", dim=1):
        super().__init__(reduction=reduction)
        self.temperature, self.dim = temperature, dim

    def forward(self, student_logits, teacher_logits):
        log_student = F.log_softmax(student_logits / self.temperature, dim=self.dim)
        teacher = F.softmax(teacher_logits / self.temperature, dim=self.dim)
        return super().forward(log_student, teacher) * self.temperature**2


# --- two published loops; only the classes that they import change ---


def network(seed, dtype):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)).to(dtype)


def zskd_loop(dirichlet_class, loss_class, dtype, steps=20):
    """Make impressions as public ZSKD code does: `rsample` of concentrations that require grad, then Adam on x."""
    teacher = network(0, dtype).eval()
    rows = F.normalize(teacher[-1].weight, dim=1)
    concentration = 0.1 * (rows @ rows.t())[2].clamp(min=1e-6)
    torch.manual_seed(3)
    y = dirichlet_class(concentration).rsample((32,))
    x = torch.randn(32, 6, dtype=dtype).requires_grad_()
    optimizer, loss_fn, losses = torch.optim.Adam([x], lr=0.05), loss_class(), []
    for _ in range(steps):
        loss = loss_fn(teacher(x) / 20, y.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), x.detach(), y


def distillation_loop(loss_class, dtype, steps=20):
    teacher, student = network(0, dtype).eval(), network(1, dtype)
    optimizer, loss_fn, losses = torch.optim.SGD(student.parameters(), lr=0.05), loss_class(temperature=4.0), []
    for _ in range(steps):
        x = torch.randn(32, 6, dtype=dtype)
        with torch.no_grad():
            answers = teacher(x)
        outputs = student(x)
        loss = 0.9 * loss_fn(outputs, answers) + 0.1 * F.cross_entropy(outputs, answers.argmax(dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    gradients = torch.cat([p.grad.flatten() for p in student.parameters()])
    return torch.stack(losses), gradients


PRECISION = [(torch.float32, 1e-5), (torch.float64, 1e-13)]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION, ids=["float32", "float64"])
def test_published_zskd_loop_gives_the_same_losses_and_impressions(dtype, tolerance):
    losses, x, y = zskd_loop(Dirichlet, SoftCrossEntropy, dtype)
    want_losses, want_x, want_y = zskd_loop(Dirichlet, TorchCrossEntropy, dtype)
    assert torch.equal(y, want_y) and losses[-1] < losses[0]
    assert_close(losses, want_losses, tolerance, "losses")
    assert_close(x, want_x, 10 * tolerance, "impressions")
    assert zskd_loop(TorchDirichlet, TorchCrossEntropy, dtype)[2].shape == y.shape and y.requires_grad


def test_published_zskd_loop_keeps_its_own_binary_cross_entropy():
    class Published(torch.nn.BCELoss):
        def forward(self, logits, target):
            return super().forward(logits.softmax(dim=1), target)

    losses, x, _ = zskd_loop(Dirichlet, Published, torch.float32)
    assert losses.isfinite().all() and losses[-1] < losses[0] and x.isfinite().all()


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION, ids=["float32", "float64"])
def test_published_distillation_loop_gives_the_same_losses_and_gradients(dtype, tolerance):
    losses, gradients = distillation_loop(Distillation, dtype)
    want_losses, want_gradients = distillation_loop(TorchDistillation, dtype)
    assert losses[-5:].mean() < losses[:5].mean()
    assert_close(losses, want_losses, tolerance, "losses")
    assert_close(gradients, want_gradients, 10 * tolerance, "gradients")


# --- Dirichlet ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradient_of_a_draw_is_torchs_own_for_the_same_draw(dtype):
    concentration = torch.tensor([[0.01, 1.0, 30.0], [2.0, 0.3, 2.0]], dtype=dtype, requires_grad=True)
    draw = Dirichlet(concentration).rsample((500,))
    upstream = torch.randn(draw.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad(draw, concentration, upstream)
    wide = concentration.detach().expand(draw.shape)
    assert torch.equal(grad, _Dirichlet_backward(draw.detach(), wide, upstream).sum(dim=0))


def test_gradient_of_an_expectation():
    """The mean gradient of y_0^2 is the gradient of E[y_0^2] = a_0 (a_0 + 1) / (A (A + 1)), A the sum of a."""
    alpha = torch.tensor([0.4, 1.5, 0.8], dtype=torch.float64, requires_grad=True)
    total = alpha.sum()
    (want,) = torch.autograd.grad(alpha[0] * (alpha[0] + 1) / (total * (total + 1)), alpha)
    each = alpha.detach().expand(40_000, 3).clone().requires_grad_()
    torch.manual_seed(0)
    (Dirichlet(each).rsample()[:, 0] ** 2).sum().backward()
    error = each.grad.std(dim=0) / math.sqrt(len(each))
    assert ((each.grad.mean(dim=0) - want).abs() <= 4.5 * error).all()


def test_sample_and_rsample_have_the_same_values():
    distribution = Dirichlet(torch.tensor([0.3, 2.0, 1.0], requires_grad=True))
    torch.manual_seed(5)
    sample = distribution.sample((4,))
    torch.manual_seed(5)
    rsample = distribution.rsample((4,))
    assert torch.equal(sample, rsample) and rsample.requires_grad and not sample.requires_grad
    assert Dirichlet.has_rsample and TorchDirichlet.has_rsample


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("draw", ["sample", "rsample", "sample_ids"])
def test_log_prob_of_an_own_draw_is_finite_where_draws_underflow(draw, dtype):
    distribution = Dirichlet(torch.full((10,), 1e-3, dtype=dtype))
    y = (
        distribution.sample_ids(torch.arange(2000), seed=0)
        if draw == "sample_ids"
        else getattr(distribution, draw)((2000,))
    )
    assert distribution.log_prob(y).isfinite().all()
    assert y.min() == torch.finfo(dtype).tiny and y.max() == 1 - torch.finfo(dtype).eps / 2
    torch.manual_seed(0)
    torchs = TorchDirichlet(distribution.concentration).sample((2000,))
    assert (torchs.min(), torchs.max()) == (y.min(), y.max())


@pytest.mark.parametrize("batch", [(), (2,), (4, 2), (0,), (3, 0)], ids=str)
@pytest.mark.parametrize("sample", [(), (5,), (5, 2), (0,)], ids=str)
def test_shapes_of_draws(batch, sample):
    concentration = torch.ones(*batch, 3, requires_grad=True)
    for distribution in (Dirichlet(concentration), Dirichlet(torch.ones(3, requires_grad=True)).expand(batch)):
        assert type(distribution) is Dirichlet and distribution.batch_shape == batch
        assert distribution.sample(sample).shape == (*sample, *batch, 3)
        distribution.rsample(sample).sum().backward()
    assert concentration.grad.shape == (*batch, 3)


def test_what_torch_knows_of_its_class_holds_for_ours():
    a, b = torch.tensor([0.5, 1.0, 3.0]), torch.tensor([2.0, 2.0, 2.0])
    assert torch.equal(
        torch.distributions.kl_divergence(Dirichlet(a), Dirichlet(b)),
        torch.distributions.kl_divergence(TorchDirichlet(a), TorchDirichlet(b)),
    )
    assert Dirichlet(a).entropy() == TorchDirichlet(a).entropy()
    with pytest.raises(ValueError, match="concentration"):
        Dirichlet(-a, validate_args=True)  # an older torch.compile switches the default off


def test_draws_in_half_precision_and_on_the_meta_device():
    half = torch.ones(4, dtype=torch.float16, requires_grad=True)
    draw = Dirichlet(half, validate_args=False).rsample((100,))
    (draw[:, 0] ** 2).sum().backward()
    assert draw.dtype == half.grad.dtype == torch.float16 and half.grad[0] > 0
    meta = Dirichlet(torch.ones(2, 4, device="meta"), validate_args=False).rsample((3,))
    assert meta.is_meta and meta.shape == (3, 2, 4)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap], ids=["grad", "vmap"])
def test_draws_under_torch_func_are_refused_with_what_to_use(transform):
    with pytest.raises(RuntimeError, match=r"^zskd_fast.distributions.Dirichlet: draws under torch.func .* with ids$"):
        transform(lambda a: Dirichlet(a, validate_args=False).rsample()[0])(
            torch.ones(3) if transform is torch.func.grad else torch.ones(2, 3)
        )


# --- losses: leading axes ---

SHAPES = [(5,), (2, 5), (2, 3, 5), (2, 3, 4, 5), (0, 5), (0, 3, 5), (2, 0, 5)]


def pair(shape, dtype=torch.float64):
    rows = math.prod(shape[:-1])
    return (logits_of(rows, shape[-1], dtype, seed=seed).reshape(shape) for seed in (0, 1))


def value_and_grad(loss_fn, logits, other):
    """Return the loss and the gradient of its weighted sum."""
    leaf = logits.clone().requires_grad_()
    loss = loss_fn(leaf, other)
    weight = torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    (grad,) = torch.autograd.grad((loss * weight).sum() if loss.dim() else loss, leaf)
    return loss.detach(), grad


def assert_same(ours, torchs, tolerance=1e-12):
    for got, want, what in zip(ours, torchs, ("loss", "gradient"), strict=True):
        assert got.shape == want.shape and torch.equal(got.isnan(), want.isnan()), what
        if got.numel():
            assert_close(got.nan_to_num(), want.nan_to_num(), tolerance, what)


def classes_second(tensor):
    return tensor.movedim(-1, min(1, tensor.dim() - 1))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_soft_cross_entropy_over_leading_axes_is_torchs(shape, reduction):
    logits, other = pair(shape)
    target = other.softmax(dim=-1)
    torchs = TorchCrossEntropy(reduction=reduction)
    want = value_and_grad(lambda z, y: torchs(classes_second(z / 3), classes_second(y)), logits, target)
    assert_same(value_and_grad(SoftCrossEntropy(3.0, reduction), logits, target), want)
    if len(shape) > 1:
        second = SoftCrossEntropy(3.0, reduction, dim=1)
        moved = value_and_grad(second, classes_second(logits), classes_second(target))
        assert_same((moved[0], moved[1].movedim(1, -1)), want)
    plain = value_and_grad(
        lambda z, y: zskd_fast.reference.soft_cross_entropy(z, y, 3.0, reduction=reduction), logits, target
    )
    assert_same(plain, want)


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_distillation_loss_over_leading_axes_is_torchs(shape, reduction):
    student, teacher = pair(shape)

    def torchs(s, t):
        loss = TorchDistillation(3.0, reduction, dim=-1)(s, t)
        return loss.sum(dim=-1) if reduction == "none" else loss

    want = value_and_grad(torchs, student, teacher)
    assert_same(value_and_grad(Distillation(3.0, reduction), student, teacher), want)
    moved = value_and_grad(Distillation(3.0, reduction, dim=1), classes_second(student), classes_second(teacher))
    assert_same((moved[0], moved[1].movedim(1, -1)), want)
    plain = value_and_grad(
        lambda s, t: zskd_fast.reference.distillation_loss(s, t, 3.0, reduction=reduction), student, teacher
    )
    assert_same(plain, want)


def test_distillation_of_one_row_without_an_axis_for_it():
    student, teacher = pair((5,))
    want = ops.distillation_loss(student[None], teacher[None], 4.0)
    assert ops.distillation_loss(student, teacher, 4.0, reduction="sum") == want
    with pytest.raises(
        ValueError, match=r"student_logits has shape \[5\], wanted \[N, ..., K\] for batchmean; use sum"
    ):
        ops.distillation_loss(student, teacher, 4.0)


@pytest.mark.parametrize("given", [False, True], ids=["new", "out"])
def test_value_and_grad_over_leading_axes(given):
    logits, other = pair((2, 3, 5))
    target, out = other.softmax(dim=-1), torch.full_like(logits, torch.nan) if given else None
    loss, grad = ops.soft_cross_entropy_value_and_grad(logits, target, 3.0, reduction="mean", out=out)
    want = value_and_grad(SoftCrossEntropy(3.0), logits, target)
    assert_same((loss, grad), want)
    assert (grad is out) == given
    losses = ops.soft_cross_entropy_value_and_grad(logits, target, 3.0, reduction="none")[0]
    assert losses.shape == (2, 3)
    for unusable in (torch.empty(6, 5), torch.empty(2, 5, 3).movedim(1, 2)):
        with pytest.raises(ValueError, match=r"out has shape .*, wanted a contiguous tensor of shape \[2, 3, 5\]"):
            ops.soft_cross_entropy_value_and_grad(logits, target, 3.0, out=unusable.double())


def test_a_teacher_that_requires_grad_is_refused_with_what_to_do():
    student, teacher = pair((2, 3, 5))
    with pytest.raises(
        ValueError, match=r"teacher_logits requires grad, wanted a constant; pass teacher_logits.detach"
    ):
        Distillation()(student, teacher.requires_grad_())


# --- losses: class indices ---


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ignored", [None, -100, 2], ids=str)
def test_class_indices_are_torchs(shape, reduction, ignored):
    logits, _ = pair(shape)
    index = torch.randint(5, shape[:-1], generator=torch.Generator().manual_seed(0))
    index = torch.where(index == 1, ignored, index) if ignored is not None else index
    ours, torchs = (
        loss_class(reduction=reduction, **({} if ignored is None else {"ignore_index": ignored}))
        for loss_class in (SoftCrossEntropy, TorchCrossEntropy)
    )
    want = value_and_grad(lambda z, c: torchs(classes_second(z), c), logits, index)
    assert_same(value_and_grad(ours, logits, index), want)


def test_class_indices_with_temperature_dim_and_small_dtypes():
    logits, _ = pair((2, 3, 4, 5))
    index = torch.randint(5, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    want = value_and_grad(lambda z, c: F.cross_entropy(z.movedim(-1, 1) / 4, c), logits, index)
    for dtype in (torch.uint8, torch.int32):
        assert_same(value_and_grad(SoftCrossEntropy(4.0), logits, index.to(dtype)), want)
    got = value_and_grad(SoftCrossEntropy(4.0, dim=1), logits.movedim(-1, 1), index)
    assert_same((got[0], got[1].movedim(1, -1)), want)
    many, last = torch.randn(1, 200), torch.tensor([156], dtype=torch.uint8)  # -100 as a uint8 would be 156
    assert_close(SoftCrossEntropy()(many, last), F.cross_entropy(many, last.long()), 1e-6, "loss")


def test_all_rows_ignored_and_the_half_precision_of_a_language_model():
    logits = torch.randn(2, 3, 5)
    assert SoftCrossEntropy()(logits, torch.full((2, 3), -100)).isnan()
    loss = SoftCrossEntropy()(logits.bfloat16(), torch.zeros(2, 3, dtype=torch.int64))
    assert loss.dtype == torch.float32
    assert_close(
        loss, F.cross_entropy(logits.bfloat16().float().view(6, 5), torch.zeros(6, dtype=torch.int64)), 1e-6, "loss"
    )


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (torch.full((2, 3), 5), IndexError, "target holds class index 5, wanted 0 to 4 or ignore_index"),
        (torch.full((2, 3), -1), IndexError, "target holds class index -1, wanted 0 to 4 or ignore_index"),
        (
            torch.zeros(2, 3, 5, dtype=torch.int64),
            ValueError,
            r"has shape \[2, 3, 5\], wanted \[2, 3\]; probabilities need",
        ),
        (torch.zeros(2, 3, 5, dtype=torch.bool), TypeError, "target is Bool, wanted float32"),
    ],
)
def test_unusable_targets_are_named(target, error, message):
    with pytest.raises(error, match=message):
        SoftCrossEntropy()(torch.zeros(2, 3, 5), target)


# --- torch.func, forward mode, meta ---

LOSSES = {
    "soft_cross_entropy": (
        lambda z, y: ops.soft_cross_entropy(z, y, 3.0),
        lambda z, y: F.cross_entropy(z / 3.0, y),
    ),
    "distillation_loss": (
        lambda z, y: ops.distillation_loss(z, y.log(), 3.0),
        lambda z, y: TorchDistillation(3.0)(z, y.log()),
    ),
    "class indices": (
        lambda z, y: SoftCrossEntropy(3.0)(z, y.argmax(dim=-1)),
        lambda z, y: F.cross_entropy(z / 3.0, y.argmax(dim=-1)),
    ),
}
TRANSFORMS = {
    "grad": lambda f, z, y: torch.func.grad(f)(z, y),
    "vmap": lambda f, z, y: torch.func.vmap(f)(z.unsqueeze(1), y.unsqueeze(1)),
    "grads of samples": lambda f, z, y: torch.func.vmap(torch.func.grad(f))(z.unsqueeze(1), y.unsqueeze(1)),
    "one target for all": lambda f, z, y: torch.func.vmap(f, in_dims=(0, None))(z.unsqueeze(1), y[:1]),
    "jacrev": lambda f, z, y: torch.func.jacrev(f)(z, y),
    "jacfwd": lambda f, z, y: torch.func.jacfwd(f)(z, y),
    "jvp": lambda f, z, y: torch.func.jvp(lambda z: f(z, y), (z,), (z.cos(),))[1],
    "vjp": lambda f, z, y: torch.func.vjp(lambda z: f(z, y), z)[1](torch.ones((), dtype=z.dtype))[0],
    "hessian": lambda f, z, y: torch.func.hessian(f)(z, y),
    "forward mode": lambda f, z, y: _tangent(f, z, y),
    "compiled grad": lambda f, z, y: torch.compile(torch.func.grad(f), fullgraph=True, backend="aot_eager")(z, y),
}


def _tangent(f, z, y):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(z, z.cos()), y)).tangent


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_transforms_of_torch_func_give_what_torch_gives(loss, transform):
    logits, other = pair((4, 5))
    got, want = (TRANSFORMS[transform](f, logits, other.softmax(dim=-1)) for f in LOSSES[loss])
    assert got.shape == want.shape
    assert_close(got, want, 1e-12, transform)


def test_torch_func_trains_through_the_leading_axes():
    logits, other = pair((2, 3, 5), torch.float32)
    target = other.softmax(dim=-1)
    got = torch.func.grad(lambda z: SoftCrossEntropy()(z, target))(logits)
    assert_close(got, value_and_grad(SoftCrossEntropy(), logits, target)[1], 1e-6, "gradient")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda z: ops.soft_cross_entropy(z, z[:1], 1.0), ValueError, r"target has shape \[1, 5\], wanted \[4, 5\]"),
        (lambda z: ops.soft_cross_entropy(z, z, 0.0), ValueError, "temperature is 0.0, wanted a positive number"),
        (lambda z: ops.soft_cross_entropy(z, z, 1.0, reduction="?"), ValueError, "reduction is '?'"),
        (lambda z: ops.distillation_loss(z, z.int(), 1.0), TypeError, "teacher_logits is torch.int32, wanted float32"),
    ],
)
def test_refusals_hold_under_torch_func(call, error, message):
    logits, _ = pair((4, 5))
    with pytest.raises(error, match=message):
        torch.func.jvp(lambda z: call(z.detach()), (logits,), (logits,))


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap], ids=["grad", "vmap"])
def test_an_update_in_place_under_torch_func_is_refused_with_what_to_use(transform):
    def update(x):
        ops.impression_update_(x, torch.ones(4), torch.zeros(4), torch.zeros(4), 1, lr=0.1)
        return x.sum()

    with pytest.raises(RuntimeError, match=r"update outside of the transform, or call zskd_fast\.reference\.impress"):
        transform(update)(torch.zeros(4) if transform is torch.func.grad else torch.zeros(2, 4))


def test_draws_by_ids_map_over_ids():
    ids = torch.arange(6).reshape(2, 3)
    alpha = torch.tensor([0.5, 1.0, 2.0])
    mapped = torch.func.vmap(lambda i: ops.dirichlet(alpha, i, seed=1))(ids)
    assert torch.equal(mapped.flatten(0, 1), ops.dirichlet(alpha, ids.flatten(), seed=1))
    mapped = torch.func.vmap(lambda i: ops.philox(i, 2, seed=1, stream=0))(ids)
    assert torch.equal(mapped.flatten(0, 1), ops.philox(ids.flatten(), 2, seed=1, stream=0))


META_CALLS = {
    "soft_cross_entropy": lambda z, ids: ops.soft_cross_entropy(z, z.softmax(dim=-1), 2.0),
    "soft_cross_entropy rows": lambda z, ids: ops.soft_cross_entropy(z[None], z[None], 2.0, reduction="none"),
    "value and grad": lambda z, ids: ops.soft_cross_entropy_value_and_grad(z, z, 2.0)[1],
    "value and grad with out": lambda z, ids: ops.soft_cross_entropy_value_and_grad(z, z, 2.0, out=z.clone())[1],
    "distillation_loss": lambda z, ids: ops.distillation_loss(z, z.cos(), 2.0),
    "class indices": lambda z, ids: SoftCrossEntropy()(z, ids),
    "dirichlet": lambda z, ids: ops.dirichlet(z.exp(), ids, seed=1),
    "philox": lambda z, ids: ops.philox(ids, 3, seed=1, stream=0),
    "impression_update_": lambda z, ids: _updated(z.clone()),
    "total_variation_grad_": lambda z, ids: _with_total_variation(z.clone()[None, None]),
    "max_pool": lambda z, ids: ops.max_pool(z[None, None]),
    "dead_leaves": lambda z, ids: ops.dead_leaves(z.repeat(1, 2)[None, :, :9].contiguous(), 5, 4),
}


def _updated(x):
    ops.impression_update_(x, x.cos(), torch.zeros_like(x), torch.zeros_like(x), 1, lr=0.1)
    return x


def _with_total_variation(grad):
    ops.total_variation_grad_(grad, grad.cos(), 0.1)
    return grad


@pytest.mark.parametrize("call", META_CALLS)
def test_meta_tensors_give_meta_tensors_of_the_right_shape(call):
    logits, ids = logits_of(4, 6), torch.arange(4)
    got, want = META_CALLS[call](logits.to("meta"), ids.to("meta")), META_CALLS[call](logits, ids)
    assert got.is_meta and (got.shape, got.dtype) == (want.shape, want.dtype)


def test_meta_losses_backpropagate_and_check_shapes():
    logits = torch.randn(2, 3, 5, device="meta", requires_grad=True)
    SoftCrossEntropy()(logits, torch.randn(2, 3, 5, device="meta")).backward()
    assert logits.grad.is_meta and logits.grad.shape == (2, 3, 5)
    with pytest.raises(ValueError, match=r"teacher_logits has shape \[4, 5\], wanted \[6, 5\] as student_logits"):
        ops.distillation_loss(torch.randn(6, 5, device="meta"), torch.randn(4, 5, device="meta"), 1.0)


def test_ops_without_rows():
    ids, x = torch.empty(0, dtype=torch.int64), torch.empty(0, 3, 8, 8)
    assert ops.philox(ids, 3, seed=0, stream=0).shape == (0, 3)
    assert ops.dirichlet(torch.ones(0, 3), ids, seed=0).shape == (0, 3)
    ops.impression_update_(x, x.clone(), x.clone(), x.clone(), 1, lr=0.1, lo=torch.zeros(3))
    leaf = x.clone().requires_grad_()
    pooled = ops.max_pool(leaf)
    pooled.sum().backward()
    assert pooled.shape == (0, 3, 4, 4) and leaf.grad.shape == x.shape
