"""scale_grad_, with which a backward pass multiplies the saved gradient of a row loss by the upstream gradient."""

import pytest
import torch

from zskd_fast._extension import _C


@pytest.mark.parametrize("weight", [1.0, 0.0, -2.5, float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scales_in_place(dtype, weight):
    grad = torch.randn(7, 9, dtype=dtype)
    kept, number = grad.clone(), torch.tensor(weight, dtype=dtype)
    _C.scale_grad_(grad, number)
    torch.testing.assert_close(grad, kept * number, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("grad", "weight", "error", "message"),
    [
        (torch.ones(2, 3).half(), torch.ones(()).half(), TypeError, "grad is Half, wanted float32 or float64"),
        (torch.ones(2, 3), torch.ones(()).double(), TypeError, "weight is Double, wanted Float as grad"),
        (torch.ones(2, 3), torch.ones(2), ValueError, r"weight has shape \[2\], wanted one number"),
        (torch.ones(2, 3).t(), torch.ones(()), ValueError, r"grad has strides \[1, 3\], wanted a contiguous"),
    ],
)
def test_errors_name_the_bad_argument(grad, weight, error, message):
    with pytest.raises(error, match=message):
        _C.scale_grad_(grad, weight)
