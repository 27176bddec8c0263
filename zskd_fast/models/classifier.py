"""A classifier as the driver needs it: checked once, frozen while in use, told apart by its weights."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError

LogitsFn = Callable[[object], torch.Tensor]


class Classifier:
    """A teacher or student that maps raw inputs x[N, *shape] to logits [N, K] in float32.

    One small forward pass at construction checks that the model takes the input and returns logits.
    ``logits_fn`` picks the logits out of what the model returns, when that is not one tensor. The model is
    used where it lies: ``device`` only says where that must be. Raises InputError that says what is wrong:
    weights that are not finite, an input that the model rejects, an output that is not [N, K] with K >= 2.
    """

    def __init__(
        self,
        model: nn.Module,
        input_spec: InputSpec,
        *,
        role: str = "teacher",
        logits_fn: LogitsFn | None = None,
        device: torch.device | str | None = None,
    ):
        self.model = model
        self.input_spec = input_spec
        self.role = role
        self._logits_fn = logits_fn
        self.device, self._dtype = _home(model, role, device)
        _check_weights(model, role)
        self.num_classes = self._probe().shape[1]

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, K] float32 of raw inputs x[N, *shape]."""
        output = self.model(self.input_spec.normalise(x).to(self._dtype))
        return (output if self._logits_fn is None else self._logits_fn(output)).float()

    def probe_input(self) -> torch.Tensor:
        """Two different inputs inside the valid range: [2, *shape] float32."""
        low, high = self.input_spec.valid_range
        inputs = torch.full((2, *self.input_spec.shape), low + (high - low) / 4, device=self.device)
        inputs[1] += (high - low) / 2
        return inputs

    def _probe(self):
        shape = list(self.input_spec.shape)
        try:
            with frozen(self.model), torch.no_grad():
                output = self.model(self.input_spec.normalise(self.probe_input()).to(self._dtype))
        except Exception as error:  # whatever a user's model raises, the cause is the input that it was given
            raise InputError(
                f"the {self.role} rejects a batch of 2 inputs of shape {shape}: {error}"
            ) from error
        return self._checked(output if self._logits_fn is None else self._logits_fn(output))

    def _checked(self, logits):
        if not isinstance(logits, torch.Tensor):
            raise InputError(
                f"the {self.role} returns a {type(logits).__name__}, wanted one tensor of logits [N, K]; "
                "give logits_fn, a function that picks the logits out of what the model returns"
            )
        if logits.ndim != 2 or logits.shape[0] != 2:
            got = list(logits.shape)
            raise InputError(
                f"the {self.role} returns shape {got} for a batch of 2 inputs, wanted [2, K] logits"
            )
        if logits.shape[1] < 2:
            raise InputError(f"the {self.role} returns K = {logits.shape[1]} logit, wanted K >= 2 classes")
        if not torch.isfinite(logits).all():
            raise InputError(
                f"the {self.role}'s logits of an input inside the valid range are not all finite"
            )
        return logits


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Puts the model in eval mode with no parameter requiring a gradient; restores both, whatever happens.

    The mode is kept per module and the flag per parameter: a partly frozen model comes back as it was.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with modes_kept(model):
        try:
            # An exported program has no modes and refuses to be asked.
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
    """Gives every module of the model its mode, train or eval, back afterwards, whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every parameter and buffer, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:".encode())
        digest.update(tensor_sha256(tensor).encode())
    return digest.hexdigest()


def tensor_sha256(tensor: torch.Tensor) -> str:
    """SHA-256 over dtype, shape and bytes of a tensor, wherever it lies."""
    data = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{data.dtype}{list(data.shape)}".encode())
    digest.update(data.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _home(model, role, device):
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    homes = {tensor.device for tensor in tensors}
    if len(homes) > 1:
        names = ", ".join(sorted(map(str, homes)))
        raise InputError(f"the {role} is spread over the devices {names}, wanted all of it on one")
    wanted = torch.device(device) if device is not None else None
    home = homes.pop() if homes else wanted or torch.device("cpu")
    # "cuda" without an index means any CUDA device.
    if wanted and (wanted.type != home.type or wanted.index not in (None, home.index)):
        raise InputError(f"the {role} lies on {home}, wanted {wanted}; move it there first")
    return home, tensors[0].dtype if tensors else torch.float32


def _check_weights(model, role):
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"the {role}'s weights {name} hold NaN or infinity")
