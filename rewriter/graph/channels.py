"""Single channels on their way through a network: who reads each, which are constant, which go together.

A channel goes through activations, poolings and normalisations as itself; an Add, a depthwise convolution and
a Concat tie channels of several tensors to each other. Convolutions and Gemms mix them. What else there is
reads every channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from rewriter.conv import Array
from rewriter.graph.analysis import Analysis
from rewriter.graph.attributes import ONNX_DOMAINS, attribute
from rewriter.graph.batchnorm import factor_and_term
from rewriter.graph.constants import evaluated
from rewriter.graph.followers import ACTIVATIONS
from rewriter.graph.mixing import Bools, Layer, gemm
from rewriter.graph.model import Model
from rewriter.graph.opset import BROADCASTING
from rewriter.graph.scope import consumed
from rewriter.graph.sites import Site
from rewriter.graph.types import infer_types, shape

_ELEMENTWISE: Final = (
    ACTIVATIONS
    | {"Abs", "Add", "Div", "Dropout", "Erf", "Exp", "Gelu", "Identity", "Max"}
    | {"Mean", "Min", "Mish", "Mul", "Neg", "Pow", "Softplus", "Softsign", "Sqrt", "Sub", "Sum"}
    | {"ThresholdedRelu"}
)
_POOLS: Final = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})

Slots = npt.NDArray[np.int64]


class Channels:
    """The channels of a model's tensors, numbered, and what is known of each.

    Args:
        model: The model.
        sites: Its convolutions that may change.

    Attributes:
        layers: Those that may change, and the Gemms that take their outputs.
        cuts: Which inputs of a node are constants with a value for each channel, and their axis of channels,
            by the index of the node.
        values: The value of each channel that is constant up to the border of its map, NaN of others.
        analysis: Where the constants are looked up.

    Raises:
        ModelError: The graph cannot be analysed.
    """

    def __init__(self, model: Model, sites: Sequence[Site]) -> None:
        self.analysis = Analysis(model)
        self.layers: list[Layer] = []
        self.cuts: dict[int, dict[int, int]] = {}
        types = infer_types(model)
        known = ((name, shape(types, name) or ()) for name in types)
        self._shapes = {name: (*sizes,) for name, sizes in known if len(sizes) > 1}
        self._start: dict[str, int] = {}
        total = 0
        for name, sizes in self._shapes.items():
            if isinstance(sizes[1], int):
                self._start[name] = total
                total += sizes[1]
        self.values = np.full(total, np.nan)
        # Of what is neither made nor passed on in a way that is known, every channel is read.
        self._made, self._read = np.zeros(total, bool), np.zeros(total, bool)
        self._read_by_layers = np.zeros(total, bool)
        self._ties: list[tuple[Slots, Slots]] = []
        self._opset = model.opset
        at = {site.nodes[0]: site for site in sites}
        inside = {index for site in sites for index in site.nodes}
        for index, node in enumerate(model.proto.graph.node):
            site = at.get(index)
            if index in inside and site is None:
                continue
            if not (self._site(site) if site is not None else self._node(index, node)):
                self._read_all(consumed(node))
        self._read_all(model.outputs)

    def slots(self, name: str) -> Slots:
        """The numbers of a tensor's channels; none where it is not known how many there are."""
        start = self._start.get(name)
        return np.arange(0) if start is None else np.arange(start, start + int(self._shapes[name][1] or 0))

    @property
    def names(self) -> list[str]:
        """The tensors with channels."""
        return list(self._start)

    def removable(self, block: int) -> Bools:
        """Which channels the model can do without.

        A layer keeps as many of its own as fill blocks up: there its kernels compute whole blocks anyway, and
        other counts may be slower. At least one stays.
        """
        group = self._groups()
        free = np.ones(len(self.values), bool)
        free[group[~self._made | self._read | self._read_by_layers]] = False
        outputs = [group[self.slots(layer.output)] for layer in self.layers]
        settled = False
        while not settled:
            settled = True
            for output in outputs:
                while (gone := free[output]).any() and (gone.all() or (~gone).sum() % block):
                    free[output[np.argmax(gone)]] = False
                    settled = False
        return free[group]

    def alone(self) -> Iterator[tuple[Site, list[Site]]]:
        """The convolutions that alone read channels which others make, with these others."""
        group = self._groups()
        bound = np.zeros(len(self.values), bool)
        bound[group[~self._made | self._read]] = True
        readers = np.zeros(len(self.values), np.int64)
        for layer in self.layers:
            if layer.conv.group == 1:
                readers[group[self.slots(layer.input)]] += 1
        for layer in self.layers:
            own = group[self.slots(layer.input)]
            if layer.site is None or layer.conv.group > 1 or len(np.unique(own)) < len(own):
                continue
            if bound[own].any() or (readers[own] != 1).any():
                continue
            makers = [
                other.site
                for other in self.layers
                if other.site is not None and np.isin(group[self.slots(other.output)], own).any()
            ]
            if makers and all(each is not layer.site for each in makers):
                yield layer.site, makers

    def _groups(self) -> Slots:
        """The number of the group of each channel, of those that can only go together."""
        first = np.concatenate([pair[0] for pair in self._ties] or [np.arange(0)])
        second = np.concatenate([pair[1] for pair in self._ties] or [np.arange(0)])
        total = len(self.values)
        tied = coo_matrix((np.ones(len(first), bool), (first, second)), (total, total))
        _, group = connected_components(tied, directed=False)
        return np.asarray(group, np.int64)

    def _site(self, site: Site) -> bool:
        return self._layer(Layer.of(site.nodes[0], site.input, site.output, site.conv, site))

    def _layer(self, layer: Layer) -> bool:
        given, output = self.slots(layer.input), self.slots(layer.output)
        conv = layer.conv
        # what a model says of its outputs may be nothing; they stay in any case
        known = len(output) == conv.out_channels or (conv.group == 1 and not len(output))
        if len(given) != conv.in_channels or not known:
            return False
        self.layers.append(layer)
        if conv.group == 1:
            self._read_by_layers[given] |= layer.needs(self.values[given])
        else:  # a group goes as a whole
            for part in (given.reshape(conv.group, -1), output.reshape(conv.group, -1)):
                self._tie(np.repeat(given.reshape(conv.group, -1)[:, :1], part.shape[1], 1), part)
        if layer.site is not None and len(output):
            self._make(output, layer.constants(self.values[given]))
        return True

    def _node(self, index: int, node: onnx.NodeProto) -> bool:
        """Whether it is known what a node does with each channel."""
        if node.domain not in ONNX_DOMAINS or not node.input or not node.output or any(node.output[1:]):
            return False
        output = self.slots(node.output[0])
        if node.op_type == "Gemm":
            return self._gemm(index, node)
        if not len(output):
            return False
        if node.op_type == "BatchNormalization":
            return self._norm(index, node, output)
        if node.op_type == "InstanceNormalization":
            return self._instance_norm(index, node, output)
        if node.op_type in _ELEMENTWISE and not (node.op_type == "Dropout" and any(node.input[2:])):
            return self._elementwise(index, node, output)
        if node.op_type == "Concat":
            return self._concat(node, output)
        given = self.slots(node.input[0])
        values = self.values[given]
        if len(given) == len(output) and self._keeps_apart(node):
            if attribute(node, "count_include_pad", 0):
                values = np.where(values == 0, 0.0, np.nan)
            return self._pass(given, output, values)
        if len(given) and len(output) % len(given) == 0 and self._flattens(node):
            times = len(output) // len(given)
            return self._pass(np.repeat(given, times), output, np.repeat(values, times))
        return False

    def _keeps_apart(self, node: onnx.NodeProto) -> bool:
        """Whether a node makes each channel of the same one, and leaves one that is constant as it is."""
        if node.op_type in ("Resize", "Upsample"):
            cropped = attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize"
            return not (cropped or any(node.input[3:]))  # sizes name the channels, too
        if node.op_type in ("ReduceMean", "Squeeze"):
            given = self.analysis.constant(node.input[1]) if any(node.input[1:]) else None
            axes = attribute(node, "axes", () if given is None else given.tolist())
            rank = len(self._shapes[node.input[0]])
            return bool(axes) and all(axis % rank > 1 for axis in axes)
        return node.op_type in _POOLS

    def _flattens(self, node: onnx.NodeProto) -> bool:
        """Whether a node puts what a channel has into a row, however many channels there are."""
        given, output = (self._shapes[name] for name in (node.input[0], node.output[0]))
        if len(output) != 2:
            return False
        if node.op_type == "Reshape" and len(node.input) == 2:
            wanted = self.analysis.constant(node.input[1])
            return wanted is not None and wanted.tolist() in ([0, -1], [given[0], -1])
        return node.op_type == "Flatten" and attribute(node, "axis", 1) == 1

    def _norm(self, index: int, node: onnx.NodeProto, output: Slots) -> bool:
        given = self.slots(node.input[0])
        found = factor_and_term(node, len(output), self.analysis, self._opset)
        if found is None or len(given) != len(output):
            return False
        factor, term = found
        self.cuts[index] = dict.fromkeys(range(1, 5), 0)
        return self._pass(given, output, np.where(factor == 0, term, self.values[given] * factor + term))

    def _instance_norm(self, index: int, node: onnx.NodeProto, output: Slots) -> bool:
        """What is constant, or multiplied by zero, comes out as the term that is added."""
        given = self.slots(node.input[0])
        scale, term = (self.analysis.constant(name) for name in node.input[1:3])
        if scale is None or term is None or not len(given) == len(output) == len(term):
            return False
        self.cuts[index] = {1: 0, 2: 0}
        return self._pass(given, output, np.where((scale == 0) | ~np.isnan(self.values[given]), term, np.nan))

    def _elementwise(self, index: int, node: onnx.NodeProto, output: Slots) -> bool:
        """Of constants and of tensors of the same channels, or of one for all of them."""
        names = [name for name in node.input if name]
        constants = {name: value for name in names if (value := self.analysis.constant(name)) is not None}
        rank, count = len(self._shapes[node.output[0]]), len(output)
        cuts = {}
        for slot, name in enumerate(node.input):
            if name in constants:
                axis = constants[name].ndim - rank + 1
                if axis >= 0 and constants[name].shape[axis] not in (1, count):
                    return False
                if axis >= 0 and constants[name].shape[axis] == count:
                    cuts[slot] = axis
            elif name and (
                len(self._shapes.get(name, ())) != rank or len(self.slots(name)) not in (1, count)
            ):
                return False
        given = {name: self.slots(name) for name in names if name not in constants}
        if not given or (len(names) > 1 and self._opset < BROADCASTING):
            return False
        self.cuts[index] = cuts
        self._make(output, self._evaluated(node, given, constants, rank, count))
        for slots in given.values():
            if len(slots) == count:
                self._tie(slots, output)
            else:
                self._read[slots] = True
        return True

    def _evaluated(
        self,
        node: onnx.NodeProto,
        given: dict[str, Slots],
        constants: dict[str, npt.NDArray[Any]],
        rank: int,
        count: int,
    ) -> Array:
        """What an operator makes of the constant channels of its inputs, `[count]`."""
        steady = np.logical_and.reduce(
            [np.broadcast_to(~np.isnan(self.values[slots]), count) for slots in given.values()]
        )
        unknown: Array = np.full(count, np.nan)
        if not steady.any():
            return unknown
        dtype = next((each.dtype for each in constants.values() if each.dtype.kind == "f"), np.float64)
        values = {
            name: np.nan_to_num(self.values[slots]).astype(dtype).reshape(1, -1, *(1,) * (rank - 2))
            for name, slots in given.items()
        }
        found = evaluated(node, {**values, **constants}, self._opset)
        if found is None or found.size != count:
            return unknown
        return np.where(steady & np.isfinite(found.reshape(-1)), found.reshape(-1), np.nan)

    def _concat(self, node: onnx.NodeProto, output: Slots) -> bool:
        rank = len(self._shapes[node.output[0]])
        parts = [self.slots(name) for name in node.input]
        if attribute(node, "axis", 1) % rank != 1 or sum(map(len, parts)) != len(output):
            return False
        given = np.concatenate(parts)
        return self._pass(given, output, self.values[given])

    def _gemm(self, index: int, node: onnx.NodeProto) -> bool:
        """A Gemm of constants reads what its weights do not ignore; its own outputs all stay."""
        conv = None if self._opset < BROADCASTING else gemm(node, self.analysis)
        return conv is not None and self._layer(Layer.of(index, node.input[0], node.output[0], conv))

    def _pass(self, given: Slots, output: Slots, values: Array) -> bool:
        self._tie(given, output)
        self._make(output, values)
        return True

    def _tie(self, first: Slots, second: Slots) -> None:
        self._ties.append((first.reshape(-1), second.reshape(-1)))

    def _make(self, output: Slots, values: Array) -> None:
        self._made[output] = True
        self.values[output] = values

    def _read_all(self, names: Sequence[str] | set[str]) -> None:
        for name in names:
            self._read[self.slots(name)] = True
