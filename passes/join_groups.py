"""Joined: groups that do not fill the blocks of channels which kernels compute, as fewer that do.

    [M, C/g, *k] in g groups  ->  [M, C/G, *k] in G groups, block-diagonal,        G a divisor of g

Exact, so it needs no samples. It takes more multiply-adds, of which the products with zeros add nothing;
whether it is faster depends on the shape and the target, and measured latency decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from passes.base import Rank, lowered
from rewriter.conv import Conv
from rewriter.grid import Grid
from rewriter.joined import Joined
from rewriter.metric import Metric
from rewriter.rewrite import Rewrite

# What targets have as a block; where one of them is not filled there may be something to join.
_BLOCKS = (8, 16)
# With more multiply-adds than so many times the original's the fast path is no faster.
_MOST = 16


@dataclass(frozen=True, slots=True)
class JoinGroups:
    """Rank (G,): the groups that are left."""

    name: ClassVar[str] = "join_groups"
    exact: ClassVar[bool] = True
    lowers: ClassVar[bool] = True

    def refuse(self, conv: Conv) -> str | None:
        """What has no groups, is depthwise or transposed, or whose groups cannot be joined to full blocks."""
        if conv.group == 1:
            return "it has no groups"
        if conv.depthwise and conv.out_channels == conv.in_channels:
            return "it is depthwise, for which there are kernels of their own"
        if reason := Joined(1).refuse(conv):
            return reason
        if any(_joined(conv, block) for block in _BLOCKS):
            return None
        return f"its {conv.group} groups fill blocks of {max(_BLOCKS)} channels, or cannot be joined to do so"

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """The most groups that fill the target's blocks: wider ones only multiply more zeros."""
        return _joined(conv, grid.block)

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The convolution itself, in fewer groups."""
        for (group,) in ranks:
            yield lowered(conv, Joined(group))


def _joined(conv: Conv, block: int) -> list[Rank]:
    """The most groups, fewer than there are, of whole blocks of inputs and of outputs; empty if none."""
    inputs, outputs = conv.weight.shape[1], conv.out_channels // conv.group
    for together in range(1, min(conv.group, _MOST) + 1):
        if conv.group % together == 0 and not (together * inputs % block or together * outputs % block):
            return [] if together == 1 else [(conv.group // together,)]
    return []
