"""Random models of convolutions over one to three axes, with all that may stand around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

from rewriter import graph
from rewriter.conv import Conv

CHANNELS = (1, 2, 3, 4, 8, 16)
OPSET = 15


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]


@dataclass
class Net:
    """A model on the way, and what it is fed.

    Attributes:
        convolutions: How many there are, those in bodies included.
        inner: How many of these are in bodies.
    """

    draw: Callable
    rng: np.random.Generator
    dtype: type
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    convolutions: int = 0
    inner: int = 0
    model: graph.Model | None = None
    feeds: dict[str, np.ndarray] = field(default_factory=dict)

    def node(self, op_type: str, inputs: list[str], shape: tuple[int, ...], **attributes) -> None:
        name = f"{op_type.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name, **attributes))
        self.tensors.append(Tensor(f"{name}_out", shape))

    def constant(self, *shape: int, scale: float = 1.0) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = (scale * self.rng.standard_normal(shape)).astype(self.dtype)
        return name

    def any(self) -> Tensor:
        """Mostly the last tensor, so that nets are deep."""
        return self.tensors[max(self.draw(st.integers(-4, len(self.tensors) - 1)), -1)]


@st.composite
def nets(draw: Callable) -> Net:
    """A model of up to eight layers with its feeds."""
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float32, np.float16]))
    net = Net(draw, np.random.default_rng(draw(st.integers(0, 999))), dtype)
    sizes = tuple(draw(st.integers(3, 9)) for _ in range(draw(st.integers(1, 3))))
    shape = (draw(st.integers(1, 2)), draw(st.sampled_from(CHANNELS)), *sizes)
    net.tensors.append(Tensor("x", shape))
    _conv(net)
    for _ in range(draw(st.integers(0, 7))):
        draw(st.sampled_from([_conv, _conv, _pointwise, _scaled, _norm, _shortcut, _joint, _body]))(net)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    given = {net.tensors[-1].name: net.tensors[-1]}
    if draw(st.booleans()):
        other = draw(st.sampled_from(net.tensors[1:]))
        given[other.name] = other
    dynamic = draw(st.booleans())
    inputs = [helper.make_tensor_value_info("x", element, ["N", *shape[1:]] if dynamic else shape)]
    net.feeds["x"] = net.rng.standard_normal(shape).astype(dtype)
    if net.inner:
        inputs.append(helper.make_tensor_value_info("q", onnx.TensorProto.BOOL, []))
        net.feeds["q"] = np.array(draw(st.booleans()))
    outputs = [
        helper.make_tensor_value_info(each.name, element, [None] * len(each.shape)) for each in given.values()
    ]
    held = [onnx.numpy_helper.from_array(value, name) for name, value in net.weights.items()]
    proto = helper.make_model(
        helper.make_graph(net.nodes, "random", inputs, outputs, held),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
    )
    net.model = graph.load(proto)
    return net


def _drawn_conv(
    net: Net, given: Tensor, outputs: int | None = None, same: bool = False
) -> tuple[dict, tuple, tuple]:
    """The attributes of a convolution of a tensor, the shape of its weight and that of its output."""
    draw, (batch, inputs, *size) = net.draw, given.shape
    axes = range(len(size))
    groups = [each for each in range(1, inputs + 1) if inputs % each == 0]
    group = draw(st.sampled_from([1, *groups]))
    outputs = outputs or group * draw(st.sampled_from([1, 2, 4, 8] if group > 1 else CHANNELS))
    if outputs % group:
        group = 1
    kernel = [draw(st.integers(1, min(4, size[a]))) for a in axes]
    if same:
        kernel = [taps - 1 + taps % 2 for taps in kernel]
    ones, zeros = [1 for _ in axes], [0 for _ in axes]
    dilations, strides, pads = ones, ones, [*zeros, *zeros]
    attributes: dict = {}
    way = (
        "same"
        if same
        else draw(st.sampled_from(["given", "given", "none", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    )
    if way == "same":
        pads = [taps // 2 for taps in kernel] * 2
    else:
        strides = [draw(st.integers(1, 3)) for _ in axes]
    if way == "given":
        pads = [draw(st.integers(0, 3)) for _ in range(2 * len(size))]
        dilations = [
            draw(st.integers(1, 2)) if (taps - 1) * 2 < size[a] else 1 for a, taps in enumerate(kernel)
        ]
    if way in ("same", "given"):
        attributes["pads"] = pads
    elif way != "none":
        attributes["auto_pad"] = way
    if way.startswith("SAME"):
        out = [-(-size[a] // strides[a]) for a in axes]
    else:
        conv = Conv(np.zeros((1, 1, *kernel)), None, tuple(strides), tuple(pads), tuple(dilations))
        out = list(conv.out_size(tuple(size)))
    attributes |= {"strides": strides, "dilations": dilations, "group": group}
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    return attributes, (outputs, inputs // group, *kernel), (batch, outputs, *out)


def _conv(net: Net) -> None:
    given = net.any()
    attributes, weight, shape = _drawn_conv(net, given)
    scale = 1.0 / np.sqrt(np.prod(weight[1:]))
    held = [name for name, value in net.weights.items() if value.shape == weight]
    if held and net.draw(st.booleans()):
        name = held[0]
    else:
        name = net.constant(*weight, scale=scale)
        net.weights[name] = _planted(net, net.weights[name])
    inputs = [given.name, _behind(net, name, weight)]
    if net.draw(st.booleans()):
        inputs.append(net.constant(weight[0]))
    net.convolutions += 1
    net.node("Conv", inputs, shape, **attributes)


def _planted(net: Net, weight: np.ndarray) -> np.ndarray:
    """A weight with the structure that exact passes look for, or as it is."""
    outputs, inputs, *kernel = weight.shape
    ways = ["random", "random", "cropped", "alike", "blocks", "separable", "outputs", "inputs"]
    way = net.draw(st.sampled_from(ways))
    keep = np.ones(weight.shape, weight.dtype)
    if way == "cropped":
        keep[(slice(None), slice(None), *(slice(max(taps - 2, 0), None) for taps in kernel))] = 0
        keep = 1 - keep if net.draw(st.booleans()) else keep
    elif way == "outputs":
        keep[net.rng.random(outputs) < 0.5] = 0
    elif way == "inputs":
        keep[:, net.rng.random(inputs) < 0.5] = 0
    elif way == "alike":
        return np.repeat(weight[:1], outputs, axis=0)
    elif way == "blocks" and outputs % 2 == inputs % 2 == 0:
        keep[: outputs // 2, inputs // 2 :] = keep[outputs // 2 :, : inputs // 2] = 0
    elif way == "separable":
        return np.broadcast_to(weight[..., :1], weight.shape) * weight.dtype.type(0.5)
    return weight * keep


def _behind(net: Net, name: str, shape: tuple[int, ...]) -> str:
    """A weight as it is, or as exporters write it."""
    way = net.draw(st.sampled_from(["plain", "plain", "Identity", "Transpose", "Reshape", "Constant"]))
    made = f"{name}_{way}{len(net.nodes)}"
    value = net.weights[name]
    if way == "plain":
        return name
    if way == "Constant":
        tensor = onnx.numpy_helper.from_array(value)
        net.nodes.append(helper.make_node("Constant", [], [made], made, value=tensor))
    elif way == "Identity":
        net.nodes.append(helper.make_node("Identity", [name], [made], made))
    elif way == "Transpose":
        net.weights[f"{made}_w"] = np.ascontiguousarray(value.swapaxes(0, 1))
        order = [1, 0, *range(2, len(shape))]
        net.nodes.append(helper.make_node("Transpose", [f"{made}_w"], [made], made, perm=order))
    else:
        net.weights[f"{made}_w"] = value.reshape(shape[0], -1)
        net.weights[f"{made}_s"] = np.array(shape, np.int64)
        net.nodes.append(helper.make_node("Reshape", [f"{made}_w", f"{made}_s"], [made], made))
    return made


def _pointwise(net: Net) -> None:
    given = net.any()
    net.node(net.draw(st.sampled_from(["Relu", "Sigmoid", "LeakyRelu"])), [given.name], given.shape)


def _scaled(net: Net) -> None:
    given = net.any()
    channels = given.shape[1] if net.draw(st.booleans()) else 1
    constant = net.constant(channels, *(1 for _ in given.shape[2:]))
    slots = net.draw(st.permutations([given.name, constant]))
    net.node(net.draw(st.sampled_from(["Add", "Mul", "Sub"])), slots, given.shape)


def _norm(net: Net) -> None:
    given = net.any()
    others = [net.constant(given.shape[1]) for _ in range(4)]
    net.weights[others[3]] = net.rng.uniform(0.5, 2.0, given.shape[1]).astype(net.dtype)
    net.node("BatchNormalization", [given.name, *others], given.shape)


def _shortcut(net: Net) -> None:
    """A convolution that keeps the size, and an Add around it."""
    given = net.any()
    attributes, weight, shape = _drawn_conv(net, given, given.shape[1], same=True)
    name = net.constant(*weight, scale=1.0 / np.sqrt(np.prod(weight[1:])))
    net.convolutions += 1
    net.node("Conv", [given.name, name], shape, **attributes)
    net.node("Add", net.draw(st.permutations([net.tensors[-1].name, given.name])), shape)


def _joint(net: Net) -> None:
    last = net.tensors[-1]
    alike = [
        each for each in net.tensors if (each.shape[0], each.shape[2:]) == (last.shape[0], last.shape[2:])
    ]
    parts = [last, net.draw(st.sampled_from(alike))]
    channels = sum(each.shape[1] for each in parts)
    if channels <= 2 * max(CHANNELS):
        shape = (last.shape[0], channels, *last.shape[2:])
        net.node("Concat", [each.name for each in parts], shape, axis=1)


def _body(net: Net) -> None:
    """An If with a convolution of what is around it in one branch."""
    given = net.any()
    attributes, weight, shape = _drawn_conv(net, given, given.shape[1], same=True)
    name = net.constant(*weight, scale=1.0 / np.sqrt(np.prod(weight[1:])))
    element = helper.np_dtype_to_tensor_dtype(np.dtype(net.dtype))
    out = helper.make_tensor_value_info("inner_out", element, [None] * len(shape))
    inner = f"inner{len(net.nodes)}"
    conv = helper.make_node("Conv", [given.name, name], ["inner_out"], inner, **attributes)
    same = helper.make_node("Identity", [given.name], ["inner_out"])
    bodies = [helper.make_graph([node], "body", [], [out]) for node in (conv, same)]
    net.convolutions += 1
    net.inner += 1
    net.node("If", ["q"], shape, then_branch=bodies[0], else_branch=bodies[1])
