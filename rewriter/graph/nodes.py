"""The nodes of a model's top graph by name, and which of them carry its inputs to its outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from rewriter.graph.model import Model
from rewriter.graph.scope import Names, consumed, names


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the top graph.

    Attributes:
        name: Its name, empty where it has none.
        op_type: Its operator.
        inputs: Names of what it needs, what its bodies take included.
        outputs: Names of what it makes.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def computing(model: Model) -> int:
    """How many nodes of the top graph there are that do more than to give a constant out."""
    return sum(node.op_type not in ("Constant", "Identity") for node in model.proto.graph.node)


def flow(model: Model) -> tuple[Node, ...]:
    """The nodes that depend on what is fed and on which an output depends, in the graph's order."""
    return tuple(
        Node(node.name, node.op_type, tuple(sorted(consumed(node))), tuple(filter(None, node.output)))
        for node in nodes_behind(model, [spec.name for spec in model.inputs])
    )


def named(model: Model) -> Model:
    """The model with a name for every node of its top graph: what has none is called after its output."""
    proto = model.copy()
    given = Names(names(proto))
    for node in proto.graph.node:
        node.name = node.name or given.new(next(filter(None, node.output), node.op_type))
    return model.edited(proto)


def nodes_behind(model: Model, tensors: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that depend on some tensors and on which an output depends, in the graph's order."""
    behind = set(tensors)
    nodes = []
    for node in model.proto.graph.node:
        if consumed(node) & behind:
            behind.update(name for name in node.output if name)
            nodes.append(node)
    wanted = set(model.outputs)
    needed = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= consumed(node)
            needed.append(node)
    return needed[::-1]
