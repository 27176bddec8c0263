"""Dirichlet draws from Philox words, by Marsaglia and Tsang's Gamma variates in log space, in numpy and float64."""

import numpy as np
import torch
from torch import Tensor

from zskd_fast.reference.philox import GAMMA, normal_pair, uniform, words


def _log_gamma_attempt(alpha: np.ndarray, block: np.ndarray, uniform_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return log Gamma variates and whether each is accepted, from the words of one attempt."""
    d = np.where(alpha < 1, alpha + 1, alpha) - 1 / 3
    n = normal_pair(block[..., 0], block[..., 1])[0]
    v = (1 + n / (3 * np.sqrt(d))) ** 3
    safe = np.where(v > 0, v, 1.0)
    u = uniform(block[..., 2], bits=uniform_bits)
    accepted = (v > 0) & (np.log(u) < n * n / 2 + d * (1 - safe + np.log(safe)))
    boost = np.where(alpha < 1, np.log(uniform(block[..., 3])) / alpha, 0.0)
    return np.log(d * safe) + boost, accepted


def dirichlet(concentration: Tensor, ids: Tensor, *, seed: int, log: bool = False) -> Tensor:
    """Compute `ops.dirichlet` in float64."""
    classes = concentration.shape[-1]
    alpha = concentration.expand(len(ids), classes).double().cpu().numpy()
    bits = 32 if concentration.dtype == torch.float64 else 23
    log_gamma, open_ = np.empty_like(alpha), np.ones(alpha.shape, dtype=bool)
    attempt = 0
    while open_.any():
        block = words(ids, np.arange(classes, dtype=np.uint64), seed=seed, purpose=GAMMA, step=attempt)
        value, accepted = _log_gamma_attempt(alpha, block, bits)
        log_gamma = np.where(open_, value, log_gamma)
        open_ &= ~accepted
        attempt += 1
    log_y = torch.log_softmax(torch.from_numpy(log_gamma), dim=1)
    return (log_y if log else log_y.exp()).to(concentration.device, concentration.dtype)
