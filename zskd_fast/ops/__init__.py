"""The accelerated ops. `zskd_fast.reference` has the same functions in plain torch."""

from zskd_fast.ops.augment import augment
from zskd_fast.ops.dead_leaves import dead_leaves
from zskd_fast.ops.dirichlet import dirichlet
from zskd_fast.ops.distillation_loss import distillation_loss
from zskd_fast.ops.impression_update import impression_update_
from zskd_fast.ops.max_pool import max_pool
from zskd_fast.ops.philox import philox
from zskd_fast.ops.soft_cross_entropy import soft_cross_entropy, soft_cross_entropy_value_and_grad
from zskd_fast.ops.total_variation_grad import total_variation_grad_

__all__ = [
    "augment",
    "dead_leaves",
    "dirichlet",
    "distillation_loss",
    "impression_update_",
    "max_pool",
    "philox",
    "soft_cross_entropy",
    "soft_cross_entropy_value_and_grad",
    "total_variation_grad_",
]
