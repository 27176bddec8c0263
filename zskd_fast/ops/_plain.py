"""When a call may go past torch's dispatcher, which costs more time than the work on a small batch."""

import torch
from torch import Tensor
from torch.nn import Parameter


def is_plain(*tensors: Tensor) -> bool:
    """Whether nobody traces, transforms or profiles this call: then its op need not be seen by torch."""
    return is_eager(*tensors) and not torch._C._autograd._profiler_enabled()


def is_eager(*tensors: Tensor) -> bool:
    """Whether nobody traces or transforms this call, and the tensors are no more than tensors."""
    return (
        not torch.compiler.is_compiling()
        and all(type(tensor) in (Tensor, Parameter) for tensor in tensors)
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
    )


def needs_grad(*tensors: Tensor) -> bool:
    """Whether autograd has to know of a call with these arguments."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
