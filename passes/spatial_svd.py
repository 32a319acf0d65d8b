"""Spatial SVD: a vertical convolution, then a horizontal one, or the other way round.

    [M, C, y, x]  ->  [r, C, y, 1]  ->  [M, r, 1, x]        Ŵ[m, c, y, x] = Σ_r H[m, r, x] V[r, c, y]

Of more than two axes with several taps y or x is one and the other stands for all others, as in a volume
[r, C, z, 1, 1] -> [M, r, 1, y, x]. Each stage has the strides, dilations and pads of its own axes. Jaderberg
et al. 2014, scheme 2, fitted to the patches by alternating least squares. Where the original has groups, both
stages keep them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from passes import stages
from passes.base import DEPTHWISE, WORTHWHILE, Rank, finished, no_cheaper
from rewriter import factor
from rewriter.conv import Array, Conv, Ints
from rewriter.grid import Grid
from rewriter.metric import Metric
from rewriter.rewrite import Rewrite

# The dearer order is tried only within this ratio of the cheaper one: a rank stands for one cost.
LEVEL = 1.1


@dataclass(frozen=True, slots=True)
class SpatialSVD:
    """Rank (r,): the channels between the stages, for each group of the original.

    Of the orders the best fit is returned; where they differ in cost, by strides or kernel, only the cheapest
    are tried.

    Attributes:
        sweeps: of alternating least squares after the closed form.
    """

    name: ClassVar[str] = "spatial_svd"
    exact: ClassVar[bool] = False
    lowers: ClassVar[bool] = False

    sweeps: int = 2

    def refuse(self, conv: Conv) -> str | None:
        """A depthwise kernel, one without two axes of several taps, or one that rank 1 makes no cheaper."""
        if len(stages.several(conv)) < 2:
            return f"the kernel {conv.kernel_shape} has not several taps along two axes and cannot be split"
        if conv.depthwise:
            return DEPTHWISE
        if _limit(conv) <= 1.0:
            return no_cheaper(conv)
        return None

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """Ranks on the grid, below the full rank and below the break-even in multiply-adds."""
        return [(rank,) for rank in grid.ranks(_limit(conv))]

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The best fit found at each rank, the order chosen for all groups together."""
        wanted = [rank for (rank,) in ranks]
        groups, outputs, _ = conv.matrix.shape
        weights = metric.weights(groups, outputs)
        found: dict[Ints, list[list[tuple[Array, Array, float]]]] = {}
        for first in _orders(conv):
            found[first] = []
            for g in range(groups):
                W, C = _cut(conv, conv.matrix[g], metric.covariance[g], first)
                rivals = [[fit[2] for fit in fits[g]] for fits in found.values() if len(fits) == groups]
                bounds = rivals[0] if rivals else None
                found[first].append(factor.spatial(W, C, weights[g], wanted, self.sweeps, bounds))
        for index in range(len(ranks)):
            totals = {order: sum(fits[index][2] for fits in groups) for order, groups in found.items()}
            axes = min(totals, key=lambda order: totals[order])
            fits = [fits[index] for fits in found[axes]]
            first_stage, second_stage = (np.concatenate([fit[part] for fit in fits]) for part in (0, 1))
            chain = (
                stages.along(conv, axes, first_stage, conv.group),
                stages.along(conv, stages.rest(conv, axes), second_stage, conv.group),
            )
            yield finished(conv, [chain], metric)


def _cut(conv: Conv, matrix: Array, covariance: Array, first: Ints) -> tuple[Array, Array]:
    """W as `[M, C, y, x]` and the covariance likewise: y the taps of the first stage, x the others."""
    shape = conv.weight.shape[1:]
    second = stages.rest(conv, first)
    order = [0, *(1 + axis for axis in (*first, *second))]
    merged = (shape[0], *(_taps(conv, axes) for axes in (first, second)))
    W = np.asarray(matrix, np.float64).reshape(-1, *shape).transpose(0, *(1 + axis for axis in order))
    C = covariance.reshape(*shape, *shape).transpose(*order, *(len(shape) + axis for axis in order))
    return W.reshape(-1, *merged), C.reshape(*merged, *merged)


def _taps(conv: Conv, axes: Ints) -> int:
    return prod(conv.kernel_shape[axis] for axis in axes)


def _rank_macs(conv: Conv, first: Ints) -> int:
    """Multiply-adds of one rank of one group for each position at which the kernel is applied.

    The first stage runs before the strides of the other axes, the second on what the first one has made of an
    input between zeros.
    """
    second = stages.rest(conv, first)
    earlier = _taps(conv, first) * prod(conv.strides[axis] for axis in second)
    later = _taps(conv, second) * prod(conv.input_dilations[axis] for axis in first)
    return int(conv.weight.shape[1]) * earlier + conv.out_channels // conv.group * later


def _orders(conv: Conv) -> list[Ints]:
    """The axes of the first stage, in every order worth trying, the cheapest one first.

    One axis of several taps is in a stage of its own; those of one tap are in the first.
    """
    single = tuple(axis for axis, taps in enumerate(conv.kernel_shape) if taps == 1)
    alone = [(axis,) for axis in stages.several(conv)]
    firsts = [*alone, *(stages.rest(conv, (*axis, *single)) for axis in reversed(alone))]
    costs = {axes: _rank_macs(conv, axes) for axes in (tuple(sorted((*each, *single))) for each in firsts)}
    cheapest = min(costs.values())
    return sorted((axes for axes in costs if costs[axes] <= LEVEL * cheapest), key=lambda axes: costs[axes])


def _limit(conv: Conv) -> float:
    """The rank of each group at which the rewrite stops being worth while, or that is full."""
    _, outputs, size = conv.matrix.shape
    orders = _orders(conv)
    dearest = max(_rank_macs(conv, first) for first in orders)
    inputs = size // conv.taps
    full = min(
        min(inputs * _taps(conv, first), outputs * _taps(conv, stages.rest(conv, first))) for first in orders
    )
    return float(min(WORTHWHILE * outputs * size / dearest, full))
