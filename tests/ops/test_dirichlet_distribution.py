"""The Dirichlet distribution in the place of torch's: gradients, densities, shapes, and what it refuses."""

import math

import pytest
import torch
from drop_in import Dirichlet, TorchDirichlet
from torch.distributions.dirichlet import _Dirichlet_backward


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
