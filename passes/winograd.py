"""Winograd: the same kernel, computed by tiles from fewer products.

    Conv  ->  Bᵀ as depthwise convolutions, G W Gᵀ as one grouped convolution, Aᵀ as a matrix product

Exact up to rounding, so it needs no samples; whether it is faster depends on the shape and the target, and
measured latency decides. Winograd 1980, as in Lavin and Gray 2016, arXiv 1509.09308.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.base import Rank
from rewriter.conv import Conv, Grid, Rewrite
from rewriter.metric import Metric
from rewriter.winograd import Winograd

# Outputs of a tile along each axis; which is best depends on the map's size, the channels and the caches.
# Each of these was best for some shape, others hardly ever; (m, 1) where the map is large or tiny.
TILES = ((2, 2), (3, 3), (4, 4), (6, 6), (4, 1), (6, 1), (1, 4))
# The smallest block of channels that any target computes at once; the fast path takes whole blocks.
BLOCK = 8
# With fewer channels a group the transforms outweigh the products that they save (measured).
FEWEST = 16
# A map of which a tile's overhang at the end is no large part.
LARGE = (64, 64)


@dataclass(frozen=True, slots=True)
class WinogradTiles:
    """Rank (m, n): the outputs of a tile along each axis; 1 where the axis is not transformed."""

    name: ClassVar[str] = "winograd"
    exact: ClassVar[bool] = True
    lowers: ClassVar[bool] = True

    def refuse(self, conv: Conv) -> str | None:
        """Channels that do not fill blocks, strides, dilations, or a kernel of one tap or of too many."""
        inputs, outputs = conv.weight.shape[1], conv.out_channels // conv.group
        if conv.depthwise:
            return "it is depthwise: there are no sums over channels to save products of"
        if conv.taps == 1:
            return "it is pointwise: one tap leaves nothing to transform"
        if inputs % BLOCK or outputs % BLOCK or min(inputs, outputs) < FEWEST:
            return (
                f"each group takes {inputs} channels and gives {outputs}; "
                f"tiles are fast for multiples of {BLOCK}, {FEWEST} or more"
            )
        if _tiles(conv):
            return None
        smallest = Winograd(tuple(min(taps, 2) for taps in conv.kernel_shape))
        return smallest.refuse(conv) or f"no tile of the kernel {conv.kernel_shape} has fewer multiply-adds"

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """Tiles along both axes and along either; none where the target's blocks are not filled."""
        inputs, outputs = conv.weight.shape[1], conv.out_channels // conv.group
        return [] if inputs % grid.block or outputs % grid.block else _tiles(conv)

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The convolution itself, in tiles."""
        bias = np.zeros(conv.out_channels, conv.weight.dtype) if conv.bias is None else conv.bias
        for rank in ranks:
            yield Rewrite(((conv.with_(bias=bias, lowering=Winograd(rank)),),))


def _tiles(conv: Conv) -> list[Rank]:
    """The tiles that take fewer multiply-adds than the kernel; one output along an axis with one tap."""
    shapes = (
        tuple(1 if taps == 1 else m for m, taps in zip(tile, conv.kernel_shape, strict=False))
        for tile in TILES
    )
    found = dict.fromkeys(shape for shape in shapes if Winograd(shape).refuse(conv) is None)
    direct = conv.macs(LARGE) if found else 0
    return [tile for tile in found if conv.with_(lowering=Winograd(tile)).macs(LARGE) < direct]
