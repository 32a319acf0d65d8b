"""What depthwise + pointwise and pointwise + depthwise have in common."""

from __future__ import annotations

from collections.abc import Sequence

from passes.base import Rank
from rewriter.conv import Conv

# More branches are dearer than a spatial factorisation of the same error.
MOST = 4
# With fewer channels a group the pointwise convolutions are too thin for any vector unit.
THIN = 4


def refuse(conv: Conv) -> str | None:
    """A depthwise or pointwise convolution, or one with too few channels."""
    if conv.depthwise:
        return "it is depthwise already"
    if conv.taps == 1:
        return "its kernel has one tap: there is nothing to convolve depthwise"
    if conv.weight.shape[1] < THIN:
        return f"it reads only {conv.weight.shape[1]} channels a group"
    return None


def branches(limit: float, exact: int) -> Sequence[Rank]:
    """One to four branches, below the limit and no more than give the kernel exactly."""
    return [(rank,) for rank in range(1, min(MOST, int(limit), exact) + 1)]
