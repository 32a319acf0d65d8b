"""Stacked: a kernel as two smaller ones, 5 x 5 as two of 3 x 3 and 9 x 9 as two of 5 x 5.

    [M, C, *k]  ->  [r, C, *u] with all pads  ->  [M, r, *v] with the strides,        u + v - 1 = k

    Ŵ[m, c, t] = Σ_r Σ_{u + v = t} H[m, r, v] V[r, c, u]

Both stages have the dilations. The first one has all pads, so that the second reads at the borders what the
original does; an axis of at most 3 taps stays whole in the first, which then has its stride. Where the
original has groups, both stages keep them. The fit minimises the error over V and H at once: `factor.stack`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from passes.base import DEPTHWISE, WORTHWHILE, Rank, finished, no_cheaper
from rewriter.conv import Conv, Direct, Ints
from rewriter.factor.stack import small_then_small
from rewriter.grid import Grid
from rewriter.metric import Metric
from rewriter.rewrite import Rewrite

# Taps along an axis up to which two kernels are no cheaper than one.
SHORT = 3
# Every rank is a fit and a measurement.
MOST = 5


@dataclass(frozen=True, slots=True)
class Stacked:
    """Rank (r,): the channels between the stages, for each group of the original."""

    name: ClassVar[str] = "stacked"
    exact: ClassVar[bool] = False
    lowers: ClassVar[bool] = False

    def refuse(self, conv: Conv) -> str | None:
        """A depthwise kernel, one of at most 3 taps along every axis, or one that rank 1 makes no cheaper."""
        if conv.depthwise:
            return DEPTHWISE
        if max(conv.input_dilations) > 1:
            return (
                f"it is transposed with strides {conv.input_dilations}; its taps are those of several phases"
            )
        if max(conv.kernel_shape) <= SHORT:
            return (
                f"the kernel {conv.kernel_shape} has at most {SHORT} taps along an axis: two are no cheaper"
            )
        if _limit(conv) <= 1.0:
            return no_cheaper(conv)
        return None

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """Ranks on the grid, below the break-even in multiply-adds."""
        return [(rank,) for rank in grid.ranks(_limit(conv), MOST)]

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The best fit found at each rank."""
        first, second = _kernels(conv)
        groups, outputs, _ = conv.matrix.shape
        fits = [
            small_then_small(W, C, A, first, second, [rank for (rank,) in ranks])
            for W, C, A in zip(conv.matrix, metric.covariance, metric.weights(groups, outputs), strict=True)
        ]
        whole = [taps == 1 for taps in second]
        for fitted in zip(*fits, strict=True):
            V, H = (np.concatenate(stage) for stage in zip(*fitted, strict=True))
            chain = (
                conv.with_(
                    weight=V.reshape(*V.shape[:2], *first),
                    bias=None,
                    strides=tuple(s if one else 1 for s, one in zip(conv.strides, whole, strict=True)),
                    lowering=Direct(),  # a ConvTranspose node could not have all pads of the smaller kernel
                ),
                Conv(
                    H.reshape(*H.shape[:2], *second),
                    strides=tuple(1 if one else s for s, one in zip(conv.strides, whole, strict=True)),
                    dilations=conv.dilations,
                    group=conv.group,
                ),
            )
            yield finished(conv, [chain], metric)


def _kernels(conv: Conv) -> tuple[Ints, Ints]:
    """The kernels of both stages: halves along every axis of more than 3 taps, the larger one first."""
    first = tuple(taps if taps <= SHORT else (taps + 2) // 2 for taps in conv.kernel_shape)
    return first, tuple(taps - one + 1 for taps, one in zip(conv.kernel_shape, first, strict=True))


def _limit(conv: Conv) -> float:
    """The rank of each group at which the rewrite stops being worth while, or that gives any kernel."""
    _, outputs, size = conv.matrix.shape
    first, second = map(prod, _kernels(conv))
    inputs = size // conv.taps
    # The first stage runs before the strides of the second.
    earlier = prod(s for s, taps in zip(conv.strides, _kernels(conv)[1], strict=True) if taps > 1)
    each = inputs * first * earlier + outputs * second
    return float(min(WORTHWHILE * outputs * size / each, inputs * first, outputs * second))
