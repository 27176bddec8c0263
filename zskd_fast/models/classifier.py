"""A classifier as the driver uses it: probed once, hashed once, frozen while in use."""

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from zskd_fast.config.identity import ModelIdentity
from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError
from zskd_fast.models import probe
from zskd_fast.models.answers import Answer, logits_of, recognized, values_of
from zskd_fast.runtime.precision import full_float32

LogitsFn = Callable[[object], torch.Tensor]
ForwardFn = Callable[[nn.Module, torch.Tensor], object]

_PROBED_ROWS = 3
# Errors that a model raises which takes something else than one tensor.
_OTHER_ARGUMENTS = (TypeError, KeyError, IndexError)


class Classifier:
    """A teacher or student that maps raw inputs x[N, *shape] to logits [N, K] in float32.

    The constructor hashes the weights and probes the model with small forward passes. Whoever needs the model
    afterwards is given the Classifier, so that this happens once in a run. ``forward_fn`` calls the model,
    ``forward_fn(model, x)``, where it takes something else than one tensor. ``logits_fn`` picks the logits out of what
    the model returns, where that is neither one tensor nor names its logits. Probabilities and a single logit become
    logits of their classes; ``notes`` says so. The model stays on its device.

    The model itself is changed where it cannot be used otherwise: weights made under `torch.inference_mode` become
    normal tensors, and those of lazy modules get their shape and initial values. Works under `torch.inference_mode`.

    Raises InputError for weights that are quantized, not finite or spread over devices, an input that the model
    rejects, an output that ``logits_fn`` rejects, one that is no logits [N, K] with K >= 2, a teacher whose answer to
    an input is not always the same, and one whose forward pass changes its weights.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: nn.Module,
        input_spec: InputSpec,
        *,
        role: str = "teacher",
        logits_fn: LogitsFn | None = None,
        forward_fn: ForwardFn | None = None,
        name: str | None = None,
    ):
        if not isinstance(model, nn.Module):
            raise InputError(f"the {role} must be an nn.Module, got {_described(model)}")
        self.model = model
        self.input_spec = input_spec
        self.role = role
        self.name = name or type(model).__name__
        self.logits_fn = logits_fn
        self.forward_fn = forward_fn
        self._writes_input = False
        self._answer = self._train_answer = Answer.LOGITS
        self.device, self._dtype = _device_and_dtype(model, role)
        probe.require_usable_weights(model, role)
        probe.replace_inference_tensors(model)
        if probe.has_lazy_weights(model):
            self._initialize()
        self.identity = ModelIdentity(name=type(model).__name__, sha256=_weights_sha256(model))
        """The weights as they are at construction."""
        self.num_classes = self._probe().shape[1]

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def notes(self) -> list[str]:
        """What the user should know about the logits; a sentence whose subject is the model."""
        return [self._answer.note] if self._answer.note else []

    @property
    def tolerance(self) -> float:
        """How far logits of the same input may differ by rounding, relative to the largest of them or to 1."""
        return probe.tolerance(self._dtype)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits [N, K] float32 of raw inputs x[N, *shape]; x stays as it is."""
        answer = self._train_answer if self.model.training else self._answer
        return logits_of(self._picked(self._called(self._prepared(x))), answer)

    def probe_input(self) -> torch.Tensor:
        """Return a few different inputs of noise inside the valid range: [N, *shape] float32."""
        return probe.noise_inputs(self.input_spec, _PROBED_ROWS, self.device)

    def probe_training(self, rows: int) -> bool:
        """Take a training step on that many inputs of noise, of which nothing remains, with the model in train mode.

        Returns whether every parameter that requires a gradient gets one. Raises InputError if the step fails, if no
        parameter gets a gradient, or if the model has other classes than in eval mode.
        """
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        with probe.weights_kept(self.model), torch.enable_grad():
            values = self._values(probe.noise_inputs(self.input_spec, rows, self.device), " in train mode")
            self._train_answer = recognized(values, rows, self.role, " in train mode")
            logits = logits_of(values, self._train_answer)
            if logits.shape[1] != self.num_classes:
                got = f"{logits.shape[1]} in train mode, but {self.num_classes} in eval mode"
                raise InputError(f"the {self.role} has other classes in each mode: {got}; return the same in both")
            gradients = self._gradients(logits, parameters)
        if all(gradient is None for gradient in gradients):
            raise InputError(
                f"no gradient flows from the {self.role}'s logits in train mode to a parameter that requires one, "
                "so it cannot learn"
            )
        return all(gradient is not None for gradient in gradients)

    def _prepared(self, x: torch.Tensor) -> torch.Tensor:
        prepared = self.input_spec.normalize(x).to(self._dtype)
        # A copy, so that x is still there afterwards; autograd allows no change of a leaf anyway.
        return prepared.clone() if self._writes_input and prepared is x else prepared

    def _called(self, x: torch.Tensor) -> object:
        return self.model(x) if self.forward_fn is None else self.forward_fn(self.model, x)

    def _picked(self, output: object) -> Any:
        return values_of(output) if self.logits_fn is None else self.logits_fn(output)

    def _initialize(self) -> None:
        """Give the weights of lazy modules their shape and values, which are drawn from torch's generator."""
        x = self.probe_input()
        with modes_kept(self.model), torch.no_grad():
            self.model.eval()
            try:
                self._called(self._prepared(x))
            except Exception as error:
                raise self._rejection(x, error) from error
        if probe.has_lazy_weights(self.model):
            raise InputError(f"the {self.role} has lazy modules that its forward pass does not use; remove them")

    @full_float32()
    def _probe(self) -> torch.Tensor:
        """Return the logits of a few inputs, and find out how the model is to be used."""
        x, is_teacher = self.probe_input(), self.role == "teacher"
        # Only a teacher needs gradients in eval mode. What it draws at random is not taken from the caller's generator.
        with (
            frozen(self.model),
            torch.random.fork_rng([self.device] if self.device.type == "cuda" else []),
            torch.set_grad_enabled(is_teacher),
            contextlib.nullcontext() if is_teacher else probe.weights_kept(self.model),
        ):
            before = probe.fingerprints(self.model) if is_teacher else {}
            values = self._values(x.requires_grad_(is_teacher))
            self._answer = recognized(values, len(x), self.role, far=self._far_values)
            logits = logits_of(values, self._answer).detach()
            if is_teacher:
                self._require_same_weights(before)
                self._require_same_answer(x, logits)
        self._train_answer = self._answer
        return logits

    def _far_values(self) -> object:
        """Return the values for inputs far outside the valid range; None if the model rejects them."""
        with contextlib.suppress(InputError):
            return self._values(probe.far_inputs(self.probe_input(), self.input_spec))
        return None

    def _values(self, x: torch.Tensor, mode: str = "") -> Any:
        """Return the values that the model answers with, whatever they are, and notice if it writes into its input."""
        given = self._prepared(x).clone()
        values, version = given.detach().clone(), given._version
        try:
            output = self._called(given)
        except Exception as error:  # a user's model can raise anything; the cause is the input that it was given
            raise self._rejection(x, error, mode) from error
        if given._version != version or not torch.equal(given, values):
            self._writes_input = True
        try:
            return self._picked(output)
        except Exception as error:  # so can a user's logits_fn
            kind = type(output).__name__
            raise InputError(
                f"the {self.role}'s logits_fn fails on the model's output{mode}, a {kind}: {probe.reason(error)}"
            ) from error

    def _rejection(self, x: torch.Tensor, error: Exception, mode: str = "") -> InputError:
        rows, shape = len(x), list(self.input_spec.shape)
        types = probe.float_types(self.model)
        help_ = ""
        if self.forward_fn is not None:
            help_ = f" (called by forward_fn {getattr(self.forward_fn, '__name__', self.forward_fn)})"
        elif isinstance(error, _OTHER_ARGUMENTS) or "'Tensor' object" in str(error):
            option = "forward_fn" if self.role == "teacher" else "student_forward_fn"
            help_ = (
                f"; for a model that takes a dict or several inputs give {option} (--{option.replace('_', '-')} "
                "package.module:callable), a function of the model and x that calls the model"
            )
        elif "size()[0] ==" in str(error) or ".shape[0] to be" in str(error):  # as torch.export's guards say
            help_ = "; export it for batches of any size: torch.export.export(..., dynamic_shapes=({0: Dim('batch')},))"
        elif len(types) > 1:
            found = " and ".join(f"{str(dtype).removeprefix('torch.')} ({name})" for dtype, name in types.items())
            help_ = f"; its weights are of several types, {found}: convert them to one, as by model.float()"
        inputs = f"a batch of {rows} input{'s' if rows > 1 else ''} of shape {shape}"
        return InputError(f"the {self.role} rejects {inputs}{mode}: {probe.reason(error)}{help_}")

    def _gradients(self, logits: torch.Tensor, parameters: list[nn.Parameter]) -> tuple[torch.Tensor | None, ...]:
        if not logits.requires_grad or not parameters:
            return (None,)
        try:
            return torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
        except Exception as error:
            raise InputError(f"the {self.role}'s backward pass in train mode fails: {probe.reason(error)}") from error

    def _require_same_answer(self, x: torch.Tensor, logits: torch.Tensor) -> None:
        """Raise InputError unless the first inputs alone have the logits that they had beside the last."""
        alone = probe.relative_error(self.logits(x[:-1]).detach(), logits[:-1])
        if alone <= probe.TOLERANCE:
            return
        # Half precision rounds coarsely, and float32 on a GPU may do so in a way that depends on the batch size.
        rounding = torch.finfo(self._dtype).eps
        again = probe.relative_error(self.logits(x).detach(), logits)
        if again <= max(probe.TOLERANCE, 4 * rounding):
            if alone <= max(10 * probe.TOLERANCE, 16 * rounding):
                return
            raise InputError(
                f"the {self.role}'s logits of an input depend on the other inputs of its batch, as after a batch "
                "normalization without running statistics; wanted the same logits in any batch"
            )
        raise InputError(
            f"the {self.role} gives the same input two different answers in eval mode, as with F.dropout(x), which "
            "never stops; wanted the same logits every time: F.dropout(x, training=self.training)"
        )

    def _require_same_weights(self, before: dict[str, torch.Tensor]) -> None:
        names = probe.changed(self.model, before)
        if names:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(
                f"the {self.role}'s forward pass changes its weights {names[0]}{others} in eval mode, so no second "
                "run would find the same teacher; compute the new value without storing it, or store it only if "
                "self.training"
            )


