"""The last layers of the teacher that a student takes over, and the features before them that it learns to give.

After SimKD (Chen et al., CVPR 2022): a student that gives the teacher's features needs no classifier of its own.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from zskd_fast.distillation.pruned_start.layers import has_plain_weight, is_frozen, is_same
from zskd_fast.errors import InputError
from zskd_fast.models.classifier import Classifier, frozen
from zskd_fast.runtime.precision import full_float32
from zskd_fast.runtime.processes import World, weighted

_IDENTITIES = (nn.Identity, nn.Dropout)  # in eval mode
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh)
_TAKEN = (nn.Linear, nn.BatchNorm1d, *_ACTIVATIONS, *_IDENTITIES)
_POOLS = {F.adaptive_avg_pool2d, F.avg_pool2d, torch.mean, torch.Tensor.mean}


@dataclass(frozen=True)
class _Call:
    """One call of a module without children during a forward pass."""

    name: str
    module: nn.Module
    input: torch.Tensor
    output: torch.Tensor


@dataclass(frozen=True)
class _End:
    """How a model ends."""

    layers: list[_Call]
    """The calls that lead to the logits, in order, as far as each passes its output to the next one alone."""
    map: torch.Tensor | None
    """[N, C, H, W] whose mean over H and W is the input of the last layer, if it is one."""


class SharedLayers:
    """What a student takes over from its teacher: the last layers, frozen, and the features before them as its aim.

    If the last linear layer takes as many features in both models, it is copied, and so are the layers before it as
    long as their shapes are the teacher's. Otherwise a linear projection to the teacher's features is learned in front
    of the teacher's last layer; at the end it is multiplied into the student's own, so that the student keeps its
    architecture. If the features are averages over maps of one size in both models, the maps are matched. A layer of
    the student with a frozen parameter stays its own.
    """

    def __init__(self, teacher: _End, student: _End, student_model: nn.Module, *, layers: int):
        """``layers`` are copied; 0 projects."""
        self._is_projected = layers == 0
        theirs, mine = teacher.layers[-layers or -1 :], student.layers[-layers or -1 :]
        self._teacher = [call.module for call in theirs]
        self._names = [call.name for call in mine]
        self._student = student_model
        self.projection: nn.Linear | None = None
        """While the layers are taken over: what is learned in front of the teacher's last layer."""
        self._tap = _MapTap()
        self._has_maps = len(mine) == 1 and _have_one_size(teacher.map, student.map)
        self._wanted = self._got = torch.empty(0)
        self.description = self._described(theirs, mine, student.map)
        """What is taken over, for a summary."""

    @classmethod
    def of(cls, teacher: Classifier, student: Classifier) -> SharedLayers | None:
        """Find what the student can take over; None if the last layer of either model cannot be exchanged."""
        theirs, mine = _end_of(teacher), _end_of(student)
        if not theirs.layers or not mine.layers:
            return None
        layers = 0
        for a, b in zip(reversed(theirs.layers), reversed(mine.layers), strict=False):
            if not (is_same(a.module, b.module) and _may_be_set(b.module, student.model)):
                break
            layers += 1
        if layers == 0:
            fits = _can_hold_product(mine.layers[-1], theirs.layers[-1], student.model)
            return cls(theirs, mine, student.model, layers=0) if fits else None
        while layers and not (_is_linear(theirs.layers[-layers]) and _can_learn(student.model, mine.layers[-layers:])):
            layers -= 1
        return cls(theirs, mine, student.model, layers=layers) if layers else None

    @contextlib.contextmanager
    def taken_over(self, seed: int) -> Iterator[None]:
        """Exchange the layers of the student, which is in train mode; at the end it has its own architecture again.

        ``seed`` decides the projection at the start.
        """
        with contextlib.ExitStack() as undo:
            first = self._project(undo, seed) if self._is_projected else self._copy(undo)
            if not self._has_maps:
                for module, keep in ((self._teacher[0], self._keep_wanted), (first, self._keep_got)):
                    hook = module.register_forward_pre_hook(lambda _, inputs, keep=keep: keep(inputs[0]))
                    undo.callback(hook.remove)
            yield

    def watching_teacher(self) -> contextlib.AbstractContextManager[None]:
        """Keep the features of the teacher's forward pass inside."""
        return self._watching(self._keep_wanted)

    def watching_student(self) -> contextlib.AbstractContextManager[None]:
        """Keep the features of the student's forward pass inside."""
        return self._watching(self._keep_got)

    @contextlib.contextmanager
    def _watching(self, keep: Callable[[torch.Tensor], None]) -> Iterator[None]:
        """Keep the map of the forward pass inside; vectors are kept by the hooks of `taken_over`."""
        if not self._has_maps:
            yield
            return
        with self._tap:
            yield
        keep(self._tap.take())

    def loss(self, share: float, world: World) -> torch.Tensor:
        """Return the mean squared distance of the kept features, relative to the mean square of the teacher's.

        The mean square is that of the whole batch, of which this process has the ``share``.
        """
        wanted = self._wanted.to(self._got.dtype)
        scale = world.sum(weighted(wanted.square().mean(), share)).clamp_min(1e-12)
        return F.mse_loss(self._got, wanted) / scale

    def _described(self, theirs: list[_Call], mine: list[_Call], own_map: torch.Tensor | None) -> str:
        wanted, got = theirs[0].input.shape[1], mine[0].input.shape[1]
        features = f"{got} features"
        if self._has_maps and own_map is not None:
            features += f" of {own_map.shape[2]}x{own_map.shape[3]}"
        names = [f"'{call.name}'" for call in mine if call.module.state_dict()]
        them = "it" if len(names) == 1 else "them"
        how = f"projected to its {wanted}" if self._is_projected else "matched"
        return f"{' and '.join(names)} of the teacher; the student's {features} before {them} are {how}"

    def _keep_wanted(self, features: torch.Tensor) -> None:
        self._wanted = features.detach()

    def _keep_got(self, features: torch.Tensor) -> None:
        if self._has_maps and self.projection is not None:  # a vector is kept behind its projection
            features = F.conv2d(features, self.projection.weight[:, :, None, None], self.projection.bias)
        self._got = features

    def _copy(self, undo: contextlib.ExitStack) -> nn.Module:
        modules = [self._student.get_submodule(name) for name in self._names]
        for module, source in zip(modules, self._teacher, strict=True):
            module.load_state_dict(source.state_dict())
            module.eval()
            for parameter in module.parameters():
                undo.callback(parameter.requires_grad_, parameter.requires_grad)
                parameter.requires_grad_(False)
        return modules[0]

    def _project(self, undo: contextlib.ExitStack, seed: int) -> nn.Module:
        """Put a projection and a copy of the teacher's layer in the place of the student's layer; return the copy."""
        own = cast(nn.Linear, self._student.get_submodule(self._names[0]))
        last = cast(nn.Linear, copy.deepcopy(self._teacher[0]).to(own.weight.dtype).eval().requires_grad_(False))
        projection = nn.Linear(own.in_features, last.in_features, device=own.weight.device, dtype=own.weight.dtype)
        start = torch.randn(projection.weight.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            projection.weight.copy_(start / own.in_features**0.5)
            projection.bias.zero_()
        self._student.set_submodule(self._names[0], nn.Sequential(projection, last))
        self.projection = projection
        undo.callback(self._fold, own, projection, last)
        return last

    def _fold(self, own: nn.Linear, projection: nn.Linear, last: nn.Linear) -> None:
        """Put the student's own layer back, with the product of the projection and the teacher's layer."""
        with torch.no_grad():
            own.weight.copy_(last.weight @ projection.weight)
            if own.bias is not None:
                own.bias.copy_(last(projection.bias))
        self._student.set_submodule(self._names[0], own)
        self.projection = None


class _MapTap(TorchFunctionMode):
    """Keep the input of the last average over whole maps [N, C, H, W], by a module or a function."""

    def __init__(self) -> None:
        super().__init__()
        self._map: torch.Tensor | None = None

    def take(self) -> torch.Tensor:
        """Return the map that was kept, and forget it. Raises InputError if there was none."""
        kept, self._map = self._map, None
        if kept is None:
            raise InputError(
                "the student averages its maps otherwise in train mode than in eval mode, so they cannot be matched: "
                "set the recipe's distillation.shared_layers to false"
            )
        return kept

    @property
    def has_map(self) -> bool:
        return self._map is not None

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _POOLS and args and isinstance(args[0], torch.Tensor) and _is_mean_of(args[0], result):
            self._map = args[0]
        return result


def _end_of(classifier: Classifier) -> _End:
    """Run a model and find how it ends; without layers if the logits are not the plain output of a linear layer."""
    calls: list[_Call] = []

    def kept(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
            if len(inputs) == 1 and isinstance(inputs[0], torch.Tensor) and isinstance(output, torch.Tensor):
                calls.append(_Call(name, module, inputs[0], output))

        return hook

    tap = _MapTap()
    with contextlib.ExitStack() as undo:
        for name, module in classifier.model.named_modules():
            if not list(module.children()) and not isinstance(module, torch.jit.RecursiveScriptModule):
                undo.callback(module.register_forward_hook(kept(name)).remove)
        with frozen(classifier.model), torch.no_grad(), full_float32(), tap:
            logits = classifier.logits(classifier.probe_input())
    layers = _chain(calls, logits)
    pooled = tap.take() if tap.has_map else None
    if not layers or pooled is None or not _is_mean(layers[-1].input, pooled):
        pooled = None
    return _End(layers, pooled)


def _chain(calls: list[_Call], logits: torch.Tensor) -> list[_Call]:
    """Return the calls on vectors [N, D] of which each passes its output to the next, and the last gives the logits."""
    layers: list[_Call] = []
    for call in reversed(calls):
        if not layers:
            if isinstance(call.module, nn.Linear) and torch.equal(call.output.to(logits.dtype), logits):
                layers.append(call)
        elif call.output is layers[0].input:
            if call.input.ndim != 2 or not isinstance(call.module, _TAKEN):
                break
            layers.insert(0, call)
    return [call for call in layers if not isinstance(call.module, _IDENTITIES)]


def _is_mean_of(pooled: torch.Tensor, result: torch.Tensor) -> bool:
    return pooled.ndim == 4 and result.numel() == pooled.shape[0] * pooled.shape[1]


def _is_mean(vector: torch.Tensor, pooled: torch.Tensor) -> bool:
    mean = pooled.flatten(2).mean(2)
    return vector.shape == mean.shape and torch.allclose(vector, mean, rtol=1e-3, atol=1e-5)


def _have_one_size(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and a.shape[2:] == b.shape[2:] and a.shape[2:].numel() > 1


def _is_linear(call: _Call) -> bool:
    return isinstance(call.module, nn.Linear)


def _may_be_set(layer: nn.Module, student: nn.Module) -> bool:
    """Whether the parameters of a layer are neither frozen nor those of another layer, too."""
    own = {id(parameter) for parameter in layer.parameters()}
    users = [module for module in student.modules() if own & {id(each) for each in module.parameters(recurse=False)}]
    return not is_frozen(layer) and len(users) <= 1


def _can_hold_product(own: _Call, teacher: _Call, student: nn.Module) -> bool:
    """Whether the product of a projection and the teacher's last layer can be put into the student's own last layer.

    Both have to compute what `nn.Linear` does, and the student's weight has to be a parameter, not made of others nor
    frozen or used elsewhere. A student that is nothing but that layer has no place for a projection.
    """
    are_linear = all(type(call.module).forward is nn.Linear.forward for call in (own, teacher))
    if own.name == "" or not (are_linear and has_plain_weight(own.module) and _may_be_set(own.module, student)):
        return False
    return own.module.bias is not None or teacher.module.bias is None


def _can_learn(student: nn.Module, taken: list[_Call]) -> bool:
    """Whether the student has a parameter to train beside those of the layers taken over."""
    taken_over = {id(parameter) for call in taken for parameter in call.module.parameters()}
    return any(parameter.requires_grad and id(parameter) not in taken_over for parameter in student.parameters())
