"""Times of a runtime's kernels, told to the layers of the model as it came.

A runtime fuses layers with what is around them, lays them out anew and gives the results names of its own. A
kernel is known by the tensor of the model that it makes: its layer is the first one found from there
backwards, on ways that no other kernel's tensor is on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rewriter import graph, runtime
from rewriter.conv import Ints
from rewriter.graph import Inventory, Layer, Model, Node
from rewriter.runtime import Kernel, Session, Target
from rewriter.samples import Feeds

# The kernel of a layer has the name of its operator in its own: FusedConv, Gemm for a MatMul and an Add.
_LAYERS = re.compile("Conv|Gemm|MatMul|LSTM|GRU|RNN")
# What ONNX Runtime puts behind the name of the tensor that a kernel in the blocked layout makes, with `_bn`
# where a normalisation is run as a convolution.
_BLOCKED = (re.compile(r"_nchwc(_token_\d+)?$"), re.compile(r"_bn_nchwc(_token_\d+)?$"))


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time of a run goes.

    Attributes:
        total_ms: Of all kernels together.
        layers: Milliseconds of the layers by their output, fused activations and additions included; layers
            that no kernel was found for are not among them.
        others: Milliseconds of all other kernels by operator, the most first.
        operators: Milliseconds of all kernels by the runtime's operator, the most first.
    """

    total_ms: float
    layers: Mapping[str, float]
    others: Mapping[str, float]
    operators: Mapping[str, float]


def inventory(model: Model, feeds: Feeds) -> tuple[Model, Inventory]:
    """The model with its inputs fixed to the sizes that it is fed, and its layers.

    Raises:
        ModelError: The model cannot be run where that is needed to tell a shape.
    """
    fixed = graph.with_shapes(model, {name: array.shape for name, array in feeds.items()})

    def measured(names: Sequence[str]) -> dict[str, Ints]:
        recorder, outputs = graph.recorder(fixed, (), names)
        found = Session(recorder, Target(spinning=False), model.label).run(feeds, list(outputs.values()))
        return {name: tuple(found[output].tolist()) for name, output in outputs.items()}

    return fixed, graph.inventory(fixed, measured)


def profile(
    model: Model,
    layers: Sequence[Layer],
    feeds: Feeds,
    target: Target,
    *,
    original: Model | None = None,
    seconds: float = 3.0,
) -> Profile:
    """Runs a model under ONNX Runtime's profiler.

    Args:
        model: The model.
        layers: Its layers, or those of the original.
        feeds: What to run it on.
        target: How it is deployed.
        original: The model that it was made from, if its times are to be told to the layers of that: what
            makes a new tensor belongs to the layer that the tensor is on the way to.
        seconds: About how long.

    Raises:
        ModelError: It cannot be loaded or run.
    """
    model = graph.named(model)  # or the runtime's kernels would be numbered only
    data = partial(graph.serialize, model)
    kernels = runtime.profiled(data, feeds, target, seconds=seconds)
    optimised = graph.flow(graph.load(runtime.optimized(data, target)))
    nodes = graph.flow(model)
    made = _made(kernels, nodes, optimised)
    outputs = {layer.output for layer in layers}
    if original is None:
        return _told(kernels, made, nodes, outputs, ())
    theirs = graph.flow(original)
    ends = _ends(nodes, {name for node in theirs for name in node.outputs})
    new = [any(name in ends for name in names) for names in made]
    told = [tuple(ends.get(name, name) for name in names) for names in made]
    return _told(kernels, told, theirs, outputs, new)


def _ends(nodes: Sequence[Node], known: Collection[str]) -> dict[str, str]:
    """For every tensor that is not among the known ones, the first of these that is made of it."""
    ends: dict[str, str] = {}
    for node in reversed(nodes):
        first = next(
            (name if name in known else ends[name] for name in node.outputs if name in known or name in ends),
            None,
        )
        if first is not None:
            ends.update((name, first) for name in (*node.outputs, *node.inputs) if name not in known)
    return ends


def elsewhere(model: Model, feeds: Feeds, target: Target, label: str) -> tuple[str, ...]:
    """What a provider leaves to others, as a remark; nothing where it runs all of the model.

    Raises:
        ModelError: The model cannot be loaded or run.
    """
    if target.provider == "cpu":
        return ()
    wanted = runtime.check_provider(target.provider)
    kernels = runtime.profiled(partial(graph.serialize, model), feeds, target, seconds=0.0)
    left = Counter(kernel.op_type for kernel in kernels if kernel.provider != wanted)
    if not left:
        return ()
    kinds = ", ".join(f"{op_type} ({count})" for op_type, count in left.most_common())
    return (f"{left.total()} of {len(kernels)} nodes of {label} do not run on {target.provider}: {kinds}",)


def _made(
    kernels: Sequence[Kernel], nodes: Sequence[Node], optimised: Sequence[Node]
) -> list[tuple[str, ...]]:
    """The tensors of the model that each kernel makes; none where that is not known."""
    ours = {name for node in nodes for name in node.outputs}
    by_name: dict[str, tuple[str, ...]] = {}
    for node in (*nodes, *optimised):
        known = tuple(name for name in node.outputs if name in ours)
        if node.name and known:
            by_name[node.name] = known
    found = []
    for kernel in kernels:
        stems = [suffix.sub("", kernel.name) for suffix in _BLOCKED if suffix.search(kernel.name)]
        known = tuple(stem for stem in stems if stem in ours)[:1]
        found.append(known or by_name.get(kernel.name, ()))
    return found


def _told(
    kernels: Sequence[Kernel],
    made: Sequence[tuple[str, ...]],
    nodes: Sequence[Node],
    outputs: Collection[str],
    new: Sequence[bool],
) -> Profile:
    """Times told to layers; a kernel that `new` marks is a layer's whatever its operator is."""
    makers = {name: node for node in nodes for name in node.outputs}
    # what makes a new tensor does not make the one that it is on the way to
    computed = {name for index, names in enumerate(made) if not (new and new[index]) for name in names}
    layers: dict[str, float] = {}
    others: dict[str, float] = {}
    operators: dict[str, float] = {}
    for index, (kernel, names) in enumerate(zip(kernels, made, strict=True)):
        layer = None
        kind = kernel.op_type
        operators[kind] = operators.get(kind, 0.0) + kernel.ms
        if _LAYERS.search(kind) or (new and new[index]):
            layer = _behind(names, makers, computed.difference(names), outputs)
            if layer is None and names:  # a normalisation that is run as a convolution, say
                kind = makers[names[0]].op_type
        into, key = (others, kind) if layer is None else (layers, layer)
        into[key] = into.get(key, 0.0) + kernel.ms
    return Profile(sum(kernel.ms for kernel in kernels), layers, _ranked(others), _ranked(operators))


def _ranked(times: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def _behind(
    names: Iterable[str], makers: Mapping[str, Node], barred: Collection[str], outputs: Collection[str]
) -> str | None:
    """The layer's output that is nearest behind some tensors, not going through the barred ones."""
    queue = list(names)
    for name in queue:  # grows on the way
        if name in outputs:
            return name
        if name in makers:
            queue += [each for each in makers[name].inputs if each not in barred and each not in queue]
    return None
