"""Factors and constants for each channel behind a convolution: folded into it.

    y = (W x + b) · s + t          W' = W·s  (a factor for each out-channel m)          b' = b·s + t

Exact up to rounding, borders included: they come after the padding.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import onnx

from rewriter.conv import Array, Conv
from rewriter.graph.analysis import Analysis
from rewriter.graph.attributes import ONNX_DOMAINS
from rewriter.graph.opset import BROADCASTING

SCALINGS: Final = ("Add", "Sub", "Mul", "Div")
"""The operators that scale or shift channels by constants."""


def fold_scaling(
    conv: Conv, node: onnx.NodeProto, output: str, analysis: Analysis, opset: int
) -> Conv | None:
    """The convolution with an Add, Sub, Mul or Div of constants folded in, or None where it is no such.

    Args:
        conv: What makes the tensor `output`.
        node: The node that alone takes it.
        output: Name of the tensor between the two.
        analysis: Where the constants are looked up.
        opset: The version of ONNX's operators.
    """
    fits = node.op_type in SCALINGS and node.domain in ONNX_DOMAINS
    if not fits or opset < BROADCASTING or len(node.input) != 2 or not node.output:
        return None
    slot = list(node.input).index(output)
    value = analysis.constant(node.input[1 - slot])
    constant = None if value is None else by_channel(value, conv.weight.ndim, conv.out_channels)
    found = None if constant is None else factor_and_shift(node.op_type, slot, constant)
    return None if found is None else scaled(conv, *found)


def factor_and_shift(op_type: str, slot: int, constant: Array) -> tuple[Array | float, Array | None] | None:
    """What an operator on a tensor and a constant `[C]` multiplies the tensor with and then adds.

    Args:
        op_type: Add, Sub, Mul or Div; None comes of any other.
        slot: Which of its inputs the tensor is.
        constant: The other input.
    """
    match op_type, slot:
        case "Add", _:
            return 1.0, constant
        case "Sub", 0:
            return 1.0, -constant
        case "Sub", _:
            return -1.0, constant
        case "Mul", _:
            return constant, None
        case "Div", 0 if constant.all():
            return 1 / constant, None
    return None


def scaled(conv: Conv, factor: Array | float, shift: Array | None = None) -> Conv | None:
    """The convolution with its output times `factor`, `[M]` or one for all channels, plus `shift` `[M]`.

    None where its weights overflow.
    """
    factors = np.broadcast_to(factor, conv.out_channels)
    weight = conv.weight * factors.reshape(-1, *(1,) * (conv.weight.ndim - 1))
    bias = None if conv.bias is None else conv.bias * factors
    if shift is not None:
        bias = shift if bias is None else bias + shift
    own = conv.weight.dtype
    if not held(own, weight, bias):
        return None
    return conv.with_(weight=weight.astype(own), bias=None if bias is None else bias.astype(own))


def held(dtype: npt.DTypeLike, *arrays: Array | None) -> bool:
    """Whether a type holds all values of some arrays, which are finite and not too large for it."""
    with np.errstate(over="ignore"):
        return all(bool(np.isfinite(each.astype(dtype)).all()) for each in arrays if each is not None)


def by_channel(value: npt.NDArray[np.generic], axes: int, channels: int) -> Array | None:
    """A constant as `[C]` for a tensor of so many axes; None where it differs by place or makes it larger."""
    shape = (1,) * (axes - value.ndim) + value.shape
    if len(shape) != axes or value.size not in (1, channels) or value.size != shape[1]:
        return None
    return np.broadcast_to(np.asarray(value, np.float64).reshape(-1), channels)
