"""PRelu with constant slopes as a Mul and a Max: several times faster where a provider's own kernel is slow.

    PRelu(x, s) = max(x, s·x)        for slopes s up to 1; bit for bit the same for finite x

ONNX Runtime's CPU provider computes PRelu element by element, what is broadcast included, but Mul and Max in
vectors.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx

from rewriter.conv import Array, Ints
from rewriter.graph.analysis import Analysis
from rewriter.graph.attributes import ONNX_DOMAINS
from rewriter.graph.emit import Emitted
from rewriter.graph.model import Model
from rewriter.graph.scope import Names
from rewriter.graph.splice import Piece, replaced

# Max broadcasts from here on.
_OPSET = 8
_IR_VERSION = 8


@dataclass(frozen=True, slots=True, eq=False)
class Sloped:
    """A PRelu that may be written so.

    Attributes:
        input: The tensor that it takes.
        output: The tensor that it gives; no other node has the same.
        slope: Its slopes, in float32.
    """

    input: str
    output: str
    slope: Array


def find_sloped(model: Model) -> tuple[Sloped, ...]:
    """Every PRelu of the top graph with constant slopes, none above 1."""
    if model.opset < _OPSET:
        return ()
    nodes = [node for node in model.proto.graph.node if _is_prelu(node)]
    analysis = Analysis(model) if nodes else None
    found = []
    for node in nodes:
        assert analysis is not None
        slope = analysis.constant(node.input[1])
        if slope is not None and slope.dtype == np.float32 and slope.size and float(slope.max()) <= 1.0:
            found.append(Sloped(node.input[0], node.output[0], slope))
    return tuple(found)


def as_maxima(model: Model, outputs: Collection[str]) -> Model:
    """The model with PRelus that give these tensors as Mul and Max; the same where there are none.

    Args:
        model: The model.
        outputs: Of PRelus; those that `find_sloped` does not find stay as they are.
    """
    wanted = {each.output for each in find_sloped(model)}.intersection(outputs)
    pieces = [
        Piece(node.name, (index,), tuple(node.input), node.output[0], partial(_larger, node))
        for index, node in enumerate(model.proto.graph.node)
        if _is_prelu(node) and node.output[0] in wanted
    ]
    return model.edited(replaced(model, pieces)) if pieces else model


def slope_probes(shape: Ints, slope: Array) -> tuple[bytes, bytes]:
    """Two models to time: a PRelu of "x" of a shape, and the same as Mul and Max."""
    node = onnx.helper.make_node("PRelu", ["x", "slope"], ["y"], name="activation")
    larger = _larger(node, Names({"x", "y", "slope"})).nodes
    return _model([node], shape, slope), _model(larger, shape, slope)


def _is_prelu(node: onnx.NodeProto) -> bool:
    return node.op_type == "PRelu" and node.domain in ONNX_DOMAINS


def _larger(node: onnx.NodeProto, given: Names) -> Emitted:
    x, slope = node.input
    prefix = node.name or node.output[0]
    scaled = given.new(f"{prefix}/scaled_output")
    nodes = (
        onnx.helper.make_node("Mul", [x, slope], [scaled], name=given.new(f"{prefix}/scaled")),
        onnx.helper.make_node("Max", [x, scaled], [node.output[0]], name=given.new(f"{prefix}/larger")),
    )
    return Emitted(nodes, ())


def _model(nodes: Sequence[onnx.NodeProto], shape: Ints, slope: Array) -> bytes:
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)] for name in "xy"
    )
    weights = [onnx.numpy_helper.from_array(slope, "slope")]
    graph = onnx.helper.make_graph(nodes, "probe", inputs, outputs, weights)
    opsets = [onnx.helper.make_opsetid("", 13)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())
