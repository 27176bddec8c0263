import pytest
import torch

from zskd_fast.errors import InputError
from zskd_fast.synthesis.plan import Plan


def test_classes_take_turns_then_betas():
    plan, ids = Plan(3, (1.0, 0.1)), torch.arange(12)
    assert plan.class_of(ids).tolist() == [0, 1, 2] * 4
    assert torch.equal(plan.beta_of(ids), torch.tensor([1.0, 1.0, 1.0, 0.1, 0.1, 0.1] * 2))


def test_every_prefix_is_balanced_over_classes_and_betas():
    plan = Plan(7, (1.0, 0.1, 0.5))
    for count in range(1, 100):
        ids = torch.arange(count)
        per_class = torch.bincount(plan.class_of(ids), minlength=7)
        assert per_class.max() - per_class.min() <= 1
        per_beta = torch.stack([(plan.beta_of(ids) == beta).sum() for beta in plan.betas])
        assert per_beta.max() - per_beta.min() <= 7


def test_depends_on_the_id_alone():
    plan, ids = Plan(10, (1.0, 0.1)), torch.tensor([2**40 + 3, 5, 17])
    for index, one in enumerate(ids.split(1)):
        assert plan.class_of(one) == plan.class_of(ids)[index]
        assert plan.beta_of(one) == plan.beta_of(ids)[index]


@pytest.mark.parametrize(
    ("classes", "betas"), [(1, (1.0,)), (10, ()), (10, (0.0,)), (10, (-1.0,)), (10, (float("nan"),))]
)
def test_refuses_one_class_and_betas_that_are_not_positive(classes, betas):
    with pytest.raises(InputError):
        Plan(classes, betas)
