"""The health of impressions: whether the teacher answers them as it was meant to, in a few numbers and one sentence."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zskd_fast.store.impressions import Impressions
from zskd_fast.store.mapped_rows import mapped_column
from zskd_fast.store.store import Store
from zskd_fast.synthesis.synthesizer import Synthesizer

# Healthy teachers are far from each of these limits, and sick ones too: see tests/synthesis/test_health.py.
_FEW_REACH = 0.5
_FEW_CLASSES = 0.5
_SMALL_FALL = 0.1
_SMALL_MOVE = 0.01
# Probabilities, of a softmax or of sigmoids, never differ by more than 1; nor do the logits of untrained weights.
_SMALL_SPREAD = 1.0


@dataclass(frozen=True)
class Health:
    """How the teacher answers some impressions, and how far their optimization went."""

    impressions: int
    """Number of impressions."""
    reached: float
    """Share of them whose most probable class, to the teacher, is their own class or that of their target."""
    answered_classes: int
    """Number of classes that are the most probable one of an impression."""
    wanted_classes: int
    """Number of classes that are the most probable one of a target."""
    num_classes: int
    """K."""
    logit_spread: float
    """Mean distance of the largest logit from the mean of all logits."""
    loss_before: float
    """Mean loss of the start noise of the first batch."""
    loss_after: float
    """Mean loss of the impressions of the first batch."""
    loss_floor: float
    """Smallest possible mean loss of the first batch: the mean entropy of its targets."""
    moved: float
    """Share of the values of the first batch that are no longer those of their start noise."""
    steps: int
    """Adam steps per impression."""

    @property
    def warning(self) -> str:
        """One sentence on what is wrong and what to look at; empty if nothing is."""
        if self.steps and self.moved < _SMALL_MOVE:
            return (
                f"x does not move ({self.moved:.1%} of its values did): "
                "the gradient of the teacher with respect to its input is zero"
            )
        if self.logit_spread < _SMALL_SPREAD:
            return (
                f"the teacher's answers are nearly uniform (the largest logit is {self.logit_spread:.2g} above the "
                "mean): does it return probabilities in place of logits, or were its weights not loaded?"
            )
        if not self.steps:
            return ""
        if self.answered_classes < _FEW_CLASSES * self.wanted_classes:
            return (
                f"the impressions have only {self.answered_classes:,} of the {self.wanted_classes:,} classes that they "
                "were made for: more steps, a larger learning_rate or a smaller temperature may help"
            )
        if self.reached < _FEW_REACH:
            return (
                f"only {self.reached:.1%} of the impressions reach their class: more steps, a larger learning_rate or "
                "a smaller temperature may help"
            )
        if self.fall < _SMALL_FALL:
            return (
                f"the loss hardly fell: {self.loss_before:.3g} before and {self.loss_after:.3g} after {self.steps} "
                f"steps, of {self.loss_floor:.3g} that are possible"
            )
        return ""

    @property
    def fall(self) -> float:
        """How far the loss fell: 0 for not at all, 1 for down to its floor; negative if it rose."""
        possible = self.loss_before - self.loss_floor
        return (self.loss_before - self.loss_after) / possible if possible > 0 else 0.0

    def __str__(self) -> str:
        return (
            f"{self.reached:.1%} reach their class, {self.answered_classes:,} of {self.wanted_classes:,} classes "
            f"answered, loss {self.loss_before:.3g} -> {self.loss_after:.3g} (at best {self.loss_floor:.3g}), "
            f"{self.moved:.1%} of x moved"
        )


class HealthMeter:
    """Adds up the health of the shards of one process; what it keeps does not grow with their number.

    Answers and targets of all impressions are looked at, start noise and loss of the first batch.
    """

    def __init__(self, synthesizer: Synthesizer) -> None:
        self._synthesizer = synthesizer
        self._answered = torch.zeros(synthesizer.plan.num_classes, dtype=torch.bool)
        self._wanted = self._answered.clone()
        self._count = self._reached = 0
        self._spread = 0.0
        self._course: dict[str, float] = {}

    def add(self, made: Impressions) -> None:
        """Add the impressions of one shard."""
        answer, wanted = made.teacher_logits.argmax(dim=1), made.target.argmax(dim=1)
        self._answered[answer.cpu()] = True
        self._wanted[wanted.cpu()] = True
        self._count += len(answer)
        self._reached += int(((answer == wanted) | (answer == made.class_index)).sum())
        spread = made.teacher_logits.amax(dim=1) - made.teacher_logits.mean(dim=1)
        self._spread += float(spread.double().sum())
        self._course = self._course or self._course_of(made[: self._synthesizer.recipe.batch_size])

    def add_shard(self, store: Store, shard: int) -> None:
        """Add a shard of the store, whose columns are mapped and not hashed."""
        names = ("x", "target", "teacher_logits", "id", "class", "beta", "loss", "steps")
        columns = {name: mapped_column(store, shard, name) for name in names}
        self.add(Impressions(class_index=columns.pop("class"), **columns))

    def health(self) -> Health | None:
        """Return the health of all that was added; None if nothing was."""
        if not self._count:
            return None
        return Health(
            impressions=self._count,
            reached=self._reached / self._count,
            answered_classes=int(self._answered.sum()),
            wanted_classes=int(self._wanted.sum()),
            num_classes=len(self._answered),
            logit_spread=self._spread / self._count,
            steps=self._synthesizer.recipe.steps,
            **self._course,
        )

    def _course_of(self, made: Impressions) -> dict[str, float]:
        device = self._synthesizer.device
        start = self._synthesizer.shortened(0).run(made.id.to(device))
        target = made.target.double()
        return {
            "loss_before": float(start.loss.mean()),
            "loss_after": float(made.loss.mean()),
            "loss_floor": max(0.0, -float(torch.special.xlogy(target, target).sum(dim=1).mean())),
            "moved": float((start.x != made.x.to(device)).float().mean()),
        }
