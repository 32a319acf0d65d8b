"""A BatchNormalization behind a convolution, folded into its weight and bias.

    s = γ / √(var + ε)          W' = W·s  (a factor for each out-channel m)          b' = (b - μ)·s + β

Exact up to rounding, borders included: the normalisation comes after the padding.
"""

from __future__ import annotations

import numpy as np
import onnx

from rewriter.conv import Array, Conv
from rewriter.graph.analysis import Analysis
from rewriter.graph.attributes import ONNX_DOMAINS, attribute


def fold_norm(conv: Conv, norm: onnx.NodeProto, output: str, analysis: Analysis, opset: int) -> Conv | None:
    """The convolution with the node `norm` folded in, or None where that is no constant BatchNormalization.

    Args:
        conv: What makes the tensor `output`.
        norm: The node that alone takes it.
        output: Name of the tensor between the two.
        analysis: Where the constants are looked up.
        opset: The version of ONNX's operators: it decides what tells training from inference.
    """
    if norm.op_type != "BatchNormalization" or norm.domain not in ONNX_DOMAINS or norm.input[0] != output:
        return None
    if not norm.output or _training(norm, opset) or not attribute(norm, "spatial", 1):
        return None
    parameters = [analysis.constant(name) for name in norm.input[1:5]]
    arrays = [np.asarray(array, np.float64) for array in parameters if array is not None]
    if len(arrays) != 4 or any(array.shape != (conv.out_channels,) for array in arrays):
        return None
    return _fold(conv, *arrays, epsilon=attribute(norm, "epsilon", 1e-5))


def _training(norm: onnx.NodeProto, opset: int) -> bool:
    """Whether the statistics are those of the batch; in opsets 7 to 13 the number of outputs says so."""
    if opset >= 14:
        return bool(attribute(norm, "training_mode", 0))
    if opset < 7:
        return not attribute(norm, "is_test", 0)
    return any(norm.output[1:])


def _fold(
    conv: Conv, scale: Array, shift: Array, mean: Array, variance: Array, *, epsilon: float
) -> Conv | None:
    if not np.all(variance + epsilon > 0):
        return None
    factor = scale / np.sqrt(variance + epsilon)
    weight = conv.weight * factor.reshape(-1, *(1,) * (conv.weight.ndim - 1))
    bias = ((0.0 if conv.bias is None else conv.bias) - mean) * factor + shift
    with np.errstate(over="ignore"):
        weight, bias = weight.astype(np.float32), bias.astype(np.float32)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        return None
    return conv.with_(weight=weight, bias=bias)
