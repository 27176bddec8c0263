"""A drop-in `torch.distributions.Dirichlet` whose draws do not depend on thread count, batch or device."""

import torch
from torch import Tensor

from zskd_fast import ops


class Dirichlet(torch.distributions.Dirichlet):
    """`torch.distributions.Dirichlet` that samples by `ops.dirichlet`.

    Density, mean, entropy and the rest are torch's. `sample` takes its seed from torch's default generator, so that
    `torch.manual_seed` governs it; `sample_ids` names each draw and is independent of all others. Draws are not
    differentiable, hence no rsample.
    """

    has_rsample = False

    def rsample(self, sample_shape=()) -> Tensor:
        raise NotImplementedError(
            "zskd_fast.distributions.Dirichlet: draws are not differentiable; use sample()"
        )

    def sample(self, sample_shape=()) -> Tensor:
        """One draw of shape sample_shape + batch_shape + event_shape."""
        shape = self._extended_shape(torch.Size(sample_shape))
        seed = int(torch.randint(2**63 - 1, (), dtype=torch.int64))
        rows = self.concentration.detach().expand(shape).reshape(-1, shape[-1])
        ids = torch.arange(rows.shape[0], device=rows.device)
        return ops.dirichlet(rows, ids, seed=seed).reshape(shape)

    def sample_ids(self, ids: Tensor, *, seed: int) -> Tensor:
        """The draws named (seed, id), [N, K], for a distribution with one concentration [K] or with N of them."""
        return ops.dirichlet(self.concentration.detach(), ids, seed=seed)
