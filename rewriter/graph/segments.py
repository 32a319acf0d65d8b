"""Cuts a model at its sites: a caller can run it piece by piece and keep only what is still needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import onnx

from rewriter.errors import ModelError
from rewriter.graph import external
from rewriter.graph.attributes import ONNX_DOMAINS
from rewriter.graph.model import Model, initializer_names
from rewriter.graph.scope import consumed
from rewriter.graph.sites import Site
from rewriter.graph.types import Types, infer_types
from rewriter.serialized import Serialized


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """The piece of a model between two sites.

    Attributes:
        inputs: Names of the tensors that it takes.
        outputs: Names of the tensors that it gives.
        live: Names of all tensors that are needed after it has run, graph outputs included; the rest can go.
        model: Makes the serialised piece as a model of its own; None where the piece is empty.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    live: frozenset[str]
    model: Callable[[], Serialized] | None


def segments(model: Model, sites: Sequence[Site]) -> tuple[Segment, ...]:
    """The pieces before, between and behind the sites, one more than there are sites.

    The caller runs segment i, then computes site i: it takes the tensor `site.input` and gives `site.output`.

    Args:
        model: The model in which the sites were found.
        sites: Some of them, in the graph's order.

    Raises:
        ModelError: The type of a tensor that passes from piece to piece cannot be told.
        ValueError: The sites are not in the graph's order.
    """
    starts = [site.nodes[0] for site in sites]
    if starts != sorted(set(starts)):
        raise ValueError("the sites are not in the graph's order")
    graph = model.proto.graph
    outputs = set(model.outputs)
    demanded = outputs | {site.input for site in sites}
    store = _Store(model, demanded)
    pieces = _pieces(graph, sites, store)
    wanted = [{name for node in piece for name in consumed(node)} - store.names for piece in pieces]
    # From the back: what is needed once piece i has run.
    needed = [outputs]
    for site, later in zip(reversed(sites), reversed(wanted[1:]), strict=True):
        needed.append((needed[-1] | later) - {site.output} | {site.input})
    needed.reverse()

    types = infer_types(model)
    defaults = initializer_names(graph)
    there = {value.name for value in graph.input if value.name not in defaults}
    found = []
    for index, (piece, later) in enumerate(zip(pieces, needed, strict=True)):
        made = {name for node in piece for name in node.output if name}
        if index == 0:
            made |= store.given_out
        inputs = sorted(wanted[index] - made)
        missing = next((name for name in inputs if name not in there), None)
        if missing is not None:
            raise ModelError(f"tensor {missing!r} of {model.label} is used before anything makes it")
        gives = sorted(made & later)
        there |= made
        declared = [_declaration(model, name, types) for name in inputs] if gives else []
        build = partial(_model, model, piece, declared, gives, store) if gives else None
        taken = tuple(inputs) if gives else ()
        found.append(Segment(taken, tuple(gives), frozenset(there & later), build))
        if index < len(sites):
            there.add(sites[index].output)
    return tuple(found)


class _Store:
    """The constants of a model, which every piece gets for itself instead of passing them on."""

    def __init__(self, model: Model, demanded: set[str]) -> None:
        graph = model.proto.graph
        self.dense = {tensor.name: tensor for tensor in graph.initializer}
        self.sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
        # A constant that somebody outside the pieces asks for is computed like any other tensor.
        self.nodes = {
            node.output[0]: node
            for node in graph.node
            if node.op_type == "Constant" and node.domain in ONNX_DOMAINS
            if node.output and node.output[0] not in demanded
        }
        self.given_out = (self.dense.keys() | self.sparse.keys()) & demanded
        self.names = self.dense.keys() | self.sparse.keys() | self.nodes.keys()


def _pieces(graph: onnx.GraphProto, sites: Sequence[Site], store: _Store) -> list[list[onnx.NodeProto]]:
    """The nodes between the sites; those that a site replaces and stored constants are in none."""
    replaced = {index for site in sites for index in site.nodes}
    starts = {site.nodes[0] for site in sites}
    pieces: list[list[onnx.NodeProto]] = [[]]
    for index, node in enumerate(graph.node):
        if index in starts:
            pieces.append([])
        elif index not in replaced and not (node.output and node.output[0] in store.nodes):
            pieces[-1].append(node)
    return pieces


def _model(
    model: Model,
    piece: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str],
    store: _Store,
) -> Serialized:
    proto = onnx.ModelProto(ir_version=max(model.proto.ir_version, 4))  # older ones list weights as inputs
    proto.opset_import.extend(model.proto.opset_import)
    proto.functions.extend(model.proto.functions)
    graph = proto.graph
    graph.name = model.proto.graph.name or "graph"
    used = {name for node in piece for name in consumed(node)} | set(outputs)
    graph.node.extend(node for name, node in store.nodes.items() if name in used)
    graph.node.extend(piece)
    graph.sparse_initializer.extend(tensor for name, tensor in store.sparse.items() if name in used)
    graph.input.extend(inputs)
    # ONNX Runtime infers the types of outputs itself.
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    weights = [tensor for name, tensor in store.dense.items() if name in used]
    # serialised messages behind one another are read as one, so that the weights are copied once
    chunks = [
        onnx.ModelProto(graph=onnx.GraphProto(initializer=[each])).SerializeToString() for each in weights
    ]
    first = bytes(proto.SerializeToString())
    if len(first) + sum(map(len, chunks)) <= external.MOST_BYTES:
        return b"".join((first, *chunks))
    del chunks
    graph.initializer.extend(weights)
    return external.split(proto)


def _declaration(model: Model, name: str, types: Types) -> onnx.ValueInfoProto:
    """The type of a tensor without its shape: what a model says of shapes need not be what it is fed."""
    if name not in types:
        raise ModelError(
            f"the type of tensor {name!r} of {model.label} cannot be told; declare it in value_info"
        )
    value = onnx.ValueInfoProto(name=name)
    value.type.CopyFrom(types[name])
    if value.type.HasField("tensor_type"):
        value.type.tensor_type.ClearField("shape")
    return value
