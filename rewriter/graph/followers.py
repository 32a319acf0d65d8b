"""What comes behind a site and is computed together with it: an Add, an activation, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import onnx

from rewriter.graph.analysis import Analysis
from rewriter.graph.attributes import ONNX_DOMAINS
from rewriter.graph.model import Model

ACTIVATIONS: Final = frozenset(
    {"Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "PRelu", "Elu", "Selu"}
)


@dataclass(frozen=True, slots=True, eq=False)
class Follower:
    """A node that takes a site's output and that nothing else stands beside.

    Attributes:
        op_type: The operator.
        node: The node as the model has it.
        slot: Which of its inputs is the site's output.
        constants: Its other inputs, by their names in `node`; an Add has none: its other input is a shortcut.
    """

    op_type: str
    node: onnx.NodeProto
    slot: int
    constants: tuple[onnx.TensorProto, ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """What it computes, without names: equal for followers that cost the same."""
        sizes = [f"{constant.data_type}{list(constant.dims)}" for constant in self.constants]
        return (self.op_type, *sorted(str(attribute) for attribute in self.node.attribute), *sizes)


def find_followers(model: Model, analysis: Analysis, output: str) -> tuple[Follower, ...]:
    """The followers of the site that makes the tensor `output`."""
    first = _follower(model, analysis, output)
    if first is None:
        return ()
    second = _follower(model, analysis, first.node.output[0]) if first.op_type == "Add" else None
    return (first,) if second is None or second.op_type == "Add" else (first, second)


def _follower(model: Model, analysis: Analysis, output: str) -> Follower | None:
    index = analysis.only_consumer(output)
    if index is None:
        return None
    node = model.proto.graph.node[index]
    if node.domain not in ONNX_DOMAINS or output not in node.input or not node.output:
        return None
    slot = list(node.input).index(output)
    others = [name for name in node.input if name and name != output]
    values = {name: analysis.constant(name) for name in others}
    if node.op_type == "Add" and len(others) == 1 and values[others[0]] is None:
        return Follower("Add", node, slot)
    if node.op_type not in ACTIVATIONS or slot != 0:
        return None
    constants = tuple(
        onnx.numpy_helper.from_array(value, name) for name, value in values.items() if value is not None
    )
    return Follower(node.op_type, node, slot, constants) if len(constants) == len(others) else None
