"""How much a model's outputs care about each direction of a site's output: the output side of a metric.

To first order an error e at a site moves the outputs by J e. If the errors at different places are unlike
each other, what that costs is Σ tr(A e eᵀ) over the places, with A = Σ_p J_pᵀ J_p over the places p, [M, M].
One gradient Jᵀ v of a random vector of signs v gives g gᵀ, whose mean over v is that: each sample's gradient,
taken backwards through the network once for all sites, adds many places. (Hutchinson 1990; the Gauss-Newton
matrix of a layer's output, as in Dong et al. 2017, arXiv 1705.07565, without labels.)

The errors of neighbouring places do resemble each other. Where all within reach of a small kernel h are alike
it is h * g instead of g; the truth lies between, and the mean of both did better than either (measured).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import scipy.ndimage

from rewriter import graph, linalg
from rewriter.adjoint.node import Array, Node
from rewriter.adjoint.rules import CONSTANT, RULES
from rewriter.conv import Conv, Ints
from rewriter.progress import Progress
from rewriter.rewrite import Rewrite
from rewriter.runtime import Session, Target
from rewriter.samples import Feeds, cut, samples_in

__all__ = ["Backwards", "OutputMetrics", "enough", "output_metrics"]

# Gradients of all sites together, and the work that they may take; one is so many times that of the network.
# More of them sharpen little.
_WORK = 3e11
_BACK = 3.0
_FEWEST = 4
_DRAWS = 256
# Constants up to this size are kept from sample to sample.
_KEPT_BYTES = 1 << 22
# The least share of the identity in a metric: what the samples did not show may still matter.
_IDENTITY = 0.03
# How alike the errors of neighbours are taken to be, along each axis of the map.
_ALIKE = np.array([0.25, 0.5, 0.25], np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class OutputMetrics:
    """How much the outputs care about each direction of what each site gives.

    Attributes:
        weights: A `[M, M]` of a site by its name, of mean 1 on the diagonal; the others have none.
        draws: How many gradients it is the mean of: the same number gives the same bits.
        without_rule: The operators that keep sites from having one: what lies in front of them has none.
        blind: How many sites have none.
    """

    weights: Mapping[str, Array]
    draws: int
    without_rule: tuple[str, ...]
    blind: int

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a report says of the sites without a metric."""
        if not self.without_rule:
            return ()
        told = f"no gradient is known for {', '.join(self.without_rule)} behind {self.blind} convolutions"
        return (f"{told}: in fitting them all that they give counted alike",)


def output_metrics(
    model: graph.Model,
    sites: Sequence[graph.Site],
    batches: Sequence[Feeds],
    seed: int,
    target: Target,
    progress: Progress,
    draws: int = _DRAWS,
) -> OutputMetrics:
    """The output side of the sites' metrics.

    Args:
        model: The model in which the sites were found.
        sites: Some of them.
        batches: Samples.
        seed: Draws the signs.
        target: Where to run the model.
        progress: Told after every gradient.
        draws: How many gradients to take.
    """
    back = Backwards(model, [site.output for site in sites], target)
    # of errors that are unlike their neighbours', and like them
    found = {site.name: (_Mean(site.conv.out_channels), _Mean(site.conv.out_channels)) for site in sites}
    rng = np.random.default_rng(seed)

    def signs(shape: Ints) -> Array:
        return rng.choice(np.array([-1, 1], np.float32), shape)

    samples = _singles(model, batches)
    # where a function has no finite slope, as a root at 0, the sample says nothing
    with np.errstate(all="ignore"), linalg.one_blas_thread():
        norms = back.norms(samples[:draws])
        for index in range(draws):
            gradients = back.gradients(samples[index % len(samples)], signs, norms)
            for site in sites:
                if (g := gradients.get(site.output)) is not None:
                    for mean, gradient in zip(found[site.name], (g, _smoothed(g)), strict=True):
                        mean.add(gradient)
            progress("going back", index + 1, draws)
    reached = {site.name for site in sites if site.output in back.reached}
    metrics = {
        name: (unlike.shrunk() + alike.shrunk()) / 2
        for name, (unlike, alike) in found.items()
        if name in reached and unlike.seen and alike.seen
    }
    without_rule = () if len(reached) == len(sites) else back.without_rule
    return OutputMetrics(metrics, draws, without_rule, len(sites) - len(metrics))


