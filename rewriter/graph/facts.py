"""What is known of a model's nodes: who makes and takes a tensor, its type and shape, or its value."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx

from rewriter.graph.analysis import Analysis
from rewriter.graph.attributes import ONNX_DOMAINS
from rewriter.graph.model import Model
from rewriter.graph.types import Types, infer_types, shape


class Facts:
    """The nodes of a model with one output, by index."""

    def __init__(self, model: Model) -> None:
        self.nodes = [
            (index, node)
            for index, node in enumerate(model.proto.graph.node)
            if node.domain in ONNX_DOMAINS and len(node.output) == 1 and node.output[0]
        ]
        self._known: dict[int, onnx.NodeProto] = dict(self.nodes)
        self._index = {node.output[0]: index for index, node in self.nodes}
        self._types: Callable[[], Types] = cache(lambda: infer_types(model))
        self._analysis: Callable[[], Analysis] = cache(lambda: Analysis(model))
        self.opset = model.opset

    def node(self, index: int) -> onnx.NodeProto:
        """The node of an index."""
        return self._known[index]

    def maker(self, name: str) -> tuple[int, onnx.NodeProto] | None:
        """The node that makes a tensor, and its index."""
        index = self._index.get(name)
        return None if index is None else (index, self._known[index])

    def taker(self, name: str) -> tuple[int, onnx.NodeProto] | None:
        """The node that alone takes a tensor, and its index."""
        index = self._analysis().only_consumer(name)
        return None if index is None or index not in self._known else (index, self._known[index])

    def constant(self, name: str) -> np.ndarray[Any, Any] | None:
        """A constant in float32."""
        value = self._analysis().constant(name) if name else None
        return value if value is not None and value.dtype == np.float32 else None

    def number(self, name: str, beside: str) -> float | None:
        """A constant that is one number and does not add an axis to the tensor that it is combined with."""
        value = self.constant(name)
        if value is None or value.size != 1:
            return None
        if value.ndim > 0:
            sizes = self.sizes(beside)
            if sizes is None or len(sizes) < value.ndim:
                return None
        return float(value.reshape(()))

    def scales(self, made: tuple[int, onnx.NodeProto]) -> bool:
        """Whether a node multiplies or divides a tensor by a number."""
        return made[1].op_type in ("Mul", "Div") and self.operand(made[1]) is not None

    def operand(self, node: onnx.NodeProto) -> tuple[str, int, float] | None:
        """What an operator takes beside one number: the tensor, its slot, and that number."""
        if len(node.input) != 2:
            return None
        for slot, name in enumerate(node.input):
            number = self.number(node.input[1 - slot], name)
            if number is not None and self.constant(name) is None:
                return name, slot, number
        return None

    def sizes(self, name: str) -> tuple[int | str | None, ...] | None:
        """The shape of a tensor, or None where not even its rank is known."""
        return shape(self._types(), name)

    def floats(self, name: str) -> bool:
        """Whether a tensor is known to be of float32."""
        found = self._types().get(name)
        return found is not None and found.tensor_type.elem_type == onnx.TensorProto.FLOAT
