"""The first weights of a student that is its teacher pruned: with fewer channels, or with fewer layers.

Students that start from what their teacher has learned, after Muralidharan et al. (NeurIPS 2024), who prune a language
model and distill it on data; here no data are needed.
"""

from zskd_fast.distillation.pruned_start.start import PrunedStart, pruned_start

__all__ = ["PrunedStart", "pruned_start"]
