"""Latencies corrected by what the network itself makes of a plan.

A candidate is timed alone, between neighbours that are not those it will have: in the network its tensors
come from other caches, and its gain may be another. So a plan's network is timed as a whole, and again with
the sites of one shape and form at a time as they were: what each of them truly gains corrects the table.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from rewriter import graph, latency
from rewriter.graph import Model
from rewriter.plan import Candidate
from rewriter.runtime import Target
from rewriter.samples import Feeds
from rewriter.search import Rewrites, Sites, Trial
from rewriter.serialized import Serialized

# The largest gains are corrected, by so many groups of sites; none smaller than this share of the whole time,
# which is in its noise.
_GROUPS = 7
_SMALLEST = 0.01
# The first network is timed so many times: what lies between these times is noise, the range of three normal
# values being so many standard deviations on average.
_AGAIN = 3
_RANGE = 1.69
# Standard deviations: of the time of a network, as a share, of a gain by the table, and of what lies between
# two plans, as a share of the whole. The first was measured of short runs; of long ones it is up to 0.04.
_NOISE = 0.007
_DOUBT = 0.4
_DOUBT_OF_PLANS = 0.02
# A gain is at most so many times what the table says.
_MOST = 1.5
# Networks timed side by side hold this much in weights at most; a session takes about twice what a file has.
_WEIGHT_BYTES = 1 << 29
# And so much in activations, two of them whatever they take: a session keeps some four times what is alive at
# once (measured: 0.35 GB where that is 0.08).
_ACTIVATION_BYTES = 1 << 30
_KEPT = 4
_SECONDS = 0.35


class Clock:
    """Times a model with rewrites in it.

    Args:
        model: In which the sites were found.
        shapes: What sites must share for a form to take the same time at them, by site name.
        feeds: What to run it with.
        target: How it is deployed.
        most: How many networks may be timed side by side, at least 2.
    """

    def __init__(
        self, model: Model, shapes: Mapping[str, Hashable], feeds: Feeds, target: Target, most: int
    ) -> None:
        self._model, self._shapes, self._feeds, self._target = model, shapes, feeds, target
        self._most = most

    def corrected(self, sites: Sites, trial: Trial) -> Sites:
        """The candidates with latencies as the network has them.

        A gain that was measured for one form at a shape holds for all forms there that are written alike: as
        plain convolutions, or in tiles.
        """
        originals = {candidates[0].site: candidates[0] for candidates in sites}

        def gain(group: Sequence[Candidate]) -> float:
            return sum(originals[each.site].latency_ms - each.latency_ms for each in group)

        groups: dict[Hashable, list[Candidate]] = {}
        for candidate in trial.plan.rewritten:
            groups.setdefault((self._shapes[candidate.site], candidate.form), []).append(candidate)
        least_ms = _SMALLEST * trial.plan.latency_ms
        telling = [group for group in groups.values() if gain(group) >= least_ms]
        largest = sorted(telling, key=gain, reverse=True)[:_GROUPS]
        if not largest:
            return sites
        variants = [trial.rewrites, *(_left_out(trial, group) for group in largest)]
        (whole, *without), noise = self._times(variants)
        factors: dict[Hashable, float] = {}
        for group, ms in zip(largest, without, strict=True):
            kind = (self._shapes[group[0].site], group[0].skeleton.direct)
            # several groups may share a shape: the one that gains most speaks for it
            factors.setdefault(kind, _gain(gain(group), ms - whole, noise) / max(gain(group), 1e-9))

        def again(candidate: Candidate) -> Candidate:
            if candidate.pass_name is None:
                return candidate
            factor = factors.get((self._shapes[candidate.site], candidate.skeleton.direct), 1.0)
            original = originals[candidate.site].latency_ms
            return replace(candidate, latency_ms=original - factor * (original - candidate.latency_ms))

        return [list(map(again, candidates)) for candidates in sites]

    def fastest_first(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials by the time that their networks most likely take."""
        times, noise = self._times([trial.rewrites for trial in trials])
        doubt = _DOUBT_OF_PLANS * times[0]
        likely = [
            _likely(trial.plan.latency_ms - trials[0].plan.latency_ms, ms - times[0], noise, doubt)
            for trial, ms in zip(trials, times, strict=True)
        ]
        return [trials[index] for index in np.argsort(likely, kind="stable")]

    def _times(self, variants: Sequence[Rewrites]) -> tuple[list[float], float]:
        """Milliseconds of the network with each of some sets of rewrites, and their standard deviation.

        They are measured side by side; that of a difference to the first is not much larger.
        """
        found: list[float] = []
        for portion in _portions([*[variants[0]] * _AGAIN, *variants[1:]], self._most):
            values = latency.interleaved(
                [partial(_spliced, self._model, rewrites) for rewrites in portion],
                [self._feeds] * len(portion),
                self._target,
                seconds=_SECONDS * len(portion),
            )
            # the machine's speed may have changed; the first network is in every portion
            found += [ms * found[0] / values[0] for ms in values[1:]] if found else values
        same = found[:_AGAIN]
        first = float(np.mean(same))
        return [first, *found[_AGAIN:]], max(_NOISE * first, float(np.ptp(same)) / _RANGE)


def clock(
    model: Model, shapes: Mapping[str, Hashable], feeds: Feeds, target: Target, live_bytes: int
) -> Clock | None:
    """A `Clock`, or None where the weights are too many for two networks side by side.

    Args:
        model: In which the sites were found.
        shapes: What sites must share for a form to take the same time at them, by site name.
        feeds: What to run it with.
        target: How it is deployed.
        live_bytes: What its activations take at once for these.
    """
    most = _WEIGHT_BYTES // max(graph.weight_bytes(model), 1)
    roomy = max(_ACTIVATION_BYTES // (_KEPT * live_bytes), 2)
    return Clock(model, shapes, feeds, target, min(most, roomy)) if most > 1 else None


def _spliced(model: Model, rewrites: Rewrites) -> Serialized:
    return graph.serialize(graph.splice(model, rewrites))


def _portions(variants: Sequence[Rewrites], most: int) -> Iterator[list[Rewrites]]:
    """So many at most, the first of all in each of them."""
    first, *rest = variants
    yield [first, *rest[: most - 1]]
    for start in range(most - 1, len(rest), most - 1):
        yield [first, *rest[start : start + most - 1]]


def _left_out(trial: Trial, group: Sequence[Candidate]) -> Rewrites:
    """A trial's rewrites without those of some sites."""
    left = {each.site for each in group}
    return [(site, rewrite) for site, rewrite in trial.rewrites if site.name not in left]


def _gain(predicted: float, measured: float, noise: float) -> float:
    """The most likely gain in ms, by what the table says of it and what the network does."""
    return float(np.clip(_likely(predicted, measured, noise, _DOUBT * predicted), 0.0, _MOST * predicted))


def _likely(predicted: float, measured: float, noise: float, doubt: float) -> float:
    """The most likely difference of two networks in ms, by their noise and what the prediction is worth."""
    variance = noise**2 * (1.0 + 1.0 / _AGAIN)
    return (measured * doubt**2 + predicted * variance) / (doubt**2 + variance)
