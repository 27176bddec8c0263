"""Two published loops, of which only the classes that they import change."""

import pytest
import torch
import torch.nn.functional as F
from drop_in import Dirichlet, Distillation, SoftCrossEntropy, TorchCrossEntropy, TorchDirichlet, TorchDistillation
from row_losses import assert_close


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
