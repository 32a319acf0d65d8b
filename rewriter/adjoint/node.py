"""A node on the way back: what ran through it, and what its rule gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from rewriter.conv import Conv, Ints

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A node with what ran through it.

    Attributes:
        attributes: Of the node.
        x: Values of its inputs; None where they were not recorded, see `VALUES`.
        y: Values of its outputs, likewise.
        fixed: Whether each input is constant: no gradient is wanted there.
        in_shapes: Shapes of its inputs; empty for one left out.
        out_shapes: Shapes of its outputs, likewise.
        convolve: Applies a convolution; the same one for every sample of a step.
    """

    attributes: Mapping[str, Any]
    x: Sequence[Array | None]
    y: Sequence[Array | None]
    fixed: Sequence[bool]
    in_shapes: Sequence[Ints]
    out_shapes: Sequence[Ints]
    convolve: Callable[[Conv, Array], Array]

    def given(self, index: int) -> Array | None:
        """The value of an input that may have been left out."""
        return self.x[index] if index < len(self.x) else None


Rule = Callable[[Node, Sequence[Array]], Sequence[Array | None]]
"""From a node and the gradients at its outputs to those at its inputs; None where none passes."""


def known(array: Array | None) -> Array:
    """The value, which the table of rules has asked for."""
    assert array is not None, "a value that the rule needs was not recorded"
    return array


def on_map(places: Iterable[slice]) -> tuple[Any, ...]:
    """An index of every sample and channel and of some places of the map."""
    return (slice(None), slice(None), *places)


def unbroadcast(gradient: Array, shape: Ints) -> Array:
    """The sum of a gradient over the axes along which a value of that shape was repeated."""
    extra = gradient.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        axis + extra for axis, size in enumerate(shape) if size == 1 and gradient.shape[axis + extra] > 1
    )
    return gradient.sum(axes, keepdims=True).reshape(shape) if axes else gradient.reshape(shape)
