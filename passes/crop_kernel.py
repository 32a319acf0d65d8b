"""Cropped: a kernel without the taps that are zero throughout.

    [M, C/g, *k]  ->  [M, C/g, *l],  l <= k

with smaller pads; 1 x 1 where only one tap counts, and dilated where the taps that count are on a lattice.

Nothing is lost but zeros. Pads never become negative, so that a kernel is cropped at most by its pads.
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
class CropKernel:
    """Rank (*l,): the taps that are left along each axis; there is one."""

    name: ClassVar[str] = "crop_kernel"
    exact: ClassVar[bool] = True
    lowers: ClassVar[bool] = False

    def refuse(self, conv: Conv) -> str | None:
        """A kernel without zero taps, or whose pads keep them."""
        if conv.taps == 1:
            return "its kernel has one tap"
        return None if support.crop(conv) is not conv else support.uncropped(conv)

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """The kernel that is left."""
        return [support.crop(conv).kernel_shape]

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The taps that count."""
        for _ in ranks:
            yield finished(conv, [(support.crop(conv).with_(bias=None),)], metric)
