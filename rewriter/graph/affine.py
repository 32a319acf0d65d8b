"""Factors and terms for each channel that no convolution takes in, as one BatchNormalization.

    s·x + t = BatchNormalization(x; γ = s, β = t, μ = 0, σ² = 1, ε = 0)

A term in front of a convolution that pads cannot go into its bias. On ONNX Runtime's CPU provider Mul and Add
are two passes over memory between changes of layout there and back, and a BatchNormalization stays in the
layout of the convolutions around it. Exact up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Final, NamedTuple

import numpy as np
import onnx

from rewriter.conv import Array
from rewriter.graph.analysis import Analysis
from rewriter.graph.attributes import ONNX_DOMAINS
from rewriter.graph.batchnorm import factor_and_term
from rewriter.graph.emit import Emitted
from rewriter.graph.fusible import in_gelus
from rewriter.graph.model import Model
from rewriter.graph.opset import BROADCASTING
from rewriter.graph.scaling import SCALINGS, by_channel, factor_and_shift, held
from rewriter.graph.scope import Names
from rewriter.graph.splice import Piece, replaced
from rewriter.graph.types import Types, infer_types, shape

# Of images: other tensors have no layout of their own.
_RANK: Final = 4


class Step(NamedTuple):
    """What a node does to its input: a factor and a term for each channel, `[C]`."""

    input: str
    factor: Array
    term: Array


def step_of(
    node: onnx.NodeProto, channels: int, rank: int, analysis: Analysis, types: Callable[[], Types], opset: int
) -> Step | None:
    """What a node does to a tensor of so many channels and axes, or None where that is anything else."""
    if node.domain not in ONNX_DOMAINS:
        return None
    if node.op_type == "BatchNormalization":
        found = factor_and_term(node, channels, analysis, opset)
        return None if found is None else Step(node.input[0], *found)
    if node.op_type not in SCALINGS or len(node.input) != 2 or opset < BROADCASTING:
        return None
    values = [analysis.constant(name) for name in node.input]
    if (values[0] is None) == (values[1] is None):
        return None
    slot = 0 if values[0] is None else 1
    sizes = shape(types(), node.input[slot])
    other = values[1 - slot]
    if other is None:
        return None
    constant = by_channel(other, rank, channels)
    # whatever a constant stretches would be another tensor without it
    if constant is None or sizes is None or len(sizes) != rank or sizes[1] != channels:
        return None
    if (scaling := factor_and_shift(node.op_type, slot, constant)) is None:
        return None
    factor, term = scaling
    return Step(
        node.input[slot], np.broadcast_to(factor, channels), np.zeros(channels) if term is None else term
    )


def as_norms(model: Model) -> Model:
    """The model with every two or more steps in a row as one; the same where there are none."""
    pieces = list(_pieces(model)) if model.opset >= BROADCASTING else []
    return model.edited(replaced(model, pieces)) if pieces else model


def _pieces(model: Model) -> Iterator[Piece]:
    nodes = model.proto.graph.node
    if not any(node.op_type in SCALINGS for node in nodes):
        return
    analysis = Analysis(model)
    types = cache(lambda: infer_types(model))
    seen = set(in_gelus(model))
    for index, node in enumerate(nodes):
        if index in seen or (first := _image_step(node, analysis, types, model.opset)) is None:
            continue
        factor, term, chain, last = first.factor, first.term, [index], node
        while (after := analysis.only_consumer(last.output[0])) is not None:
            step = None if after in seen else _image_step(nodes[after], analysis, types, model.opset)
            if step is None:
                break
            factor, term = factor * step.factor, term * step.factor + step.term
            chain, last = [*chain, after], nodes[after]
        seen.update(chain)
        if len(chain) > 1 and held(np.float32, factor, term):
            made = partial(_norm, last, first.input, factor, term)
            yield Piece(last.name, tuple(chain), (first.input,), last.output[0], made)


def _image_step(
    node: onnx.NodeProto, analysis: Analysis, types: Callable[[], Types], opset: int
) -> Step | None:
    """What a node does to an image of float32, or None where it is no such step."""
    if node.op_type not in (*SCALINGS, "BatchNormalization") or not node.output:
        return None
    name = node.output[0]
    sizes = shape(types(), name)
    if sizes is None or len(sizes) != _RANK or not isinstance(sizes[1], int):
        return None
    if types()[name].tensor_type.elem_type != onnx.TensorProto.FLOAT:
        return None
    return step_of(node, sizes[1], _RANK, analysis, types, opset)


def _norm(node: onnx.NodeProto, source: str, factor: Array, term: Array, given: Names) -> Emitted:
    prefix = node.name or node.output[0]
    values = {"scale": factor, "shift": term, "mean": np.zeros_like(term), "variance": np.ones_like(term)}
    tensors = tuple(
        onnx.numpy_helper.from_array(value.astype(np.float32), given.new(f"{prefix}/{name}"))
        for name, value in values.items()
    )
    taken = [source, *(tensor.name for tensor in tensors)]
    made = onnx.helper.make_node("BatchNormalization", taken, [node.output[0]], name=node.name, epsilon=0.0)
    return Emitted((made,), tensors)
