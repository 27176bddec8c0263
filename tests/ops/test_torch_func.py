"""The ops under torch.func, in forward mode, on the meta device and without rows."""

import pytest
import torch
import torch.nn.functional as F
from drop_in import SoftCrossEntropy, TorchDistillation, pair, value_and_grad
from row_losses import assert_close, logits_of
from torch.autograd import forward_ad

from zskd_fast import ops

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
        (lambda z: ops.soft_cross_entropy(z, z, 0.0), ValueError, "temperature is 0.0, wanted a number"),
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
    "augment": lambda z, ids: ops.augment(z[:, None, None], ids, seed=1, stream=0, rotation_sigma=0.1, noise_max=0.1),
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
