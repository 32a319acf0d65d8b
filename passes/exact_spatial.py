"""Exact low rank in space: a vertical convolution, then a horizontal one, or the other way round.

    [M, C/g, y, x]  ->  [R, C/g, y, 1] -> [M, R/G, 1, x] in G groups,        or x first

at the rank that the kernel has up to rounding: a Gaussian or a Sobel filter has rank 1. Of more axes y and x
are those of several taps. Zero blocks and taps go first, as in `split_groups` and `crop_kernel`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes import stages, support
from passes.base import WORTHWHILE, Rank, finished
from rewriter.conv import Array, Conv
from rewriter.factor import exact
from rewriter.factor.exact import Level
from rewriter.grid import Grid
from rewriter.metric import Metric
from rewriter.rewrite import Branch, Rewrite


@dataclass(frozen=True, slots=True)
class ExactSpatial:
    """Rank (v, h, n): v channels from a vertical to a horizontal stage, h the other way; n blocks.

    One of v and h is 0. All are counted for each group: its outputs are in n blocks, all in one or each
    alone, and each block has that many channels of its own.
    """

    name: ClassVar[str] = "exact_spatial"
    exact: ClassVar[bool] = True
    lowers: ClassVar[bool] = False

    def refuse(self, conv: Conv) -> str | None:
        """A kernel without two axes of several taps, or without a rank that makes it cheaper."""
        if len(stages.several(conv)) != 2:
            return f"the kernel {conv.kernel_shape} has not several taps along two axes, no more and no fewer"
        if not self.ranks(conv, Grid()):
            return "it is not separable: neither order of its axes has a rank that makes it cheaper"
        return None

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """All that have fewer multiply-adds, whether on the grid or not."""
        conv = support.tight(conv)
        if len(stages.several(conv)) != 2:
            return []
        kernels = _kernels(conv)
        return [*_along(conv, kernels, vertical=True), *_along(conv, kernels, vertical=False)]

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The factors."""
        kernel = support.tight(conv)
        levels = _kernels(kernel)
        for v, h, count in ranks:
            yield finished(conv, [_chain(kernel, levels, v > 0, v or h, count)], metric)


def _kernels(conv: Conv) -> list[Level]:
    groups, outputs, _ = conv.matrix.shape
    return [Level.of(each) for each in conv.matrix.reshape(groups, outputs, -1, conv.taps)]


def _along(conv: Conv, levels: Sequence[Level], vertical: bool) -> Iterator[Rank]:
    """Ranks r with r (n C y q + M x p) < WORTHWHILE·M C y x.

    q is the stride along the second axis, p the step between an input's samples along the first.
    """
    outputs, inputs, _ = levels[0].kernel.shape
    first, second = stages.several(conv) if vertical else stages.several(conv)[::-1]
    one, other = conv.kernel_shape[first] * conv.strides[second], conv.kernel_shape[second]
    behind = other * conv.input_dilations[first]
    for count in sorted({1, outputs}):
        limit = WORTHWHILE * outputs * inputs * conv.taps / (count * inputs * one + outputs * behind)
        largest = 0
        for matrix in _unfolded(conv, levels, vertical, count):
            found = exact.rank(matrix, int(limit), exact.tolerance(conv.dtype))
            if found is None:
                break
            largest = max(largest, found)
        else:
            yield (largest, 0, count) if vertical else (0, largest, count)


def _taps(conv: Conv) -> Iterator[int]:
    return (conv.kernel_shape[axis] for axis in stages.several(conv))


def _unfolded(conv: Conv, levels: Sequence[Level], vertical: bool, count: int) -> Iterator[Array]:
    """Each block of outputs as `[M/n·x, C·y]`, x and y the taps of the second and the first stage."""
    for level in levels:
        kernel = level.kernel.reshape(*level.kernel.shape[:2], *_taps(conv))
        kernel = kernel if vertical else kernel.swapaxes(2, 3)
        for part in np.split(kernel.transpose(0, 3, 1, 2), count):
            yield part.reshape(part.shape[0] * part.shape[1], -1)


def _chain(conv: Conv, levels: Sequence[Level], vertical: bool, r: int, count: int) -> Branch:
    blocks = conv.group * count
    inputs = conv.weight.shape[1]
    pairs = [exact.factors(matrix, r) for matrix in _unfolded(conv, levels, vertical, count)]
    columns = np.repeat([level.columns for level in levels], count, axis=0)
    rows = np.concatenate([level.rows for level in levels])
    first = np.stack([right for _, right in pairs]).reshape(blocks, r, inputs, -1) * columns[:, None, :, None]
    # [n, M/n·x, r] -> [M, r, x]
    last = np.stack([left for left, _ in pairs]).reshape(conv.out_channels, -1, r).swapaxes(1, 2)
    second = stages.several(conv)[1 if vertical else 0]
    return (
        stages.along(conv, stages.rest(conv, (second,)), first.reshape(blocks * r, inputs, -1), conv.group),
        stages.along(conv, (second,), last * rows[:, None, None], blocks),
    )
