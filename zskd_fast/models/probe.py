"""Parts of the probe of a model: its inputs, and what is checked or mended before and after a forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError

# Far above the rounding of another batch size, far below the effect of dropout or of other inputs in the batch: 8,000
# times the rounding of float32, whose errors a deep model adds up and its layers amplify. TF32, with the significand of
# float16, would fill all of it, so whatever is compared is computed in `runtime.precision.full_float32`.
TOLERANCE = 1e-3
# A model in half precision rounds after every layer, by 1e-3 in float16 and 8e-3 in bfloat16; this many of these errors
# add up in a model of a hundred layers, whose errors are independent and grow as the root of their number.
_HALF_ROUNDINGS = 16
# How far inputs for `far` are from the middle of the valid range, in units of the range.
_FAR = 100.0


def noise_inputs(input_spec: InputSpec, rows: int, device: torch.device) -> torch.Tensor:
    """Return different inputs of noise inside the valid range: [rows, *shape] float32, the same in every call.

    In turn uniform noise over the whole range, noise of its two ends, and uniform noise over its middle half: noise,
    since a teacher may standardize each input, which leaves nothing of a constant one.
    """
    low, high = input_spec.valid_range
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((rows, *input_spec.shape), generator=generator, dtype=torch.float32)
    noise[1::3] = noise[1::3].round()
    noise[2::3] = noise[2::3] / 2 + 0.25
    return noise.mul_(high - low).add_(low).to(device)


def far_inputs(inputs: torch.Tensor, input_spec: InputSpec) -> torch.Tensor:
    """Return the inputs moved far out of the valid range."""
    middle = sum(input_spec.valid_range) / 2
    return (inputs - middle) * _FAR + middle


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest difference of two tensors, relative to the largest value wanted or to 1."""
    return float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1.0))


def tolerance(dtype: torch.dtype) -> float:
    """Return how far the logits of a model of this type may differ in `relative_error` if only rounding differs."""
    return max(TOLERANCE, _HALF_ROUNDINGS * torch.finfo(dtype).eps)


def reason(error: Exception) -> str:
    """Return what went wrong, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "TorchScript" in lines[0]:  # a traceback inside the script comes first, the error last
        return lines[-1].removeprefix("RuntimeError: ")
    return f"no key {lines[0]}" if isinstance(error, KeyError) else lines[0]


def float_types(model: nn.Module) -> dict[torch.dtype, str]:
    """Return each floating-point type of the weights, with the name of the first tensor that has it."""
    types: dict[torch.dtype, str] = {}
    for name, tensor in tensors_of(model).items():
        if tensor.is_floating_point():
            types.setdefault(tensor.dtype, name)
    return types


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a state_dict; that of a quantized model also holds other things."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def require_usable_weights(model: nn.Module, role: str) -> None:
    """Raise InputError for quantized modules, frozen scripts, and weights that are not finite or have no values."""
    if isinstance(model, torch.jit.ScriptModule) and not hasattr(model, "training"):
        raise InputError(
            f"the {role} is a frozen TorchScript module, in which no weights can be told apart from other constants; "
            "give it as it was before torch.jit.freeze"
        )
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__:
            kind = f"{type(module).__name__}, quantized"
            raise InputError(
                f"the {role}'s module {name!r} ({kind}) passes no gradient to its input or its weights, so neither "
                "can be optimized; give the model as it was before the quantization"
            )
    for name, tensor in tensors_of(model).items():
        if is_lazy(tensor):
            continue
        if tensor.is_meta:
            raise InputError(f"the {role}'s weights {name} are on the device meta, which holds no values; load them")
        # The sum is many times faster than a test of each value, and finite only if all of them are.
        if tensor.is_floating_point() and not (tensor.sum().isfinite() or tensor.isfinite().all()):
            raise InputError(f"the {role}'s weights {name} hold NaN or infinity")


def has_lazy_weights(model: nn.Module) -> bool:
    """Whether a parameter or buffer has no shape before the first forward pass, as in `nn.LazyLinear`."""
    return any(is_lazy(tensor) for _, _, tensor in _owned(model))


def replace_inference_tensors(model: nn.Module) -> None:
    """Replace each tensor that was made under `torch.inference_mode` by a normal one of equal values, in place.

    Autograd refuses such tensors outside of that mode. Tensors that are shared stay so.
    """
    owned = list(_owned(model))
    for module in model.modules():
        owned += [(module, name, value) for name, value in vars(module).items() if isinstance(value, torch.Tensor)]
    normal: dict[int, torch.Tensor] = {}
    for module, name, tensor in owned:
        if is_lazy(tensor) or not tensor.is_inference():
            continue
        if id(tensor) not in normal:
            copied = tensor.clone()
            if isinstance(tensor, nn.Parameter):
                copied = nn.Parameter(copied, requires_grad=tensor.requires_grad)
            normal[id(tensor)] = copied
        setattr(module, name, normal[id(tensor)])


def fingerprints(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a number per tensor of the state_dict that almost surely changes with any of its bits.

    One pass over memory, several times as fast as a hash. A version counter would not do: ``parameter.data.mul_(2)``
    leaves it as it is.
    """
    return {name: _bits(tensor).sum() for name, tensor in tensors_of(model).items() if not tensor.is_sparse}


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> list[str]:
    """Return the names of the tensors whose fingerprints differ from those given."""
    after = fingerprints(model)
    return [name for name, value in before.items() if name not in after or not torch.equal(after[name], value)]


@contextlib.contextmanager
def weights_kept(model: nn.Module) -> Iterator[None]:
    """Restore every parameter and buffer afterwards, and its values."""
    before = [(*owned, owned[2].detach().clone()) for owned in _owned(model)]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, tensor, values in before:
                if getattr(module, name, None) is not tensor:
                    setattr(module, name, tensor)
                if not torch.equal(tensor, values):
                    tensor.copy_(values)


def shared_memory(left: nn.Module, right: nn.Module) -> list[str]:
    """Return the names of the parameters and buffers of ``left`` that are in the memory of one of ``right``."""
    theirs = _memory(right)
    return [name for address, name in _memory(left).items() if address in theirs]


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """View the memory of a tensor as the widest integers that fit it: int64 is summed fastest."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for wide in (torch.int64, torch.int32, torch.int16):
        if data.numel() % wide.itemsize == data.storage_offset() % wide.itemsize == 0:
            return data.view(wide)
    return data


def _owned(model: nn.Module) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    """Yield each parameter and buffer with the module that holds it; a shared one several times."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield module, name, parameter
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            yield module, name, buffer


def _memory(model: nn.Module) -> dict[int, str]:
    """Return the addresses of the parameters and buffers, and their names."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {tensor.data_ptr(): name for name, tensor in tensors if tensor.numel()}
