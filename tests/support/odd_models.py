"""Small models of the kinds that make trouble: how they answer, what they change, how they were made."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from small_models import vector_classifier
from torch import nn


class Wrapped(nn.Module):
    """A classifier of 6 values behind a function of its input, in front of a function of its logits."""

    def __init__(self, after=None, before=None, *, classes=4, seed=0):
        super().__init__()
        self.inner = vector_classifier(classes=classes, seed=seed)
        self.after, self.before = after or (lambda y: y), before or (lambda x: x)

    def forward(self, x):
        return self.after(self.inner(self.before(x)))


class InTrainMode(nn.Module):
    """A classifier whose logits are changed by a function in train mode only."""

    def __init__(self, change, *, seed=5):
        super().__init__()
        self.inner, self.change = vector_classifier(seed=seed), change

    def forward(self, x):
        logits = self.inner(x)
        return self.change(logits) if self.training else logits


class Prototypes(nn.Module):
    """A classifier whose logits are negative distances to one prototype per class."""

    def __init__(self, classes=4):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Linear(6, 8)
            self.prototypes = nn.Parameter(torch.randn(classes, 8))

    def forward(self, x):
        return -torch.cdist(self.body(x).tanh(), self.prototypes).square()


class Renormalizing(nn.Module):
    """A classifier that divides the weights of its head by their norms in every forward pass, past autograd."""

    def __init__(self):
        super().__init__()
        self.inner = vector_classifier()

    def forward(self, x):
        weight = self.inner[3].weight.data
        weight.div_(weight.norm(dim=1, keepdim=True))
        return self.inner(x)


class Counting(nn.Module):
    """A classifier that counts its forward passes in a buffer."""

    def __init__(self):
        super().__init__()
        self.inner = vector_classifier()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.inner(x)


class KeywordInput(nn.Module):
    """A classifier that takes a dict, as some models of the wild do."""

    def __init__(self, seed=0):
        super().__init__()
        self.inner = vector_classifier(seed=seed)

    def forward(self, batch):
        return self.inner(batch["pixels"])


class TwoInputs(nn.Module):
    """A classifier that takes a mask beside its input."""

    def __init__(self, seed=0):
        super().__init__()
        self.inner = vector_classifier(seed=seed)

    def forward(self, x, mask):
        return self.inner(x * mask)


class Standardizing(nn.Module):
    """A classifier that standardizes each input: a constant one becomes 0 / 0."""

    def __init__(self):
        super().__init__()
        self.inner = vector_classifier()

    def forward(self, x):
        return self.inner((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))


def with_mask(model, x):
    """Call a model of two inputs."""
    return model(x, torch.ones_like(x))


def with_keyword(model, x):
    """Call a model that takes a dict."""
    return model({"pixels": x})


def subtracting(x):
    """Change the input in place."""
    x -= 0.5
    return x


def named(logits):
    """Logits as transformers return them."""
    return SimpleNamespace(logits=logits, hidden_states=None)


def dropped(logits):
    """Dropout that never stops."""
    return F.dropout(logits, 0.3)


def made_under_inference_mode(**options):
    """A classifier whose weights are inference tensors."""
    with torch.inference_mode():
        return vector_classifier(**options)
