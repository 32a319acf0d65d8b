"""The pieces of outputs that a Concat joins, such as boxes and scores: each is an output of its own.

An error in one is no share of what is in the others, though all are in one tensor. Pieces lie along the axis
that holds what there is at each place; what is joined along others, as the places of several scales are, is
all of one kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy.typing as npt
import onnx

from rewriter.graph.attributes import attribute
from rewriter.graph.facts import Facts
from rewriter.graph.model import Model
from rewriter.graph.reach import IN_PLACE, RESHAPES

Array = npt.NDArray[Any]
Sizes = tuple[int | str | None, ...]
Joints = Mapping[int, frozenset[int]]
"""Where a tensor is joined, by axis."""

# So many are steps of a sequence rather than things of several kinds.
_MOST: Final = 16
# What there is at each place is at most so many times as much as there are places.
_SHORT: Final = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """A slice of an output along one axis, or all of it.

    Attributes:
        output: The output's name.
        axis: Counted from the last one, -1: samples that are told apart later add axes in front.
        start: Its first index.
        stop: The first index behind it; None at the end.
        rank: How many axes the output has.
    """

    output: str
    axis: int = -1
    start: int = 0
    stop: int | None = None
    rank: int = 0

    @property
    def name(self) -> str:
        """What reports call it: the output, indexed as in numpy where it is a slice."""
        if self.start == 0 and self.stop is None:
            return self.output
        ends = f"{self.start or ''}:{'' if self.stop is None else self.stop}"
        return f"{self.output}[{', '.join([':'] * (self.rank + self.axis) + [ends])}]"

    def of(self, array: Array) -> Array:
        """The view of it in the output's values."""
        if self.start == 0 and self.stop is None:
            return array
        return array[(..., slice(self.start, self.stop), *[slice(None)] * (-1 - self.axis))]


def output_pieces(model: Model) -> tuple[tuple[Piece, ...], ...]:
    """The pieces of each output, in the order of the outputs; of one that nothing joins, all of it."""
    facts = Facts(model)
    joints = _joints(facts)
    return tuple(_pieces(each, facts.sizes(each) or (), joints.get(each, {})) for each in model.outputs)


def _pieces(output: str, sizes: Sizes, joints: Joints) -> tuple[Piece, ...]:
    axes = [axis for axis in joints if axis > 0 and _of_things(sizes, axis)]
    if not axes:
        return (Piece(output),)
    axis = min(axes, key=lambda each: (sizes[each], each))
    cuts = sorted(joints[axis])
    ends = zip((0, *cuts), (*cuts, None), strict=True)
    return tuple(Piece(output, axis - len(sizes), start, stop, len(sizes)) for start, stop in ends)


def _of_things(sizes: Sizes, axis: int) -> bool:
    """Whether an axis holds what there is at each place, rather than places."""
    others = [size for other, size in enumerate(sizes) if other not in (0, axis)]
    known = [size for size in others if isinstance(size, int)]
    size = sizes[axis]
    return len(known) < len(others) or not others or (isinstance(size, int) and size <= _SHORT * prod(known))


def _joints(facts: Facts) -> dict[str, Joints]:
    """Where tensors are joined, of those that are."""
    found: dict[str, Joints] = {}
    for _, node in facts.nodes:
        taken = [found.get(name, {}) for name in node.input]
        if node.op_type != "Concat" and not any(taken):
            continue
        sizes = facts.sizes(node.output[0])
        if sizes is None:
            continue
        joints = _through(facts, node, sizes, taken)
        if kept := {axis: cuts for axis, cuts in joints.items() if 0 < len(cuts) < _MOST}:
            found[node.output[0]] = kept
    return found


def _through(facts: Facts, node: onnx.NodeProto, sizes: Sizes, taken: Sequence[Joints]) -> Joints:
    """Where the output of a node is joined."""
    if node.op_type == "Concat":
        along = attribute(node, "axis", 1) % len(sizes)
        shared = {
            axis: cuts.intersection(*(each.get(axis, ()) for each in taken))
            for axis, cuts in taken[0].items()
            if axis != along
        }
        return {**shared, along: _joined(facts, node, along, taken)}
    first = facts.sizes(node.input[0])
    if node.op_type == "Transpose":
        order = attribute(node, "perm", list(reversed(range(len(sizes)))))
        return {axis: taken[0][was] for axis, was in enumerate(order) if was in taken[0]}
    if node.op_type in RESHAPES and first is not None:
        kept = [(_kept(first, sizes, axis), cuts) for axis, cuts in taken[0].items()]
        return {axis: cuts for axis, cuts in kept if axis is not None}
    if node.op_type in IN_PLACE:
        alike = [each for each, name in zip(taken, node.input, strict=True) if facts.sizes(name) == sizes]
        return alike[0] if len(alike) == 1 else {}
    return {}


def _joined(facts: Facts, node: onnx.NodeProto, along: int, taken: Sequence[Joints]) -> frozenset[int]:
    """Where a Concat joins, and what it takes was joined already."""
    cuts: set[int] = set()
    start = 0
    for name, each in zip(node.input, taken, strict=True):
        sizes = facts.sizes(name)
        size = None if sizes is None else sizes[along]
        if not isinstance(size, int):
            return frozenset()
        cuts.update((start, *(start + cut for cut in each.get(along, ()))))
        start += size
    return frozenset(cuts - {0, start})


def _kept(before: Sizes, after: Sizes, axis: int) -> int | None:
    """Where an axis is after reshaping, if all in front of it or all behind it comes through as it is.

    The first axis, of the samples, often has a size that nobody knows.
    """
    same = len({size for size in (*before[:1], *after[:1]) if isinstance(size, int)}) < 2
    if same and None not in before[1 : axis + 1] and before[1 : axis + 1] == after[1 : axis + 1]:
        return axis
    behind = axis - len(before)
    if -behind < len(after) and None not in before[behind:] and before[behind:] == after[behind:]:
        return behind + len(after)
    return None
