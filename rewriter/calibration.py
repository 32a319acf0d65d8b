"""Samples -> the metric of every site, streaming.

A `Walk` runs a model over all samples from site to site and keeps only the tensors that are still needed, so
that a pass over a whole network costs one inference of it, whatever the number of sites, and the sites in
front may have been rewritten by the time the walk comes to the next. At a site, `moments` takes patches over
the whole map, borders included, and sums their products in float32 blocks, the blocks in float64.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter import graph, patches
from rewriter.conv import Array, Conv
from rewriter.metric import Moments
from rewriter.parallel import in_order
from rewriter.patches import Positions
from rewriter.rewrite import Rewrite
from rewriter.runtime import Session, Target
from rewriter.samples import Feeds

# Above so many patches a value the covariance is taken as it is, far below it a fifth is replaced by the
# diagonal.
_ENOUGH_PATCHES = 6
_MOST_SHRINKAGE = 0.2
# Patches whose products are summed in float32 before they are added up in float64, at most; blocks, at least.
_BLOCK = 4096
_LEAST_BLOCKS = 4
# Patches whose mean is near enough to that of all.
_PIVOT = 256


Piece = tuple[Array, npt.NDArray[np.intp], Array]
"""A batch, positions in it, and what is wanted there."""


class Walk:
    """Runs a model over batches of samples, site by site.

    Call `inputs` and `provide` in turn, once a site in the order given, then `outputs`.

    Args:
        model: The model.
        sites: The sites at which to stop, in the order of the graph.
        batches: The model's inputs.
        target: Where to run it.
    """

    def __init__(
        self, model: graph.Model, sites: Sequence[graph.Site], batches: Sequence[Feeds], target: Target
    ) -> None:
        self._model = model
        self._sites = list(sites)
        self._segments = graph.segments(model, sites)
        self._target = target
        self._live: list[dict[str, npt.NDArray[Any]]] = [dict(batch) for batch in batches]
        self._names = tuple(model.outputs)
        self._next = 0
        self._tail: tuple[graph.Segment, Session | None] | None = None

    def inputs(self) -> list[Array]:
        """The input of the next site, one array a batch."""
        self._run()
        name = self._sites[self._next].input
        return [live[name] for live in self._live]

    def provide(self, outputs: Sequence[Array]) -> None:
        """Take the output of that site, one array a batch, and go on."""
        name = self._sites[self._next].output
        for live, output in zip(self._live, outputs, strict=True):
            live[name] = output
        self._next += 1

    def tensor(self, name: str) -> list[npt.NDArray[Any]] | None:
        """Another tensor that is alive at the site, one array a batch, or None where it is not."""
        if any(name not in live for live in self._live):
            return None
        return [live[name] for live in self._live]

    def outputs(self) -> list[list[npt.NDArray[Any]]]:
        """The model's outputs behind the last site, one list a batch."""
        self._run()
        return [[live[name] for name in self._names] for live in self._live]

    def outputs_if(self, outputs: Sequence[Array]) -> list[list[npt.NDArray[Any]]]:
        """The model's outputs, one list a batch, if the site whose inputs were taken last gave these."""
        site, sites = self._sites[self._next], self._sites[: self._next + 1]
        values = [{**live, site.output: output} for live, output in zip(self._live, outputs, strict=True)]
        anchor = self._anchor
        if anchor is None or self._next > anchor:
            rest = graph.segments(self._model, sites)[-1]
            _advance(values, rest, _session(rest, self._target))
            return [[each[name] for name in self._names] for each in values]
        # what lies behind the last sites, often most of the weights, is loaded once for all sites
        last = self._sites[anchor]
        if self._tail is None:
            behind = graph.segments(self._model, self._sites[: anchor + 1])[-1]
            self._tail = (behind, _session(behind, self._target))
        if site is not last:
            between = graph.segments(self._model, [*sites, last])[-2]
            _advance(values, between, _session(between, self._target))
            given = apply(Rewrite(((last.conv,),)), [each[last.input] for each in values], self._target)
            for each, output in zip(values, given, strict=True):
                each[last.output] = output
        _advance(values, *self._tail)
        return [[each[name] for name in self._names] for each in values]

    @property
    def _anchor(self) -> int | None:
        """The last site in front of which all others' nodes lie, those that are folded into them included."""
        ends = itertools.accumulate((max(site.nodes) for site in self._sites), max, initial=-1)
        free = [
            index
            for index, (site, end) in enumerate(zip(self._sites, ends, strict=False))
            if end < site.nodes[0]
        ]
        return free[-1] if free else None

    @property
    def live_bytes(self) -> int:
        """The memory of what is alive now."""
        return sum(array.nbytes for live in self._live for array in live.values())

    def _run(self) -> None:
        segment = self._segments[self._next]
        _advance(self._live, segment, _session(segment, self._target))
        for live in self._live:
            for name in live.keys() - set(segment.live):
                del live[name]


