"""Random models of convolutions over one to three axes, with all that may stand around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper
from random_layers import CHANNELS, LAYERS, conv, conv_transpose
from random_net import Net, Tensor

from rewriter import graph

OPSETS = (8, 9, 11, 13, 15, 17, 21)


@dataclass(frozen=True)
class Drawn:
    """A model and what it is fed.

    Attributes:
        dtype: Of its tensors.
        convolutions: How many there are, those in bodies and functions included.
        inner: How many of these are in bodies and functions.
    """

    model: graph.Model
    feeds: dict[str, np.ndarray]
    dtype: np.dtype
    convolutions: int
    inner: int


@st.composite
def nets(draw: Callable) -> Drawn:
    """A model of up to eight layers with its feeds."""
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float32, np.float16, np.float64]))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    # Only ONNX's reference runs it: slow over three axes, and in old opsets not what the operators are.
    wide = dtype == np.float64
    net = Net(draw, rng, dtype, draw(st.sampled_from([each for each in OPSETS if each >= 14 or not wide])))
    sizes = tuple(draw(st.integers(3, 9)) for _ in range(draw(st.integers(1, 2 if wide else 3))))
    shape = (draw(st.integers(1, 2)), draw(st.sampled_from(CHANNELS)), *sizes)
    net.tensors.append(Tensor("x", shape))
    conv(net)
    # the reference has no ConvTranspose in groups
    layers = [each for each in LAYERS if each is not conv_transpose or not wide]
    for _ in range(draw(st.integers(0, 7))):
        draw(st.sampled_from(layers))(net)
    feeds = {"x": rng.standard_normal(shape).astype(dtype)}
    if net.asked:
        feeds["q"] = np.array(draw(st.booleans()))
    proto = helper.make_model(
        _graph(net, shape),
        functions=net.functions,
        opset_imports=[helper.make_opsetid("", net.opset), helper.make_opsetid("local", 1)],
        ir_version=draw(st.sampled_from([8, 10])),
    )
    return Drawn(graph.load(proto), feeds, np.dtype(dtype), net.convolutions, net.inner)


def _graph(net: Net, shape: tuple[int, ...]) -> onnx.GraphProto:
    draw, value = net.draw, helper.make_tensor_value_info
    given = {net.tensors[-1].name: net.tensors[-1]}
    for _ in range(draw(st.integers(0, 2))):
        other = draw(st.sampled_from(net.tensors[1:]))
        given[other.name] = other
    dynamic = {"none": [], "batch": ["N"], "all": ["N", shape[1], *(f"s{a}" for a in range(len(shape) - 2))]}
    symbols = dynamic[draw(st.sampled_from(["none", "batch", "all"]))]
    inputs = [value("x", net.element, [*symbols, *shape[len(symbols) :]])]
    if net.asked:
        inputs.append(value("q", onnx.TensorProto.BOOL, []))
    # a weight that callers may replace
    pinned = draw(st.sampled_from([None, None, None, *net.weights]))
    if pinned is not None:
        held = net.weights[pinned]
        inputs.append(value(pinned, helper.np_dtype_to_tensor_dtype(held.dtype), held.shape))
    outputs = [value(each.name, net.element, [None] * len(each.shape)) for each in given.values()]
    held = [onnx.numpy_helper.from_array(array, name) for name, array in net.weights.items()]
    return helper.make_graph(net.nodes, "random", inputs, outputs, held)
