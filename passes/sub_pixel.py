"""Sub-pixel: a transposed convolution as a Conv over its input, and its phases put in their places.

    ConvTranspose  ->  [u·u·M, C, *l] -> DepthToSpace -> what is too much is cut,      l about k / u

and with strides u of 1 a plain Conv with the kernel turned round, which no other form of it needs to be told.
Exact, so it needs no samples; whether it is faster depends on the shape and the target, and measured latency
decides. Shi et al. 2016, arXiv 1609.07009.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from passes.base import Rank, lowered
from rewriter.conv import Conv, Direct
from rewriter.grid import Grid
from rewriter.metric import Metric
from rewriter.rewrite import Rewrite
from rewriter.transposed import SubPixel


@dataclass(frozen=True, slots=True)
class SubPixelConv:
    """Rank (*u,): the phases of the output along each axis; there is one."""

    name: ClassVar[str] = "sub_pixel"
    exact: ClassVar[bool] = True
    lowers: ClassVar[bool] = True

    def refuse(self, conv: Conv) -> str | None:
        """What is no transposed convolution, or one whose phases do not fit side by side."""
        if not conv.transposed:
            return "it is not transposed"
        return SubPixel().refuse(conv) if max(conv.input_dilations) > 1 else None

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """The phases."""
        return [conv.input_dilations]

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The convolution itself, by its phases."""
        lowering = SubPixel() if max(conv.input_dilations) > 1 else Direct()
        for _ in ranks:
            yield lowered(conv, lowering)
