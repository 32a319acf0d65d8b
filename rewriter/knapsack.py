"""One item of every class at the least total cost within limits: the multiple-choice knapsack.

Dynamic programming over the classes with bounds from the Lagrangian relaxation (Kellerer, Pferschy and
Pisinger 2004, "Knapsack Problems", chapter 11): what cannot lead to a better choice than the best one known
is dropped, and so is what another partial choice beats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

# Choices that could save less than this share of the total are not looked for.
_GAP = 1e-4
# Sums of the same numbers in another order are this close.
_ROUNDING = 1e-12
# Of more partial choices the most promising are kept: few to find a good choice, then enough to prove it.
_MOST_CHOICES = (200, 4_000)
# A price is looked for in so many steps of a factor, then halved in as many.
_STEPS = 30
_FACTOR = 16.0
_LEAST_LIMIT = 1e-30


def least(
    costs: Sequence[Floats], weights: Sequence[Floats], limits: Floats, known: Sequence[int]
) -> tuple[list[int], float]:
    """The items, one of every class, of least total cost whose total weights keep to the limits.

    Args:
        costs: Of the items of each class, `[items]`, at least 0.
        weights: Of the items of each class, `[items, limits]`, at least 0.
        limits: What their sums may come to, `[limits]`.
        known: An item of each class, together within the limits.

    Returns:
        The items, and a bound: no items within the limits cost less.
    """
    # what is over a limit, infinitely or not, is over it
    weights = [np.fmin(each, 2.0 * limits + _LEAST_LIMIT) for each in weights]
    # what matters least comes last, and fills what the others leave
    order = sorted(range(len(costs)), key=lambda index: -float(np.ptp(costs[index])))
    problem = _Problem.of([costs[index] for index in order], [weights[index] for index in order], limits)
    best, bound = [known[index] for index in order], -np.inf
    for most in _MOST_CHOICES:
        best, bound = problem.improved(best, most)
        if bound >= problem.total(best) * (1.0 - _GAP):
            break
    items = dict(zip(order, best, strict=True))
    return [items[index] for index in range(len(costs))], bound


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """Classes with bounds on what they can do.

    Attributes:
        costs: Of the items of each class, `[items]`.
        weights: Of the items of each class, `[items, limits]`.
        allowed: What the sums of the weights may come to, `[limits]`.
        prices: Of the weights, `[limits]`.
        rest: What the classes from each one on cost at least, their weights at these prices, less the price
            of the limits, `[classes + 1]`.
        lightest: What they weigh at least, `[classes + 1, limits]`.
    """

    costs: Sequence[Floats]
    weights: Sequence[Floats]
    allowed: Floats
    prices: Floats
    rest: Floats
    lightest: Floats

    @classmethod
    def of(cls, costs: Sequence[Floats], weights: Sequence[Floats], limits: Floats) -> _Problem:
        """With prices that give a good bound."""
        prices = _prices(costs, weights, limits)
        rest = _from_each([(c + w @ prices).min() for c, w in zip(costs, weights, strict=True)])
        lightest = _from_each([each.min(axis=0) for each in weights])
        return cls(costs, weights, limits * (1.0 + _ROUNDING), prices, rest - prices @ limits, lightest)

    def total(self, items: Sequence[int]) -> float:
        """What some items cost."""
        return sum(float(cost[item]) for cost, item in zip(self.costs, items, strict=True))

    def improved(self, known: Sequence[int], most: int) -> tuple[list[int], float]:
        """Better items than those known, if so many partial choices at a time lead to any; and a bound."""
        total = self.total(known)
        dropped = np.inf
        stages: list[_Choices] = []
        now = _Choices.none(len(self.allowed))
        for index, (cost, weight) in enumerate(zip(self.costs, self.weights, strict=True)):
            now = now.extended(cost, weight)
            now = now.at(np.flatnonzero((now.weights + self.lightest[index + 1] <= self.allowed).all(axis=1)))
            bound = now.cost + now.weights @ self.prices + self.rest[index + 1]
            hopeless = bound >= total * (1.0 - _GAP)
            dropped = min(dropped, bound[hopeless].min(initial=np.inf))
            rows = np.flatnonzero(~hopeless)
            rows = rows[_unbeaten(now.cost[rows], now.weights[rows])]
            if len(rows) > most:
                kept = _spread(bound[rows], now.weights[rows, 0], most)
                dropped = min(dropped, np.delete(bound[rows], kept).min())
                rows = rows[kept]
            now = now.at(rows)
            stages.append(now)
        if now.cost.min(initial=np.inf) >= total:
            return list(known), min(total, float(dropped))
        row = int(np.argmin(now.cost))
        return _traced(stages, row), min(float(now.cost[row]), float(dropped))


@dataclass(frozen=True, slots=True, eq=False)
class _Choices:
    """Partial choices, of one item of every class so far.

    Attributes:
        cost: What each costs, `[n]`.
        weights: What each weighs, `[n, limits]`.
        parents: Which of the choices without the last class each came from, `[n]`.
        items: The item of the last class, `[n]`.
    """

    cost: Floats
    weights: Floats
    parents: Indices
    items: Indices

    @classmethod
    def none(cls, limits: int) -> _Choices:
        """The one choice of no items."""
        return cls(np.zeros(1), np.zeros((1, limits)), np.zeros(1, np.intp), np.zeros(1, np.intp))

    def extended(self, cost: Floats, weight: Floats) -> _Choices:
        """Each with each item of another class."""
        parents, items = (each.reshape(-1) for each in np.indices((len(self.cost), len(cost))))
        return _Choices(
            self.cost[parents] + cost[items], self.weights[parents] + weight[items], parents, items
        )

    def at(self, rows: Indices) -> _Choices:
        """Some of them."""
        return _Choices(self.cost[rows], self.weights[rows], self.parents[rows], self.items[rows])


def _traced(stages: Sequence[_Choices], row: int) -> list[int]:
    items = []
    for stage in reversed(stages):
        items.append(int(stage.items[row]))
        row = int(stage.parents[row])
    return items[::-1]


def _from_each(values: Sequence[Floats | np.float64]) -> Floats:
    """The sums of the values from each one on, and of none."""
    one = np.array(values, np.float64)
    none = np.zeros((1, *one.shape[1:]))
    return np.concatenate([np.cumsum(one[::-1], axis=0)[::-1], none])


def _unbeaten(cost: Floats, weights: Floats) -> Indices:
    """The choices than which none both costs no more and weighs no more.

    With several limits only what its neighbour by the first one beats is found.
    """
    order = np.lexsort((cost, *weights.T[::-1]))
    cost, weights = cost[order], weights[order]
    if weights.shape[1] == 1:
        least_before = np.concatenate([[np.inf], np.minimum.accumulate(cost)[:-1]])
        return order[cost < least_before]
    kept = np.ones(len(order), bool)
    kept[1:] = (cost[1:] < cost[:-1]) | (weights[1:] < weights[:-1]).any(axis=1)
    return order[kept]


def _spread(bound: Floats, weight: Floats, most: int) -> Indices:
    """So many of the choices: half of them with the least bounds, half with the least for what they weigh.

    For by the bounds alone all would come to weigh too much, or far too little.
    """
    half = most // 2
    order = np.argsort(bound, kind="stable")
    rest = order[half:]
    low, high = weight.min(), weight.max()
    bins = ((weight[rest] - low) * ((half - 1) / max(high - low, _LEAST_LIMIT))).astype(np.intp)
    return np.concatenate([order[:half], rest[np.unique(bins, return_index=True)[1]]])


def _prices(costs: Sequence[Floats], weights: Sequence[Floats], limits: Floats) -> Floats:
    """Prices of the weights at which the items that are cheapest with them just keep to the limits.

    Any prices give a bound, these the best.
    """
    most = max(map(len, costs))
    padded = np.stack([np.pad(each, (0, most - len(each)), constant_values=np.inf) for each in costs])
    weighed = np.stack([np.pad(each, ((0, most - len(each)), (0, 0))) for each in weights])
    everywhere = np.arange(len(costs))
    dearest = sum(float(each.max()) for each in costs)

    def over(prices: Floats, axis: int) -> bool:
        """Whether the limit of an axis is not kept to, with the best prices of those before it."""
        for earlier in range(axis):
            settle(prices, earlier)
        taken = np.argmin(padded + weighed @ prices, axis=1)
        return bool(weighed[everywhere, taken, axis].sum() > limits[axis])

    def settle(prices: Floats, axis: int) -> None:
        def over_at(price: float) -> bool:
            prices[axis] = price
            return over(prices, axis)

        if not over_at(0.0):
            return
        low = high = dearest / max(float(limits[axis]), _LEAST_LIMIT)
        for _ in range(_STEPS):
            if over_at(high):
                low, high = high, _FACTOR * high
            elif not over_at(low):
                low, high = low / _FACTOR, low
            else:
                break
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if over_at(middle) else (low, middle)
        over_at(high)

    prices = np.zeros(len(limits))
    settle(prices, len(limits) - 1)
    return prices
