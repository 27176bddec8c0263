"""What the right answer is: every op in plain torch, in the dtype it is given, slow and readable."""

from zskd_fast.reference.dirichlet import dirichlet
from zskd_fast.reference.distillation_loss import distillation_loss
from zskd_fast.reference.impression_update import impression_update_
from zskd_fast.reference.max_pool import max_pool
from zskd_fast.reference.philox import philox
from zskd_fast.reference.soft_cross_entropy import soft_cross_entropy

__all__ = ["dirichlet", "distillation_loss", "impression_update_", "max_pool", "philox", "soft_cross_entropy"]
