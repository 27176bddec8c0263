"""Dirichlet targets, each drawn from its own name."""

import torch
from torch import Tensor

from zskd_fast._extension import _C
from zskd_fast.ops._plain import is_plain


@torch.library.custom_op("zskd_fast::dirichlet", mutates_args=())
def _op(concentration: Tensor, ids: Tensor, seed: int, log: bool) -> Tensor:
    return _C.dirichlet(concentration, ids, seed, log)


@_op.register_fake
def _fake(concentration, ids, seed, log):
    return concentration.new_empty((ids.shape[0], concentration.shape[-1]))


def dirichlet(concentration: Tensor, ids: Tensor, *, seed: int, log: bool = False) -> Tensor:
    """Samples y_i ~ Dir(concentration_i) (paper section 3.2), one row for each id.

    Row i depends on (seed, ids[i], its concentration) and on nothing else: not on N, the order of the rows, the number
    of threads or the machine's instruction set. The generator is Philox4x32-10 keyed by (seed, id, class); Gamma
    variates are Marsaglia and Tsang's, kept in log space and normalised by log-sum-exp, so that small concentrations
    neither give NaN nor fall onto the barycentre. Right for concentrations from 1e-6 to 1e4 (tested) and beyond.

    Args:
        concentration: [N, K], or [K] for all rows; float16, bfloat16, float32 or float64; finite and at least 1e-37
            (float64: 1e-305).
        ids: [N] int64.
        seed: 0 <= seed < 2^63.
        log: return log y, which stays finite where y underflows.

    Returns:
        y [N, K] in the dtype of concentration; rows sum to one. Not differentiable.

    Raises:
        ValueError: shape or seed; a zero, negative, NaN or infinite concentration (names the row); a concentration that
            requires grad.
        TypeError: dtype or device.

    On a CUDA device nothing waits for the draw, so an invalid concentration raises nothing there: its row comes out as
    NaN.
    """
    if concentration.requires_grad:
        raise ValueError(
            "dirichlet: concentration requires grad, but a draw is not differentiable; pass .detach()"
        )
    draw = _C.dirichlet if is_plain(concentration, ids) else _op
    return draw(concentration, ids, seed, log)
