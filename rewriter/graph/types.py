"""Element types and shapes of every tensor, as far as they can be told without running the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Final

import onnx

from rewriter.errors import ModelError
from rewriter.graph.attributes import ONNX_DOMAINS, attribute
from rewriter.graph.model import Model, dims, initializer_names
from rewriter.graph.scope import consumed, graphs

# Of weights with more values inference is told the type only; it needs small ones (shapes, axes) by value.
_VALUES_UP_TO = 128

# Withdrawn operators that work value by value; ONNX Runtime still has them.
_IN_PLACE: Final = frozenset({"Affine", "ImageScaler", "ParametricSoftplus", "ScaledTanh"})

Types = Mapping[str, onnx.TypeProto]


def infer_types(model: Model) -> Types:
    """The types of the tensors of the top graph, those of operators unknown to ONNX guessed.

    An operator without a schema (a custom or withdrawn one) is taken to pass on the element type of its first
    input; float where that has none. Of some withdrawn ones the shape is known, too.

    Raises:
        ModelError: The model's own types contradict each other.
    """
    skeleton = _skeleton(model.proto)
    try:
        return _complete(skeleton)
    except Exception:  # a C++ exception, whose class depends on what is wrong
        _forget_shapes(skeleton)
    try:
        return _complete(skeleton)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"the types of {model.label} contradict each other: {reason}") from error


def shape(types: Types, name: str) -> tuple[int | str | None, ...] | None:
    """The shape of a tensor, or None where not even its rank is known."""
    if name not in types or not types[name].HasField("tensor_type"):
        return None
    tensor = types[name].tensor_type
    return dims(tensor.shape) if tensor.HasField("shape") else None


def _skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without its large weights, which become inputs of their type."""
    skeleton = onnx.ModelProto(ir_version=max(proto.ir_version, 4))
    skeleton.opset_import.extend(proto.opset_import)
    # Inference gives up on a domain that is not imported, even where it knows nothing of it.
    imported = {entry.domain or "ai.onnx" for entry in proto.opset_import}
    used = {node.domain or "ai.onnx" for graph in graphs(proto) for node in graph.node}
    skeleton.opset_import.extend(onnx.helper.make_opsetid(each, 1) for each in sorted(used - imported))
    skeleton.functions.extend(proto.functions)
    graph = skeleton.graph
    graph.name = proto.graph.name or "graph"
    graph.node.extend(map(_known_today, proto.graph.node))
    graph.output.extend(proto.graph.output)
    graph.value_info.extend(value for value in proto.graph.value_info if value.HasField("type"))
    defaults = initializer_names(proto.graph)
    graph.input.extend(value for value in proto.graph.input if value.name not in defaults)
    for tensor in proto.graph.initializer:
        if prod(tensor.dims) <= _VALUES_UP_TO:
            graph.initializer.append(tensor)
        else:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    for sparse in proto.graph.sparse_initializer:
        graph.input.append(
            onnx.helper.make_tensor_value_info(sparse.values.name, sparse.values.data_type, list(sparse.dims))
        )
    return skeleton


def _known_today(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node that gives the same shape, for some withdrawn operators; else the node itself."""
    if node.domain not in ONNX_DOMAINS:
        return node
    if node.op_type in _IN_PLACE:
        return onnx.helper.make_node("Identity", node.input[:1], node.output[:1])
    border = attribute(node, "border")
    counts = isinstance(border, list) and [each for each in border if isinstance(each, int)]
    if node.op_type == "Crop" and counts and len(counts) == 4 and attribute(node, "scale") is None:
        left, top, right, bottom = counts
        pads = [0, 0, -top, -left, 0, 0, -bottom, -right]
        return onnx.helper.make_node("Pad", node.input[:1], node.output[:1], pads=pads)
    return node


def _forget_shapes(skeleton: onnx.ModelProto) -> None:
    """What a model says of shapes may be wrong; for the element types it is not needed."""
    graph = skeleton.graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


def _complete(skeleton: onnx.ModelProto) -> Types:
    while True:
        types = _infer(skeleton)
        guesses = _guess(skeleton.graph.node, types)
        if not guesses:
            return types
        skeleton.graph.value_info.extend(guesses)


def _infer(skeleton: onnx.ModelProto) -> Types:
    graph = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    types = {value.name: value.type for value in (*graph.input, *graph.value_info, *graph.output)}
    for tensor in graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    return {name: value for name, value in types.items() if _known(value)}


def _known(value: onnx.TypeProto) -> bool:
    kind = value.WhichOneof("value")
    return kind is not None and (kind != "tensor_type" or value.tensor_type.elem_type != 0)


def _guess(nodes: Iterable[onnx.NodeProto], types: Types) -> list[onnx.ValueInfoProto]:
    """Types for the outputs of those nodes that inference could not pass although it knew their inputs."""
    guesses = []
    unknown: set[str] = set()
    for node in nodes:
        lacking = {name for name in node.output if name and name not in types}
        if lacking and not consumed(node) & unknown:
            first = next((types[name] for name in node.input if name in types), None)
            known = first is not None and first.HasField("tensor_type")
            element = first.tensor_type.elem_type if known and first is not None else onnx.TensorProto.FLOAT
            for name in sorted(lacking):
                value = onnx.ValueInfoProto(name=name)
                value.type.tensor_type.elem_type = element
                guesses.append(value)
        unknown |= lacking
    return guesses
