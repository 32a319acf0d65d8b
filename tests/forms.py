"""Every form of a convolution that computes the same up to rounding."""

from __future__ import annotations

from collections.abc import Iterator

from graphs import halves, only

import passes
from rewriter import graph
from rewriter.conv import Conv
from rewriter.grid import Grid
from rewriter.metric import Metric
from rewriter.rewrite import Rewrite
from rewriter.winograd import Winograd

TILES = ((2, 2), (3, 3), (4, 4), (6, 6), (4, 1), (6, 1), (1, 4))
"""Small, large, and along one axis; all others are tested as a lowering."""


def forms(site: graph.Site) -> Iterator[tuple[str, Rewrite]]:
    """Everything that computes the same as a site."""
    conv = site.conv
    yield "as it is", only(conv)
    yield "halves", halves(conv)
    for each in passes.PASSES:
        if each.refuse(conv) or (each.lowers and site.obstacle):
            continue
        ranks = list(each.ranks(conv, Grid(1)))[-1:] if each.exact else [_full(each.name, conv)]
        yield from ((each.name, made) for made in each.rewrites(conv, ranks, Metric.isotropic(conv)))
    for tile in TILES:
        m = tuple(1 if taps == 1 else size for size, taps in zip(tile, conv.kernel_shape, strict=False))
        if site.obstacle is None and Winograd(m).refuse(conv) is None:
            for threaded in (False, True):
                yield "tiles", Rewrite(((conv.with_(lowering=Winograd(m, threaded)),),))


def _full(name: str, conv: Conv) -> tuple[int, ...]:
    if name == "grouped_pointwise":
        size = max(conv.weight.shape[1] // 2, 1)
        return (size, conv.in_channels // size * 1000)
    return (1000, 1000) if name == "tucker2" else (1000,)
