"""Activations that a model has in pieces, as the one operator that ONNX Runtime computes with a convolution.

    min(max(x, l), h) = Clip(x; l, h)        PRelu(x; s) = LeakyRelu(x; s)        where all slopes are one
    clip(a·x + b, 0, h) / h = HardSigmoid(x; a/h, b/h)        x · HardSigmoid(x; 1/6, 1/2) = HardSwish(x)

The first two are the same bit for bit, the others up to rounding. In pieces they are as many passes over
memory, and on the CPU provider changes of layout before and after. Exporters write hard swishes so for models
of ONNX's operators before version 14.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import onnx

from rewriter.graph.attributes import attribute
from rewriter.graph.emit import Emitted
from rewriter.graph.facts import Facts
from rewriter.graph.model import Model
from rewriter.graph.opset import BROADCASTING
from rewriter.graph.scaling import factor_and_shift
from rewriter.graph.scope import Names
from rewriter.graph.splice import Piece, apart, replaced

# Bounds of Clip are inputs from here on; before, attributes.
_CLIP_INPUTS: Final = 11
_HARD_SWISH_OPSET: Final = 14
# Of float32: exporters write 1/6 as 0.1667 at the coarsest, which is another function.
_SAME: Final = 1e-6
# What a hard sigmoid is followed by at most: a factor before, one behind, and a product with its input.
_MOST_BEHIND: Final = 3


def as_fusible(model: Model) -> Model:
    """The model with activations in one operator that were in several; the same where there are none."""
    if model.opset < BROADCASTING:
        return model
    for find in (_clips, _hard_sigmoids):
        pieces = list(apart(find(Facts(model))))
        if pieces:
            model = model.edited(replaced(model, pieces))
    return model


def in_gelus(model: Model) -> frozenset[int]:
    """The indices of nodes that are a Gelu in pieces, by Erf or by Tanh, which ONNX Runtime makes one.

    It knows them by their shape, so that none of their factors may go into a convolution beside.
    """
    if not any(node.op_type in ("Erf", "Tanh") for node in model.proto.graph.node):
        return frozenset()
    graph = Facts(model)
    found: set[int] = set()
    for index, node in graph.nodes:
        if node.op_type in ("Erf", "Tanh") and (risen := graph.taker(node.output[0])) is not None:
            found |= {index, risen[0]}
            product = graph.taker(risen[1].output[0])
            if risen[1].op_type != "Add" or product is None:
                continue
            halved = [each for name in product[1].input if (each := graph.maker(name)) and graph.scales(each)]
            parts = [graph.maker(node.input[0]), product, *halved]
            if not halved:
                parts.append(graph.taker(product[1].output[0]))
            found |= {each[0] for each in parts if each is not None}
    return frozenset(found)


def _clips(graph: Facts) -> Iterator[Piece]:
    """Clips in two nodes, and PRelus with one slope."""
    for index, node in graph.nodes:
        if node.op_type == "PRelu":
            slopes = graph.constant(node.input[1])
            if slopes is not None and slopes.size and np.all(slopes == slopes.flat[0]):
                made = partial(_leaky, node, float(slopes.flat[0]))
                yield Piece(node.name, (index,), (node.input[0],), node.output[0], made)
            continue
        first = _bound(graph, node)
        if first is None or (behind := graph.taker(node.output[0])) is None:
            continue
        last, after = behind
        second = _bound(graph, after)
        if second is None or {first.above, second.above} != {True, False}:
            continue
        low, high = (second.value, first.value) if first.above else (first.value, second.value)
        if low <= high:
            made = partial(_clip, after, first.input, low, high, graph.opset)
            yield Piece(after.name, (index, last), (first.input,), after.output[0], made)


@dataclass(frozen=True, slots=True)
class _Bound:
    """What a Min (from above), a Max or a Relu bounds its input by."""

    input: str
    above: bool
    value: float


def _bound(graph: Facts, node: onnx.NodeProto) -> _Bound | None:
    if node.op_type == "Relu":
        return _Bound(node.input[0], False, 0.0)
    found = graph.operand(node) if node.op_type in ("Min", "Max") else None
    return None if found is None else _Bound(found[0], node.op_type == "Min", found[2])


def _hard_sigmoids(graph: Facts) -> Iterator[Piece]:
    """Hard sigmoids in several nodes, and hard swishes: their products with what they are of."""
    for index, node in graph.nodes:
        if node.op_type != "Clip" or (high := _clipped_at(graph, node)) is None:
            continue
        source, slope, offset, before = _line(graph, node.input[0])
        if slope > 0.0 and offset != 0.0 and (found := _whole(graph, node, source, high)) is not None:
            behind, swish = found
            indices = (*before, index, *behind)
            last = graph.node(indices[-1])
            made = partial(_hard, last, source, slope / high, offset / high, swish, graph.opset)
            yield Piece(last.name, indices, (source,), last.output[0], made)


def _clipped_at(graph: Facts, node: onnx.NodeProto) -> float | None:
    """The upper bound of a Clip whose lower one is 0."""
    low: float | None
    high: float | None
    if graph.opset < _CLIP_INPUTS:
        low, high = attribute(node, "min"), attribute(node, "max")
    else:
        low, high = (graph.number(name, node.input[0]) for name in [*node.input, "", ""][1:3])
    return high if low == 0.0 and high is not None and 0.0 < high < np.inf else None


def _line(graph: Facts, name: str) -> tuple[str, float, float, tuple[int, ...]]:
    """A tensor as a line a·x + b of another, and the nodes that compute it and that nothing else needs."""
    slope, offset = 1.0, 0.0
    nodes: tuple[int, ...] = ()
    while (maker := graph.maker(name)) is not None and graph.taker(name) is not None:
        index, node = maker
        found = graph.operand(node)
        change = None if found is None else _change(node, *found[1:])
        if found is None or change is None:
            break
        # a·(f·x + t) + b
        factor, term = change
        slope, offset = slope * factor, slope * term + offset
        name, nodes = found[0], (index, *nodes)
    return name, slope, offset, nodes


def _change(node: onnx.NodeProto, slot: int, number: float) -> tuple[float, float] | None:
    """The factor and the term of an operator on a tensor and a number."""
    found = factor_and_shift(node.op_type, slot, np.array([number]))
    if found is None:
        return None
    factor, term = found
    return float(np.reshape(factor, ())), 0.0 if term is None else float(np.reshape(term, ()))


def _whole(
    graph: Facts, clip: onnx.NodeProto, source: str, high: float
) -> tuple[tuple[int, ...], bool] | None:
    """The nodes behind a clipped line that make it a hard sigmoid, and whether they make it a hard swish."""
    nodes: tuple[int, ...] = ()
    scale, swish, name = high, False, clip.output[0]
    best = (nodes, swish) if _is_one(scale) else None
    for _ in range(_MOST_BEHIND):
        if (taker := graph.taker(name)) is None:
            break
        index, node = taker
        if node.op_type == "Mul" and sorted(node.input) == sorted((name, source)) and not swish:
            swish = True
        else:
            found = graph.operand(node) if node.op_type in ("Mul", "Div") else None
            change = None if found is None else _change(node, *found[1:])
            if change is None:
                break
            scale *= change[0]
        nodes, name = (*nodes, index), node.output[0]
        if _is_one(scale):
            best = (nodes, swish)
    return best


def _is_one(value: float) -> bool:
    return abs(value - 1.0) < _SAME


def _leaky(node: onnx.NodeProto, slope: float, given: Names) -> Emitted:
    made = onnx.helper.make_node("LeakyRelu", [node.input[0]], [node.output[0]], name=node.name, alpha=slope)
    return Emitted((made,), ())


def _clip(node: onnx.NodeProto, source: str, low: float, high: float, opset: int, given: Names) -> Emitted:
    if opset < _CLIP_INPUTS:
        made = onnx.helper.make_node("Clip", [source], [node.output[0]], name=node.name, min=low, max=high)
        return Emitted((made,), ())
    prefix = node.name or node.output[0]
    tensors = tuple(
        onnx.numpy_helper.from_array(np.array(value, np.float32), given.new(f"{prefix}/{name}"))
        for name, value in (("low", low), ("high", high))
    )
    taken = [source, *(tensor.name for tensor in tensors)]
    return Emitted((onnx.helper.make_node("Clip", taken, [node.output[0]], name=node.name),), tensors)


def _hard(
    node: onnx.NodeProto, source: str, alpha: float, beta: float, swish: bool, opset: int, given: Names
) -> Emitted:
    output = node.output[0]
    if swish and opset >= _HARD_SWISH_OPSET and _is_one(6 * alpha) and _is_one(2 * beta):
        return Emitted((onnx.helper.make_node("HardSwish", [source], [output], name=node.name),), ())
    prefix = node.name or output
    inner, name = output, node.name
    if swish:
        inner, name = given.new(f"{prefix}/hard_sigmoid_output"), given.new(f"{prefix}/hard_sigmoid")
    nodes = [onnx.helper.make_node("HardSigmoid", [source], [inner], name=name, alpha=alpha, beta=beta)]
    if swish:
        nodes.append(onnx.helper.make_node("Mul", [source, inner], [output], name=node.name))
    return Emitted(tuple(nodes), ())
