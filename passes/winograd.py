"""Winograd: the same kernel, computed by tiles from fewer products.

    Conv  ->  Bᵀ as depthwise convolutions, G W Gᵀ as one grouped convolution, Aᵀ as a matrix product

Exact up to rounding, so it needs no samples; whether it is faster depends on the shape and the target, and
measured latency decides. Winograd 1980, as in Lavin and Gray 2016, arXiv 1509.09308.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

from passes.base import Rank, lowered
from rewriter.conv import Conv
from rewriter.grid import Grid
from rewriter.metric import Metric
from rewriter.rewrite import Rewrite
from rewriter.winograd import Winograd, in_tiles, narrow

# Outputs of a tile along each axis. Which is best depends on the map's size, which a tile should divide, the
# channels and the caches: of these most are best for some shape, (m, 1) where the map is large or tiny.
TILES = tuple(tile for tile in product(range(1, 7), repeat=2) if max(tile) > 1)


@dataclass(frozen=True, slots=True)
class WinogradTiles:
    """Rank (m, n): the outputs of a tile along each axis; 1 where the axis is not transformed."""

    name: ClassVar[str] = "winograd"
    exact: ClassVar[bool] = True
    lowers: ClassVar[bool] = True

    def refuse(self, conv: Conv) -> str | None:
        """Channels that do not fill blocks, strides, dilations, or a kernel of one tap or of too many."""
        if conv.depthwise:
            return "it is depthwise: there are no sums over channels to save products of"
        if conv.taps == 1:
            return "it is pointwise: one tap leaves nothing to transform"
        if reason := narrow(conv):
            return reason
        if _tiles(conv):
            return None
        smallest = Winograd(tuple(min(taps, 2) for taps in conv.kernel_shape))
        return smallest.refuse(conv) or f"no tile of the kernel {conv.kernel_shape} has fewer multiply-adds"

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """Tiles along both axes and along either; none where the target's blocks are not filled."""
        return [] if narrow(conv, grid.block) else _tiles(conv)

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The convolution itself, in tiles."""
        for rank in ranks:
            yield lowered(conv, Winograd(rank))


def _tiles(conv: Conv) -> list[Rank]:
    """The tiles that take fewer multiply-adds than the kernel; one output along an axis with one tap."""
    tiled = (in_tiles(conv, Winograd(tile)) for tile in TILES)
    shapes = (each.lowering.m for each in tiled if each is not None and isinstance(each.lowering, Winograd))
    return list(dict.fromkeys(shapes))
