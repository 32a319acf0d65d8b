"""Thin channels: a kernel that reads fewer of its in-channels, fitted to make up for the others.

    [M, C, *k]  ->  [M, r, *k], and as many filters less in the convolutions that compute these channels

One site alone gains nothing by it; it is done to whole networks, before what is left is rewritten site by
site, where nothing else reads the channels. He et al. 2017 (arXiv 1707.06168) choose the channels by LASSO;
`factor.fewer_channels` takes them away one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.base import Rank
from rewriter import factor
from rewriter.conv import Conv
from rewriter.grid import Grid
from rewriter.metric import Metric, free_bias
from rewriter.rewrite import Rewrite

# Shares of the channels that may stay, in blocks.
_SHARES = tuple(each / 8 for each in range(7, 1, -1))


@dataclass(frozen=True, slots=True)
class ThinChannels:
    """Rank (r,): the in-channels that are left."""

    name: ClassVar[str] = "thin_channels"
    exact: ClassVar[bool] = False
    lowers: ClassVar[bool] = False

    def refuse(self, conv: Conv) -> str | None:
        """A convolution in groups: its channels go by groups."""
        return "it has groups, which read channels of their own" if conv.group > 1 else None

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """Whole blocks, a quarter of the channels or more, the most first."""
        inputs = conv.in_channels
        counts = [round(share * inputs / grid.block) * grid.block for share in _SHARES]
        return [(count,) for count in dict.fromkeys(counts) if 0 < count < inputs]

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The kernel on the channels that are found to be needed least of all others, zeros for these."""
        (W,), (C,) = conv.matrix, metric.covariance
        (R,) = metric.roots(1, len(W))
        counts = [count for (count,) in ranks]
        for kernel in factor.fewer_channels(np.asarray(W, np.float64), C, R, conv.taps, counts):
            weight = kernel.reshape(conv.weight.shape).astype(conv.weight.dtype)
            rewrite = Rewrite(((conv.with_(weight=weight, bias=None),),))
            yield rewrite.with_bias(free_bias(conv, weight, metric.input).astype(weight.dtype))
