"""The ops of `zskd_fast.ops` in plain torch or numpy, slow and readable: they define the correct results."""

from zskd_fast.reference.augment import augment
from zskd_fast.reference.dead_leaves import dead_leaves
from zskd_fast.reference.dirichlet import dirichlet
from zskd_fast.reference.distillation_loss import distillation_loss
from zskd_fast.reference.impression_update import impression_update_
from zskd_fast.reference.max_pool import max_pool
from zskd_fast.reference.philox import philox
from zskd_fast.reference.soft_cross_entropy import soft_cross_entropy
from zskd_fast.reference.total_variation_grad import total_variation_grad_

__all__ = [
    "augment",
    "dead_leaves",
    "dirichlet",
    "distillation_loss",
    "impression_update_",
    "max_pool",
    "philox",
    "soft_cross_entropy",
    "total_variation_grad_",
]
