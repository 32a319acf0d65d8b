"""Puts rewrites into a model in place of the nodes that they stand for; all else stays as it came."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import onnx

from rewriter.conv import Ints
from rewriter.graph.attributes import ONNX_DOMAINS
from rewriter.graph.constants import FOLDED
from rewriter.graph.emit import Emitted, emit
from rewriter.graph.model import Model
from rewriter.graph.opset import obstacle, raise_opset
from rewriter.graph.scope import Names, names, trained, uses
from rewriter.graph.sites import Site
from rewriter.graph.types import infer_types, shape
from rewriter.rewrite import Rewrite

PREFIX: Final = "rewriter."
"""What the keys of this program's entries in a model's metadata begin with."""


def splice(
    model: Model, rewrites: Sequence[tuple[Site, Rewrite]], provenance: Mapping[str, str] | None = None
) -> Model:
    """The model with each site's nodes replaced by those of its rewrite.

    Every other node, initializer and field comes out byte for byte and in its order. What only the replaced
    nodes used is removed: weights, Constant nodes, and what the model says of tensors that are no more.

    Args:
        model: The model in which the sites were found.
        rewrites: The sites to replace; those left out stay.
        provenance: What was done, for the model's metadata, under keys that begin with `rewriter.`.

    Raises:
        ValueError: A site is not one of this model, or comes twice, or the model cannot hold a rewrite.
    """
    if any(not rewrite.direct for _, rewrite in rewrites) and (reason := obstacle(model)):
        raise ValueError(reason)
    in_sizes = _in_sizes(model, rewrites)
    proto = replaced(model, [piece_of(model, *each, in_sizes.get(each[0].name)) for each in rewrites])
    if any(not rewrite.direct for _, rewrite in rewrites):
        raise_opset(proto)
    _record(proto, provenance or {})
    return model.edited(proto)


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """What comes in place of some nodes.

    Attributes:
        name: What messages call it.
        nodes: Indices of the nodes, in the graph's order; the new ones come where the last was.
        inputs: Names of what the new nodes take of the graph.
        output: Name of the tensor that they give.
        emit: Makes them.
    """

    name: str
    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    output: str
    emit: Callable[[Names], Emitted]


def replaced(model: Model, pieces: Sequence[Piece]) -> onnx.ModelProto:
    """A copy of the model with pieces in place of nodes; what only these used is gone.

    Raises:
        ValueError: The nodes of a piece are not those of this model, or come twice.
    """
    proto = model.copy()
    graph = proto.graph
    places = _places(model, pieces)
    given_up = {index for piece in pieces for index in piece.nodes}
    kept = {piece.output for piece in pieces}
    taken = [name for piece in pieces for name in piece.inputs]
    dead, gone = _freed(graph, given_up, [*taken, *trained(proto)])
    gone -= kept
    forget(proto, gone)

    nodes: list[onnx.NodeProto | None] = list(model.proto.graph.node)
    for index in given_up | dead:
        nodes[index] = None
    del graph.node[:]
    graph.node.extend(node for node in nodes if node is not None)
    given = Names(names(proto) | kept)
    del graph.node[:]
    for index, node in enumerate(nodes):
        if index in places:
            emitted = places[index].emit(given)
            graph.node.extend(emitted.nodes)
            graph.initializer.extend(emitted.initializers)
            if proto.ir_version < 4:  # where every initializer must be listed as an input
                graph.input.extend(_declaration(tensor) for tensor in emitted.initializers)
        elif node is not None:
            graph.node.append(node)
    return proto


def apart(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The pieces without those that share nodes with one before."""
    taken: set[int] = set()
    for piece in pieces:
        if not taken.intersection(piece.nodes):
            taken.update(piece.nodes)
            yield piece


def piece_of(model: Model, site: Site, rewrite: Rewrite, in_size: Ints | None = None) -> Piece:
    """A rewrite in place of a site; `in_size` is the spatial size of its input where nodes depend on it."""

    def emitted(given: Names) -> Emitted:
        return emit(rewrite, site.name, site.input, site.output, given, model.opset, in_size, site.dtype)

    return Piece(f"site {site.name!r}", site.nodes, (site.input,), site.output, emitted)


def _places(model: Model, pieces: Sequence[Piece]) -> dict[int, Piece]:
    """Where each piece goes: to the last of its nodes, where its input is there and nobody asked yet."""
    nodes = model.proto.graph.node
    places: dict[int, Piece] = {}
    for piece in pieces:
        place = piece.nodes[-1]
        if place >= len(nodes) or piece.output not in nodes[place].output:
            raise ValueError(f"{piece.name} was not found in this model")
        if place in places:
            raise ValueError(f"{piece.name} is replaced twice")
        places[place] = piece
    return places


def _in_sizes(model: Model, rewrites: Sequence[tuple[Site, Rewrite]]) -> dict[str, Ints]:
    """The spatial sizes of inputs, by site name, where nodes depend on them and the model fixes them."""
    lowered = [site for site, rewrite in rewrites if not rewrite.direct]
    types = infer_types(model) if lowered else {}
    known = {}
    for site in lowered:
        sizes = [size for size in (shape(types, site.input) or ())[2:] if isinstance(size, int)]
        if len(sizes) == len(site.conv.kernel_shape):
            known[site.name] = tuple(sizes)
    return known


def _freed(
    graph: onnx.GraphProto, replaced: Collection[int], taken: Iterable[str]
) -> tuple[set[int], set[str]]:
    """What nobody needs once some nodes are gone: further nodes that only made constants, and the names.

    The tensors `taken` are still needed, by what comes instead of the nodes or for training.
    """
    count = uses(graph)
    for name in taken:
        count[name] = count.get(name, 0) + 1
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output}
    gone: set[str] = set()
    queue = list(replaced)
    seen = set(queue)
    while queue:
        node = graph.node[queue.pop()]
        gone.update(name for name in node.output if name)
        for name in {name for name in node.input if name}:
            count[name] -= 1
            if count[name]:
                continue
            maker = makers.get(name)
            if maker is None:
                gone.add(name)
            elif maker not in seen and _pure(graph.node[maker]):
                seen.add(maker)
                queue.append(maker)
    return seen.difference(replaced), gone


def _pure(node: onnx.NodeProto) -> bool:
    return (node.op_type == "Constant" or node.op_type in FOLDED) and node.domain in ONNX_DOMAINS


def forget(proto: onnx.ModelProto, gone: Collection[str]) -> None:
    """Removes what the model says of tensors that are no more; the inputs that must be fed stay."""
    graph = proto.graph
    weights = {tensor.name for tensor in graph.initializer}.intersection(gone)
    for field, names_ in (
        (graph.initializer, weights),
        (graph.input, weights),
        (graph.value_info, gone),
    ):
        for index in reversed(range(len(field))):
            if field[index].name in names_:
                del field[index]
    for index in reversed(range(len(graph.quantization_annotation))):
        if graph.quantization_annotation[index].tensor_name in gone:
            del graph.quantization_annotation[index]


def _declaration(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def _record(proto: onnx.ModelProto, provenance: Mapping[str, str]) -> None:
    entries = {entry.key: entry for entry in proto.metadata_props}
    for key, value in provenance.items():
        full = key if key.startswith(PREFIX) else PREFIX + key
        if full in entries:
            entries[full].value = value
        else:
            proto.metadata_props.add(key=full, value=value)
