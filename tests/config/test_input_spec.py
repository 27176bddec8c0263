import pytest
import torch

from zskd_fast.config.input_spec import InputSpec
from zskd_fast.errors import InputError


def test_normalises_each_channel_by_its_own_mean_and_std():
    spec = InputSpec(shape=(2, 3, 3), mean=(1.0, 2.0), std=(2.0, 4.0))
    x = torch.randn(5, 2, 3, 3)
    expected = torch.stack([(x[:, 0] - 1) / 2, (x[:, 1] - 2) / 4], dim=1)
    assert torch.equal(spec.normalise(x), expected)


def test_one_mean_serves_every_channel_of_any_rank():
    for shape in [(6,), (3, 5), (3, 4, 4), (2, 3, 4, 5)]:
        x = torch.randn(2, *shape)
        assert torch.equal(InputSpec(shape, mean=(0.5,), std=(0.25,)).normalise(x), (x - 0.5) / 0.25)


def test_without_mean_the_teacher_sees_the_raw_values():
    x = torch.randn(2, 4)
    assert InputSpec(shape=(4,)).normalise(x) is x


def test_normalising_in_inference_mode_first_leaves_later_gradients_intact():
    spec = InputSpec(shape=(1, 2, 2), mean=(0.123,), std=(0.5,))
    with torch.inference_mode():
        spec.normalise(torch.zeros(1, 1, 2, 2))
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    spec.normalise(x).sum().backward()
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
    ],
)
def test_refuses_what_cannot_describe_an_input(fields, message):
    with pytest.raises(InputError, match=message):
        InputSpec(**fields)
