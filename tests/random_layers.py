"""Random layers: each puts nodes behind what a net has, and keeps account of shapes."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper
from random_net import Net, Tensor

from rewriter.conv import Conv

CHANNELS = (1, 2, 3, 4, 8, 16)
# Of one sample: a ConvTranspose over three axes makes much of little.
MOST_PLACES = 3000
STRIDES = st.sampled_from([1, 1, 1, 2, 3])


def conv(net: Net) -> None:
    given = net.any()
    attributes, weight, shape = _drawn_conv(net, given)
    net.convolutions += 1
    net.node("Conv", [given.name, *_weights(net, weight, weight[0])], shape, **attributes)


def conv_transpose(net: Net) -> None:
    """In all four ways to give its pads, with and without output_padding."""
    draw, given = net.draw, net.any()
    batch, inputs, *size = given.shape
    axes = range(len(size))
    group = draw(st.sampled_from([1, 1, 1, *(each for each in range(2, inputs + 1) if inputs % each == 0)]))
    outputs = group * draw(st.sampled_from([1, 2, 4]))
    kernel = [draw(st.integers(1, 4)) for _ in axes]
    strides = [draw(STRIDES) for _ in axes]
    if draw(st.booleans()):
        strides = [strides[0] for _ in axes]
    dilations = [draw(st.sampled_from([1, 1, 1, 2])) for _ in axes]
    way = draw(st.sampled_from(["pads", "pads", "none", "SAME_UPPER", "SAME_LOWER", "VALID", "output_shape"]))
    pads, extra = [0] * 2 * len(size), [0 for _ in axes]
    attributes: dict = {}
    if way == "pads":
        reach = [dilations[a] * (kernel[a] - 1) for a in axes]
        pads = [draw(st.integers(0, min(reach[a], size[a] // 2))) for a in (*axes, *axes)]
        # ONNX Runtime takes only what a stride makes ambiguous
        extra = [draw(st.integers(0, strides[a] - 1)) for a in axes]
        attributes = {"pads": pads, "output_padding": extra}
    whole = [
        strides[a] * (size[a] - 1)
        + extra[a]
        + dilations[a] * (kernel[a] - 1)
        + 1
        - pads[a]
        - pads[a - len(size)]
        for a in axes
    ]
    out = whole
    if way.startswith("SAME"):
        # ONNX Runtime takes no negative pads for it, so that a kernel shorter than the stride makes less
        out = [min(strides[a] * size[a], whole[a]) for a in axes]
    elif way == "output_shape":
        # ONNX infers no shape where it is smaller than the input's
        out = [max(whole[a] - draw(st.integers(0, 2)), size[a]) for a in axes]
        attributes = {"output_shape": out}
    if way in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        attributes["auto_pad"] = way
    if min(out) < 1 or prod(out) > MOST_PLACES:
        return
    attributes |= {"strides": strides, "dilations": dilations, "group": group}
    if draw(st.booleans()):
        attributes["kernel_shape"] = kernel
    net.convolutions += 1
    weights = _weights(net, (inputs, outputs // group, *kernel), outputs)
    net.node("ConvTranspose", [given.name, *weights], (batch, outputs, *out), **attributes)


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
    ways = ["given", "given", "none", "SAME_UPPER", "SAME_LOWER", "VALID"]
    way = "same" if same else draw(st.sampled_from(ways))
    if way == "same":
        pads = [taps // 2 for taps in kernel] * 2
    else:
        strides = [draw(STRIDES) for _ in axes]
    if way in ("given", "none", "VALID"):
        # ONNX Runtime has no dilations with SAME
        dilations = [
            draw(st.integers(1, 2)) if (taps - 1) * 2 < size[a] else 1 for a, taps in enumerate(kernel)
        ]
    if way == "given":
        pads = [draw(st.integers(0, 3)) for _ in range(2 * len(size))]
    if way in ("same", "given"):
        attributes["pads"] = pads
    elif way != "none":
        attributes["auto_pad"] = way
    if way.startswith("SAME"):
        out = [-(-size[a] // strides[a]) for a in axes]
    else:
        found = Conv(np.zeros((1, 1, *kernel)), None, tuple(strides), tuple(pads), tuple(dilations))
        out = list(found.out_size(tuple(size)))
    optional = {"strides": strides, "dilations": dilations, "group": group, "kernel_shape": kernel}
    defaults = {"strides": ones, "dilations": ones, "group": 1, "kernel_shape": kernel}
    for name, value in optional.items():
        if value != defaults[name] or draw(st.booleans()):
            attributes[name] = value
    return attributes, (outputs, inputs // group, *kernel), (batch, outputs, *out)


def _weights(net: Net, shape: tuple[int, ...], outputs: int) -> list[str]:
    """A weight and perhaps a bias, shared or not, each as it is or behind other nodes."""
    name = net.alike(shape)
    if name is None:
        name = net.constant(*shape, scale=1.0 / np.sqrt(np.prod(shape[1:])))
        net.weights[name] = _planted(net, net.weights[name])
    bias = net.draw(st.sampled_from(["no", "empty", "yes", "yes"]))
    if bias == "yes":
        return [net.behind(name), net.behind(net.alike((outputs,)) or net.constant(outputs))]
    return [net.behind(name), *([""] if bias == "empty" else [])]


def _planted(net: Net, weight: np.ndarray) -> np.ndarray:
    """A weight with the structure that exact passes look for, or as it is."""
    outputs, inputs, *kernel = weight.shape
    ways = ["random", "random", "cropped", "alike", "blocks", "separable", "zero", "outputs", "inputs"]
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
    elif way == "zero" and net.draw(st.booleans()):
        keep[...] = 0
    return weight * keep


def pointwise(net: Net) -> None:
    given = net.any()
    net.node(net.draw(st.sampled_from(["Relu", "Sigmoid", "LeakyRelu"])), [given.name], given.shape)


def scaled(net: Net) -> None:
    given = net.any()
    channels = given.shape[1] if net.draw(st.booleans()) else 1
    constant = net.behind(net.constant(channels, *(1 for _ in given.shape[2:])))
    slots = net.draw(st.permutations([given.name, constant]))
    net.node(net.draw(st.sampled_from(["Add", "Mul", "Sub"])), slots, given.shape)


def clipped(net: Net) -> None:
    """A line between two bounds and what exporters make of that, or a PRelu with one slope."""
    given, draw = net.any(), net.draw
    if draw(st.integers(0, 3)) == 0:
        slope = net.hold(np.full((given.shape[1], *(1 for _ in given.shape[2:])), 0.25, net.dtype))
        net.node("PRelu", [given.name, slope], given.shape)
        return

    def number(value: float) -> str:
        shape = draw(st.sampled_from([(), (1,), (1,) * len(given.shape)]))
        name = net.hold(np.full(shape, value, net.dtype))
        return net.behind(name) if shape else name

    def step(op_type: str, *inputs: str) -> str:
        net.node(op_type, list(inputs), given.shape)
        return net.tensors[-1].name

    last = step("Add", *draw(st.permutations([given.name, number(3.0)])))
    if net.opset >= 12 and draw(st.booleans()):
        bounds = [net.hold(np.array(value, net.dtype)) for value in (0.0, 6.0)]
        last = step("Clip", last, *bounds)
    else:
        # ONNX Runtime has no Min and Max of float16 before opset 13
        kinds = ["Relu", "Min"] if net.dtype == np.float32 else ["Relu"]
        for kind in draw(st.permutations(kinds)):
            last = step(kind, last, *([number(6.0)] if kind == "Min" else []))
    for way in draw(st.permutations(["swish", "sixth"]))[: draw(st.integers(0, 2))]:
        if way == "swish":
            last = step("Mul", *draw(st.permutations([last, given.name])))
        else:
            last = step("Div", last, number(6.0))


def slow(net: Net) -> None:
    """An operator that may be written in others, or a Resize in one of the coordinates there are."""
    given, draw = net.any(), net.draw
    n, c, *size = given.shape
    kinds = ["Elu", "Softplus", "Softmax", "LogSoftmax", "PRelu", "Mish"]
    if len(size) == 2:
        kinds += ["LRN"] + ["DepthToSpace"] * (c % 4 == 0) + ["Resize"] * (net.opset >= 11)
    kind = draw(st.sampled_from(kinds))
    # ONNX Runtime has not all of them in float16, and ONNX's reference not LRN as it is defined
    if net.dtype != np.float32 or (kind in ("DepthToSpace", "Resize") and 4 * prod(size) > MOST_PLACES):
        return
    attributes, inputs, shape = {}, [given.name], given.shape
    if kind == "Mish":
        net.node("Softplus", inputs, shape)
        net.node("Tanh", [net.tensors[-1].name], shape)
        net.node("Mul", draw(st.permutations([given.name, net.tensors[-1].name])), shape)
        return
    if "Softmax" in kind:
        attributes = {"axis": draw(st.integers(1, len(shape) - 1))}
    elif kind == "PRelu":
        inputs.append(net.hold(net.rng.uniform(-1.5, 1.2, (c, *(1 for _ in size))).astype(net.dtype)))
    elif kind == "LRN":
        attributes = {
            "size": draw(st.sampled_from([1, 3, 5])),  # ONNX Runtime takes odd ones only
            "alpha": 0.1,
            "beta": draw(st.sampled_from([0.5, 0.75, 0.4])),
        }
    elif kind == "DepthToSpace":
        modes = ["DCR", "CRD"] if net.opset >= 11 else []
        attributes = {"blocksize": 2, **({"mode": draw(st.sampled_from(modes))} if modes else {})}
        shape = (n, c // 4, *(2 * each for each in size))
    elif kind == "Resize":
        factors = [draw(st.sampled_from([1, 2])) for _ in size]
        attributes = {
            "mode": draw(st.sampled_from(["nearest", "linear"])),
            "coordinate_transformation_mode": draw(
                st.sampled_from(["half_pixel", "pytorch_half_pixel", "asymmetric"])
            ),
            "nearest_mode": draw(st.sampled_from(["floor", "round_prefer_floor", "round_prefer_ceil"])),
        }
        inputs += [net.hold(np.float32([])), net.hold(np.float32([1, 1, *factors]))]
        shape = (n, c, *(each * factor for each, factor in zip(size, factors, strict=True)))
    net.node(kind, inputs, shape, **attributes)


def norm(net: Net) -> None:
    given = net.any()
    others = [net.constant(given.shape[1]) for _ in range(4)]
    if net.draw(st.integers(0, 3)) == 0:
        # a large term, or what is constant but for rounding comes out as noise
        net.node("InstanceNormalization", [given.name, *others[:2]], given.shape, epsilon=0.1)
        return
    net.weights[others[3]] = net.rng.uniform(0.5, 2.0, given.shape[1]).astype(net.dtype)
    net.node("BatchNormalization", [given.name, *others], given.shape)


def padded(net: Net) -> None:
    """A Pad of zeros or of another number."""
    given = net.any()
    axes = len(given.shape) - 2
    begins, ends = ([net.draw(st.integers(0, 2)) for _ in range(axes)] for _ in "be")
    shape = (*given.shape[:2], *(sum(each) for each in zip(given.shape[2:], begins, ends, strict=True)))
    pads, value = [0, 0, *begins, 0, 0, *ends], net.draw(st.sampled_from([0.0, 0.0, 0.5]))
    if prod(shape[2:]) > MOST_PLACES:
        return
    if net.opset < 11:
        net.node("Pad", [given.name], shape, pads=pads, value=value)
    else:
        held = [net.hold(np.array(pads, np.int64)), net.hold(np.array(value, net.dtype))]
        net.node("Pad", [given.name, *held], shape)


def shortcut(net: Net) -> None:
    """A convolution that keeps the size, and an Add around it."""
    given = net.any()
    attributes, name, shape = _same(net, given)
    net.node("Conv", [given.name, name], shape, **attributes)
    net.node("Add", net.draw(st.permutations([net.tensors[-1].name, given.name])), shape)


def joint(net: Net) -> None:
    last = net.tensors[-1]
    alike = [
        each for each in net.tensors if (each.shape[0], each.shape[2:]) == (last.shape[0], last.shape[2:])
    ]
    parts = [last, net.draw(st.sampled_from(alike))]
    channels = sum(each.shape[1] for each in parts)
    if channels <= 2 * max(CHANNELS):
        shape = (last.shape[0], channels, *last.shape[2:])
        net.node("Concat", [each.name for each in parts], shape, axis=1)


def branch(net: Net) -> None:
    """An If with a convolution of what is around it in one branch."""
    given = net.any()
    attributes, name, shape = _same(net, given)
    out = helper.make_tensor_value_info("inner_out", net.element, [None] * len(shape))
    inner = f"inner{len(net.nodes)}"
    made = helper.make_node("Conv", [given.name, name], ["inner_out"], inner, **attributes)
    same = helper.make_node("Identity", [given.name], ["inner_out"])
    bodies = [helper.make_graph([node], "body", [], [out]) for node in (made, same)]
    net.inner += 1
    net.asked = True
    net.node("If", ["q"], shape, then_branch=bodies[0], else_branch=bodies[1])


def loop(net: Net) -> None:
    """A Loop with a convolution of what it carries on."""
    given = net.any()
    attributes, name, shape = _same(net, given)
    sizes = [None] * len(shape)
    value = helper.make_tensor_value_info
    flag, count = onnx.TensorProto.BOOL, onnx.TensorProto.INT64
    nodes = [
        helper.make_node("Identity", ["going"], ["still"]),
        helper.make_node("Conv", ["carried", name], ["next"], f"loop{len(net.nodes)}", **attributes),
    ]
    inputs = [value("i", count, []), value("going", flag, []), value("carried", net.element, sizes)]
    outputs = [value("still", flag, []), value("next", net.element, sizes)]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    net.inner += 1
    net.node("Loop", [net.hold(np.array(2, np.int64)), "", given.name], shape, body=body)


def function(net: Net) -> None:
    """A call of a function of the model's own, with a convolution in it."""
    given = net.any()
    attributes, name, shape = _same(net, given)
    called = f"Block{len(net.functions)}"
    nodes = [
        helper.make_node("Conv", ["a", "k"], ["h"], **attributes),
        helper.make_node("Relu", ["h"], ["b"]),
    ]
    imports = [helper.make_opsetid("", net.opset)]
    net.functions.append(helper.make_function("local", called, ["a", "k"], ["b"], nodes, imports))
    net.inner += 1
    net.node(called, [given.name, name], shape, domain="local")


def _same(net: Net, given: Tensor) -> tuple[dict, str, tuple[int, ...]]:
    """A convolution that keeps the shape: its attributes, its weight and the shape."""
    attributes, weight, shape = _drawn_conv(net, given, given.shape[1], same=True)
    name = net.alike(weight) or net.constant(*weight, scale=1.0 / np.sqrt(np.prod(weight[1:])))
    net.convolutions += 1
    return attributes, name, shape


LAYERS = (
    conv,
    conv,
    conv,
    conv_transpose,
    pointwise,
    scaled,
    clipped,
    slow,
    norm,
    padded,
    shortcut,
    joint,
    branch,
    loop,
    function,
)