def as_classifier(
    model: nn.Module | Classifier,
    input_spec: InputSpec,
    *,
    role: str = "teacher",
    logits_fn: LogitsFn | None = None,
    forward_fn: ForwardFn | None = None,
) -> Classifier:
    """Return the model as a Classifier, and warn of its notes; one that is a Classifier already is not probed again."""
    if not isinstance(model, Classifier):
        classifier = Classifier(model, input_spec, role=role, logits_fn=logits_fn, forward_fn=forward_fn)
        for note in classifier.notes:
            warnings.warn(f"the {role} {note}", stacklevel=4)
        return classifier
    given = (logits_fn, model.logits_fn), (forward_fn, model.forward_fn)
    if model.input_spec != input_spec or any(wanted not in (None, got) for wanted, got in given):
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
            set_eval(model)
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


def set_eval(model: nn.Module) -> None:
    """Put the model in eval mode, if it has modes: an exported program has none."""
    with contextlib.suppress(NotImplementedError):
        model.eval()


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
    for name, tensor in sorted(probe.tensors_of(model).items()):
        digest.update(f"{name}:".encode())
        digest.update(tensor_sha256(tensor).encode())
    return digest.hexdigest()


def _described(value: object) -> str:
    if isinstance(value, type) and issubclass(value, nn.Module):
        return f"the class {value.__name__}; call it"
    if isinstance(value, dict):
        return "a dict; build the model and give it these weights by load_state_dict"
    return f"an object of type {type(value).__name__}"


def _device_and_dtype(model: nn.Module, role: str) -> tuple[torch.device, torch.dtype]:
    """Return where the weights are, and the type of the first one; a model without weights is on the CPU."""
    tensors = [tensor for tensor in probe.tensors_of(model).values() if tensor.is_floating_point()]
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise InputError(f"the {role} is spread over the devices {names}, wanted all of it on one")
    if not tensors:
        return torch.device("cpu"), torch.float32
    return tensors[0].device, tensors[0].dtype
