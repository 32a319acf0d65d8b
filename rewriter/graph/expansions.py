"""Operators that may be written in others, where they are in a model, and models to time the two by."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

import onnx
from onnx import numpy_helper

from rewriter.conv import Ints
from rewriter.graph.emit import Emitted
from rewriter.graph.facts import Facts
from rewriter.graph.model import Model
from rewriter.graph.operators import OPERATORS, Writer
from rewriter.graph.scope import Names
from rewriter.graph.splice import Piece, apart, replaced

# A Mish in three nodes, as models before opset 18 have it.
_MISH: Final = "Mish"


@dataclass(frozen=True, slots=True, eq=False)
class Expansion:
    """A node, or several in a row, that may be written in other operators.

    Attributes:
        kind: The operator's type.
        input: The tensor that it takes.
        output: The tensor that it gives; no other node has the same.
        alike: What others of its kind must share, beside the shape of the input, to take the same time.
        nodes: The nodes, in the graph's order.
        constants: What they take beside the input.
        piece: What comes in their place.
    """

    kind: str
    input: str
    output: str
    alike: Hashable
    nodes: tuple[onnx.NodeProto, ...]
    constants: tuple[onnx.TensorProto, ...]
    piece: Piece


def find_expansions(model: Model) -> tuple[Expansion, ...]:
    """Every operator of the top graph, on float32, that may be written in others."""
    if not any(node.op_type in OPERATORS for node in model.proto.graph.node):
        return ()
    found = {expansion.piece: expansion for expansion in _expansions(Facts(model))}
    return tuple(found[piece] for piece in apart(found))


def expanded(model: Model, outputs: Collection[str]) -> Model:
    """The model with the operators that give these tensors in others; the same where there are none."""
    pieces = [each.piece for each in find_expansions(model) if each.output in outputs] if outputs else []
    return model.edited(replaced(model, pieces)) if pieces else model


def expansion_probes(model: Model, expansion: Expansion, shape: Ints) -> tuple[bytes, bytes]:
    """Two models to time: an operator of the model, on an input of a shape, and the same in others."""
    plain = expansion.nodes
    written = expansion.piece.emit(Names(name for node in plain for name in (*node.input, *node.output)))
    x = onnx.helper.make_tensor_value_info(expansion.input, onnx.TensorProto.FLOAT, shape)
    y = onnx.helper.make_tensor_value_info(expansion.output, onnx.TensorProto.FLOAT, None)

    def probe(emitted: Emitted) -> bytes:
        tensors = [*expansion.constants, *emitted.initializers]
        graph = onnx.helper.make_graph(emitted.nodes, "probe", [x], [y], tensors)
        opsets = [onnx.helper.make_opsetid("", model.opset)]
        made = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=max(model.proto.ir_version, 4))
        return bytes(made.SerializeToString())

    return probe(Emitted(plain, ())), probe(written)


def _expansions(facts: Facts) -> Iterator[Expansion]:
    """Whole patterns first: what is in one is not looked at alone."""
    for index, node in facts.nodes:
        if node.op_type == "Softplus" and (behind := _mish_behind(facts, node)) is not None:
            yield from _expansion(facts, _MISH, (index, *behind))
    for index, node in facts.nodes:
        if node.op_type in OPERATORS:
            yield from _expansion(facts, node.op_type, (index,))


def _mish_behind(facts: Facts, node: onnx.NodeProto) -> tuple[int, int] | None:
    """The Tanh and the Mul behind a Softplus that make the three a Mish."""
    tanh = facts.taker(node.output[0])
    if tanh is None or tanh[1].op_type != "Tanh":
        return None
    product = facts.taker(tanh[1].output[0])
    if product is None or product[1].op_type != "Mul":
        return None
    if sorted(product[1].input) != sorted((node.input[0], tanh[1].output[0])):
        return None
    return tanh[0], product[0]


def _expansion(facts: Facts, kind: str, indices: Ints) -> Iterator[Expansion]:
    operator, (first, last) = OPERATORS[kind], (facts.node(indices[0]), facts.node(indices[-1]))
    x, y = first.input[0], last.output[0]
    if facts.opset < operator.since or not facts.floats(x) or facts.constant(x) is not None:
        return
    if not operator.applies(first, facts):
        return
    # the integer kernels of some take in what quantises before and behind them
    if (maker := facts.maker(x)) is not None and maker[1].op_type == "DequantizeLinear":
        return
    settings = tuple(entry.SerializeToString(deterministic=True) for entry in first.attribute)
    held = {name: value for name in first.input[1:] if (value := facts.constant(name)) is not None}
    alike = (kind, settings, tuple(value.shape for value in held.values()))
    piece = Piece(last.name, indices, tuple(first.input), y, partial(_emit, facts, kind, indices))
    nodes = tuple(facts.node(index) for index in indices)
    constants = tuple(numpy_helper.from_array(value, name) for name, value in held.items())
    yield Expansion(kind, x, y, alike, nodes, constants, piece)


def _emit(facts: Facts, kind: str, indices: Ints, given: Names) -> Emitted:
    first, last = facts.node(indices[0]), facts.node(indices[-1])
    output = last.output[0]
    to = Writer(first.input[0], last.name or output, given, facts.opset)
    OPERATORS[kind].write(first, facts, to)
    return to.done(output)
