"""How a gradient passes each operator backwards: vector-Jacobian products of one node.

Where a rule is not exact it says so: what it serves, a metric shrunk towards the identity, does not need it
to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Final

import numpy as np
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
        in_shapes: Shapes of its inputs; empty for one left out.
        out_shapes: Shapes of its outputs, likewise.
        convolve: Applies a convolution; the same one for every sample of a step.
    """

    attributes: Mapping[str, Any]
    x: Sequence[Array | None]
    y: Sequence[Array | None]
    in_shapes: Sequence[Ints]
    out_shapes: Sequence[Ints]
    convolve: Callable[[Conv, Array], Array]

    def given(self, index: int) -> Array | None:
        """The value of an input that may have been left out."""
        return self.x[index] if index < len(self.x) else None


# The share of a uniform choice in what leaves a Softmax.
_DOUBT = 0.1

Rule = Callable[[Node, Sequence[Array]], Sequence[Array | None]]
"""From a node and the gradients at its outputs to those at its inputs; None where none passes."""


def _value(array: Array | None) -> Array:
    assert array is not None, "a value that the rule needs was not recorded"
    return array


def _map(places: Iterable[slice]) -> tuple[Any, ...]:
    """An index of every sample and channel and of some places of the map."""
    return (slice(None), slice(None), *places)


def unbroadcast(gradient: Array, shape: Ints) -> Array:
    """The sum of a gradient over the axes along which a value of that shape was repeated."""
    extra = gradient.ndim - len(shape)
    axes = tuple(range(extra)) + tuple(
        axis + extra for axis, size in enumerate(shape) if size == 1 and gradient.shape[axis + extra] > 1
    )
    return gradient.sum(axes, keepdims=True).reshape(shape) if axes else gradient.reshape(shape)


