"""Whether a call may skip torch's dispatcher, which takes longer than the op itself on a small batch."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter


def can_bypass_dispatcher(*tensors: Tensor) -> bool:
    """Return whether the call is eager and not profiled: then it may call the extension directly."""
    return is_eager(*tensors) and not torch._C._autograd._profiler_enabled()


def is_eager(*tensors: Tensor) -> bool:
    """Return whether the call is neither compiled, traced nor transformed, and has plain tensors with values."""
    return (
        not torch.compiler.is_compiling()
        and all(type(tensor) in (Tensor, Parameter) and not tensor.is_meta for tensor in tensors)
        and torch._C._len_torch_dispatch_stack() == 0
        and not is_transformed()
        and torch._C._get_tracing_state() is None
    )


def is_transformed() -> bool:
    """Return whether a transform of torch.func or forward-mode differentiation is active: custom ops lack their rules.

    Without such a rule torch refuses a call or, in forward mode, takes its derivative for zero.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_mapped_or_differentiated(*tensors: Tensor) -> bool:
    """Return whether torch.func maps over one of these tensors, or differentiates with respect to it."""
    return torch._C._are_functorch_transforms_active() and any(
        tensor.requires_grad or torch._C._functorch.is_batchedtensor(tensor) for tensor in tensors
    )


def needs_grad(*tensors: Tensor) -> bool:
    """Return whether autograd must record a call with these arguments."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
