"""Folds what stands around a convolution into it: factors and terms for each channel, and zero padding.

    Conv(s·x + t; W, b) = Conv(x; W·s, b + Σ W·t)        s and t for each in-channel c

A term survives only where the convolution pads nothing, for its zeros come after the term; a factor always. A
Pad of zeros becomes pads of the convolution. What is behind a convolution goes in always (`scaling`); some of
that ONNX Runtime folds itself. Exact up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx

from rewriter.conv import Array, Conv
from rewriter.graph.affine import step_of
from rewriter.graph.analysis import Analysis
from rewriter.graph.attributes import ONNX_DOMAINS, attribute
from rewriter.graph.fusible import in_gelus
from rewriter.graph.model import Model
from rewriter.graph.sites import Site, fits
from rewriter.graph.splice import splice
from rewriter.graph.types import Types, infer_types
from rewriter.rewrite import Rewrite


def fold_around(model: Model, sites: Collection[Site]) -> Model:
    """The model with what stands in front of some of its convolutions, and nowhere else, folded into them.

    What scales their channels behind them is folded, too, where ONNX Runtime would leave any of it. The same
    model where there is nothing.
    """
    analysis = Analysis(model)
    behind = {index for site in sites for index in site.nodes} | in_gelus(model)
    places = {id(node): i for i, node in enumerate(model.proto.graph.node) if i not in behind}
    types = cache(lambda: infer_types(model))
    nodes = model.proto.graph.node
    folded = []
    for site in sites:
        whole = site
        while (longer := _longer(whole, analysis, places, types, model.opset)) is not None:
            whole = longer
        if whole is not site or not all(_fused(site, nodes[each], analysis) for each in site.nodes[1:]):
            folded.append((whole, Rewrite(((whole.conv,),))))
    return splice(model, folded) if folded else model


def _fused(site: Site, node: onnx.NodeProto, analysis: Analysis) -> bool:
    """Whether ONNX Runtime folds a node behind a convolution into it when it loads the model.

    Its fusions (ConvBNFusion, ConvMulFusion, ConvAddFusion) are of Conv alone, and take a factor or term for
    each channel as the second operand, or a single factor without axes.
    """
    if site.op_type != "Conv":
        return False
    if node.op_type == "BatchNormalization":
        return True
    value = analysis.constant(node.input[1])
    if value is None or node.op_type not in ("Mul", "Add"):
        return False
    return value.size > 1 or (node.op_type == "Mul" and value.ndim == 0)


def _longer(
    site: Site, analysis: Analysis, places: dict[int, int], types: Callable[[], Types], opset: int
) -> Site | None:
    """The site with the node in front of it folded in, or None where that cannot be."""
    node = analysis.producer(site.input)
    if node is None or node.domain not in ONNX_DOMAINS or site.op_type != "Conv":
        return None
    if id(node) not in places:  # it is folded into the convolution before it
        return None
    if analysis.only_consumer(site.input) != site.nodes[0]:
        return None
    if node.op_type == "Pad":
        found, conv = node.input[0], _padded(site.conv, node, analysis)
    else:
        step = step_of(node, site.conv.in_channels, site.conv.weight.ndim, analysis, types, opset)
        if step is None:
            return None
        found, conv = step.input, _scaled(site.conv, step.factor, step.term)
    if conv is None or not fits(conv):
        return None
    return replace(site, conv=conv, input=found, nodes=(places[id(node)], *site.nodes))


def _scaled(conv: Conv, factor: Array, term: Array) -> Conv | None:
    if np.any(term) and any(conv.pads):
        return None
    groups, inner = conv.group, conv.weight.shape[1]
    weight = conv.weight.astype(np.float64).reshape(groups, -1, *conv.weight.shape[1:])
    shaped = (groups, 1, inner, *(1,) * (conv.weight.ndim - 2))
    scaled = (weight * factor.reshape(shaped)).reshape(conv.weight.shape)
    bias = conv.bias
    if np.any(term):
        added = (weight * term.reshape(shaped)).reshape(conv.out_channels, -1).sum(1)
        bias = added + (0.0 if conv.bias is None else conv.bias)
    own = conv.weight.dtype
    with np.errstate(over="ignore"):
        return conv.with_(weight=scaled.astype(own), bias=None if bias is None else bias.astype(own))


def _padded(conv: Conv, node: onnx.NodeProto, analysis: Analysis) -> Conv | None:
    """The convolution with a Pad of zeros in its own pads."""
    pads: Any = attribute(node, "pads")
    if pads is None:
        pads = analysis.constant(node.input[1]) if len(node.input) > 1 else None
    value: Any = attribute(node, "value", 0.0)
    if len(node.input) > 2 and node.input[2]:
        value = analysis.constant(node.input[2])
    if pads is None or value is None or np.any(value) or any(node.input[3:]):
        return None
    if attribute(node, "mode", "constant") != "constant":
        return None
    rank = conv.weight.ndim
    if np.shape(pads) != (2 * rank,) or min(pads) < 0 or any(pads[axis] for axis in (0, 1, rank, rank + 1)):
        return None
    more = [*pads[2:rank], *pads[rank + 2 :]]
    return conv.with_(pads=tuple(own + int(each) for own, each in zip(conv.pads, more, strict=True)))