def _elementwise(slope: Callable[[Node], Array]) -> Rule:
    """A function of each value, by its slope."""

    def rule(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
        return [gradients[0] * slope(node)]

    return rule


def _relu(node: Node) -> Array:
    return np.greater(_value(node.y[0]), 0)


def _leaky(node: Node) -> Array:
    # the slope is positive, so the output has the sign of the input
    return np.where(_value(node.y[0]) > 0, 1.0, node.attributes.get("alpha", 0.01)).astype(np.float32)


def _elu(node: Node) -> Array:
    y = _value(node.y[0])
    return np.where(y > 0, 1.0, y + node.attributes.get("alpha", 1.0))


def _sigmoid(node: Node) -> Array:
    y = _value(node.y[0])
    slope: Array = y * (1 - y)
    return slope


def _tanh(node: Node) -> Array:
    return 1 - _value(node.y[0]) ** 2


def _hard_sigmoid(node: Node) -> Array:
    y = _value(node.y[0])
    return ((y > 0) & (y < 1)) * np.float32(node.attributes.get("alpha", 0.2))


def _hard_swish(node: Node) -> Array:
    x = _value(node.x[0])
    return np.where(x > 3, 1.0, np.where(x < -3, 0.0, x / 3 + 0.5)).astype(np.float32)


def _softplus(node: Node) -> Array:
    return 1 - np.exp(-_value(node.y[0]))


def _power(node: Node) -> Array:
    base, exponent = _value(node.x[0]), _value(node.x[1])
    slope: Array = exponent * base ** (exponent - 1)
    return slope


def _clip(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    y = _value(node.y[0])
    low = node.given(1) if len(node.x) > 1 else node.attributes.get("min")
    high = node.given(2) if len(node.x) > 2 else node.attributes.get("max")
    passed = np.ones(y.shape, bool)
    if low is not None:
        passed &= y > low
    if high is not None:
        passed &= y < high
    return [gradients[0] * passed]


def _prelu(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    x, slope = _value(node.x[0]), _value(node.x[1])
    return [gradients[0] * np.where(x > 0, np.float32(1), slope), None]


def _add(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    return [unbroadcast(gradients[0], shape) for shape in node.in_shapes]


def _sub(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    first, second = node.in_shapes
    return [unbroadcast(gradients[0], first), unbroadcast(-gradients[0], second)]


def _mul(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    a, b = _value(node.x[0]), _value(node.x[1])
    return [unbroadcast(gradients[0] * b, a.shape), unbroadcast(gradients[0] * a, b.shape)]


def _div(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    a, b = _value(node.x[0]), _value(node.x[1])
    return [unbroadcast(gradients[0] / b, a.shape), unbroadcast(-gradients[0] * a / b**2, b.shape)]


def _extremum(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    y = _value(node.y[0])
    return [unbroadcast(gradients[0] * (_value(x) == y), _value(x).shape) for x in node.x]


def _softmax(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    # before opset 13 all axes from this one on are taken together; there it was 1 by default, on matrices
    axis = node.attributes.get("axis", -1)
    y = _value(node.y[0])
    # what is decided beyond doubt would pass nothing, and with it whatever could overturn it
    y = (1 - _DOUBT) * y + _DOUBT / y.shape[axis]
    return [y * (gradients[0] - (gradients[0] * y).sum(axis, keepdims=True))]


def _log_softmax(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    axis = node.attributes.get("axis", -1)
    return [gradients[0] - np.exp(_value(node.y[0])) * gradients[0].sum(axis, keepdims=True)]


def _scale(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    scale, variance = _value(node.x[1]), _value(node.x[4])
    factor = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
    return [gradients[0] * factor.reshape(-1, *(1,) * (gradients[0].ndim - 2)).astype(np.float32)]


def _instance_norm(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    x, scale = _value(node.x[0]), _value(node.x[1])
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


def _conv(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    """The transposed convolution: zeros between the values, then the kernel turned round, stride 1."""
    weight = _value(node.x[1])
    kernel, group = weight.shape[2:], node.attributes.get("group", 1)
    strides, dilations = _spatial(node, kernel)
    pads = _pads(node, kernel, strides, dilations)
    axes = range(len(kernel))
    sizes, outs = node.in_shapes[0][2:], node.out_shapes[0][2:]
    g = gradients[0]
    if max(strides) > 1:
        wide = [(out - 1) * stride + 1 for out, stride in zip(outs, strides, strict=True)]
        spread = np.zeros((*g.shape[:2], *wide), g.dtype)
        spread[_map(slice(None, None, stride) for stride in strides)] = g
        g = spread
    begins = [dilations[a] * (kernel[a] - 1) - pads[a] for a in axes]
    ends = [sizes[a] - g.shape[2 + a] + dilations[a] * (kernel[a] - 1) - begins[a] for a in axes]
    # pads larger than the kernel: what lies in them is cut away
    g = g[_map(slice(max(-begins[a], 0), g.shape[2 + a] - max(-ends[a], 0)) for a in axes)]
    turned = weight.reshape(group, -1, *weight.shape[1:]).swapaxes(1, 2)
    turned = np.flip(turned.reshape(-1, *turned.shape[2:]), tuple(range(2, 2 + len(kernel))))
    back = Conv(
        np.ascontiguousarray(turned, np.float32),
        pads=(*(max(b, 0) for b in begins), *(max(e, 0) for e in ends)),
        dilations=dilations,
        group=group,
    )
    return [node.convolve(back, g)]


def _conv_transpose(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    weight = _value(node.x[1])
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
    return [node.convolve(forth, gradients[0])[_map(slice(0, size) for size in sizes)]]


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
        taps.append(_map(map(slice, begins, ends, strides)))
    seen = [
        (out - 1) * stride + dilation * (size - 1) + 1
        for out, stride, dilation, size in zip(outs, strides, dilations, kernel, strict=True)
    ]
    sizes = [pad + size for pad, size in zip(pads, node.in_shapes[0][2:], strict=False)]
    return (*pads[: len(kernel)], *map(max, sizes, seen)), taps


def _inside(node: Node, begins: Ints) -> tuple[Any, ...]:
    sizes = node.in_shapes[0][2:]
    return _map(slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=True))


def _max_pool(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    where, taps = _windows(node)
    axes = len(where) // 2
    begins, sizes = where[:axes], where[axes:]
    x, y, g = _value(node.x[0]), _value(node.y[0]), gradients[0]
    padded = np.full((*x.shape[:2], *sizes), -np.inf, np.float32)
    padded[_inside(node, begins)] = x
    back = np.zeros(padded.shape, np.float32)
    for tap in taps:
        back[tap] += g * (padded[tap] == y)
    return [back[_inside(node, begins)]]


def _average_pool(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    # padding counts as values everywhere; the borders are a little off where it does not
    where, taps = _windows(node)
    axes = len(where) // 2
    back = np.zeros((*node.in_shapes[0][:2], *where[axes:]), np.float32)
    share = gradients[0] / len(taps)
    for tap in taps:
        back[tap] += share
    return [back[_inside(node, where[:axes])]]


def _global_average(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    shape = node.in_shapes[0]
    return [np.broadcast_to(gradients[0] / prod(shape[2:]), shape)]


def _global_max(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    return [gradients[0] * (_value(node.x[0]) == _value(node.y[0]))]


def _axes(node: Node) -> Ints:
    given = node.attributes.get("axes", node.given(1))
    rank = len(node.in_shapes[0])
    return tuple(range(rank)) if given is None else tuple(int(axis) % rank for axis in np.ravel(given))


def _reduce(node: Node, gradients: Sequence[Array], mean: bool) -> Sequence[Array | None]:
    shape, axes = node.in_shapes[0], _axes(node)
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    count = prod(shape[axis] for axis in axes) if mean else 1
    return [np.broadcast_to(gradients[0].reshape(kept) / count, shape)]


def _reduce_mean(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    return _reduce(node, gradients, mean=True)


def _reduce_sum(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    return _reduce(node, gradients, mean=False)


def _gemm(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    a, b = _value(node.x[0]), _value(node.x[1])
    g = gradients[0] * np.float32(node.attributes.get("alpha", 1.0))
    left = g @ (b if node.attributes.get("transB", 0) else b.T)
    right = (a if node.attributes.get("transA", 0) else a.T) @ g
    found = [
        left.T if node.attributes.get("transA", 0) else left,
        right.T if node.attributes.get("transB", 0) else right,
    ]
    if len(node.in_shapes) > 2:
        found.append(unbroadcast(gradients[0] * node.attributes.get("beta", 1.0), node.in_shapes[2]))
    return found


def _matmul(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    a, b, g = _value(node.x[0]), _value(node.x[1]), gradients[0]
    if min(a.ndim, b.ndim) < 2:
        raise NotImplementedError
    return [
        unbroadcast(g @ b.swapaxes(-1, -2), a.shape),
        unbroadcast(a.swapaxes(-1, -2) @ g, b.shape),
    ]


def _reshape(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    return [gradients[0].reshape(node.in_shapes[0])]


def _transpose(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    order = node.attributes.get("perm", tuple(reversed(range(gradients[0].ndim))))
    return [gradients[0].transpose(np.argsort(order))]


def _concat(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    axis = node.attributes.get("axis", 1)
    ends = np.cumsum([shape[axis] for shape in node.in_shapes])[:-1]
    return np.split(gradients[0], ends, axis)


def _split(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    return [np.concatenate(gradients, node.attributes.get("axis", 0))]


def _slice(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    if len(node.in_shapes) > 1:
        starts, ends = (np.ravel(_value(node.x[index])) for index in (1, 2))
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


def _pad(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    # what was reflected or repeated into the border is left out
    given = node.attributes.get("pads", node.attributes.get("paddings", node.given(1)))
    pads, sizes = [int(each) for each in np.ravel(given)], node.in_shapes[0]
    if len(pads) != 2 * len(sizes) or min(pads) < 0:
        raise NotImplementedError
    return [gradients[0][tuple(slice(b, b + size) for b, size in zip(pads, sizes, strict=False))]]


def _upsample(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    # of the nearest values; what is interpolated is close to it
    before, after = node.in_shapes[0], node.out_shapes[0]
    if any(large % small for small, large in zip(before, after, strict=True)):
        raise NotImplementedError
    shape = [size for small, large in zip(before, after, strict=True) for size in (small, large // small)]
    return [gradients[0].reshape(shape).sum(tuple(range(1, 2 * len(before), 2)))]


def _depth_to_space(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    n, c, h, w = node.in_shapes[0]
    b = int(node.attributes["blocksize"])
    spread = gradients[0].reshape(n, c // b**2, h, b, w, b)
    order = (0, 3, 5, 1, 2, 4) if node.attributes.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return [spread.transpose(order).reshape(n, c, h, w)]


def _space_to_depth(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    n, c, h, w = node.in_shapes[0]
    b = int(node.attributes["blocksize"])
    gathered = gradients[0].reshape(n, b, b, c, h // b, w // b)
    return [gathered.transpose(0, 3, 4, 1, 5, 2).reshape(n, c, h, w)]


def _same(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    return [gradients[0]]


def _expand(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    return [unbroadcast(gradients[0], node.in_shapes[0])]


CONSTANT: Final = frozenset({"ConstantOfShape", "Shape", "Size"})
"""Operators whose outputs do not change with the values of their inputs."""

# The operator's rule, and which values it needs beside shapes: of the first input (x), of all others (c, as
# weights, axes and pads), of the first output (y).
RULES: Final[Mapping[str, tuple[Rule, str]]] = {
    "Abs": (_elementwise(lambda node: np.sign(_value(node.x[0]))), "x"),
    "Add": (_add, ""),
    "AveragePool": (_average_pool, ""),
    "BatchNormalization": (_scale, "c"),
    "Cast": (_same, ""),
    "Clip": (_clip, "cy"),
    "Concat": (_concat, ""),
    "Conv": (_conv, "c"),
    "ConvTranspose": (_conv_transpose, "c"),
    "DepthToSpace": (_depth_to_space, ""),
    "Div": (_div, "xc"),
    "Dropout": (_same, ""),
    "Elu": (_elementwise(_elu), "y"),
    "Exp": (_elementwise(lambda node: _value(node.y[0])), "y"),
    "Expand": (_expand, ""),
    "Flatten": (_reshape, ""),
    "Gemm": (_gemm, "xc"),
    "GlobalAveragePool": (_global_average, ""),
    "GlobalMaxPool": (_global_max, "xy"),
    "HardSigmoid": (_elementwise(_hard_sigmoid), "y"),
    "HardSwish": (_elementwise(_hard_swish), "x"),
    "Identity": (_same, ""),
    "InstanceNormalization": (_instance_norm, "xc"),
    "LeakyRelu": (_elementwise(_leaky), "y"),
    "Log": (_elementwise(lambda node: 1 / _value(node.x[0])), "x"),
    "LogSoftmax": (_log_softmax, "y"),
    "MatMul": (_matmul, "xc"),
    "Max": (_extremum, "xcy"),
    "MaxPool": (_max_pool, "xy"),
    "Min": (_extremum, "xcy"),
    "Mul": (_mul, "xc"),
    "Neg": (_elementwise(lambda node: np.array(-1, np.float32)), ""),
    "PRelu": (_prelu, "xc"),
    "Pad": (_pad, "c"),
    "Pow": (_elementwise(_power), "xc"),
    "Reciprocal": (_elementwise(lambda node: -(_value(node.y[0]) ** 2)), "y"),
    "ReduceMean": (_reduce_mean, "c"),
    "ReduceSum": (_reduce_sum, "c"),
    "Relu": (_elementwise(_relu), "y"),
    "Reshape": (_reshape, ""),
    "Resize": (_upsample, ""),
    "Sigmoid": (_elementwise(_sigmoid), "y"),
    "Slice": (_slice, "c"),
    "Softmax": (_softmax, "y"),
    "Softplus": (_elementwise(_softplus), "y"),
    "SpaceToDepth": (_space_to_depth, ""),
    "Split": (_split, ""),
    "Sqrt": (_elementwise(lambda node: 0.5 / _value(node.y[0])), "y"),
    "Squeeze": (_reshape, ""),
    "Sub": (_sub, ""),
    "Sum": (_add, ""),
    "Tanh": (_elementwise(_tanh), "y"),
    "Transpose": (_transpose, ""),
    "Unsqueeze": (_reshape, ""),
    "Upsample": (_upsample, ""),
}
