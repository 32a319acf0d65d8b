"""Gradients through layers: convolutions, poolings, normalisations, reductions, matrix products."""
# ruff: noqa: D103 - every function is the rule of the operator after which it is named

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from rewriter.adjoint.node import Array, Node, known, on_map, unbroadcast
from rewriter.conv import Conv, Ints
from rewriter.transposed import turned


def scale(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    scale, variance = known(node.x[1]), known(node.x[4])
    factor = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    return [gradients[0] * factor.reshape(-1, *(1,) * (gradients[0].ndim - 2)).astype(np.float32)]


def instance_norm(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    x, scale = known(node.x[0]), known(node.x[1])
    axes = tuple(range(2, x.ndim))
    centred = x - x.mean(axes, keepdims=True)
    spread = np.sqrt((centred**2).mean(axes, keepdims=True) + node.attributes.get("epsilon", 1e-5))
    normal = centred / spread
    g = gradients[0] * scale.reshape(-1, *(1,) * len(axes))
    g = g - g.mean(axes, keepdims=True) - normal * (g * normal).mean(axes, keepdims=True)
    return [g / spread, None, None]


def _pads(node: Node, kernel: Ints, strides: Ints, dilations: Ints) -> Ints:
    """Explicit pads of a convolution or pooling, `auto_pad` worked out."""
    axes = len(kernel)
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return tuple(node.attributes.get("pads", (0,) * 2 * axes))
    if mode == "VALID":
        return (0,) * 2 * axes
    sizes, outs = node.in_shapes[0][2:], node.out_shapes[0][2:]
    total = [
        max((out - 1) * stride + (taps - 1) * dilation + 1 - size, 0)
        for out, stride, taps, dilation, size in zip(outs, strides, kernel, dilations, sizes, strict=True)
    ]
    less = [each // 2 for each in total]
    more = [each - half for each, half in zip(total, less, strict=True)]
    return (*less, *more) if mode == "SAME_UPPER" else (*more, *less)


def _spatial(node: Node, kernel: Ints) -> tuple[Ints, Ints]:
    ones = (1,) * len(kernel)
    return tuple(node.attributes.get("strides", ones)), tuple(node.attributes.get("dilations", ones))


def conv(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    """The transposed convolution: zeros between the values, then the kernel turned round, stride 1."""
    weight = known(node.x[1])
    kernel, group = weight.shape[2:], node.attributes.get("group", 1)
    strides, dilations = _spatial(node, kernel)
    pads = _pads(node, kernel, strides, dilations)
    axes = range(len(kernel))
    sizes, outs = node.in_shapes[0][2:], node.out_shapes[0][2:]
    g = gradients[0]
    if max(strides) > 1:
        wide = [(out - 1) * stride + 1 for out, stride in zip(outs, strides, strict=True)]
        spread = np.zeros((*g.shape[:2], *wide), g.dtype)
        spread[on_map(slice(None, None, stride) for stride in strides)] = g
        g = spread
    begins = [dilations[a] * (kernel[a] - 1) - pads[a] for a in axes]
    ends = [sizes[a] - g.shape[2 + a] + dilations[a] * (kernel[a] - 1) - begins[a] for a in axes]
    # pads larger than the kernel: what lies in them is cut away
    g = g[on_map(slice(max(-begins[a], 0), g.shape[2 + a] - max(-ends[a], 0)) for a in axes)]
    back = Conv(
        turned(weight, group).astype(np.float32, copy=False),
        pads=(*(max(b, 0) for b in begins), *(max(e, 0) for e in ends)),
        dilations=dilations,
        group=group,
    )
    return [node.convolve(back, g)]


def conv_transpose(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    weight = known(node.x[1])
    kernel = weight.shape[2:]
    strides, dilations = _spatial(node, kernel)
    sizes, outs = node.in_shapes[0][2:], node.out_shapes[0][2:]
    axes = len(kernel)
    total = [(sizes[a] - 1) * strides[a] + dilations[a] * (kernel[a] - 1) + 1 - outs[a] for a in range(axes)]
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode == "NOTSET" and "output_shape" not in node.attributes:
        begins = list(node.attributes.get("pads", (0,) * axes)[:axes])
    else:
        extra = node.attributes.get("output_padding", (0,) * axes)
        whole = [each + more for each, more in zip(total, extra, strict=True)]
        begins = [each // 2 if mode == "SAME_UPPER" else each - each // 2 for each in whole]
    begins = [max(each, 0) for each in begins]
    # the far end so that as many outputs come as there were inputs
    ends = [max(each - begin, 0) for each, begin in zip(total, begins, strict=True)]
    forth = Conv(
        np.ascontiguousarray(weight, np.float32),
        strides=strides,
        pads=(*begins, *ends),
        dilations=dilations,
        group=node.attributes.get("group", 1),
    )
    return [node.convolve(forth, gradients[0])[on_map(slice(0, size) for size in sizes)]]


def _windows(node: Node) -> tuple[Ints, list[tuple[Any, ...]]]:
    """The padded size of a pooling's input, its begin pads in front, and each tap's slice of it."""
    kernel = tuple(node.attributes["kernel_shape"])
    strides, dilations = _spatial(node, kernel)
    pads = _pads(node, kernel, strides, dilations)
    outs = node.out_shapes[0][2:]
    taps = []
    for tap in product(*map(range, kernel)):
        begins = [t * d for t, d in zip(tap, dilations, strict=True)]
        ends = [b + (o - 1) * s + 1 for b, o, s in zip(begins, outs, strides, strict=True)]
        taps.append(on_map(map(slice, begins, ends, strides)))
    seen = [
        (out - 1) * stride + dilation * (size - 1) + 1
        for out, stride, dilation, size in zip(outs, strides, dilations, kernel, strict=True)
    ]
    sizes = [pad + size for pad, size in zip(pads, node.in_shapes[0][2:], strict=False)]
    return (*pads[: len(kernel)], *map(max, sizes, seen)), taps


def _inside(node: Node, begins: Ints) -> tuple[Any, ...]:
    sizes = node.in_shapes[0][2:]
    return on_map(slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=True))


def max_pool(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    where, taps = _windows(node)
    axes = len(where) // 2
    begins, sizes = where[:axes], where[axes:]
    x, y, g = known(node.x[0]), known(node.y[0]), gradients[0]
    padded = np.full((*x.shape[:2], *sizes), -np.inf, np.float32)
    padded[_inside(node, begins)] = x
    back = np.zeros(padded.shape, np.float32)
    for tap in taps:
        back[tap] += g * (padded[tap] == y)
    return [back[_inside(node, begins)]]


def average_pool(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    # padding counts as values everywhere; the borders are a little off where it does not
    where, taps = _windows(node)
    axes = len(where) // 2
    back = np.zeros((*node.in_shapes[0][:2], *where[axes:]), np.float32)
    share = gradients[0] / len(taps)
    for tap in taps:
        back[tap] += share
    return [back[_inside(node, where[:axes])]]


def global_average(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    shape = node.in_shapes[0]
    return [np.broadcast_to(gradients[0] / prod(shape[2:]), shape)]


def global_max(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    return [gradients[0] * (known(node.x[0]) == known(node.y[0]))]


def _axes(node: Node) -> Ints:
    given = node.attributes.get("axes", node.given(1))
    rank = len(node.in_shapes[0])
    return tuple(range(rank)) if given is None else tuple(int(axis) % rank for axis in np.ravel(given))


def _reduce(node: Node, gradients: Sequence[Array], mean: bool) -> Sequence[Array | None]:
    shape, axes = node.in_shapes[0], _axes(node)
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    count = prod(shape[axis] for axis in axes) if mean else 1
    return [np.broadcast_to(gradients[0].reshape(kept) / count, shape)]


def reduce_mean(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    return _reduce(node, gradients, mean=True)


def reduce_sum(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    return _reduce(node, gradients, mean=False)


def gemm(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    g = gradients[0] * np.float32(node.attributes.get("alpha", 1.0))
    found: list[Array | None] = [None, None]
    if not node.fixed[0]:
        b = known(node.x[1])
        left = g @ (b if node.attributes.get("transB", 0) else b.T)
        found[0] = left.T if node.attributes.get("transA", 0) else left
    if not node.fixed[1]:
        a = known(node.x[0])
        right = (a if node.attributes.get("transA", 0) else a.T) @ g
        found[1] = right.T if node.attributes.get("transB", 0) else right
    if len(node.in_shapes) > 2:
        found.append(unbroadcast(gradients[0] * node.attributes.get("beta", 1.0), node.in_shapes[2]))
    return found


def matmul(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    a, b, g = known(node.x[0]), known(node.x[1]), gradients[0]
    if min(a.ndim, b.ndim) < 2:
        raise NotImplementedError
    return [
        None if node.fixed[0] else unbroadcast(g @ b.swapaxes(-1, -2), a.shape),
        None if node.fixed[1] else unbroadcast(a.swapaxes(-1, -2) @ g, b.shape),
    ]
