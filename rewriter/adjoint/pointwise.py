"""Gradients through functions of each value, sums and products of tensors, and softmax."""
# ruff: noqa: D103 - every function is the rule of the operator after which it is named

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rewriter.adjoint.node import Array, Node, Rule, known, unbroadcast

# The share of a uniform choice in what leaves a Softmax.
_DOUBT = 0.1


def elementwise(slope: Callable[[Node], Array]) -> Rule:
    """A function of each value, by its slope."""

    def rule(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
        return [gradients[0] * slope(node)]

    return rule


def relu(node: Node) -> Array:
    return np.greater(known(node.y[0]), 0)


def leaky(node: Node) -> Array:
    # the slope is positive, so the output has the sign of the input
    return np.where(known(node.y[0]) > 0, 1.0, node.attributes.get("alpha", 0.01)).astype(np.float32)


def elu(node: Node) -> Array:
    y = known(node.y[0])
    return np.where(y > 0, 1.0, y + node.attributes.get("alpha", 1.0))


def sigmoid(node: Node) -> Array:
    y = known(node.y[0])
    slope: Array = y * (1 - y)
    return slope


def tanh(node: Node) -> Array:
    return 1 - known(node.y[0]) ** 2


def hard_sigmoid(node: Node) -> Array:
    y = known(node.y[0])
    return ((y > 0) & (y < 1)) * np.float32(node.attributes.get("alpha", 0.2))


def hard_swish(node: Node) -> Array:
    x = known(node.x[0])
    return np.where(x > 3, 1.0, np.where(x < -3, 0.0, x / 3 + 0.5)).astype(np.float32)


def softplus(node: Node) -> Array:
    return 1 - np.exp(-known(node.y[0]))


def power(node: Node) -> Array:
    base, exponent = known(node.x[0]), known(node.x[1])
    slope: Array = exponent * base ** (exponent - 1)
    return slope


def clip(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    y = known(node.y[0])
    low = node.given(1) if len(node.x) > 1 else node.attributes.get("min")
    high = node.given(2) if len(node.x) > 2 else node.attributes.get("max")
    passed = np.ones(y.shape, bool)
    if low is not None:
        passed &= y > low
    if high is not None:
        passed &= y < high
    return [gradients[0] * passed]


def prelu(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    x, slope = known(node.x[0]), known(node.x[1])
    return [gradients[0] * np.where(x > 0, np.float32(1), slope), None]


def add(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    return [unbroadcast(gradients[0], shape) for shape in node.in_shapes]


def sub(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    first, second = node.in_shapes
    return [unbroadcast(gradients[0], first), unbroadcast(-gradients[0], second)]


def mul(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    a, b = known(node.x[0]), known(node.x[1])
    return [unbroadcast(gradients[0] * b, a.shape), unbroadcast(gradients[0] * a, b.shape)]


def div(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    a, b = known(node.x[0]), known(node.x[1])
    return [unbroadcast(gradients[0] / b, a.shape), unbroadcast(-gradients[0] * a / b**2, b.shape)]


def extremum(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    y = known(node.y[0])
    return [unbroadcast(gradients[0] * (known(x) == y), known(x).shape) for x in node.x]


def softmax(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    # before opset 13 all axes from this one on are taken together; there it was 1 by default, on matrices
    axis = node.attributes.get("axis", -1)
    y = known(node.y[0])
    # what is decided beyond doubt would pass nothing, and with it whatever could overturn it
    y = (1 - _DOUBT) * y + _DOUBT / y.shape[axis]
    return [y * (gradients[0] - (gradients[0] * y).sum(axis, keepdims=True))]


def log_softmax(node: Node, gradients: Sequence[Array]) -> Sequence[Array | None]:
    axis = node.attributes.get("axis", -1)
    return [gradients[0] - np.exp(known(node.y[0])) * gradients[0].sum(axis, keepdims=True)]
