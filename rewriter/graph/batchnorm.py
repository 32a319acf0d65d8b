"""BatchNormalizations: folded into the convolution before them, and what they tell of their inputs.

    s = γ / √(var + ε)          W' = W·s  (a factor for each out-channel m)          b' = (b - μ)·s + β

Exact up to rounding, borders included: the normalisation comes after the padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from rewriter.conv import Array, Conv
from rewriter.graph.analysis import Analysis
from rewriter.graph.attributes import ONNX_DOMAINS, attribute
from rewriter.graph.model import Model
from rewriter.graph.scaling import scaled


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
    found = factor_and_term(norm, conv.out_channels, analysis, opset)
    return None if found is None else scaled(conv, *found)


def factor_and_term(
    norm: onnx.NodeProto, channels: int, analysis: Analysis, opset: int
) -> tuple[Array, Array] | None:
    """What a BatchNormalization of so many channels multiplies each with and then adds, `[C]`, or None."""
    if not norm.output or _training(norm, opset) or not attribute(norm, "spatial", 1):
        return None
    parameters = [analysis.constant(name) for name in norm.input[1:5]]
    arrays = [np.asarray(array, np.float64) for array in parameters if array is not None]
    if len(arrays) != 4 or any(array.shape != (channels,) for array in arrays):
        return None
    scale, shift, mean, variance = arrays
    variance = variance + attribute(norm, "epsilon", 1e-5)
    if not np.all(variance > 0):
        return None
    factor = scale / np.sqrt(variance)
    return factor, shift - mean * factor


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """What a BatchNormalization has seen of its input in training.

    Attributes:
        input: Name of the tensor that it takes, `[N, C, ...]`.
        mean: Of each channel, `[C]`.
        variance: Of each channel with epsilon added, above 0, `[C]`.
    """

    input: str
    mean: Array
    variance: Array


def find_norms(model: Model, most: int) -> tuple[Norm, ...]:
    """The first BatchNormalizations of the top graph that run with constant statistics, at most so many.

    Those of mean 0 and variance 1 with no epsilon only scale and shift, and have seen nothing.
    """
    analysis = Analysis(model)
    found: list[Norm] = []
    for node in model.proto.graph.node:
        if len(found) == most:
            break
        if node.op_type != "BatchNormalization" or node.domain not in ONNX_DOMAINS:
            continue
        if len(node.input) < 5 or not node.output or _training(node, model.opset):
            continue
        if not attribute(node, "spatial", 1):
            continue
        parameters = [analysis.constant(name) for name in node.input[3:5]]
        mean, variance = (np.asarray([] if a is None else a, np.float64) for a in parameters)
        variance = variance + attribute(node, "epsilon", 1e-5)
        usable = mean.ndim == 1 and mean.size and mean.shape == variance.shape
        told = bool(np.any(mean) or np.any(variance != 1.0))
        if (
            usable
            and told
            and np.isfinite(mean).all()
            and np.isfinite(variance).all()
            and np.all(variance > 0)
        ):
            found.append(Norm(node.input[0], mean, variance))
    return tuple(found)


def _training(norm: onnx.NodeProto, opset: int) -> bool:
    """Whether the statistics are those of the batch; in opsets 7 to 13 the number of outputs says so."""
    if opset >= 14:
        return bool(attribute(norm, "training_mode", 0))
    if opset < 7:
        return not attribute(norm, "is_test", 0)
    return any(norm.output[1:])
