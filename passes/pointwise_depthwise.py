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
from typing import ClassVar

import numpy as np

from passes import separable, stages
from passes.base import WORTHWHILE, Rank, finished
from rewriter.conv import Conv
from rewriter.factor.taps import dense_then_taps
from rewriter.grid import Grid
from rewriter.metric import Metric
from rewriter.rewrite import Rewrite


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
            branches = [
                stages.pointwise_first(conv, Q, D[:, None], conv.out_channels)
                for Q, D in zip(first, last, strict=True)
            ]
            yield finished(conv, branches, metric)


def _branches(conv: Conv) -> Sequence[Rank]:
    """The branches that are cheaper: r (c s + T) < WORTHWHILE·c T, s input positions per output."""
    channels = conv.weight.shape[1]
    limit = WORTHWHILE * channels * conv.taps / (channels * stages.earlier(conv) + conv.taps)
    return separable.branches(limit, min(conv.taps, channels))
