"""What a pass is, and how the rewrites of one that fits end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Protocol

import numpy as np

from rewriter.conv import Conv, Direct, Ints, Lowering
from rewriter.grid import Grid
from rewriter.metric import Metric, free_bias
from rewriter.rewrite import Branch, Rewrite

Rank = Ints

# A rewrite with more multiply-adds than this share of the original's cannot pay.
WORTHWHILE = 0.95

DEPTHWISE = "it is depthwise: each channel has a kernel of its own and there is nothing to share"
"""Why nothing of low rank can be made of a convolution."""


class Pass(Protocol):
    """A pure function from a convolution to its rewrites at several ranks.

    Passes are frozen dataclasses whose fields are their options; none subclasses another. `rank` is each
    pass's own knob, a tuple of ints whose meaning its docstring states; the error falls as any component
    grows.

    Attributes:
        name: The structure that a convolution becomes.
        exact: Whether every rewrite computes the same, up to rounding: it needs no samples and no budget.
        lowers: Whether its rewrites are the convolution itself, with another lowering.
    """

    name: ClassVar[str]
    exact: ClassVar[bool]
    lowers: ClassVar[bool]

    def refuse(self, conv: Conv) -> str | None:
        """Why this convolution cannot take this form, or None."""
        ...

    def ranks(self, conv: Conv, grid: Grid) -> Sequence[Rank]:
        """The ranks worth trying on the target's grid: cheaper than the original in multiply-adds."""
        ...

    def rewrites(self, conv: Conv, ranks: Sequence[Rank], metric: Metric) -> Iterator[Rewrite]:
        """One rewrite a rank, in that order, each the best found under the metric, with the free bias.

        All ranks come in one call: one factorisation of the metric serves them all. The data-fitted solution
        starts from the data-free one and is never worse than it under the same metric; the same input gives
        the same bits.
        """
        ...


def finished(conv: Conv, branches: Iterable[Branch], metric: Metric) -> Rewrite:
    """The sum of fitted chains, in the type of the original's weight, with the free bias.

    Each stage is one node: where the original is a ConvTranspose without strides, a Conv.
    """
    dtype = conv.weight.dtype
    cast = [
        tuple(stage.with_(weight=stage.weight.astype(dtype), lowering=Direct()) for stage in branch)
        for branch in branches
    ]
    rewrite = Rewrite(tuple(cast))
    return rewrite.with_bias(free_bias(conv, rewrite.dense(conv), metric.input).astype(dtype))


def lowered(conv: Conv, lowering: Lowering) -> Rewrite:
    """The convolution itself with another lowering, and a bias, which every rewrite has."""
    bias = np.zeros(conv.out_channels, conv.weight.dtype) if conv.bias is None else conv.bias
    return Rewrite(((conv.with_(bias=bias, lowering=lowering),),))


def no_cheaper(conv: Conv) -> str:
    """Why a convolution of which even rank 1 would be as dear is refused."""
    return f"the weight {conv.weight.shape} in {conv.group} groups has no cheaper factors"
