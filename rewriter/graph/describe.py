"""A model in text, one line a node, without its weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx

from rewriter.graph.attributes import attribute
from rewriter.graph.model import Model
from rewriter.graph.scope import bodies
from rewriter.graph.types import Types, infer_types, shape


def describe(model: Model) -> str:
    """One line a node, in the graph's order: name, outputs, operator, inputs, what a Conv is and costs."""
    types = infer_types(model)
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.proto.graph.initializer}
    lines = []
    for node in model.proto.graph.node:
        outputs = ", ".join(f"{name}{_sizes(shape(types, name))}" for name in node.output if name)
        inputs = ", ".join(f"{name}{_sizes(constants.get(name))}" for name in node.input)
        operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        parts = [f"[{node.name}] {outputs} = {operator}({inputs})"]
        if node.op_type == "Conv":
            parts += _conv(node, types)
        parts += [f"body of {len(body.node)} nodes" for body in bodies(node)]
        lines.append("  ".join(parts))
    lines += [f"metadata {entry.key}: {entry.value}" for entry in model.proto.metadata_props]
    return "\n".join(lines) + "\n"


def _conv(node: onnx.NodeProto, types: Types) -> list[str]:
    parts = [f"{name}={_text(value)}" for name in _SHOWN if (value := attribute(node, name)) is not None]
    weight, output = shape(types, node.input[1]), shape(types, node.output[0])
    sizes = [*(weight or [None]), *(output or [None])[2:]]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) == len(sizes):
        parts.append(f"macs={prod(known)}")
    return parts


_SHOWN = ("auto_pad", "kernel_shape", "strides", "pads", "dilations", "group")


def _text(value: Sequence[int] | int | str) -> str:
    return str(value) if isinstance(value, int | str) else "x".join(map(str, value))


def _sizes(sizes: Sequence[int | str | None] | None) -> str:
    return "" if sizes is None else "[" + ",".join("?" if size is None else str(size) for size in sizes) + "]"
