"""What torch is slow at in a small convolutional network on a CPU, answered by something faster."""

import contextlib

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from zskd_fast import ops

# oneDNN pads the channels of an image to the eight or sixteen of a register, and works on the padding too. NNPACK's
# transforms, which torch calls where oneDNN is switched off, do not, and pay from kernels of 5x5 on.
_FEW_CHANNELS = 4
_LEAST_KERNEL, _LARGEST_KERNEL = 5, 16
# The weight gradient is slow for another reason: its padded channel is the only one of a grey image.
_LEAST_GREY_KERNEL = 3


def fast_calls(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which calls of torch's `max_pool2d` and `conv2d` may be answered faster.

    Pooling keeps its bits. The gradients of a convolution change by rounding, that of its input relative to the largest
    of its neighbourhood: a pixel that no gradient reaches gets one of that size and not 0, some 1e-10 beside 1e-2 in
    LeNet-5, which the epsilon of Adam keeps small. This is for a teacher whose weights require no gradient, and for the
    first layer of a student, whose input requires none: what does not fit gets torch's own answer.
    """
    return _FastCalls() if device.type == "cpu" else contextlib.nullcontext()


class _FastCalls(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        answer = _ANSWERS.get(func, func)
        return answer(*args, **(kwargs or {}))


def _max_pool2d(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, **more):
    by_two = _pair(kernel_size) == (2, 2) and (not stride or _pair(stride) == (2, 2))
    plain = _pair(padding) == (0, 0) and _pair(dilation) == (1, 1) and not (ceil_mode or any(more.values()))
    if by_two and plain:
        return ops.max_pool(input)
    return F.max_pool2d(input, kernel_size, stride, padding, dilation, ceil_mode, **more)


def _conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if _is_plain(input, weight, stride, padding, dilation, groups):
        if _is_short_of_channels(weight, padding) and _wants_input_gradient_alone(input, weight, bias):
            return _OfInput.apply(input, weight, bias, _pair(padding))
        if _is_of_grey(weight) and _wants_weight_gradient_alone(input, weight):
            return _OfWeight.apply(input, weight, bias, _pair(padding))
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _is_plain(input, weight, stride, padding, dilation, groups):
    return (
        torch.is_grad_enabled()
        and isinstance(weight, torch.Tensor)
        and input.dim() == weight.dim() == 4
        and input.dtype == weight.dtype == torch.float32
        and groups == 1
        and not isinstance(padding, str)
        and _pair(stride) == _pair(dilation) == (1, 1)
    )


def _is_short_of_channels(weight, padding):
    return weight.shape[1] <= _FEW_CHANNELS and all(
        _LEAST_KERNEL <= size <= _LARGEST_KERNEL and around < size
        for size, around in zip(weight.shape[2:], _pair(padding), strict=True)
    )


def _is_of_grey(weight):
    return weight.shape[1] == 1 and min(weight.shape[2:]) >= _LEAST_GREY_KERNEL


def _wants_input_gradient_alone(input, weight, bias):
    of_weights = weight.requires_grad or (bias is not None and bias.requires_grad)
    return input.requires_grad and not of_weights and _has_nnpack()


def _wants_weight_gradient_alone(input, weight):
    return weight.requires_grad and not input.requires_grad


def _has_nnpack():
    # Functions of torch that it does not promise to keep; asking for the library also makes it ready.
    return hasattr(torch, "_nnpack_spatial_convolution") and torch._nnpack_available()


class _OfInput(torch.autograd.Function):
    """A convolution of stride 1 whose input gradient is a convolution with the kernel turned around."""

    @staticmethod
    def forward(ctx, input, weight, bias, padding):
        ctx.save_for_backward(weight)
        ctx.padding = padding
        return torch.conv2d(input, weight, bias, padding=padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        turned = weight.flip(2, 3).transpose(0, 1).contiguous()
        rest = [size - 1 - around for size, around in zip(weight.shape[2:], ctx.padding, strict=True)]
        return torch._nnpack_spatial_convolution(grad.contiguous(), turned, None, rest), None, None, None


class _OfWeight(torch.autograd.Function):
    """A convolution of stride 1 whose weight gradient is a convolution over the batch, with grad as the kernel."""

    @staticmethod
    def forward(ctx, input, weight, bias, padding):
        ctx.save_for_backward(input)
        ctx.padding = padding
        return torch.conv2d(input, weight, bias, padding=padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (input,) = ctx.saved_tensors
        over_batch = torch.conv2d(input.transpose(0, 1), grad.transpose(0, 1), padding=ctx.padding)
        of_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return None, over_batch.transpose(0, 1), of_bias, None


def _pair(size):
    return (size, size) if isinstance(size, int) else tuple(size) * (2 if len(size) == 1 else 1)


_ANSWERS = {
    torch.max_pool2d: _max_pool2d,
    F.max_pool2d: _max_pool2d,
    torch.conv2d: _conv2d,
}
