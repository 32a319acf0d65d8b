"""Finds every convolution of a model: the sites that can be rewritten, and why the others cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, TypeAlias

import numpy as np
import onnx

from rewriter.conv import Conv
from rewriter.graph.analysis import Analysis
from rewriter.graph.attributes import ONNX_DOMAINS, attribute
from rewriter.graph.batchnorm import fold_norm
from rewriter.graph.followers import Follower, find_followers
from rewriter.graph.model import Model
from rewriter.graph.opset import obstacle
from rewriter.graph.pads import explicit_pads
from rewriter.graph.scaling import fold_scaling, held
from rewriter.graph.scope import Names, bodies, graphs
from rewriter.graph.transposed import transposed_conv
from rewriter.graph.types import Types, infer_types, shape
from rewriter.rewrite import Refusal

_REWRITTEN: Final = ("Conv", "ConvTranspose")
# What computes a convolution and is no site, with the reason. Anything in another domain is none either.
_OTHERS: Final = {
    "DeformConv": "its taps move with the data; only Conv and ConvTranspose are rewritten",
    "QLinearConv": "it is quantised; rewrite the float model and quantise afterwards",
    "ConvInteger": "it is quantised; rewrite the float model and quantise afterwards",
    "QLinearConvTranspose": "it is quantised; rewrite the float model and quantise afterwards",
    "FusedConv": "it is fused for one runtime already; rewrite the model that it was optimised from",
    "NhwcConv": "it is laid out for one runtime already; rewrite the model that it was optimised from",
    "NhwcFusedConv": "it is fused for one runtime already; rewrite the model that it was optimised from",
}

_TYPES: Final = (np.float16, np.float32, np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A convolution that can be rewritten.

    Attributes:
        name: The node's name where it has one of its own, else one made from its output.
        op_type: The operator as the model has it.
        conv: What it computes, what scales and shifts its channels behind it folded in, pads explicit; in
            float32 where the model has float16.
        input: Name of the tensor that it takes.
        output: Name of the tensor that it gives, behind what is folded in.
        nodes: Indices of the nodes that a rewrite replaces: the Conv, then each BatchNormalization, Add, Sub,
            Mul or Div that is folded in.
        followers: What comes behind and can be computed with it: an Add, an activation, or both in this
            order.
        opset: The version of ONNX's operators that the followers are written in.
        obstacle: Why the model cannot hold this convolution transformed, or None.
    """

    name: str
    op_type: str
    conv: Conv
    input: str
    output: str
    nodes: tuple[int, ...]
    followers: tuple[Follower, ...] = ()
    opset: int = 13
    obstacle: str | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of its tensors in the model."""
        return self.conv.dtype

    @property
    def shortcut(self) -> str | None:
        """Name of the tensor that an Add behind the site adds to it, or None."""
        for follower in self.followers:
            if follower.op_type == "Add":
                return str(follower.node.input[1 - follower.slot])
        return None


def find_sites(model: Model) -> tuple[tuple[Site, ...], tuple[Refusal, ...]]:
    """Every convolution of the model, in the graph's order: a site, or a refusal that says why it is none.

    Raises:
        ModelError: The graph cannot be analysed.
    """
    found = list(convolutions(model.proto))
    names = unique_names(model, [node for node, _, _ in found])
    analysis = Analysis(model)
    # Sizes are needed for few models only, and inference takes time.
    types = cache(lambda: infer_types(model))
    hindrance = obstacle(model)
    sites: list[Site] = []
    refusals: list[Refusal] = []
    for (_, index, where), name in zip(found, names, strict=True):
        site = where if index is None else _site(model, analysis, types, index, name)
        if isinstance(site, Site):
            sites.append(replace(site, obstacle=hindrance or _too_coarse(site.dtype)))
        else:
            refusals.append(Refusal(name, None, site))
    return tuple(sites), tuple(refusals)


def _too_coarse(dtype: np.dtype[Any]) -> str | None:
    """Why tensors of a type are not transformed, or None."""
    if dtype != np.float16:
        return None
    return "its tensors are float16, whose 11 bits are too few for what a transform loses"


Found: TypeAlias = tuple[onnx.NodeProto, int | None, str]
"""A convolution, and its index in the top graph or else where it is."""


def convolutions(proto: onnx.ModelProto) -> Iterator[Found]:
    """Every convolution of a model, sites or not, in bodies and functions too."""
    for index, node in enumerate(proto.graph.node):
        if _is_convolution(node):
            yield node, index, ""
        yield from _in_bodies(node)
    for function in proto.functions:
        where = f"it is in the function {function.name!r}; inline functions first"
        for node in function.node:
            if _is_convolution(node):
                yield node, None, where
            yield from _in_bodies(node)


def _in_bodies(node: onnx.NodeProto) -> Iterator[Found]:
    owner = node.name or ",".join(node.output)
    where = f"it is in a body of {node.op_type} {owner!r}; only the top graph is rewritten"
    for body in bodies(node):
        for inner in body.node:
            if _is_convolution(inner):
                yield inner, None, where
            yield from _in_bodies(inner)


def _is_convolution(node: onnx.NodeProto) -> bool:
    return node.op_type in _REWRITTEN or node.op_type in _OTHERS


def unique_names(model: Model, found: Sequence[onnx.NodeProto]) -> list[str]:
    """A name for each that no two share: the node's own where no other node has it, else its output's."""
    nodes = [node for graph in graphs(model.proto) for node in graph.node]
    nodes += [node for function in model.proto.functions for node in function.node]
    count = Counter(node.name for node in nodes)
    given = Names(name for name in count if name)
    return [
        node.name
        if node.name and count[node.name] == 1
        else given.new(node.output[0] if node.output else node.op_type)
        for node in found
    ]


def _site(model: Model, analysis: Analysis, types: Callable[[], Types], index: int, name: str) -> Site | str:
    """The site of a node of the top graph, or why it is none."""
    node = model.proto.graph.node[index]
    if node.op_type not in _REWRITTEN:
        return _OTHERS[node.op_type]
    if node.domain not in ONNX_DOMAINS:
        return f"its operator is of the domain {node.domain!r}; only ONNX's own {node.op_type} is rewritten"
    if not (node.input and node.output and node.output[0]):
        return "it has no input or no output"
    try:
        found = _conv(node, analysis, types)
    except (TypeError, ValueError) as error:  # attributes of another type, or that do not go together
        return f"it is malformed: {error}"
    if isinstance(found, str):
        return found
    conv = found
    indices: tuple[int, ...] = (index,)
    output = node.output[0]
    while (after := analysis.only_consumer(output)) is not None:
        behind = model.proto.graph.node[after]
        folds = (fold(conv, behind, output, analysis, model.opset) for fold in (fold_norm, fold_scaling))
        folded = next((each for each in folds if each is not None), None)
        if folded is None or not fits(folded):
            break
        conv, indices, output = folded, (*indices, after), behind.output[0]
    followers = find_followers(model, analysis, output)
    return Site(name, node.op_type, conv, node.input[0], output, indices, followers, model.opset)


def fits(conv: Conv) -> bool:
    """Whether the weights are finite in the model's type."""
    return held(conv.dtype, conv.weight, conv.bias)


