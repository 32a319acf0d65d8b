"""Groups: a kernel that is block-diagonal becomes a convolution in groups, or a depthwise one.

    [M, C/g, *k]  ->  [M, C/G, *k] in G groups,        W[m, c] = 0 wherever m and c are in different blocks

Nothing is lost but zeros. The blocks are of neighbouring channels; of others the channels would have to be
permuted, which costs more than it saves. Taps that are zero throughout go, too: see `crop_kernel`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from passes import support
from passes.base import Rank, finished
from rewriter.conv import Conv
from rewriter.grid import Grid
from rewriter.metric import Metric
from rewriter.rewrite import Rewrite


@dataclass(frozen=True, slots=True)
class SplitGroups:
    """Rank (G,): the groups."""

    name: ClassVar[str] = "split_groups"
    exact: ClassVar[bool] = True
    lowers: ClassVar[bool] = False

    def refuse(self, conv: Conv) -> str | None:
        """A kernel whose zeros do not leave equal blocks of neighbouring channels."""
        if conv.depthwise:
            return "it is depthwise: each channel is a group of its own"
        if min(conv.weight.shape[1], conv.out_channels // conv.group) < 2:
            return f"the weight {conv.weight.shape} in {conv.group} groups has one channel to a group"
        return None if support.blocks(conv) else support.unblocked(conv)

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """All numbers of groups: more are fewer multiply-adds, but groups that fill blocks run faster."""
        return [(conv.group * count,) for count in support.blocks(conv)]

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The blocks of the kernel, cropped."""
        cropped = support.crop(conv)
        for (groups,) in ranks:
            split = support.in_blocks(cropped, groups // conv.group)
            yield finished(conv, [(split.with_(bias=None),)], metric)
