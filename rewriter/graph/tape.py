"""What lies behind some tensors of a model, as plain steps: for going through a network backwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from rewriter.graph.attributes import ONNX_DOMAINS
from rewriter.graph.model import Model
from rewriter.graph.nodes import nodes_behind
from rewriter.graph.scope import Names, bodies, consumed, names
from rewriter.graph.views import extended
from rewriter.serialized import Serialized


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A node.

    Attributes:
        op_type: ONNX's name of the operator; with the domain in front where it is not ONNX's own, and with a
            question mark behind where the node holds bodies: nobody can know what these do.
        attributes: By name; text as `str`, tensors as arrays.
        inputs: Names, empty where an optional input is left out.
        outputs: Names, likewise.
    """

    op_type: str
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tape:
    """What lies between some tensors and the outputs of a model.

    Attributes:
        steps: Every node that depends on one of the tensors and on which an output depends, in the graph's
            order.
        constants: Names of those of their inputs that are constant.
    """

    steps: tuple[Step, ...]
    constants: frozenset[str]


def tape(model: Model, tensors: Iterable[str]) -> Tape:
    """What lies between some tensors and the model's outputs."""
    nodes = nodes_behind(model, tensors)
    wanted = set(model.outputs).union(*map(consumed, nodes))
    constants = frozenset(name for name, _ in _constants(model)) & wanted
    return Tape(tuple(map(_step, nodes)), constants)


class Constants:
    """The values of a model's constants, decoded anew whenever they are asked for."""

    def __init__(self, model: Model) -> None:
        self._held = dict(_constants(model))

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def value(self, name: str) -> npt.NDArray[Any]:
        """The value of a constant."""
        held = self._held[name]
        tensor = isinstance(held, onnx.TensorProto)
        return np.asarray(onnx.numpy_helper.to_array(held) if tensor else _value(held))


def recorder(
    model: Model, values: Iterable[str], shapes: Sequence[str]
) -> tuple[Callable[[], Serialized], dict[str, str]]:
    """A model that also gives some tensors and the shapes of others.

    Returns:
        What serialises the model, and by the name of each of `shapes` the output that holds it.
    """
    given = Names(names(model.proto))
    outputs = {name: given.new(f"{name}_shape") for name in shapes}
    nodes = [
        onnx.helper.make_node("Shape", [name], [output], given.new(f"{output}_of"))
        for name, output in outputs.items()
    ]
    return partial(extended, model, (*values, *outputs.values()), nodes), outputs


def _step(node: onnx.NodeProto) -> Step:
    domain = "" if node.domain in ONNX_DOMAINS else f"{node.domain}."
    opaque = "?" if any(True for _ in bodies(node)) else ""
    return Step(
        f"{domain}{node.op_type}{opaque}",
        {entry.name: _value(entry) for entry in node.attribute},
        tuple(node.input),
        tuple(node.output),
    )


def _value(entry: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(entry)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _constants(model: Model) -> Iterator[tuple[str, onnx.TensorProto | onnx.AttributeProto]]:
    """Every constant of the graph and what holds its value."""
    graph = model.proto.graph
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ONNX_DOMAINS:
            (entry,) = node.attribute
            if entry.name != "sparse_value":
                yield node.output[0], entry
