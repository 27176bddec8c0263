"""The whole job in one call."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zskd_fast.config.adaptation import adapt
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import Recipe
from zskd_fast.config.recipe_files import load_recipe
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import ForwardFn, LogitsFn, as_classifier
from zskd_fast.models.input_facts import find_input_spec
from zskd_fast.real_data.evaluation import TestSet
from zskd_fast.run.job import Job, run_job
from zskd_fast.run.run_folder import RunRecord


@torch.inference_mode(False)
def distill(
    teacher: nn.Module,
    student: nn.Module,
    *,
    input_shape: Sequence[int] | None = None,
    valid_range: Sequence[float] = (0.0, 1.0),
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    recipe: str | Path | Recipe = "fast",
    impressions: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    layer: str | torch.Tensor | None = None,
    logits_fn: LogitsFn | None = None,
    student_logits_fn: LogitsFn | None = None,
    forward_fn: ForwardFn | None = None,
    student_forward_fn: ForwardFn | None = None,
    test: TestSet | None = None,
    progress: bool = True,
) -> RunRecord:
    """Train `student` in place from `teacher` alone, without data, and return the record of the run.

    Both models are on one device and return logits [N, K], or probabilities or a single logit that stand for them. The
    teacher stays unchanged. A student that is its teacher with fewer layers or fewer channels starts from the
    teacher's weights: one that has learned something already needs a recipe with
    ``distillation.pruned_start`` off.

    Args:
        input_shape: shape of one input without the batch axis, such as (3, 32, 32); None: as the ``pretrained_cfg`` of
            a timm model says, together with the normalization. What a recipe does to images only is left out for
            inputs of other ranks.
        valid_range: lowest and highest raw value of an input, before normalization.
        mean, std: normalization in front of both models, one value or one per channel; empty for none.
        recipe: name of a recipe, a TOML file, or a Recipe.
        impressions: number of impressions, in place of the recipe's.
        steps: training steps of the student, in place of the recipe's.
        seed: source of every random number; the same seed gives the same bits on the same machine.
        out: folder of impressions, student, record and checkpoint. The same call continues an interrupted run there;
            one with more impressions or other numbers of the student keeps the impressions and the student that are
            there and trains another one. None uses a temporary folder, which is removed.
        layer: name of the teacher's classifier layer or of a parameter [K, D], or its weights [K, D], if it cannot be
            found.
        logits_fn, student_logits_fn: pick the logits out of what a model returns, if that is neither one tensor nor has
            an attribute ``logits``.
        forward_fn, student_forward_fn: functions of the model and x[N, *shape] that call the model, if it takes
            something else than one tensor, such as ``lambda model, x: model(pixel_values=x)``.
        test: real images on which accuracies are measured, for the record only.
        progress: show progress bars on stderr, and a warning before the student learns if the impressions do not reach
            their classes. The record has the numbers in any case: ``record.synthesis.health``.

    Returns:
        The record: `synthesis.health` of the impressions, `distillation.loss` of each step, the `notes` of both on what
        followed from the two models, `accuracy` with `test`, seconds, and the environment.

    Raises:
        InputError: before any work, if a model, the recipe or the folder cannot be used; later, if an impression or the
            loss becomes NaN.
    """
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    synthesis, distillation = chosen.synthesis, chosen.distillation
    if impressions is not None:
        synthesis = replace(synthesis, impressions=impressions)
    if steps is not None:
        distillation = replace(distillation, steps=steps)
    # InputSpec makes tuples of any sequences and refuses what is none.
    given: dict[str, Any] = {"valid_range": valid_range, "mean": mean, "std": std}
    if input_shape is not None:
        spec = InputSpec(input_shape, **given)  # type: ignore[arg-type]
    elif tuple(valid_range) != (0.0, 1.0) or len(mean) or len(std):
        raise InputError("valid_range, mean and std need input_shape beside them")
    else:
        spec = find_input_spec(teacher, None)
    synthesis, synthesis_notes = adapt(synthesis, spec)
    distillation, distillation_notes = adapt(distillation, spec)
    notes = [*synthesis_notes, *distillation_notes]
    if notes and progress:
        print(f"inputs of shape {list(spec.shape)} are no images: {', '.join(notes)}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="zskd-") as temporary:
        job = Job(
            teacher=as_classifier(teacher, spec, logits_fn=logits_fn, forward_fn=forward_fn),
            student=as_classifier(
                student, spec, role="student", logits_fn=student_logits_fn, forward_fn=student_forward_fn
            ),
            distillation=distillation,
            out=Path(temporary if out is None else out),
            seed=seed,
            test=test,
        )
        return run_job(job, synthesis, layer=layer, progress=progress).record
