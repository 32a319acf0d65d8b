"""Input SVD: a pointwise convolution to fewer channels, then the kernel over those.

    [M, C, *k]  ->  [r, C, 1]  ->  [M, r, *k] with all spatial attributes
    Ŵ[m, c, t] = Σ_r K[m, r, t] P[r, c]

Tucker-2 without its last stage, for convolutions with so few outputs that these have nothing to share, such
as the last one of a network that makes images. Fitted to the patches in the same way. Along an axis with one
tap the first stage has the stride and the pads. Where the original has groups, both stages keep them.
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

# With more outputs a group the stages of Tucker-2 have room on both sides.
FEW = 16


@dataclass(frozen=True, slots=True)
class InputSVD:
    """Rank (r,): the channels between the stages, for each group of the original.

    Attributes:
        sweeps: of alternating least squares after the closed form.
    """

    name: ClassVar[str] = "input_svd"
    exact: ClassVar[bool] = False
    lowers: ClassVar[bool] = False

    sweeps: int = 2

    def refuse(self, conv: Conv) -> str | None:
        """A depthwise or pointwise convolution, one of many outputs, or one that rank 1 makes no cheaper."""
        if conv.depthwise:
            return DEPTHWISE
        if conv.taps == 1:
            return "it is pointwise: another pointwise stage before it is what channel_svd finds"
        if conv.out_channels // conv.group > FEW:
            return f"each group gives {conv.out_channels // conv.group} channels; above {FEW} tucker2 serves"
        if _limit(conv) <= 1.0:
            return no_cheaper(conv)
        return None

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """Ranks on the grid, below the full rank and below the break-even in multiply-adds."""
        return [(rank,) for rank in grid.ranks(_limit(conv))]

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The best fit found at each rank; without samples the closed form."""
        groups, outputs, _ = conv.matrix.shape
        wanted = [(rank, outputs) for (rank,) in ranks]
        sweeps = self.sweeps if metric.input.count else 0
        fits = [
            factor.tucker2(np.asarray(W, np.float64).reshape(outputs, -1, conv.taps), C, A, wanted, sweeps)
            for W, C, A in zip(conv.matrix, metric.covariance, metric.weights(groups, outputs), strict=True)
        ]
        for fitted in zip(*fits, strict=True):
            mixing = np.concatenate([P for P, _, _ in fitted])
            kernel = np.concatenate([np.einsum("ms,srt->mrt", U, G, optimize=True) for _, G, U in fitted])
            yield finished(conv, [stages.pointwise_first(conv, mixing, kernel, conv.group)], metric)


def _limit(conv: Conv) -> float:
    """The rank of each group at which the rewrite stops being worth while: r (c p + m t) = WORTHWHILE·m c t.

    At most the full one. The first stage computes p positions for each at which the kernel is applied.
    """
    _, outputs, size = conv.matrix.shape
    inputs = size // conv.taps
    each = stages.earlier(conv) * inputs + outputs * conv.taps
    return float(min(WORTHWHILE * outputs * size / each, inputs, outputs * conv.taps))
