"""What a pass is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol

from rewriter.conv import Conv, Grid, Ints, Metric, Rewrite

Rank = Ints


class Pass(Protocol):
    """A pure function from a convolution to its rewrites at several ranks.

    Passes are frozen dataclasses whose fields are their options; none subclasses another. `rank` is each
    pass's own knob, a tuple of ints whose meaning its docstring states; the error falls as any component
    grows.

    Attributes:
        name: The structure that a convolution becomes.
        exact: Whether every rewrite computes the same, up to rounding: it needs no samples and no budget.
        lowers: Whether its rewrites are written as other operators than Conv and Add.
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
