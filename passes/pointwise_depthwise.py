"""Pointwise + depthwise: a sum of depthwise separable convolutions in the other order.

    [M, C/g, *k]  ->  Σ_r [M, C/g, 1] in g groups -> [M, 1, *k] in M groups with all spatial attributes

    Ŵ[m, c, t] = Σ_r Q_r[m, c] D_r[m, t]

The pointwise convolution runs at the size of the input, so this form suits stride 1; on an axis with a single
tap it takes the stride, and the pads, itself. Data-free it is an SVD of every W[m] (Guo et al. 2018, arXiv
1808.05517), a start here; the fit minimises the error over Q and D at once: `factor.taps`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from passes import separable
from passes.base import WORTHWHILE, Rank, finished
from rewriter.conv import Array, Conv, Grid, Rewrite
from rewriter.factor.taps import dense_then_taps
from rewriter.metric import Metric


@dataclass(frozen=True, slots=True)
class PointwiseDepthwise:
    """Rank (r,): the branches."""

    name: ClassVar[str] = "pointwise_depthwise"
    exact: ClassVar[bool] = False
    lowers: ClassVar[bool] = False

    def refuse(self, conv: Conv) -> str | None:
        """A depthwise or pointwise one, one with few channels, or one whose strides make this form dearer."""
        if reason := separable.refuse(conv):
            return reason
        if not _branches(conv):
            return f"the weight {conv.weight.shape} with strides {conv.strides} has no cheaper branches"
        return None

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """One to four branches, as long as they are cheaper than the original."""
        return _branches(conv)

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The fit at each rank; a rank above the exact one gives the exact one."""
        fits = [
            dense_then_taps(W, C, A, conv.taps, [rank for (rank,) in ranks])
            for W, C, A in zip(
                conv.matrix, metric.covariance, metric.weights(*conv.matrix.shape[:2]), strict=True
            )
        ]
        for fit in zip(*fits, strict=True):
            # [r, M, C/g] and [r, M, T], the groups of the original one after the other.
            first = np.concatenate([Q.transpose(1, 0, 2) for Q, _ in fit], axis=1)
            last = np.concatenate([D.transpose(1, 0, 2) for _, D in fit], axis=1)
            branches = [_branch(conv, Q, D) for Q, D in zip(first, last, strict=True)]
            yield finished(conv, branches, metric)


def _branch(conv: Conv, Q: Array, D: Array) -> tuple[Conv, Conv]:
    """Q `[M, C/g]` and D `[M, T]` as stages; an axis with one tap has its stride and pads on the first."""
    axes = len(conv.kernel_shape)
    single = [size == 1 for size in conv.kernel_shape]
    first = Conv(
        Q.reshape(*Q.shape, *(1,) * axes),
        strides=tuple(s if one else 1 for s, one in zip(conv.strides, single, strict=True)),
        pads=tuple(p if one else 0 for p, one in zip(conv.pads, single * 2, strict=True)),
        group=conv.group,
    )
    last = Conv(
        D.reshape(-1, 1, *conv.kernel_shape),
        strides=tuple(1 if one else s for s, one in zip(conv.strides, single, strict=True)),
        pads=tuple(0 if one else p for p, one in zip(conv.pads, single * 2, strict=True)),
        dilations=conv.dilations,
        group=conv.out_channels,
    )
    return first, last


def _branches(conv: Conv) -> Sequence[Rank]:
    """The branches that are cheaper: r (c s + T) < WORTHWHILE·c T, s input positions per output."""
    channels = conv.weight.shape[1]
    positions: int = prod(s for s, size in zip(conv.strides, conv.kernel_shape, strict=True) if size > 1)
    limit = WORTHWHILE * channels * conv.taps / (channels * positions + conv.taps)
    return separable.branches(limit, min(conv.taps, channels))
