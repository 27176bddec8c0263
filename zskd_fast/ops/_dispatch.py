"""Whether a call may skip torch's dispatcher, which takes longer than the op itself on a small batch."""

import torch
from torch import Tensor
from torch.nn import Parameter


def can_bypass_dispatcher(*tensors: Tensor) -> bool:
    """Return whether the call is eager and not profiled: then it may call the extension directly."""
    return is_eager(*tensors) and not torch._C._autograd._profiler_enabled()


def is_eager(*tensors: Tensor) -> bool:
    """Return whether the call is neither compiled, traced nor transformed, and has no tensor subclasses."""
    return (
        not torch.compiler.is_compiling()
        and all(type(tensor) in (Tensor, Parameter) for tensor in tensors)
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
    )


def needs_grad(*tensors: Tensor) -> bool:
    """Return whether autograd must record a call with these arguments."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
