"""Channel SVD: a convolution to fewer channels, then a pointwise one.

    [M, C, *k]  ->  [r, C, *k] with all spatial attributes  ->  [M, r, 1]        Ŵ = H V

Fitted by the principal directions of the output (Zhang et al. 2015; data-free: Denton et al. 2014). A 1 x 1
convolution becomes two. Where the original has groups, both stages keep them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes import stages
from passes.base import DEPTHWISE, WORTHWHILE, Rank, finished, no_cheaper
from rewriter import factor
from rewriter.conv import Conv
from rewriter.grid import Grid
from rewriter.metric import Metric
from rewriter.rewrite import Rewrite


@dataclass(frozen=True, slots=True)
class ChannelSVD:
    """Rank (r,): the channels between the stages, for each group of the original."""

    name: ClassVar[str] = "channel_svd"
    exact: ClassVar[bool] = False
    lowers: ClassVar[bool] = False

    def refuse(self, conv: Conv) -> str | None:
        """A depthwise convolution, or one that even rank 1 makes no cheaper."""
        if conv.depthwise:
            return DEPTHWISE
        if _limit(conv) <= 1.0:
            return no_cheaper(conv)
        return None

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """Ranks on the grid, below the full rank and below the break-even in multiply-adds."""
        return [(rank,) for rank in grid.ranks(_limit(conv))]

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The optimum at each rank."""
        wanted = [rank for (rank,) in ranks]
        weights = metric.weights(*conv.matrix.shape[:2])
        groups = [
            factor.channel(np.asarray(W, np.float64), C, A, wanted)
            for W, C, A in zip(conv.matrix, metric.covariance, weights, strict=True)
        ]
        for fitted in zip(*groups, strict=True):
            first, last = (np.concatenate(stage) for stage in zip(*fitted, strict=True))
            chain = (
                conv.with_(weight=first.reshape(-1, *conv.weight.shape[1:]), bias=None),
                stages.pointwise(conv, last),
            )
            yield finished(conv, [chain], metric)


def _limit(conv: Conv) -> float:
    """The rank of each group at which the rewrite stops being worth while: r (k + m p) = WORTHWHILE·m·k.

    The last stage computes p positions for each at which the first one is applied.
    """
    _, outputs, size = conv.matrix.shape
    return float(min(WORTHWHILE * outputs * size / (outputs * stages.later(conv) + size), outputs, size))
