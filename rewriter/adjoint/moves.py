"""Gradients through what only moves values: shapes, parts, joints, borders, and other resolutions."""
# ruff: noqa: D103 - every function is the rule of the operator after which it is named

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewriter.adjoint.node import Array, Node, known, unbroadcast


def reshape(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    return [gradients[0].reshape(node.in_shapes[0])]


def transpose(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    order = node.attributes.get("perm", tuple(reversed(range(gradients[0].ndim))))
    return [gradients[0].transpose(np.argsort(order))]


def concat(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    axis = node.attributes.get("axis", 1)
    ends = np.cumsum([shape[axis] for shape in node.in_shapes])[:-1]
    return np.split(gradients[0], ends, axis)


def split(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    return [np.concatenate(gradients, node.attributes.get("axis", 0))]


def cut(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    if len(node.in_shapes) > 1:
        starts, ends = (np.ravel(known(node.x[index])) for index in (1, 2))
        axes, steps = node.given(3), node.given(4)
    else:
        starts, ends = np.ravel(node.attributes["starts"]), np.ravel(node.attributes["ends"])
        axes, steps = node.attributes.get("axes"), None
    places: list[slice] = [slice(None)] * len(node.in_shapes[0])
    of = range(len(starts)) if axes is None else np.ravel(axes)
    by = np.ones(len(starts), int) if steps is None else np.ravel(steps)
    for start, end, axis, step in zip(starts, ends, of, by, strict=True):
        if step < 0:
            raise NotImplementedError
        places[int(axis)] = slice(int(start), int(end), int(step))
    back = np.zeros(node.in_shapes[0], np.float32)
    back[tuple(places)] = gradients[0]
    return [back]


def pad(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    # what was reflected or repeated into the border is left out
    given = node.attributes.get("pads", node.attributes.get("paddings", node.given(1)))
    pads, sizes = [int(each) for each in np.ravel(given)], node.in_shapes[0]
    if len(pads) != 2 * len(sizes) or min(pads) < 0:
        raise NotImplementedError
    return [gradients[0][tuple(slice(b, b + size) for b, size in zip(pads, sizes, strict=False))]]


def upsample(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    # of the nearest values; what is interpolated is close to it
    before, after = node.in_shapes[0], node.out_shapes[0]
    if any(large % small for small, large in zip(before, after, strict=True)):
        raise NotImplementedError
    shape = [size for small, large in zip(before, after, strict=True) for size in (small, large // small)]
    return [gradients[0].reshape(shape).sum(tuple(range(1, 2 * len(before), 2)))]


def depth_to_space(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    n, c, h, w = node.in_shapes[0]
    b = int(node.attributes["blocksize"])
    spread = gradients[0].reshape(n, c // b**2, h, b, w, b)
    order = (0, 3, 5, 1, 2, 4) if node.attributes.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return [spread.transpose(order).reshape(n, c, h, w)]


def space_to_depth(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    n, c, h, w = node.in_shapes[0]
    b = int(node.attributes["blocksize"])
    gathered = gradients[0].reshape(n, b, b, c, h // b, w // b)
    return [gathered.transpose(0, 3, 4, 1, 5, 2).reshape(n, c, h, w)]


def same(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    return [gradients[0]]


def expand(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    return [unbroadcast(gradients[0], node.in_shapes[0])]
