"""What torch is slow at in a small convolutional teacher on a CPU, answered by something faster."""

import contextlib

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from zskd_fast import ops

# oneDNN pads the channels of an image to the eight or sixteen of a register, and works on the padding too. NNPACK's
# transforms, which torch calls where oneDNN is switched off, do not, and pay from kernels of 5x5 on.
_FEW_CHANNELS = 4
_LEAST_KERNEL, _LARGEST_KERNEL = 5, 16


def fast_calls(device: torch.device) -> contextlib.AbstractContextManager:
    """A context in which calls of torch's `max_pool2d` and `conv2d` may be answered faster.

    Pooling keeps its bits. The gradient of a convolution's input changes by rounding, relative to the largest of its
    neighbourhood: a pixel that no gradient reaches gets one of that size and not 0, some 1e-10 beside 1e-2 in LeNet-5,
    which the epsilon of Adam keeps small. A model whose weights require no gradient is what this is for: others, and
    what does not fit, get torch's own answer.
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
    fits = (
        isinstance(weight, torch.Tensor)
        and weight.dim() == 4
        and weight.shape[1] <= _FEW_CHANNELS
        and groups == 1
        and not isinstance(padding, str)
        and _pair(stride) == _pair(dilation) == (1, 1)
        and all(
            _LEAST_KERNEL <= size <= _LARGEST_KERNEL and around < size
            for size, around in zip(weight.shape[2:], _pair(padding), strict=True)
        )
    )
    if fits and _wants_input_gradient_alone(input, weight, bias):
        return _Conv2d.apply(input, weight, bias, _pair(padding))
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _wants_input_gradient_alone(input, weight, bias):
    return (
        torch.is_grad_enabled()
        and input.requires_grad
        and input.dim() == 4
        and input.dtype == weight.dtype == torch.float32
        and not weight.requires_grad
        and not (bias is not None and bias.requires_grad)
        and _has_nnpack()
    )


def _has_nnpack():
    # Functions of torch that it does not promise to keep; asking for the library also makes it ready.
    return hasattr(torch, "_nnpack_spatial_convolution") and torch._nnpack_available()


class _Conv2d(torch.autograd.Function):
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


def _pair(size):
    return (size, size) if isinstance(size, int) else tuple(size) * (2 if len(size) == 1 else 1)


_ANSWERS = {
    torch.max_pool2d: _max_pool2d,
    F.max_pool2d: _max_pool2d,
    torch.conv2d: _conv2d,
}
