"""Samples -> the metric of every site, streaming.

A `Walk` runs a model over all samples from site to site and keeps only the tensors that are still needed, so
that a pass over a whole network costs one inference of it, whatever the number of sites, and the sites in
front may have been rewritten by the time the walk comes to the next. At a site, `moments` draws patches over
the whole map, borders included, and sums their products in float32 blocks, the blocks in float64.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter import graph
from rewriter.conv import Array, Conv, Ints
from rewriter.metric import Moments
from rewriter.parallel import in_order
from rewriter.rewrite import Rewrite
from rewriter.runtime import Session, Target
from rewriter.samples import Feeds

Positions = list[npt.NDArray[np.intp]]

# Patches for each value of a patch: the excess error of a fit from 20 times as many patches is about 3 %
# (measured).
PATCHES_PER_VALUE = 20
# Above so many patches a value the covariance is taken as it is, far below it a fifth is replaced by the
# diagonal.
_ENOUGH_PATCHES = 6
_MOST_SHRINKAGE = 0.2
# Patches whose products are summed in float32 before they are added up in float64.
_BLOCK = 4096
# Patches whose mean is near enough to that of all.
_PIVOT = 256


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


def draw(conv: Conv, shapes: Sequence[Ints], seed: int) -> Positions:
    """Output positions of a site, flat over n and the map, as many as its fit wants, one array a batch."""
    sizes = [shape[0] * prod(conv.out_size(shape[2:])) for shape in shapes]
    wanted = PATCHES_PER_VALUE * conv.matrix.shape[2]
    share = min(1.0, wanted / max(sum(sizes), 1))
    rng = np.random.default_rng(seed)
    return [np.sort(rng.choice(size, max(1, round(share * size)), replace=False)) for size in sizes]


def patches(conv: Conv, batch: Array, positions: npt.NDArray[np.intp]) -> Array:
    """What the kernel sees at some output positions of a batch `[N, C, ...]`: `[G, P, K]`, never float16."""
    axes = len(conv.kernel_shape)
    out_size = conv.out_size(batch.shape[2:])
    sample, *place = np.unravel_index(positions, (len(batch), *out_size))
    if _dilated(conv):
        return _by_group(conv, _between_zeros(conv, batch, sample, place, _all_taps(conv)))
    pads = [(0, 0), (0, 0), *zip(conv.pads[:axes], conv.pads[axes:], strict=True)]
    padded = np.pad(batch, pads) if any(conv.pads) else batch
    steps = padded.strides[2:]
    windows = np.lib.stride_tricks.as_strided(
        padded,
        (*padded.shape[:2], *out_size, *conv.kernel_shape),
        (
            *padded.strides[:2],
            *(step * stride for step, stride in zip(steps, conv.strides, strict=True)),
            *(step * dilation for step, dilation in zip(steps, conv.dilations, strict=True)),
        ),
        writeable=False,
    )
    where: tuple[Any, ...] = (sample, slice(None), *place)
    return _by_group(conv, windows[where])


def _by_group(conv: Conv, seen: Array) -> Array:
    """What is seen `[P, C, *kernel]` as `[G, P, K]`, never float16."""
    seen = seen.reshape(len(seen), conv.group, seen[0].size // conv.group).swapaxes(0, 1)
    return np.ascontiguousarray(seen, np.result_type(seen, np.float32))


def _all_taps(conv: Conv) -> list[npt.NDArray[np.intp]]:
    return [np.arange(taps) for taps in conv.kernel_shape]


def _between_zeros(
    conv: Conv,
    batch: Array,
    sample: npt.NDArray[np.intp],
    place: Sequence[npt.NDArray[np.intp]],
    taps: Sequence[npt.NDArray[np.intp]],
) -> Array:
    """What some taps of the kernel see at P places of a dilated input, `[P, C, *taps]`."""
    axes = len(taps)
    inside: Any = True
    indices = []
    for axis, own in enumerate(taps):
        shape = (len(sample), *(len(own) if axis == other else 1 for other in range(axes)))
        at = place[axis][:, None] + own * conv.dilations[axis] - conv.pads[axis]
        index, off = np.divmod(at.reshape(shape), conv.input_dilations[axis])
        inside = inside & (off == 0) & (index >= 0) & (index < batch.shape[2 + axis])
        indices.append(index.clip(0, batch.shape[2 + axis] - 1))
    where: tuple[Any, ...] = (sample.reshape(-1, *(1,) * axes), slice(None), *indices)
    # the channels come last
    return np.moveaxis(batch[where] * inside[..., None], -1, 1)


def _phases(
    conv: Conv, batch: Array, positions: npt.NDArray[np.intp]
) -> Iterator[tuple[npt.NDArray[np.intp], Array, int]]:
    """Positions of a dilated input by phases of the output: which, what is seen there, and the phase.

    At each phase the same taps meet samples and all others zeros, which are left out.
    """
    sample, *place = np.unravel_index(positions, (len(batch), *conv.out_size(batch.shape[2:])))
    steps = conv.input_dilations
    phases = np.ravel_multi_index([at % step for at, step in zip(place, steps, strict=True)], steps)
    for phase in np.unique(phases):
        (which,) = np.nonzero(phases == phase)
        seen = _between_zeros(
            conv, batch, sample[which], [at[which] for at in place], _taps_met(conv, int(phase))
        )
        yield which, _by_group(conv, seen), int(phase)


def phase_columns(conv: Conv) -> list[npt.NDArray[np.intp]]:
    """Which values of a patch meet samples of a dilated input, not the zeros between, at each phase.

    Together they are all values, none of them twice.
    """
    numbered = np.arange(conv.matrix.shape[2]).reshape(conv.weight.shape[1:])
    channels = np.arange(len(numbered))
    return [
        numbered[np.ix_(channels, *_taps_met(conv, phase))].reshape(-1)
        for phase in range(prod(conv.input_dilations))
    ]


def _taps_met(conv: Conv, phase: int) -> list[npt.NDArray[np.intp]]:
    """The taps along each axis that meet samples of a dilated input at a phase of the output."""
    steps = conv.input_dilations
    residues = np.unravel_index(phase, steps)
    return [
        own[(first + own * dilation - pad) % step == 0]
        for own, first, dilation, pad, step in zip(
            _all_taps(conv), residues, conv.dilations, conv.pads[: len(steps)], steps, strict=True
        )
    ]


def rows(output: Array, positions: npt.NDArray[np.intp]) -> Array:
    """A site's output `[N, M, ...]` at the same positions: `[P, M]`, never float16."""
    flat = output.reshape(*output.shape[:2], -1)
    sample, place = np.divmod(positions, flat.shape[2])
    return flat[sample, :, place].astype(np.result_type(flat, np.float32), copy=False)


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
    # products of values that are never both samples are zero, and not held
    parts = phase_columns(conv) if _dilated(conv) else [np.arange(size)]
    blocks = [
        (index, slice(start, start + _BLOCK))
        for index, chosen in enumerate(positions)
        for start in range(0, len(chosen), _BLOCK)
    ]

    def seen(index: int, part: slice) -> Iterator[tuple[Array, Array, int]]:
        rows = None if wanted is None else wanted[index][part]
        return _seen(conv, inputs[index], positions[index][part], rows)

    index, part = blocks[0]
    some = next(seen(index, slice(part.start, part.start + _PIVOT)))
    wanted_pivot = some[1].mean(1, keepdims=True)
    # the zeros of a dilated input stay what they are
    pivot = np.zeros((group, 1, size), np.float32) if _dilated(conv) else some[0].mean(1, keepdims=True)

    def products(block: tuple[int, slice]) -> list[tuple[int, int, Array, Array, Array, Array]]:
        """Sums over the patches of a block, phase by phase: which, how many, x xᵀ, y xᵀ, x and y."""
        made = []
        for x, y, phase in seen(*block):
            x -= pivot[..., parts[phase]]
            y = y - wanted_pivot
            made.append(
                (
                    phase,
                    x.shape[1],
                    # where both are one matrix numpy does half the work; in a stack it does not see that
                    np.stack([own.T @ own for own in x]),
                    y.swapaxes(1, 2) @ x,
                    x.sum(1, dtype=np.float64),
                    y.sum(1, dtype=np.float64),
                )
            )
        return made

    second = [np.zeros((group, len(columns), len(columns))) for columns in parts]
    cross = np.zeros((group, channels, size))
    total, wanted_total = np.zeros((group, size)), np.zeros((group, channels))
    count = 0
    for made in in_order(products, blocks):
        for phase, patches_seen, squares, mixed, values, outputs in made:
            second[phase] += squares
            cross[..., parts[phase]] += mixed
            total[:, parts[phase]] += values
            wanted_total += outputs
            count += patches_seen
    mean, wanted_mean = total / count, wanted_total / count
    for g in range(group):
        cross[g] /= count
        cross[g] -= np.outer(wanted_mean[g], mean[g])
    covariance = _covariance(second, parts, mean, count)
    return Joint(
        Moments(covariance, mean + pivot[:, 0], count), cross, (wanted_mean + wanted_pivot[:, 0]).reshape(-1)
    )


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


def _dilated(conv: Conv) -> bool:
    return max(conv.input_dilations) > 1


def _seen(
    conv: Conv, batch: Array, positions: npt.NDArray[np.intp], wanted: Array | None
) -> Iterator[tuple[Array, Array, int]]:
    """Patches `[G, P, k]` at some positions, the outputs wanted there `[G, P, M/G]`, if any, and their phase.

    The patches have all values but where a dilated input leaves most of them at zero.
    """
    if wanted is None:
        y = np.zeros((conv.group, len(positions), 0), np.float32)
    else:
        y = wanted.reshape(len(positions), conv.group, -1).swapaxes(0, 1)
    if _dilated(conv):
        for which, x, phase in _phases(conv, batch, positions):
            yield x, y[:, which], phase
    else:
        yield patches(conv, batch, positions), y, 0
