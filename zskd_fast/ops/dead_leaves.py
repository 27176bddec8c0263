"""Dead-leaves images, painted in one pass."""

from torch import Tensor

from zskd_fast import reference
from zskd_fast._extension import _C
from zskd_fast.ops._dispatch import is_eager, needs_grad


def dead_leaves(leaves: Tensor, height: int, width: int) -> Tensor:
    """Paint leaves over one another on a ground of zeros (the dead leaves model of Matheron, 1968).

    Even leaves are ellipses, odd ones boxes; a later leaf covers the ones before. Lengths are in halves of the image's
    height and width: pixel centers lie between -1 and 1.

    Args:
        leaves: [N, L, 5 + C] float32. The numbers of a leaf: row and column of its center; its two half-axes; the angle
            from the rows of pixels to its first axis, in radians, of less than 2^19 turns; then a value per channel.
            Where height and width differ a turned leaf is sheared, as lengths are in halves of both. A pixel has
            coordinates along the axes, in units of the half-axes: it is covered by an ellipse if the sum of their
            squares is below 1, and by a box if both are between -1 and 1.
        height, width: of the images, 1 or more.

    Returns:
        [N, C, height, width] float32. Differentiable with respect to the values.

    Raises:
        ValueError: Wrong shape, height or width.
        TypeError: Wrong dtype; a CUDA tensor in a build without the CUDA backend.

    The fast kernels, for a CPU and a CUDA device, give the same bits. Leaves on any other device or that require grad,
    and calls that are compiled, traced or transformed, are left to `zskd_fast.reference`; pixels on the edge of a leaf
    may differ.
    """
    if (leaves.is_cpu or leaves.is_cuda) and is_eager(leaves) and not needs_grad(leaves):
        return _C.dead_leaves(leaves, height, width)
    return reference.dead_leaves(leaves, height, width)
