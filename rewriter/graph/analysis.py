"""Producers, consumers and constants of the top graph, as onnx-graphsurgeon sees them; for reading only.

Its graph is never exported: on the way through it untouched nodes change and fields are lost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from rewriter.errors import ModelError
from rewriter.graph.attributes import ONNX_DOMAINS, attribute
from rewriter.graph.constants import FOLDED, evaluated
from rewriter.graph.model import Model, initializer_names
from rewriter.graph.scope import uses

# Constant's attributes that hold plain numbers.
_NUMBERS = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


class Analysis:
    """Who makes and who takes each tensor of a model's top graph.

    Raises:
        ModelError: graphsurgeon cannot read the graph.
    """

    def __init__(self, model: Model) -> None:
        lean = onnx.ModelProto(graph=_lean(model.proto.graph))
        lean.opset_import.extend(model.proto.opset_import)
        try:
            with G_LOGGER.suppress():
                graph = gs.import_onnx(lean)
        except Exception as error:  # whatever its reader runs into
            reason = " ".join(str(error).split())
            raise ModelError(f"the graph of {model.label} cannot be analysed: {reason}") from error
        proto = model.proto.graph
        self._nodes = list(proto.node)
        self._index = {id(node): index for index, node in enumerate(graph.nodes)}
        # Keeps what `_index` tells apart by identity alive.
        self._graph = graph
        self._tensors = {
            tensor.name: tensor for node in graph.nodes for tensor in (*node.inputs, *node.outputs)
        }
        self._uses = uses(proto)
        self._inputs = {value.name for value in proto.input}
        self._dense = {tensor.name: tensor for tensor in proto.initializer}
        self._sparse = {tensor.values.name for tensor in proto.sparse_initializer}
        self._pinned = model.pinned
        self._opset = model.opset
        self._fixed = self._dense.keys() - self._pinned
        for node in proto.node:
            if node.domain in ONNX_DOMAINS and (node.op_type == "Constant" or self._folded(node)):
                self._fixed |= {node.output[0]}

    def _folded(self, node: onnx.NodeProto) -> bool:
        return node.op_type in FOLDED and all(name in self._fixed for name in node.input if name)

    def producer(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a tensor, if one does."""
        tensor = self._tensors.get(name)
        if tensor is None or not tensor.inputs:
            return None
        index = self._index.get(id(tensor.inputs[0]))
        return None if index is None else self._nodes[index]

    def only_consumer(self, name: str) -> int | None:
        """The index of the node that alone takes a tensor; None where others do or a graph gives it out."""
        tensor = self._tensors.get(name)
        if tensor is None or self._uses.get(name, 0) != 1 or len(tensor.outputs) != 1:
            return None
        return self._index.get(id(tensor.outputs[0]))

    def constant(self, name: str) -> npt.NDArray[Any] | None:
        """The value of a tensor that is the same in every run; None where it is not or cannot be told.

        Raises:
            ModelError: Its data do not fit its type and shape.
        """
        if name not in self._fixed:
            return None
        if name in self._dense:
            return _values(self._dense[name], name)
        node = self.producer(name)
        if node is None:
            return None
        if node.op_type == "Constant":
            return _constant(node, name)
        values = {given: self.constant(given) for given in node.input if given}
        known = {given: value for given, value in values.items() if value is not None}
        return evaluated(node, known, self._opset) if len(known) == len(values) else None

    def obstacle(self, name: str) -> str:
        """Why a tensor has no `constant`, and how to mend it."""
        if name in self._pinned:
            return f"{name!r} is also a graph input, which a caller may replace; unpin it first"
        if name in self._sparse:
            return f"{name!r} is a sparse initializer; make it dense first"
        node = self.producer(name)
        if node is None:
            kind = "a graph input" if name in self._inputs else "not defined anywhere"
            return f"{name!r} is {kind}; only constants can be rewritten"
        lacking = [given for given in node.input if given and given not in self._fixed]
        if node.op_type in FOLDED and node.domain in ONNX_DOMAINS and lacking:
            return self.obstacle(lacking[0])
        if node.op_type == "DequantizeLinear":
            return f"{name!r} is dequantised at run time; rewrite the float model and quantise afterwards"
        return f"{name!r} is computed by {node.op_type} at run time; fold constants first"


def _constant(node: onnx.NodeProto, name: str) -> npt.NDArray[Any] | None:
    """The value of a Constant node; None where it is text or sparse."""
    value = attribute(node, "value")
    if isinstance(value, onnx.TensorProto):
        return _values(value, name)
    for key, dtype in _NUMBERS.items():
        value = attribute(node, key)
        if value is not None:
            return np.asarray(value, dtype)
    return None


def _values(tensor: onnx.TensorProto, name: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except Exception as error:  # what is raised depends on what is wrong
        reason = " ".join(str(error).split())
        raise ModelError(f"the data of tensor {name!r} do not fit its type and shape: {reason}") from error


def _lean(graph: onnx.GraphProto) -> onnx.GraphProto:
    """The wiring of a graph alone: its reader fails on some types and attributes that do not matter here."""
    lean = onnx.GraphProto(name=graph.name)
    for node in graph.node:
        copy = lean.node.add(op_type=node.op_type, name=node.name, input=node.input, output=node.output)
        for entry in node.attribute:
            if entry.HasField("g"):
                copy.attribute.add(name=entry.name, type=onnx.AttributeProto.GRAPH, g=_lean(entry.g))
    for name in initializer_names(graph):
        lean.initializer.add(name=name, data_type=onnx.TensorProto.FLOAT, dims=[0])
    for value in graph.input:
        lean.input.add(name=value.name)
    for value in graph.output:
        lean.output.add(name=value.name)
    return lean
