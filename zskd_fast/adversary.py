"""Makes a batch harder for the student: moves it to where the student departs from the teacher."""

import torch
import torch.nn.functional as F

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.config.recipe import AdversaryRecipe
from zskd_fast.models.classifier import Classifier, modes_kept


def harden(
    x: torch.Tensor,
    teacher: Classifier,
    student: Classifier,
    recipe: AdversaryRecipe,
    temperature: float,
    input_spec: InputSpec,
) -> torch.Tensor:
    """The batch x[N, *shape] (raw range) after ``recipe.steps`` steps up the distillation loss.

    Each step moves every input by ``recipe.step_size`` of the valid range, root mean square over its values, and
    clamps it to that range. Both models are differentiated: the loss rises mostly where the teacher becomes sure of
    another class, and less where the student alone errs. A student learns little from inputs on which both agree
    already (adversarial belief matching: Micaelli and Storkey, NeurIPS 2019, who train a generator of such inputs). The
    student is in eval mode meanwhile; gradients flow into x alone.
    """
    low, high = input_spec.valid_range
    length = recipe.step_size * (high - low) * x[0].numel() ** 0.5
    with modes_kept(student.model):
        student.model.eval()
        for _ in range(recipe.steps):
            x = _step(x, _ascent(x, teacher, student, temperature), length).clamp_(low, high)
    return x


def _ascent(x, teacher, student, temperature):
    # Plain torch: the op of the loss takes the teacher's logits for a constant.
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        log_p, log_q = (F.log_softmax(model.logits(x) / temperature, dim=1) for model in (teacher, student))
        loss = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
        return torch.autograd.grad(loss, x)[0]


def _step(x, grad, length):
    norm = grad.flatten(1).norm(dim=1).clamp_min(1e-12)
    return torch.addcmul(x, grad, (length / norm).reshape(-1, *(1,) * (x.ndim - 1)))