def enough(work: float) -> int:
    """How many gradients to take in a network of so much work a sample: fewer where each takes long."""
    return int(np.clip(_WORK / max(_BACK * work, 1.0), _FEWEST, _DRAWS))


class _Mean:
    """The mean of Σ g gᵀ `[M, M]` over the places of gradients g `[N, M, ...]`, and how far they agree."""

    def __init__(self, channels: int) -> None:
        self._total = np.zeros((channels, channels))
        self._squares = 0.0
        self._count = 0

    def add(self, g: Array) -> None:
        """Takes one gradient; one that is not finite is left out."""
        rows = np.moveaxis(g, 1, 0).reshape(g.shape[1], -1)
        gram = np.asarray(rows @ rows.T, np.float64)
        trace = np.trace(gram)
        if np.isfinite(trace):
            self._total += gram
            self._squares += float(np.sum(gram**2))
            self._count += 1

    @property
    def seen(self) -> bool:
        """Whether any gradient came through."""
        return bool(np.trace(self._total) > 0.0)

    def shrunk(self) -> Array:
        """The mean, scaled to 1 on the diagonal, shrunk towards the identity as far as the gradients differ.

        Ledoit and Wolf 2004, section 3.2: least expected squared error for so many draws.
        """
        size, count = len(self._total), self._count
        mean: Array = self._total / count
        scale = np.trace(mean) / size
        spread = float(np.sum((mean - scale * np.eye(size)) ** 2))
        noise = max(self._squares / count - float(np.sum(mean**2)), 0.0) / count
        share = max(min(noise / spread, 1.0) if spread > 0.0 else 1.0, _IDENTITY)
        scaled: Array = mean / scale
        return (1 - share) * scaled + share * np.eye(size)


def _single(value: Array) -> Array:
    """Values of float16, whose squares it does not hold, as float32."""
    return value.astype(np.float32) if value.dtype == np.float16 else value


def _squares(value: Array) -> float:
    return linalg.sum_of_squares(value) if np.issubdtype(value.dtype, np.floating) else 0.0


def _root_mean(values: Iterable[float]) -> float:
    return math.sqrt(np.mean([*values] or [0.0]))


def _smoothed(g: Array) -> Array:
    for axis in range(2, g.ndim):
        g = scipy.ndimage.convolve1d(g, _ALIKE, axis=axis, mode="constant")
    return g


def _singles(model: graph.Model, batches: Sequence[Feeds]) -> list[Feeds]:
    """Single samples, each from another batch as far as there are any; whole batches of fixed size."""
    if any(spec.fixed_batch not in (None, 1) for spec in model.inputs):
        return list(batches[:_DRAWS])
    order = sorted((row, index) for index, batch in enumerate(batches) for row in range(samples_in(batch)))
    return [cut(batches[index], row, row + 1) for row, index in order[:_DRAWS]]


def _recorder(
    model: graph.Model, values: Sequence[str], shapes: Sequence[str], target: Target
) -> tuple[Session, dict[str, str]]:
    recorder, shape_of = graph.recorder(model, values, shapes)
    return Session(recorder, target), shape_of


