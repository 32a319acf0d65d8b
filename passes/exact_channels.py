"""Exact low rank across channels: filters that mix fewer ones, inputs that are read in fewer mixtures.

    [M, C/g, *k]  ->  [S, C/G, *k] in G groups -> [M, S/g, 1]           channel SVD; depthwise + pointwise
                  ->  [R, C/g, 1] -> [M, R/G, *k] in G groups           the same of the inputs
                  ->  [R, C/g, 1] -> [S, R/g, *k] -> [M, S/g, 1]        Tucker-2

at the ranks that the kernel has up to rounding: those of the unfoldings of its blocks of channels. Duplicate
and proportional filters are such ranks, and so are channels that are read alike. Zero blocks and taps go
first, as in `split_groups` and `crop_kernel`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes import stages, support
from passes.base import DEPTHWISE, WORTHWHILE, Rank, finished
from rewriter.conv import Array, Conv
from rewriter.factor import exact
from rewriter.factor.exact import Level
from rewriter.grid import Grid
from rewriter.metric import Metric
from rewriter.rewrite import Branch, Rewrite


@dataclass(frozen=True, slots=True)
class ExactChannels:
    """Rank (r, n, s): the kernel in n blocks, a stage to r channels before, one from s behind.

    All are counted for each group. Where r is 0 there is no stage before the kernel, the n blocks are of its
    inputs, and each writes s channels; where s is 0 there is none behind it, the blocks are of its outputs,
    and each reads r.
    """

    name: ClassVar[str] = "exact_channels"
    exact: ClassVar[bool] = True
    lowers: ClassVar[bool] = False

    def refuse(self, conv: Conv) -> str | None:
        """A kernel without any rank that makes it cheaper."""
        if conv.depthwise:
            return DEPTHWISE
        if not self.ranks(conv, Grid()):
            return (
                "its filters are independent: no unfolding of its channels has a rank that makes it cheaper"
            )
        return None

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """Those with fewer multiply-adds, on the grid or not; more blocks only where they save some."""
        conv = support.tight(conv)
        levels = _levels(conv)
        found = [*_behind(conv, levels), *_before(conv, levels)]
        return found if conv.taps == 1 else [*found, *_both(conv, levels)]

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """The factors."""
        kernel = support.tight(conv)
        levels = _levels(kernel)
        for r, n, s in ranks:
            if not r:
                branches = _then_pointwise(kernel, levels, n, s)
            elif not s:
                branches = _pointwise_then(kernel, levels, n, r)
            else:
                branches = [_tucker(kernel, levels, r, s)]
            yield finished(conv, branches, metric)


def _levels(conv: Conv) -> list[Level]:
    groups, outputs, _ = conv.matrix.shape
    return [Level.of(each) for each in conv.matrix.reshape(groups, outputs, -1, conv.taps)]


def _behind(conv: Conv, levels: Sequence[Level]) -> Iterator[Rank]:
    """Ranks (0, n, s), each of fewer multiply-adds than the one before: s (C T + M n p) of M C T.

    The last stage computes p positions for each at which the kernel is applied.
    """
    outputs, inputs, taps = levels[0].kernel.shape
    least = WORTHWHILE * outputs * inputs * taps
    for count in _divisors(inputs if taps > 1 else 1):
        each = inputs * taps + outputs * count * stages.later(conv)
        found = _common(
            conv, (part for level in levels for part in _by_input(level, count)), _below(least / each)
        )
        if found is not None:
            least = found * each
            yield 0, count, found


def _before(conv: Conv, levels: Sequence[Level]) -> Iterator[Rank]:
    """Ranks (r, n, 0), each of fewer multiply-adds than the one before: r (C n p + M T) of M C T.

    The first stage computes p positions for each at which the kernel is applied.
    """
    outputs, inputs, taps = levels[0].kernel.shape
    least = WORTHWHILE * outputs * inputs * taps
    for count in _divisors(outputs if taps > 1 else 0):
        each = inputs * count * stages.earlier(conv) + outputs * taps
        found = _common(
            conv, (part for level in levels for part in _by_output(level, count)), _below(least / each)
        )
        if found is not None:
            least = found * each
            yield found, count, 0


def _both(conv: Conv, levels: Sequence[Level]) -> Iterator[Rank]:
    """Rank (r, 1, s): r C p + r s T + s M q multiply-adds of M C T, p and q as for each of the two alone."""
    outputs, inputs, taps = levels[0].kernel.shape
    positions, behind = stages.earlier(conv), outputs * stages.later(conv)
    least = WORTHWHILE * outputs * inputs * taps
    # the other rank is at least 1, and neither stage is worth its own at the full rank
    most = _below((least - inputs * positions) / (behind + taps))
    s = _common(conv, (part for level in levels for part in _by_input(level, 1)), min(most, outputs - 1))
    if s is None:
        return
    most = _below((least - s * behind) / (inputs * positions + s * taps))
    r = _common(conv, (part for level in levels for part in _by_output(level, 1)), min(most, inputs - 1))
    if r is not None:
        yield r, 1, s


def _below(limit: float) -> int:
    """The largest integer below a limit."""
    return int(np.ceil(limit)) - 1


def _divisors(channels: int) -> Iterator[int]:
    return (count for count in range(1, channels + 1) if channels % count == 0)


def _common(conv: Conv, matrices: Iterable[Array], most: int) -> int | None:
    """The largest of their ranks, None once one of them is above `most`."""
    largest = 0
    for matrix in matrices:
        found = exact.rank(matrix, most, exact.tolerance(conv.dtype))
        if found is None:
            return None
        largest = max(largest, found)
    return largest


def _by_input(level: Level, count: int) -> Iterator[Array]:
    """Each block of input channels as `[m, C/n·T]`."""
    for part in np.split(level.kernel, count, axis=1):
        yield part.reshape(len(part), -1)


def _by_output(level: Level, count: int) -> Iterator[Array]:
    """Each block of output channels as `[M/n·T, c]`."""
    for part in np.split(level.kernel, count):
        yield part.swapaxes(1, 2).reshape(-1, part.shape[1])


def _then_pointwise(conv: Conv, levels: Sequence[Level], count: int, s: int) -> list[Branch]:
    """The kernel in blocks of input channels, s channels each, and a pointwise stage over all of them."""
    first, last = [], []
    for level in levels:
        pairs = [exact.factors(part, s) for part in _by_input(level, count)]
        # [n, s, C/n, T] and [M, n, s]
        right = np.stack([right for _, right in pairs]).reshape(count, s, -1, conv.taps)
        first.append(right * level.columns.reshape(count, 1, -1, 1))
        last.append(np.stack([left for left, _ in pairs], axis=1) * level.rows[:, None, None])
    kernels, mixing = np.concatenate(first), np.concatenate(last)
    if kernels.shape[2] > 1:
        return [_grouped_first(conv, kernels, mixing)]
    # Depthwise stages of several channels each would be slow: one branch for each.
    return [_grouped_first(conv, kernels[:, [j]], mixing[:, :, [j]]) for j in range(s)]


def _grouped_first(conv: Conv, kernels: Array, mixing: Array) -> Branch:
    blocks, s, inputs, _ = kernels.shape
    weight = kernels.reshape(blocks * s, inputs, *conv.kernel_shape)
    return (
        conv.with_(weight=weight, bias=None, group=blocks),
        stages.pointwise(conv, mixing.reshape(len(mixing), -1)),
    )


def _pointwise_then(conv: Conv, levels: Sequence[Level], count: int, r: int) -> list[Branch]:
    """A pointwise stage, r channels for each block of outputs, and the kernel in these blocks."""
    first, last = [], []
    for level in levels:
        for part, rows in zip(_by_output(level, count), np.split(level.rows, count), strict=True):
            left, right = exact.factors(part, r)
            first.append(right * level.columns)
            last.append(left.reshape(len(rows), conv.taps, r).swapaxes(1, 2) * rows[:, None, None])
    mixing, kernels = np.stack(first), np.concatenate(last)
    blocks = len(mixing)
    if blocks < conv.out_channels:
        return [stages.pointwise_first(conv, np.concatenate(mixing), kernels, blocks)]
    return [stages.pointwise_first(conv, mixing[:, j], kernels[:, [j]], blocks) for j in range(r)]


def _tucker(conv: Conv, levels: Sequence[Level], r: int, s: int) -> Branch:
    first, core, last = [], [], []
    for level in levels:
        P = exact.factors(next(_by_output(level, 1)), r)[1]
        U = exact.factors(next(_by_input(level, 1)).T, s)[1]
        first.append(P * level.columns)
        core.append(np.einsum("sm,mct,rc->srt", U, level.kernel, P, optimize=True))
        last.append(level.rows[:, None] * U.T)
    chain = stages.pointwise_first(conv, np.concatenate(first), np.concatenate(core), conv.group)
    return (*chain, stages.pointwise(conv, np.concatenate(last)))
