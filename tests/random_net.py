"""A random model on the way: its nodes so far, its weights, and what makes weights of other constants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]


@dataclass
class Net:
    """What is drawn so far.

    Attributes:
        convolutions: How many there are, those in bodies and functions included.
        inner: How many of these are in bodies and functions.
        asked: Whether a body needs the input `q`.
    """

    draw: Callable
    rng: np.random.Generator
    dtype: type
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    convolutions: int = 0
    inner: int = 0
    asked: bool = False

    @property
    def element(self) -> int:
        return helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))

    def node(self, op_type: str, inputs: list[str], shape: tuple[int, ...], **attributes) -> None:
        name = f"{op_type.lower()}{len(self.nodes)}"
        called = self.draw(st.sampled_from([name, name, name, ""]))
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], called, **attributes))
        self.tensors.append(Tensor(f"{name}_out", shape))

    def constant(self, *shape: int, scale: float = 1.0) -> str:
        return self.hold((scale * self.rng.standard_normal(shape)).astype(self.dtype))

    def hold(self, value: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = value
        return name

    def any(self) -> Tensor:
        """Mostly the last tensor, so that nets are deep."""
        return self.tensors[max(self.draw(st.integers(-4, len(self.tensors) - 1)), -1)]

    def alike(self, shape: tuple[int, ...]) -> str | None:
        """A weight of a shape that is there already, or None; mostly None."""
        held = [
            name
            for name, value in self.weights.items()
            if value.shape == shape and value.dtype == np.dtype(self.dtype)
        ]
        return self.draw(st.sampled_from(held)) if held and self.draw(st.booleans()) else None

    def behind(self, name: str, depth: int = 2) -> str:
        """A constant as it is, or as exporters write it: behind up to so many nodes."""
        value = self.weights[name]
        ways = ["plain", "plain", "Identity", "Reshape", "Constant", "Cast", "Mul"]
        if value.ndim > 1:
            ways += ["Transpose", "Concat"]
        way = self.draw(st.sampled_from(ways)) if depth else "plain"
        if way == "plain":
            return name
        made = f"{name}_{way}{len(self.nodes)}"
        if way == "Constant":
            tensor = onnx.numpy_helper.from_array(value)
            self.nodes.append(helper.make_node("Constant", [], [made], made, value=tensor))
            return made
        sources, attributes = self._sources(way, value)
        inputs = [self.behind(sources[0], depth - 1), *sources[1:]]
        self.nodes.append(helper.make_node(way, inputs, [made], made, **attributes))
        return made

    def _sources(self, way: str, value: np.ndarray) -> tuple[list[str], dict]:
        """The constants that a node makes a value of, and its attributes."""
        if way == "Transpose":
            order = [1, 0, *range(2, value.ndim)]
            return [self.hold(np.ascontiguousarray(value.swapaxes(0, 1)))], {"perm": order}
        if way == "Reshape":
            shape = np.array(value.shape, np.int64)
            return [self.hold(value.reshape(value.shape[0], -1)), self.hold(shape)], {}
        if way == "Cast":
            other = np.float32 if value.dtype != np.float32 else np.float64
            return [self.hold(value.astype(other))], {"to": helper.np_dtype_to_tensor_dtype(value.dtype)}
        if way == "Mul":
            return [self.hold(value / 2), self.hold(np.array(2, value.dtype))], {}
        if way == "Concat":
            parts = np.split(value, [1], axis=1) if value.shape[1] > 1 else [value]
            return [self.hold(np.ascontiguousarray(part)) for part in parts], {"axis": 1}
        return [self.hold(value)], {}
