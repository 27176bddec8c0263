"""Faster CPU versions of 2x2 max-pooling, local response normalization and two convolution gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zskd_fast import ops

# oneDNN pads the channels of an image to the eight or sixteen of a register and computes the padding too. The
# transforms of NNPACK, which torch uses where oneDNN is off, do not, and are faster for kernels from 5x5 up.
_FEW_CHANNELS = 4
_LEAST_KERNEL, _LARGEST_KERNEL = 5, 16
# The weight gradient of a convolution over a gray image is slow because oneDNN pads that one channel.
_LEAST_GRAY_KERNEL = 3
# The exponent of local response normalization that AlexNet and torch use.
_BETA = 0.75


def cpu_overrides(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which some functions use faster versions on a CPU; a no-op on other devices.

    They are `max_pool2d`, `conv2d` and `local_response_norm`. Pooling keeps its bits. The normalization changes by
    rounding. The two gradients of a convolution change by rounding; the error of the input gradient is
    relative to the largest gradient nearby, so a pixel without any gradient may get about 1e-10 beside 1e-2 in LeNet-5,
    which Adam's epsilon makes harmless. The versions serve a teacher whose weights require no gradient, and the first
    layer of a student, whose input requires none; every other call is torch's own.
    """
    return _Overrides() if device.type == "cpu" else contextlib.nullcontext()


class _Overrides(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _VERSIONS.get(func, func)(*args, **(kwargs or {}))


def _max_pool2d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    **more: Any,
) -> Any:
    by_two = _pair(kernel_size) == (2, 2) and (not stride or _pair(stride) == (2, 2))
    plain = _pair(padding) == (0, 0) and _pair(dilation) == (1, 1) and not (ceil_mode or any(more.values()))
    if by_two and plain:
        return ops.max_pool(input)
    return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, **more)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if _is_plain(input, weight, stride, padding, dilation, groups):
        if _has_few_channels(weight, padding) and _needs_input_gradient_only(input, weight, bias):
            return _FastInputGradient.apply(input, weight, bias, _pair(padding))
        if _is_over_gray(weight) and weight.requires_grad and not input.requires_grad:
            return _FastWeightGradient.apply(input, weight, bias, _pair(padding))
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _is_plain(input: Tensor, weight: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> bool:
    return (
        torch.is_grad_enabled()
        and isinstance(weight, Tensor)
        and input.dim() == weight.dim() == 4
        and input.dtype == weight.dtype == torch.float32
        and groups == 1
        and not isinstance(padding, str)
        and _pair(stride) == _pair(dilation) == (1, 1)
    )


def _has_few_channels(weight: Tensor, padding: Any) -> bool:
    return weight.shape[1] <= _FEW_CHANNELS and all(
        _LEAST_KERNEL <= size <= _LARGEST_KERNEL and around < size
        for size, around in zip(weight.shape[2:], _pair(padding), strict=True)
    )


def _is_over_gray(weight: Tensor) -> bool:
    return weight.shape[1] == 1 and min(weight.shape[2:]) >= _LEAST_GRAY_KERNEL


def _needs_input_gradient_only(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    of_weights = weight.requires_grad or (bias is not None and bias.requires_grad)
    return input.requires_grad and not of_weights and _has_nnpack()


def _has_nnpack() -> bool:
    # Private functions of torch; the call also initializes the library.
    return hasattr(torch, "_nnpack_spatial_convolution") and torch._nnpack_available()


class _FastInputGradient(torch.autograd.Function):
    """A convolution of stride 1 whose input gradient is a convolution with the flipped kernel."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding = padding
        return torch.conv2d(input, weight, bias, padding=padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        flipped = weight.flip(2, 3).transpose(0, 1).contiguous()
        rest = [size - 1 - around for size, around in zip(weight.shape[2:], ctx.padding, strict=True)]
        return torch._nnpack_spatial_convolution(grad.contiguous(), flipped, None, rest), None, None, None


class _FastWeightGradient(torch.autograd.Function):
    """A convolution of stride 1 whose weight gradient is a convolution over the batch, with grad as the kernel."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(input)
        ctx.padding = padding
        return torch.conv2d(input, weight, bias, padding=padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (input,) = ctx.saved_tensors
        over_batch = torch.conv2d(input.transpose(0, 1), grad.transpose(0, 1), padding=ctx.padding)
        of_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return None, over_batch.transpose(0, 1), of_bias, None


def _local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    if input.dtype == torch.float32 and input.dim() >= 3 and input.numel() and beta == _BETA and size >= 1 and k > 0:
        return _FastResponseNorm.apply(input, size, alpha / size, k)
    return F.local_response_norm(input, size, alpha, beta, k)


class _FastResponseNorm(torch.autograd.Function):
    """x * (k + a * sum of x^2 over neighboring channels)^-3/4, by shifted sums and a reciprocal square root.

    torch takes the sum by a three-dimensional average pool and the power by logarithm and exponential.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, size: int, alpha: float, k: float) -> Tensor:
        root = _channel_sums(input * input, size // 2, (size - 1) // 2).mul_(alpha).add_(k).rsqrt_()
        factor = root * root.sqrt()
        ctx.save_for_backward(input, root, factor)
        ctx.size, ctx.alpha = size, alpha
        return input * factor

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, root, factor = ctx.saved_tensors
        # With s = k + a * sum: d s^-3/4 / d x_j = -3/2 a x_j s^-7/4 for each channel whose window holds j.
        per_window = (grad * input).mul_(factor).mul_(root).mul_(root)
        sums = _channel_sums(per_window, (ctx.size - 1) // 2, ctx.size // 2)
        return (grad * factor).addcmul_(sums, input, value=-2 * _BETA * ctx.alpha), None, None, None


def _channel_sums(x: Tensor, before: int, after: int) -> Tensor:
    """Return for each channel the sum over itself, ``before`` channels before it and ``after`` channels after it."""
    sums, channels = x.clone(), x.shape[1]
    for shift in range(1, min(before, channels - 1) + 1):
        sums[:, shift:] += x[:, :-shift]
    for shift in range(1, min(after, channels - 1) + 1):
        sums[:, :-shift] += x[:, shift:]
    return sums


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size) * (2 if len(size) == 1 else 1)


_VERSIONS: dict[Any, Callable[..., Any]] = {
    torch.max_pool2d: _max_pool2d,
    F.max_pool2d: _max_pool2d,
    torch.conv2d: _conv2d,
    F.local_response_norm: _local_response_norm,
}
