"""Which names a node uses and a graph defines, bodies of If, Loop and Scan included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from rewriter.graph.model import initializer_names


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node holds as attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graph of a model and all bodies in it and in its functions, outer before inner."""
    yield from _within(proto.graph)
    for function in proto.functions:
        for node in function.node:
            for body in bodies(node):
                yield from _within(body)


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that a model holds: initializers and attributes, what is there for training included."""
    nodes = [node for function in proto.functions for node in function.node]
    for graph in (*graphs(proto), *_training(proto)):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        nodes.extend(graph.node)
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def consumed(node: onnx.NodeProto) -> set[str]:
    """Names of what a node needs: its inputs and what its bodies take from the graph around it."""
    used = {name for name in node.input if name}
    for body in bodies(node):
        used |= _captured(body)
    return used


def uses(graph: onnx.GraphProto) -> dict[str, int]:
    """How often each name is needed: by a node (once each) or as an output of the graph."""
    count: dict[str, int] = {}
    for node in graph.node:
        for name in consumed(node):
            count[name] = count.get(name, 0) + 1
    for value in graph.output:
        count[value.name] = count.get(value.name, 0) + 1
    return count


def trained(proto: onnx.ModelProto) -> set[str]:
    """Names that what a model holds for training takes from its graph or gives to it."""
    used: set[str] = set()
    for info in proto.training_info:
        used |= _captured(info.initialization) | _captured(info.algorithm)
        for binding in (*info.initialization_binding, *info.update_binding):
            used |= {binding.key, binding.value}
    return used


def names(proto: onnx.ModelProto) -> set[str]:
    """Every name anywhere in a model, operators' included: what a new name must not be."""
    taken = trained(proto)
    for graph in (*graphs(proto), *_training(proto)):
        taken |= initializer_names(graph) | {graph.name}
        taken.update(value.name for value in (*graph.input, *graph.output, *graph.value_info))
        taken |= _node_names(graph.node)
    for function in proto.functions:
        taken |= {*function.input, *function.output} | _node_names(function.node)
    return taken


class Names:
    """Gives out names that nothing in a model has yet."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)

    def new(self, wanted: str) -> str:
        """The wanted name, numbered where it is taken; taken from now on."""
        name, number = wanted, 0
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name


def _within(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from _within(body)


def _training(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graphs of a model that only its training needs, and all bodies in them."""
    for info in proto.training_info:
        yield from _within(info.initialization)
        yield from _within(info.algorithm)


def _captured(graph: onnx.GraphProto) -> set[str]:
    """Names that a body uses but does not define (ONNX forbids a body to define an outer name again)."""
    defined = initializer_names(graph) | {value.name for value in graph.input}
    used = {value.name for value in graph.output}
    for node in graph.node:
        used |= consumed(node)
        defined.update(node.output)
    return used - defined


def _node_names(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    return {
        name
        for node in nodes
        for name in (node.name, node.op_type, node.domain, *node.input, *node.output)
        if name
    }
