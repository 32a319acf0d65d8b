"""Grouped + pointwise: the kernel in groups of channels, then a pointwise convolution over all of them.

    [M, C/g, *k]  ->  [R, n, *k] in C/n groups with all spatial attributes -> [M, R/g, 1] in g groups

    Ŵ[m, b c t] = Σ_j P[m, b j] D[b j, c t],        b the block of n channels, j one of its R n / C channels

Peng et al., ECCV 2018 (filter group approximation), data-free, an SVD of every W[:, b]: a start here. With n
= 1 this is depthwise + pointwise with a multiplier, with n = C/g channel SVD; both are passes of their own.
The fit minimises the error over P and D at once: `factor.blocks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes import stages
from passes.base import Rank, finished
from rewriter.conv import Conv
from rewriter.factor.blocks import blocks_then_dense
from rewriter.grid import Grid
from rewriter.metric import Metric
from rewriter.rewrite import Rewrite

# A rewrite with more multiply-adds than this share of the original's cannot pay: two stages, one of them in
# groups, run at a lower rate than one.
WORTHWHILE = 0.8
# Fewer than this leave nothing of the kernel.
FEWEST = 1 / 16
# Every rank is a fit and a measurement.
MOST = 6
# So many sizes of a group.
SIZES = 2


@dataclass(frozen=True, slots=True)
class GroupedPointwise:
    """Rank (n, R): the channels that a group reads, and the channels that all groups together write.

    The groups are C/n, so n divides C/g and C/n divides R. Groups of n channels nest in those of a multiple
    of n: the error falls, or stays, as n is multiplied or R grows.
    """

    name: ClassVar[str] = "grouped_pointwise"
    exact: ClassVar[bool] = False
    lowers: ClassVar[bool] = False

    def refuse(self, conv: Conv) -> str | None:
        """A depthwise or pointwise convolution, or one with too few channels."""
        if conv.depthwise:
            return "it is depthwise already"
        if conv.taps == 1:
            return "its kernel has one tap: in groups it would be a pointwise convolution before another"
        if conv.weight.shape[1] < 4 or conv.weight.shape[1] % 2:
            return f"the {conv.weight.shape[1]} channels that a group reads have no groups of their own"
        return None

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """Multiples of the block in and out of every group, cheaper than the original, thinned out in cost.

        The size n of a group comes near the one at which its two stages cost the same, n T = M: on trained
        kernels larger groups have up to a tenth more error at the same cost, smaller ones level it. The next
        larger size, which runs faster, is there too; it is a multiple of the first, so that the groups nest.
        """
        block, channels = grid.block, conv.weight.shape[1]
        outputs = conv.out_channels // conv.group
        sizes: list[int] = []
        for size in range(block, channels // 2 + 1, block):
            if channels % size == 0 and (not sizes or size % sizes[-1] == 0):
                sizes.append(size)
        if sizes:
            level = np.abs(np.log(np.array(sizes) * conv.taps / outputs))
            nearest = int(level.argmin())
            sizes = sizes[nearest : nearest + SIZES]
        found = []
        for size in sizes:
            groups = conv.in_channels // size
            for written in range(block, min(size * conv.taps, outputs) + 1, block):
                share = _share(conv, size, groups * written)
                if FEWEST <= share < WORTHWHILE:
                    found.append((share, (size, groups * written)))
        found.sort()
        if len(found) > MOST:
            wanted = np.geomspace(found[0][0], found[-1][0], MOST)
            shares = np.array([share for share, _ in found])
            found = [found[i] for i in sorted({int(np.abs(shares - share).argmin()) for share in wanted})]
        return [rank for _, rank in found]

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The fit at each rank; channels above the exact number are left out."""
        channels = conv.weight.shape[1]
        wanted = [(channels // size, written // (conv.in_channels // size)) for size, written in ranks]
        fits = [
            blocks_then_dense(W, C, A, wanted)
            for W, C, A in zip(
                conv.matrix, metric.covariance, metric.weights(*conv.matrix.shape[:2]), strict=True
            )
        ]
        for (blocks, _), fit in zip(wanted, zip(*fits, strict=True), strict=True):
            first = np.concatenate([D.reshape(-1, D.shape[2]) for D, _ in fit])
            last = np.concatenate([P.reshape(len(P), -1) for _, P in fit])
            grouped = conv.with_(
                weight=first.reshape(-1, channels // blocks, *conv.kernel_shape),
                bias=None,
                group=conv.group * blocks,
            )
            yield finished(conv, [(grouped, stages.pointwise(conv, last))], metric)


def _share(conv: Conv, size: int, written: int) -> float:
    """The multiply-adds of rank (size, written) over those of the original."""
    pointwise = stages.later(conv) * conv.out_channels * written // conv.group
    return (written * size * conv.taps + pointwise) / float(conv.weight.size)