def _session(segment: graph.Segment, target: Target) -> Session | None:
    return None if segment.model is None else Session(segment.model, target)


def _advance(
    values: Sequence[dict[str, npt.NDArray[Any]]], segment: graph.Segment, session: Session | None
) -> None:
    """Adds what a segment makes of the values; an empty one has no session and makes nothing."""
    if session is not None:
        for each in values:
            each.update(session.run({name: each[name] for name in segment.inputs}, segment.outputs))


def apply(rewrite: Rewrite, inputs: Sequence[Array], target: Target) -> list[Array]:
    """The outputs `[N, M, ...]` of a rewrite for inputs `[N, C, ...]`, one a batch, in their type."""
    session = Session(graph.rewrite_model(rewrite, inputs[0].dtype), target)
    (name,), (output,) = session.input_names, session.output_names
    return [session.run({name: batch})[output] for batch in inputs]


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """Moments of the patches of a site together with the output that is wanted for them.

    Attributes:
        input: Of the patches.
        cross: Covariance of wanted output and patch, `[G, M/G, K]`.
        mean: Of the wanted output, `[M]`.
    """

    input: Moments
    cross: Array
    mean: Array


def moments(conv: Conv, inputs: Sequence[Array], positions: Positions) -> Moments:
    """The moments of the patches of a site for its inputs `[N, C, ...]`, one a batch."""
    return joint(conv, inputs, None, positions).input


def shrunk(moments: Moments) -> Moments:
    """The moments with their covariance, in place, shrunk towards its diagonal where the patches are few.

    Below some six patches a value a fit to the raw covariance begins to fit its noise; a fifth of the
    diagonal is the most that helped (measured).
    """
    patches_a_value = moments.count / moments.covariance.shape[1]
    share = _MOST_SHRINKAGE * max(0.0, 1.0 - patches_a_value / _ENOUGH_PATCHES)
    if share == 0.0:
        return moments
    shrunk = moments.covariance
    for block in shrunk:
        diagonal = np.diagonal(block).copy()
        block *= 1.0 - share
        block[np.diag_indices_from(block)] = diagonal
    return Moments(shrunk, moments.mean, moments.count)


