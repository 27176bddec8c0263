"""A classifier as the driver uses it: probed once, hashed once, frozen while in use."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from zskd_fast.config.identity import ModelIdentity
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError

LogitsFn = Callable[[object], torch.Tensor]


class Classifier:
    """A teacher or student that maps raw inputs x[N, *shape] to logits [N, K] in float32.

    The constructor hashes the weights and probes the model with one small forward pass. Whoever needs the model
    afterwards is given the Classifier, so that this happens once in a run. ``logits_fn`` picks the logits out of what
    the model returns, where that is not one tensor. The model stays on its device.

    Raises InputError for weights that are not finite or spread over devices, an input that the model rejects, an output
    that ``logits_fn`` rejects, and logits that are not [N, K] with K >= 2.
    """

    def __init__(
        self,
        model: nn.Module,
        input_spec: InputSpec,
        *,
        role: str = "teacher",
        logits_fn: LogitsFn | None = None,
        name: str | None = None,
    ):
        self.model = model
        self.input_spec = input_spec
        self.role = role
        self.name = name or type(model).__name__
        self.logits_fn = logits_fn
        self.device, self._dtype = _device_and_dtype(model, role)
        _check_weights(model, role)
        self.identity = ModelIdentity(name=type(model).__name__, sha256=_weights_sha256(model))
        """The weights as they are at construction."""
        self.num_classes = self._probe().shape[1]

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits [N, K] float32 of raw inputs x[N, *shape]."""
        return self._picked(self.model(self._normalized(x))).float()

    def probe_input(self) -> torch.Tensor:
        """Return two different constant inputs inside the valid range: [2, *shape] float32."""
        low, high = self.input_spec.valid_range
        inputs = torch.full((2, *self.input_spec.shape), low + (high - low) / 4, device=self.device)
        inputs[1] += (high - low) / 2
        return inputs

    def _normalized(self, x: torch.Tensor) -> torch.Tensor:
        return self.input_spec.normalize(x).to(self._dtype)

    def _picked(self, output: torch.Tensor) -> torch.Tensor:
        return output if self.logits_fn is None else self.logits_fn(output)

    def _probe(self) -> torch.Tensor:
        shape = list(self.input_spec.shape)
        try:
            with frozen(self.model), torch.no_grad():
                output = self.model(self._normalized(self.probe_input()))
        except Exception as error:  # a user's model can raise anything; the cause is the input that it was given
            raise InputError(f"the {self.role} rejects a batch of 2 inputs of shape {shape}: {error}") from error
        try:
            logits = self._picked(output)
        except Exception as error:  # so can a user's logits_fn
            kind = type(output).__name__
            raise InputError(f"the {self.role}'s logits_fn fails on the model's output, a {kind}: {error}") from error
        return self._checked(logits)

    def _checked(self, logits: torch.Tensor) -> torch.Tensor:
        if not isinstance(logits, torch.Tensor):
            raise InputError(
                f"the {self.role} returns a {type(logits).__name__}, wanted one tensor of logits [N, K]; "
                "give logits_fn, a function that picks the logits out of what the model returns"
            )
        if logits.ndim != 2 or logits.shape[0] != 2:
            got = list(logits.shape)
            raise InputError(f"the {self.role} returns shape {got} for a batch of 2 inputs, wanted [2, K] logits")
        if logits.shape[1] < 2:
            raise InputError(f"the {self.role} returns K = {logits.shape[1]} logit, wanted K >= 2 classes")
        if not torch.isfinite(logits).all():
            raise InputError(f"the {self.role}'s logits of an input inside the valid range are not all finite")
        return logits


def as_classifier(
    model: nn.Module | Classifier,
    input_spec: InputSpec,
    *,
    role: str = "teacher",
    logits_fn: LogitsFn | None = None,
) -> Classifier:
    """Return the model as a Classifier; one that is a Classifier already is not probed again."""
    if not isinstance(model, Classifier):
        return Classifier(model, input_spec, role=role, logits_fn=logits_fn)
    if model.input_spec != input_spec or logits_fn not in (None, model.logits_fn):
        raise InputError(f"the {role} was probed with another input or logits_fn; give the module itself")
    return model


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode with no parameter requiring a gradient; restore both afterwards.

    The mode is restored per module and the flag per parameter, so a partly frozen model comes back as it was.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with modes_kept(model):
        try:
            # An exported program has no modes: its eval() raises NotImplementedError.
            with contextlib.suppress(NotImplementedError):
                model.eval()
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore the mode (train or eval) of every module of the model afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Return the SHA-256 over dtype, shape and bytes of a tensor on any device."""
    data = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{data.dtype}{list(data.shape)}".encode())
    digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _weights_sha256(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:".encode())
        digest.update(tensor_sha256(tensor).encode())
    return digest.hexdigest()


def _device_and_dtype(model: nn.Module, role: str) -> tuple[torch.device, torch.dtype]:
    """Return where the weights are, and the type of the first one; a model without weights is on the CPU."""
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise InputError(f"the {role} is spread over the devices {names}, wanted all of it on one")
    if not tensors:
        return torch.device("cpu"), torch.float32
    return tensors[0].device, tensors[0].dtype


def _check_weights(model: nn.Module, role: str) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"the {role}'s weights {name} hold NaN or infinity")
