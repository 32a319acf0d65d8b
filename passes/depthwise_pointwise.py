"""Depthwise + pointwise: a sum of depthwise separable convolutions.

    [M, C/g, *k]  ->  Σ_r [C, 1, *k] in C groups with all spatial attributes -> [M, C/g, 1] in g groups

    Ŵ[m, c, t] = Σ_r P_r[m, c] D_r[c, t]

One branch a rank and no depthwise multiplier, which falls off the fast path of ONNX Runtime. Rank 1 is the
classical depthwise separable convolution; network decoupling (Guo et al. 2018, arXiv 1808.05517) is the
data-free optimum, an SVD of every W[:, c], and a start here. The fit minimises the error over P and D at
once: `factor.blocks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes import separable, stages
from passes.base import WORTHWHILE, Rank, finished
from rewriter.conv import Conv
from rewriter.factor.blocks import blocks_then_dense
from rewriter.grid import Grid
from rewriter.metric import Metric
from rewriter.rewrite import Rewrite


@dataclass(frozen=True, slots=True)
class DepthwisePointwise:
    """Rank (r,): the branches."""

    name: ClassVar[str] = "depthwise_pointwise"
    exact: ClassVar[bool] = False
    lowers: ClassVar[bool] = False

    def refuse(self, conv: Conv) -> str | None:
        """A depthwise or pointwise convolution, or one with too few channels."""
        if reason := separable.refuse(conv):
            return reason
        if not _branches(conv):
            return f"the weight {conv.weight.shape} in {conv.group} groups has no cheaper branches"
        return None

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """One to four branches, as long as they are cheaper than the original."""
        return _branches(conv)

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The fit at each rank; a rank above the exact one gives the exact one."""
        channels = conv.weight.shape[1]
        fits = [
            blocks_then_dense(W, C, A, [(channels, rank) for (rank,) in ranks])
            for W, C, A in zip(
                conv.matrix, metric.covariance, metric.weights(*conv.matrix.shape[:2]), strict=True
            )
        ]
        for fit in zip(*fits, strict=True):
            # [r, C, 1, *k] and [r, M, C/g, *1], the groups of the original one after the other.
            first = np.concatenate([D.transpose(1, 0, 2) for D, _ in fit], axis=1)
            last = np.concatenate([P.transpose(2, 0, 1) for _, P in fit], axis=1)
            branches = [
                (
                    conv.with_(
                        weight=D.reshape(-1, 1, *conv.kernel_shape), bias=None, group=conv.in_channels
                    ),
                    stages.pointwise(conv, P),
                )
                for D, P in zip(first, last, strict=True)
            ]
            yield finished(conv, branches, metric)


def _branches(conv: Conv) -> Sequence[Rank]:
    """The branches that are cheaper: r (T + m p) = WORTHWHILE·T m.

    A group has m output channels, and the pointwise stage computes p positions for each of the kernel's.
    """
    outputs = conv.out_channels // conv.group
    limit = WORTHWHILE * conv.taps * outputs / (conv.taps + outputs * stages.later(conv))
    return separable.branches(limit, min(conv.taps, outputs))
