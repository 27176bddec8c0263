import numpy as np
import pytest
import torch

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError


def test_normalizes_each_channel_by_its_own_mean_and_std():
    spec = InputSpec(shape=(2, 3, 3), valid_range=(0.0, 3.0), mean=(1.0, 2.0), std=(2.0, 4.0))
    x = torch.randn(5, 2, 3, 3)
    expected = torch.stack([(x[:, 0] - 1) / 2, (x[:, 1] - 2) / 4], dim=1)
    assert torch.equal(spec.normalize(x), expected)


def test_one_mean_is_used_for_every_channel_of_any_rank():
    for shape in [(6,), (3, 5), (3, 4, 4), (2, 3, 4, 5)]:
        x = torch.randn(2, *shape)
        assert torch.equal(InputSpec(shape, mean=(0.5,), std=(0.25,)).normalize(x), (x - 0.5) / 0.25)


def test_without_a_mean_the_raw_values_are_returned():
    x = torch.randn(2, 4)
    assert InputSpec(shape=(4,)).normalize(x) is x


def test_normalizing_in_inference_mode_first_keeps_later_gradients():
    spec = InputSpec(shape=(1, 2, 2), mean=(0.123,), std=(0.5,))
    with torch.inference_mode():
        spec.normalize(torch.zeros(1, 1, 2, 2))
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    spec.normalize(x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": ()}, "shape"),
        ({"shape": (1, 0)}, "shape"),
        ({"shape": (1.5,)}, "shape"),
        ({"shape": 3}, "shape"),
        ({"shape": (3,), "valid_range": (1.0, 0.0)}, "valid_range"),
        ({"shape": (3,), "valid_range": (0.0, float("inf"))}, "valid_range"),
        ({"shape": (3,), "valid_range": (0.0, 1.0, 2.0)}, "valid_range"),
        ({"shape": (3,), "mean": (0.0,)}, "mean and std"),
        ({"shape": (3,), "mean": (0.0, 0.0), "std": (1.0, 1.0)}, "1 or 3 values"),
        ({"shape": (3,), "mean": (0.0,), "std": (0.0,)}, "above 0"),
        ({"shape": (3,), "mean": (float("nan"),), "std": (1.0,)}, "finite"),
        ({"shape": (3,), "mean": (123.7,), "std": (58.4,)}, "is outside of the valid range"),
    ],
)
def test_fields_that_cannot_describe_an_input_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        InputSpec(**fields)


@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_arrays_become_plain_numbers(array):
    spec = InputSpec(array([3, 8, 8]), mean=array([0.5]), std=array([0.25]))
    assert spec == InputSpec((3, 8, 8), mean=(0.5,), std=(0.25,))
    assert [type(size) for size in spec.shape] == [int] * 3 and type(spec.mean[0]) is float
