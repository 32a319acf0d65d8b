from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter.knapsack import least


def problem(rng, classes, items, limits=1):
    """Cheaper items weigh more, as less drift takes more time; the first of each class weighs nothing."""
    costs, weights = [], []
    for _ in range(classes):
        shares = np.sort(rng.uniform(0.2, 0.95, items))
        drift = 10 ** rng.uniform(-3, 0) * (1 - shares) ** 2 * rng.lognormal(0, 0.5, items)
        base = 10 ** rng.uniform(-2, 0)
        costs.append(base * np.append(1.0, shares))
        others = base * rng.uniform(0, 2, (items, limits - 1))
        weights.append(np.concatenate([np.zeros((1, limits)), np.column_stack([drift, others])]))
    return costs, weights, 0.05 * sum(each.max(axis=0) for each in weights)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_the_items_are_the_brute_force_optimum(seed, classes, items, count):
    costs, weights, limits = problem(np.random.default_rng(seed), classes, items, count)
    found, bound = least(costs, weights, limits, [0] * classes)
    totals = [
        sum(cost[item] for cost, item in zip(costs, chosen, strict=True))
        for chosen in product(*(range(len(cost)) for cost in costs))
        if (
            sum(weight[item] for weight, item in zip(weights, chosen, strict=True)) <= limits * (1 + 1e-12)
        ).all()
    ]
    total = sum(cost[item] for cost, item in zip(costs, found, strict=True))
    assert min(totals) * (1 - 1e-12) <= total <= min(totals) * (1 + 2e-4)
    assert bound <= min(totals) * (1 + 1e-12)


@pytest.mark.parametrize("classes", [20, 60, 150])
def test_many_classes_come_near_the_bound(classes):
    for seed in range(3):
        costs, weights, limits = problem(np.random.default_rng(seed), classes, 30)
        found, bound = least(costs, weights, limits, [0] * classes)
        total = sum(cost[item] for cost, item in zip(costs, found, strict=True))
        assert (sum(weight[item] for weight, item in zip(weights, found, strict=True)) <= limits).all()
        assert bound * (1 - 1e-12) <= total <= bound * (1 + 1e-3)


def test_costs_far_below_others_count():
    """Where the last trillionth is all that is left to choose."""
    costs = [np.array([1.0, 1e-12, 3e-13]), np.array([2.0, 5e-13])]
    weights = [np.array([[0.0], [1.0], [2.0]]), np.array([[0.0], [1.0]])]
    assert least(costs, weights, np.array([3.0]), [0, 0])[0] == [2, 1]
    assert least(costs, weights, np.array([2.0]), [0, 0])[0] == [1, 1]


def test_a_limit_of_nothing_leaves_what_weighs_nothing():
    costs, weights, _ = problem(np.random.default_rng(0), 5, 4)
    found, bound = least(costs, weights, np.zeros(1), [0] * 5)
    assert found == [0] * 5
    assert bound <= sum(cost[0] for cost in costs)


def test_a_choice_may_weigh_exactly_the_limit():
    """Whatever the order in which its weights are summed up."""
    rng = np.random.default_rng(1)
    weights = [np.array([[0.0], [each]]) for each in rng.uniform(0, 1e-3, 50)]
    total = np.array([sum(weight[1, 0] for weight in reversed(weights))])
    found, _ = least([np.array([1.0, 0.5])] * 50, weights, total, [0] * 50)
    assert found == [1] * 50


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_what_weighs_infinitely_much_or_nobody_knows_what_is_not_taken(limit):
    weights = [np.array([[0.0], [np.inf], [np.nan], [0.5]])] * 3
    found, _ = least([np.array([1.0, 0.1, 0.1, 0.6])] * 3, weights, np.array([limit]), [0] * 3)
    assert sorted(found) == ([0, 3, 3] if limit else [0, 0, 0])
