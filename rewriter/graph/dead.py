"""Removes channels that make no difference: what computes them, and what convolutions behind read of them.

A channel of a filter that is zero, or of a normalisation that multiplies by zero, is constant; what is
constant moves into the bias of the layers that read it,

    b' = b + Σ W[:, c] v_c        over the removed in-channels c, of value v_c

which holds at the border, too, only where the layer pads nothing or v_c = 0. A channel that every kernel
behind ignores is dead whatever its value. Exact up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import onnx

from rewriter.conv import Array, Conv
from rewriter.graph.analysis import Analysis
from rewriter.graph.attributes import attribute
from rewriter.graph.channels import Channels
from rewriter.graph.emit import Emitted
from rewriter.graph.mixing import Bools, Layer
from rewriter.graph.model import Model
from rewriter.graph.scope import Names
from rewriter.graph.sites import Site, find_sites
from rewriter.graph.splice import Piece, piece_of, replaced
from rewriter.graph.types import infer_types, shape
from rewriter.rewrite import Rewrite


def remove_dead(model: Model, sites: Sequence[Site], block: int) -> Model:
    """The model without its dead channels; the same model where there are none.

    Args:
        model: The model in which the sites were found.
        sites: The convolutions that may change.
        block: Each keeps a multiple of so many channels, as its kernels compute these at once.
    """
    if not sites:
        return model
    channels = Channels(model, sites)
    dead = channels.removable(block)
    if not dead.any():
        return model
    smaller = {name for name in channels.names if dead[channels.slots(name)].any()}
    pieces = [
        _layer_piece(model, channels, layer, dead)
        for layer in channels.layers
        if smaller & {layer.input, layer.output}
    ]
    for index, cuts in channels.cuts.items():
        node = model.proto.graph.node[index]
        if cuts and node.output[0] in smaller:
            kept = ~dead[channels.slots(node.output[0])]
            pieces.append(_node_piece(node, index, cuts, kept, channels.analysis))
    proto = replaced(model, pieces)
    described = proto.graph.value_info
    for place in reversed(range(len(described))):
        if described[place].name in smaller:
            del described[place]
    return model.edited(proto)


def dead_channels(model: Model, sites: Sequence[Site]) -> dict[str, tuple[int, int]]:
    """How many in-channels and out-channels of each site the model can do without, by the site's name."""
    if not sites:
        return {}
    channels = Channels(model, sites)
    dead = channels.removable(1)
    return {
        layer.site.name: (
            int(dead[channels.slots(layer.input)].sum()),
            int(dead[channels.slots(layer.output)].sum()),
        )
        for layer in channels.layers
        if layer.site is not None
    }


def sole_readers(model: Model, sites: Sequence[Site]) -> dict[str, list[str]]:
    """The sites that alone read channels which other sites make, with these others, by name."""
    if not sites:
        return {}
    return {site.name: [each.name for each in makers] for site, makers in Channels(model, sites).alone()}


def removed_channels(before: Model, after: Model) -> int:
    """How many fewer channels the convolutions of the second model compute than those of the first."""
    if before is after:
        return 0
    known = infer_types(before)
    counts = ((shape(known, site.output), site.conv.out_channels) for site in find_sites(after)[0])
    return sum(sizes[1] - count for sizes, count in counts if sizes and isinstance(sizes[1], int))


def _layer_piece(model: Model, channels: Channels, layer: Layer, dead: Bools) -> Piece:
    given = channels.slots(layer.input)
    conv = _without(layer, dead[given], dead[channels.slots(layer.output)], channels.values[given])
    if layer.site is None:
        node = model.proto.graph.node[layer.index]
        make = partial(_gemm, node, conv)
        return Piece(node.name, (layer.index,), (layer.input,), layer.output, make)
    return piece_of(model, layer.site, Rewrite(((conv,),)))


def _without(layer: Layer, inputs: Bools, outputs: Bools, values: Array) -> Conv:
    """A layer without some in-channels, which have a value or are ignored, and some out-channels."""
    conv = layer.conv
    rows = ~outputs if len(outputs) else np.ones(conv.out_channels, bool)
    if conv.group > 1:
        groups = (~inputs).reshape(conv.group, -1)[:, 0]
        bias = None if conv.bias is None else conv.bias[rows]
        return conv.with_(weight=conv.weight[rows], bias=bias, group=int(groups.sum()))
    added = layer.sums(inputs) @ np.nan_to_num(values[inputs])
    bias = conv.bias
    if added.any():
        bias = (added + (0.0 if bias is None else bias)).astype(conv.weight.dtype)
    return conv.with_(weight=conv.weight[rows][:, ~inputs], bias=None if bias is None else bias[rows])


def _gemm(node: onnx.NodeProto, conv: Conv, names: Names) -> Emitted:
    """A Gemm with the weights of a convolution of one tap."""
    weight = conv.weight[:, :, 0]
    arrays = {1: weight if attribute(node, "transB", 0) else weight.T}
    if conv.bias is not None:
        arrays[2] = conv.bias
    return _with_constants(node, arrays, names)


def _node_piece(
    node: onnx.NodeProto, index: int, cuts: Mapping[int, int], kept: Bools, analysis: Analysis
) -> Piece:
    """A node with its constants of the kept channels only."""
    arrays = {}
    for slot, axis in cuts.items():
        value = analysis.constant(node.input[slot])
        assert value is not None
        arrays[slot] = value.compress(kept, axis)
    taken = tuple({name: None for slot, name in enumerate(node.input) if name and slot not in arrays})
    return Piece(node.name, (index,), taken, node.output[0], partial(_with_constants, node, arrays))


def _with_constants(node: onnx.NodeProto, arrays: dict[int, Array], names: Names) -> Emitted:
    """A copy of a node with other constants in some of its slots."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input.extend([""] * (max(arrays) + 1 - len(copy.input)))
    made = []
    for slot, array in arrays.items():
        copy.input[slot] = names.new(copy.input[slot] or f"{node.output[0]}.bias")
        made.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), copy.input[slot]))
    return Emitted((copy,), tuple(made))
