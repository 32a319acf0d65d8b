"""Tucker-2: a pointwise convolution to fewer channels, a kernel between those, and a pointwise one back.

    [M, C, *k]  ->  [r, C, 1]  ->  [s, r, *k] with all spatial attributes  ->  [M, s, 1]
    Ŵ[m, c, t] = Σ_rs U[m, s] G[s, r, t] P[r, c]

Kim et al. 2016, fitted to the patches by alternating least squares (as Kalle et al. 2025, arXiv 2511.04494).
Along an axis with one tap the first stage has the stride and the pads. Where the original has groups, all
stages keep them.
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

# The shares of the channels that are tried on the input side; on the output side the same share or the next.
SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)


@dataclass(frozen=True, slots=True)
class Tucker2:
    """Rank (r, s): the channels into and out of the core, for each group of the original.

    Attributes:
        sweeps: of alternating least squares after the closed form.
    """

    name: ClassVar[str] = "tucker2"
    exact: ClassVar[bool] = False
    lowers: ClassVar[bool] = False

    sweeps: int = 2

    def refuse(self, conv: Conv) -> str | None:
        """A depthwise or pointwise convolution, or one that rank (1, 1) makes no cheaper."""
        if conv.depthwise:
            return DEPTHWISE
        if conv.taps == 1:
            return "it is pointwise: a core between two pointwise stages would add to it"
        if min(conv.weight.shape[1], conv.out_channels // conv.group) < 2:
            return f"the weight {conv.weight.shape} in {conv.group} groups has one channel to a group"
        if _share(conv, (1, 1)) > WORTHWHILE:
            return no_cheaper(conv)
        return None

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """Equal shares of both sides, or the output's one step up, on the grid and worth while."""
        inputs, outputs = conv.weight.shape[1], conv.out_channels // conv.group
        found = set()
        for share, above in zip(SHARES, (*SHARES[1:], SHARES[-1]), strict=True):
            for wider in (share, above):
                rank = (_snapped(share * inputs, inputs, grid), _snapped(wider * outputs, outputs, grid))
                if rank[0] < inputs and rank[1] < outputs and _share(conv, rank) <= WORTHWHILE:
                    found.add(rank)
        return sorted(found)

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The best fit found at each rank; without samples the closed form."""
        wanted = [(r, s) for r, s in ranks]
        groups, outputs, _ = conv.matrix.shape
        # Assumed moments take the closed form alone, which is where every fit starts from: it cannot end up
        # worse.
        sweeps = self.sweeps if metric.input.count else 0
        fits = [
            factor.tucker2(np.asarray(W, np.float64).reshape(outputs, -1, conv.taps), C, A, wanted, sweeps)
            for W, C, A in zip(conv.matrix, metric.covariance, metric.weights(groups, outputs), strict=True)
        ]
        for fitted in zip(*fits, strict=True):
            P, G, U = (np.concatenate(stage) for stage in zip(*fitted, strict=True))
            chain = (*stages.pointwise_first(conv, P, G, conv.group), stages.pointwise(conv, U))
            yield finished(conv, [chain], metric)


def _share(conv: Conv, rank: tuple[int, int]) -> float:
    """The multiply-adds of a rank relative to the original's."""
    _, outputs, size = conv.matrix.shape
    r, s = rank
    inputs = size // conv.taps
    macs = stages.earlier(conv) * r * inputs + s * r * conv.taps + stages.later(conv) * outputs * s
    return float(macs) / float(outputs * size)


def _snapped(wanted: float, channels: int, grid: Grid) -> int:
    """The nearest number of channels on the grid: blocks, or half blocks where there are only two."""
    step = grid.block if channels > 2 * grid.block else max(grid.block // 2, 1)
    return max(step * round(wanted / step), step)
