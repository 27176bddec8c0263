"""The plan: which impression has which class and which beta."""

import pytest
import torch

from zskd_fast.errors import InputError
from zskd_fast.synthesis.plan import Plan


def test_the_classes_take_turns_and_then_the_betas():
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


def test_class_and_beta_depend_on_the_id_only():
    plan, ids = Plan(10, (1.0, 0.1)), torch.tensor([2**40 + 3, 5, 17])
    for index, one in enumerate(ids.split(1)):
        assert plan.class_of(one) == plan.class_of(ids)[index]
        assert plan.beta_of(one) == plan.beta_of(ids)[index]


@pytest.mark.parametrize(
    ("classes", "betas", "message"),
    [
        (1, (1.0,), "at least 2 classes, got 1"),
        (10, (), "one or more finite numbers above 0"),
        (10, (0.0,), "finite numbers above 0"),
        (10, (-1.0,), "finite numbers above 0"),
        (10, (float("nan"),), "finite numbers above 0"),
    ],
)
def test_one_class_and_betas_that_are_not_positive_are_refused(classes, betas, message):
    with pytest.raises(InputError, match=message):
        Plan(classes, betas)
