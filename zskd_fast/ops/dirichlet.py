"""Dirichlet draws that are determined by a seed and an id per row."""

import torch
from torch import Tensor

from zskd_fast._extension import _C
from zskd_fast.ops._dispatch import can_bypass_dispatcher
from zskd_fast.ops.philox import check_seed


@torch.library.custom_op("zskd_fast::dirichlet", mutates_args=())
def _op(concentration: Tensor, ids: Tensor, seed: int, log: bool) -> Tensor:
    return _C.dirichlet(concentration, ids, seed, log)


@_op.register_fake
def _fake(concentration: Tensor, ids: Tensor, seed: int, log: bool) -> Tensor:
    return concentration.new_empty((ids.shape[0], concentration.shape[-1]))


def dirichlet(concentration: Tensor, ids: Tensor, *, seed: int, log: bool = False) -> Tensor:
    """Sample y_i ~ Dir(concentration_i), one row for each id (paper section 3.2).

    Row i depends only on seed, ids[i] and its concentration: not on N, the order of the rows, the number of threads or
    the instruction set of the machine. The random numbers are those of Philox4x32-10, keyed by (seed, id, class). Gamma
    variates are drawn by the method of Marsaglia and Tsang, kept in log space and normalized by log-sum-exp, so that
    small concentrations neither give NaN nor underflow to equal classes. Tested for concentrations from 1e-6 to 1e4.

    Args:
        concentration: [N, K], or [K] for all rows; float16, bfloat16, float32 or float64; finite and at least 1e-37
            (float64: 1e-305).
        ids: [N] int64.
        seed: 0 <= seed < 2^63.
        log: Return log y, which is finite even where y underflows.

    Returns:
        y [N, K] in the dtype of concentration. Each row sums to 1. Not differentiable.

    Raises:
        ValueError: Wrong shape or seed; a zero, negative, NaN or infinite concentration (the message names its row
            and class); a concentration that requires grad.
        TypeError: Wrong dtype or device.

    On a CUDA device an invalid concentration raises no error, because that would have to wait for the device: the row
    becomes NaN.
    """
    if concentration.requires_grad:
        raise ValueError(
            "dirichlet: concentration requires grad, but a draw is not differentiable; "
            "pass .detach(), or use zskd_fast.distributions.Dirichlet and its rsample"
        )
    check_seed("dirichlet", seed)
    draw = _C.dirichlet if can_bypass_dispatcher(concentration, ids) else _op
    return draw(concentration, ids, seed, log)