def _conv(node: onnx.NodeProto, analysis: Analysis, types: Callable[[], Types]) -> Conv | str:
    """What a Conv or ConvTranspose computes, or why that is not known."""
    arrays = []
    for what, given in zip(("weight", "bias"), node.input[1:], strict=False):
        array = analysis.constant(given) if given else None
        if given and array is None:
            return f"its {what} {analysis.obstacle(given)}"
        if array is not None and array.dtype not in _TYPES:
            return f"its {what} {given!r} is {array.dtype}; only float16, float32 and float64 are rewritten"
        if array is not None and not (array.size and np.isfinite(array).all()):
            return f"its {what} {given!r} is empty or holds values that are not finite"
        arrays.append(array)
    weight, bias = (*arrays, None, None)[:2]
    if weight is None:
        return "it has no weight"
    if bias is not None and bias.dtype != weight.dtype:
        return f"its weight is {weight.dtype} and its bias {bias.dtype}; both need the same type"
    axes = weight.ndim - 2
    if axes < 1:
        return f"its weight {list(weight.shape)} has no spatial axis"
    # float16 holds what comes of a fit, but not what comes on the way there
    own = np.result_type(weight, np.float32)
    taken = weight.astype(own, copy=False)
    added = None if bias is None else bias.astype(own, copy=False)
    if node.op_type == "ConvTranspose":
        conv = transposed_conv(node, taken, added, lambda: (shape(types(), node.input[0]) or ())[2:])
        return conv if isinstance(conv, str) else conv.with_(dtype=weight.dtype)
    kernel_shape = tuple(attribute(node, "kernel_shape", weight.shape[2:]))
    if kernel_shape != weight.shape[2:]:
        return f"its kernel_shape {list(kernel_shape)} is not that of its weight {list(weight.shape)}"
    strides = tuple(attribute(node, "strides", (1,) * axes))
    dilations = tuple(attribute(node, "dilations", (1,) * axes))
    auto_pad = attribute(node, "auto_pad", "NOTSET")
    given_pads = tuple(attribute(node, "pads", ()))
    if auto_pad not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        return f"its auto_pad '{auto_pad}' is unknown"
    if len(strides) != axes or len(dilations) != axes or len(given_pads) not in (0, 2 * axes):
        return (
            f"its strides {strides}, pads {given_pads} or dilations {dilations} are not those of its "
            f"{axes} spatial axes"
        )
    pads = explicit_pads(auto_pad, given_pads, kernel_shape, strides, dilations, None)
    if pads is None:
        size = shape(types(), node.input[0])
        size = size[2:] if size is not None and len(size) == weight.ndim else None
        pads = explicit_pads(auto_pad, given_pads, kernel_shape, strides, dilations, size)
    if pads is None:
        return (
            f"its auto_pad {auto_pad} with strides {list(strides)} depends on the size of {node.input[0]!r}, "
            "which is dynamic; fix the model's input shape"
        )
    group = attribute(node, "group", 1)
    return Conv(taken, added, strides, pads, dilations, group, dtype=weight.dtype)