def joint(conv: Conv, inputs: Sequence[Array], wanted: Sequence[Array] | None, positions: Positions) -> Joint:
    """The joint moments of inputs `[N, C, ...]` and wanted outputs `[P, M]` of a site, one each a batch.

    Without wanted outputs `cross` and `mean` are empty.
    Values are taken relative to the mean of the first patches, so that the products lose nothing to a large
    mean.
    """
    group, _, size = conv.matrix.shape
    channels = 0 if wanted is None else conv.matrix.shape[1]
    if wanted is None:
        wanted = [np.zeros((len(chosen), 0), np.float32) for chosen in positions]
    # products of values that are never both samples are zero, and not held
    parts = patches.phase_columns(conv)
    pieces = list(zip(inputs, positions, wanted, strict=True))
    batch, chosen, rows = pieces[0]
    x, y, _ = next(patches.pairs(conv, batch, chosen[:_PIVOT], rows[:_PIVOT]))
    wanted_pivot = y.mean(1, keepdims=True)
    # the zeros of a dilated input stay what they are
    pivot = np.zeros((group, 1, size), np.float32) if len(parts) > 1 else x.mean(1, keepdims=True)

    def products(block: Sequence[Piece]) -> dict[int, list[Any]]:
        """Sums over the patches of a block by phase: how many, x xᵀ, y xᵀ, x and y."""
        sums: dict[int, list[Any]] = {}
        for piece in block:
            for x, y, phase in patches.pairs(conv, *piece):
                x -= pivot[..., parts[phase]]
                y = y - wanted_pivot
                own = [
                    x.shape[1],
                    # where both are one matrix numpy does half the work; in a stack it does not see that
                    np.stack([seen.T @ seen for seen in x]),
                    y.swapaxes(1, 2) @ x,
                    x.sum(1, dtype=np.float64),
                    y.sum(1, dtype=np.float64),
                ]
                known = sums.get(phase)
                sums[phase] = own if known is None else [a + b for a, b in zip(known, own, strict=True)]
        return sums

    second = [np.zeros((group, len(columns), len(columns))) for columns in parts]
    cross = np.zeros((group, channels, size))
    total, wanted_total = np.zeros((group, size)), np.zeros((group, channels))
    count = 0
    for sums in in_order(products, _blocks(pieces)):
        for phase, (patch_count, squares, mixed, values, outputs) in sums.items():
            second[phase] += squares
            cross[..., parts[phase]] += mixed
            total[:, parts[phase]] += values
            wanted_total += outputs
            count += patch_count
    mean, wanted_mean = total / count, wanted_total / count
    for g in range(group):
        cross[g] /= count
        cross[g] -= np.outer(wanted_mean[g], mean[g])
    covariance = _covariance(second, parts, mean, count)
    return Joint(
        Moments(covariance, mean + pivot[:, 0], count), cross, (wanted_mean + wanted_pivot[:, 0]).reshape(-1)
    )


def pooled(first: Joint, second: Joint) -> Joint:
    """The joint moments of all the patches of two that share none; those of the first change in place.

    C = p C₁ + q C₂ + p q (μ₁ - μ₂)(μ₁ - μ₂)ᵀ, p and q the shares of the patches, and likewise of the others.
    """
    count = first.input.count + second.input.count
    p, q = first.input.count / count, second.input.count / count
    apart = first.input.mean - second.input.mean
    wanted_apart = (first.mean - second.mean).reshape(len(apart), -1)
    for whole, other, left in (
        (first.input.covariance, second.input.covariance, apart),
        (first.cross, second.cross, wanted_apart),
    ):
        for g in range(len(apart)):
            whole[g] *= p
            whole[g] += q * other[g]
            whole[g] += np.outer(p * q * left[g], apart[g])
    moments = Moments(first.input.covariance, p * first.input.mean + q * second.input.mean, count)
    return Joint(moments, first.cross, p * first.mean + q * second.mean)


def _blocks(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces cut and put together to blocks of patches: several, or one core would do all, but no more."""
    most = min(_BLOCK, -(-sum(len(chosen) for _, chosen, _ in pieces) // _LEAST_BLOCKS))
    blocks: list[list[Piece]] = []
    room = 0
    for batch, chosen, rows in pieces:
        start = 0
        while start < len(chosen):
            if room == 0:
                blocks.append([])
                room = most
            stop = start + room
            blocks[-1].append((batch, chosen[start:stop], rows[start:stop]))
            room -= len(blocks[-1][-1][1])
            start = stop
    return blocks


def _covariance(
    second: Sequence[Array], parts: Sequence[npt.NDArray[np.intp]], mean: Array, count: int
) -> Array:
    """`[G, K, K]` from sums of products of some columns each, in place."""
    group, size = mean.shape
    for block in second:
        block /= count
    if len(second) == 1:
        covariance = second[0]
    else:
        covariance = np.zeros((group, size, size))
        for block, columns in zip(second, parts, strict=True):
            covariance[:, columns[:, None], columns] = block
    for g in range(group):
        covariance[g] -= np.outer(mean[g], mean[g])
    return covariance
