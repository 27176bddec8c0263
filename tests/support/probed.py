"""What the tests of a model's probe share: inputs, the answer that is wanted, and a refusal."""

import pytest
import torch
from small_models import VECTOR
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier, frozen

X = torch.rand(5, 6, generator=torch.Generator().manual_seed(1))


def require_refused(model: nn.Module, message: str, spec: InputSpec = VECTOR, **options) -> None:
    """Fail unless the probe refuses the model with a message that matches."""
    with pytest.raises(InputError, match=message):
        Classifier(model, spec, **options)


def wanted_logits(model: nn.Module, x: torch.Tensor = X) -> torch.Tensor:
    """The answer of the model itself in eval mode."""
    with frozen(model), torch.no_grad():
        return model(x)