class Backwards:
    """Gradients of a model's outputs at some of its tensors."""

    def __init__(self, model: graph.Model, tensors: Sequence[str], target: Target) -> None:
        self._tape = graph.tape(model, tensors)
        self._outputs = model.outputs
        self._ends = list(zip(model.outputs, graph.output_pieces(model), strict=True))
        self._tensors = frozenset(tensors)
        # there are as many sessions as convolutions
        self._target = replace(target, arena=False)
        # steps whose rule does not know what to do with their attributes
        self._lost: set[int] = set()
        values, shapes = self._wanted()
        fixed = self._tape.constants
        self._recorder, self._shape_of = _recorder(
            model, sorted(values - fixed), sorted(shapes - fixed), self._target
        )
        self._constants = graph.Constants(model)
        self._small: dict[str, Array] = {}
        self._convolutions: dict[int, Session] = {}

    @property
    def reached(self) -> frozenset[str]:
        """The tensors from which every way to the outputs leads through operators with a rule."""
        blocked: set[str] = set()
        for index, step in reversed(list(enumerate(self._tape.steps))):
            if step.op_type in CONSTANT:
                continue
            if step.op_type not in RULES or index in self._lost or blocked & set(step.outputs):
                blocked.update(step.inputs)
        return frozenset(self._tensors - blocked)

    def _wanted(self) -> tuple[set[str], set[str]]:
        """The tensors whose values the rules need, and those of which they need the shapes."""
        values, shapes = set(self._outputs), set[str]()
        for step in self._tape.steps:
            if step.op_type not in RULES:
                continue
            needs = RULES[step.op_type][1]
            values.update(step.inputs[:1] if "x" in needs else ())
            values.update(step.inputs[1:] if "c" in needs else ())
            values.update(step.outputs[:1] if "y" in needs else ())
            shapes.update((*step.inputs, *step.outputs))
        values -= {""}
        return values, shapes - values - {""}

    @property
    def without_rule(self) -> tuple[str, ...]:
        """The operators that hide tensors."""
        steps = enumerate(self._tape.steps)
        lost = {step.op_type for index, step in steps if step.op_type not in RULES or index in self._lost}
        return tuple(sorted(lost - CONSTANT))

    def norms(self, samples: Sequence[Feeds]) -> list[list[float]]:
        """Of each piece of each output the root of its mean summed square over samples with finite ones.

        A drift is a share of what the outputs are over all samples, not of the little that is in some.
        """
        sums = [
            [[_squares(piece.of(ran[name])) for piece in pieces] for name, pieces in self._ends]
            for ran in map(self._recorder.run, samples)
        ]
        return [
            [_root_mean(filter(math.isfinite, each)) for each in zip(*pieces, strict=True)]
            for pieces in zip(*sums, strict=True)
        ]

    def gradients(
        self, feeds: Feeds, signs: Callable[[Ints], Array], norms: Sequence[Sequence[float]]
    ) -> dict[str, Array]:
        """The gradients at the tensors of the outputs times `signs` of their shapes, over `norms`."""
        ran = {name: _single(value) for name, value in self._recorder.run(feeds).items()}
        shapes = {name: tuple(int(size) for size in ran[output]) for name, output in self._shape_of.items()}
        shapes.update((name, value.shape) for name, value in ran.items())
        flowing: dict[str, Array] = {}
        for (name, pieces), sizes in zip(self._ends, norms, strict=True):
            if np.issubdtype(ran[name].dtype, np.floating):
                flowing[name] = np.array(signs(ran[name].shape), np.float32)
                for piece, size in zip(pieces, sizes, strict=True):
                    piece.of(flowing[name])[...] /= np.float32(max(size, 1e-15))
        found = {}
        for index in reversed(range(len(self._tape.steps))):
            step = self._tape.steps[index]
            for name in step.outputs:
                if name in self._tensors and name in flowing:
                    found[name] = flowing[name]
            arriving = [flowing.pop(name, None) for name in step.outputs]
            if step.op_type not in RULES or all(each is None for each in arriving):
                continue
            rule, _ = RULES[step.op_type]
            fixed = {name: self._constant(name) for name in step.inputs if name in self._tape.constants}
            values = {**ran, **fixed}
            shapes.update((name, value.shape) for name, value in fixed.items())
            node = Node(
                step.attributes,
                [values.get(name) for name in step.inputs],
                [values.get(name) for name in step.outputs],
                [name in self._tape.constants for name in step.inputs],
                [shapes.get(name, ()) for name in step.inputs],
                [shapes.get(name, ()) for name in step.outputs],
                partial(self._convolve, index),
            )
            whole = [
                np.zeros(shape, np.float32) if each is None else each
                for each, shape in zip(arriving, node.out_shapes, strict=True)
            ]
            try:
                passed = rule(node, whole)
            except NotImplementedError:
                self._lost.add(index)
                continue
            for name, gradient in zip(step.inputs, passed, strict=False):
                if gradient is not None and name not in self._tape.constants:
                    flowing[name] = flowing[name] + gradient if name in flowing else gradient
        found.update((name, flowing[name]) for name in self._tensors & flowing.keys())
        return found

    def _constant(self, name: str) -> Array:
        """The value of a constant; large ones, which would be held twice, are not kept."""
        if name in self._small:
            return self._small[name]
        value = _single(self._constants.value(name))
        if value.nbytes <= _KEPT_BYTES:
            self._small[name] = value
        return value

    def _convolve(self, index: int, conv: Conv, x: Array) -> Array:
        if index not in self._convolutions:
            self._convolutions[index] = Session(graph.rewrite_model(Rewrite(((conv,),))), self._target)
        session = self._convolutions[index]
        ran = session.run({session.input_names[0]: np.ascontiguousarray(x, np.float32)})
        return np.asarray(ran[session.output_names[0]])
