"""A `torch.distributions.Dirichlet` whose draws do not depend on the number of threads, the batch or the device."""

import torch
from torch import Tensor
from torch.types import _size

from zskd_fast import ops


class Dirichlet(torch.distributions.Dirichlet):
    """A `torch.distributions.Dirichlet` that samples with `ops.dirichlet`.

    Only sampling differs from torch's class. `sample` takes its seed from torch's default generator, so that
    `torch.manual_seed` determines it. `sample_ids` takes the seed and one id per draw. Draws are not differentiable, so
    there is no rsample.
    """

    has_rsample = False

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        raise NotImplementedError("zskd_fast.distributions.Dirichlet: draws are not differentiable; use sample()")

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draw a sample of shape sample_shape + batch_shape + event_shape."""
        shape = self._extended_shape(torch.Size(sample_shape))
        seed = int(torch.randint(2**63 - 1, (), dtype=torch.int64))
        rows = self.concentration.detach().expand(shape).reshape(-1, shape[-1])
        ids = torch.arange(rows.shape[0], device=rows.device)
        return ops.dirichlet(rows, ids, seed=seed).reshape(shape)

    def sample_ids(self, ids: Tensor, *, seed: int) -> Tensor:
        """Draw one row per id, [N, K], as `ops.dirichlet` does; the concentration is [K] or [N, K]."""
        return ops.dirichlet(self.concentration.detach(), ids, seed=seed)
