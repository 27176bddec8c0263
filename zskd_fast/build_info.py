"""What this installation was built from and runs on."""

import torch

from zskd_fast._load import _C


def build_info() -> dict[str, str]:
    """Facts of the compiled extension.

    Returns a dict with: torch (the version it was built for), compiler, cuda (the toolkit's version, or "" for a build
    with the CPU backend only), cuda_architectures (as TORCH_CUDA_ARCH_LIST names them, or ""), isa (the instruction set
    in use: baseline, avx2 or avx512) and running_torch.
    """
    return {**_C.build_info(), "running_torch": torch.__version__}
