"""A `torch.distributions.Dirichlet` whose draws do not depend on the number of threads, the batch or the device."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

from zskd_fast import ops


class _PositiveRows(constraints.Constraint):
    """Rows of positive numbers. Torch's own constraint fails in a reshape if there are no rows."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return (value > 0).all(dim=-1)


class Dirichlet(torch.distributions.Dirichlet):
    """A `torch.distributions.Dirichlet` that samples with `ops.dirichlet`.

    Only the draws differ from torch's class. `rsample` and `sample` take their seed from torch's default generator, so
    that `torch.manual_seed` determines them; `sample_ids` takes the seed and one id per draw. As in torch's class
    draws are clamped to the positive normal numbers below 1, so that their `log_prob` is finite. Unlike there a batch
    may be empty.
    """

    arg_constraints = {"concentration": _PositiveRows()}  # noqa: RUF012 (torch declares it as a property)

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """Draw a sample of shape sample_shape + batch_shape + event_shape, with torch's implicit gradient.

        The gradient (Figurnov et al., NeurIPS 2018) is computed by torch, for concentrations of any size that torch
        takes. It can be differentiated once, and not under torch.func, as that of torch's class.
        """
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                "zskd_fast.distributions.Dirichlet: draws under torch.func are not provided, nor by torch's class; "
                "draw outside of the transform, or call zskd_fast.ops.dirichlet with ids"
            )
        seed = int(torch.randint(2**63 - 1, (), dtype=torch.int64))
        return _Draw.apply(self.concentration.expand(self._extended_shape(torch.Size(sample_shape))), seed)

    def sample_ids(self, ids: Tensor, *, seed: int) -> Tensor:
        """Draw one row per id, [N, K], as `ops.dirichlet` does; the concentration is [K] or [N, K]."""
        return _clamped(ops.dirichlet(self.concentration.detach(), ids, seed=seed))


class _Draw(torch.autograd.Function):
    """One draw for each row of concentrations [..., K], with the gradient of `torch.distributions.Dirichlet`."""

    @staticmethod
    def forward(ctx: Any, concentration: Tensor, seed: int) -> Tensor:
        shape = concentration.shape
        rows = concentration.detach().reshape(shape[:-1].numel(), shape[-1])
        ids = torch.arange(len(rows), device=rows.device)
        draw = _clamped(ops.dirichlet(rows, ids, seed=seed)).reshape(shape)
        ctx.save_for_backward(draw, concentration)
        return draw

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        draw, concentration = (saved.to(_precise(saved.dtype)) for saved in ctx.saved_tensors)
        total = concentration.sum(-1, keepdim=True).expand_as(concentration)
        slope = torch._dirichlet_grad(draw, concentration, total)
        return (slope * (grad - (draw * grad).sum(-1, keepdim=True))).to(grad.dtype), None


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _clamped(draw: Tensor) -> Tensor:
    limits = torch.finfo(draw.dtype)
    return draw.clamp_(limits.tiny, 1 - limits.eps / 2)
