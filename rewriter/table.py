"""The latency table: what every candidate costs on the target, measured alone as it will run.

A candidate is timed with what fuses behind it, between neighbours in the runtime's own layout: what those
cost is in all candidates and cancels in the difference, and differences are all that a choice needs; but what
leaves that layout pays for it. Sites of one shape share their measurements, with earlier runs, too.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod

import numpy as np

from rewriter import graph, latency
from rewriter.cache import Cache, Time
from rewriter.conv import Conv, Ints, Lowering
from rewriter.graph import Site
from rewriter.plan import Candidate, undominated
from rewriter.progress import Progress
from rewriter.rewrite import Rewrite
from rewriter.runtime import Target
from rewriter.samples import Feeds
from rewriter.transposed import SubPixel, stages_by_phases
from rewriter.winograd import Winograd, stages_in_tiles

Key = tuple[object, ...]

# How much its multiply-adds may mislead about a form's time before it is dropped unmeasured.
_SLACK = 1.5
# Of the tiles for a site so many are timed, the likeliest by their multiply-adds and what it takes to write
# an element and to read a weight, in multiply-adds: more of them where several threads wait for the same
# memory. Fitted to all tiles for 23 shapes with AVX-512: of each the eight likeliest had the best, or one
# within 1 %, at one thread and at two.
_MOST_TILES = 8
_WRITTEN = 16.0
_READ = 5.0
_WAITING = 2.0
# Tiles that take hardly longer and hold fewer weights are better: in the network there is less to wait for.
_NEARLY = 1.03
# A site is left alone unless a candidate is faster by this factor: less is lost in the noise of the network.
_WORTHWHILE = 0.95
# Time for every form at a shape, and at most for all of them.
_SECONDS_PER_FORM = 0.025
_SECONDS_PER_SHAPE = 0.6
# So many times as long where several threads share an operator: they wait for each other, and times scatter.
_THREADED = 2.0
# What is slower than another by these factors has lost already at the first try, after one turn and so on.
_CLEARLY = (1.5, 1.3, 1.2)
# A run this long tells at the first try what shorter ones tell after a turn.
_LONG_MS = 10.0
# So many times the squared error is hardly more.
_HARDLY = 1.2
# Tiles, or phases, to try for the stages of a rewrite: those that are best for the site as it is.
_MOST_WAYS = 2
# What every run costs, waking threads above all, should be little beside the multiply-adds in it: so many
# copies of a site are in one, up to a number, and to as many weights as caches hold.
_RUN_MACS = 3e7
_MOST_COPIES = 8
_RUN_PARAMS = 1 << 20
# Sessions alive at once may hold this much in activations; more of them meet fewer of each other's turns.
_ACTIVATION_BYTES = 1 << 30
_MOST_SESSIONS = 40


def measure(
    sites: Sequence[tuple[Site, Sequence[Candidate]]],
    shapes: Mapping[str, Ints],
    target: Target,
    block: int,
    progress: Progress,
    cache: Cache | None = None,
) -> list[list[Candidate]]:
    """The candidates of every site with their latencies, those that are beaten or not worth it dropped.

    Where tiles or phases are faster for a site as it is, its fast candidates are tried with stages in such
    tiles, or by their phases, too.

    Args:
        sites: Each site with its candidates, the site as it is first.
        shapes: The shape of each site's input as deployed, batch first, by site name.
        target: Provider and threads.
        block: Channels that the target computes at once.
        progress: Told after every distinct shape.
        cache: What earlier runs measured, and where this one's measurements are kept.
    """
    places: dict[Key, list[tuple[Site, list[Candidate]]]] = {}
    for site, candidates in sites:
        likely = _likeliest(undominated(candidates, _SLACK), target)
        places.setdefault(place(site, shapes[site.name]), []).append((site, likely))
    measured: dict[str, list[Candidate]] = {}
    for index, sharing in enumerate(places.values()):
        shape = shapes[sharing[0][0].name]
        times = _Times(shape, target, cache)
        times.measure(sharing)
        if ways := _ways(sharing, times, block):
            sharing = [(site, [*found, *_lowered(found, times, ways, shape)]) for site, found in sharing]
            times.measure(sharing)
        times.keep()
        for site, candidates in sharing:
            timed = [replace(each, latency_ms=times[each]) for each in candidates]
            worthwhile = timed[0].latency_ms * _WORTHWHILE
            measured[site.name] = _lightest(
                [each for each in timed if each.pass_name is None or each.latency_ms < worthwhile]
            )
        progress("timing", index + 1, len(places))
    return [measured[site.name] for site, _ in sites]


class _Times:
    """Milliseconds of structures, each measured once, in one place."""

    def __init__(self, shape: Ints, target: Target, cache: Cache | None) -> None:
        self._shape, self._target, self._cache = shape, target, cache
        self._found: dict[Key, float] = {}
        # those that got few turns, and by how much they must have lost for that to do
        self._lost_by: dict[Key, float] = {}
        self._digests: dict[Key, str] = {}
        self._place = ""
        self._kept: dict[str, Time] = {}
        self._measured = False

    def __getitem__(self, candidate: Candidate) -> float:
        return self._found[_structure(candidate.skeleton)]

    def measure(self, place: Sequence[tuple[Site, Sequence[Candidate]]]) -> None:
        """Measures what is not known of the candidates, in chunks that fit in memory, the original in each.

        Args:
            place: Sites that share their measurements, each with its candidates, itself first.
        """
        pool: dict[Key, tuple[Site, Rewrite]] = {}
        for site, candidates in place:
            for candidate in candidates:
                pool.setdefault(_structure(candidate.skeleton), (site, candidate.skeleton))
        original = next(iter(pool))
        if len(pool) == 1:
            self._found.setdefault(original, 0.0)
            return
        self._recall(pool)
        behind = _behind(place, self._found)
        keys = [key for key in pool if key != original and not self._stands(key, behind)]
        if not keys:
            return
        copies = self._copies(pool[original][1])
        feeds = _feeds(*pool[original], self._shape)
        lost_by: dict[Key, float] = {}
        each_s = min(_SECONDS_PER_FORM, _SECONDS_PER_SHAPE / (len(keys) + 1))
        if self._target.threaded:
            each_s *= _THREADED
        for some in self._chunks({key: pool[key][1] for key in keys}):
            chunk = [original, *some]
            values = latency.interleaved(
                [graph.probe(*pool[key], self._shape, copies) for key in chunk],
                [feeds] * len(chunk),
                self._target,
                seconds=each_s * len(chunk),
                hopeless=partial(self._hopeless, place, chunk, lost_by),
            )
            values = [value / copies for value in values]
            first = self._found.setdefault(original, values[0])
            # the machine's speed may have changed since the first chunk; the original is in each
            self._found.update(
                (key, value * first / values[0]) for key, value in zip(chunk[1:], values[1:], strict=True)
            )
        behind = _behind(place, self._found)
        self._lost_by = {key: ratio for key, ratio in self._lost_by.items() if key not in keys}
        # others may have become slower since, and nothing is measured twice for that
        self._lost_by.update((key, min(clearly, behind[key])) for key, clearly in lost_by.items())
        self._measured = True

    def keep(self) -> None:
        """Keeps for later runs what was measured, beside what was known."""
        if self._cache is not None and self._measured:
            found = {
                digest: Time(self._found[key], self._lost_by.get(key))
                for key, digest in self._digests.items()
            }
            self._cache.write(self._place, {**self._kept, **found})

    def _recall(self, pool: Mapping[Key, tuple[Site, Rewrite]]) -> None:
        """Takes over what earlier runs know of the structures; the place is called after its original."""
        if self._cache is None:
            return
        for key in pool:
            if key in self._digests:
                continue
            # a time is that of one copy, however many it was measured with
            digest = self._digests[key] = graph.fingerprint(graph.probe(*pool[key], self._shape, 1))
            if not self._place:
                self._place, self._kept = digest, self._cache.read(digest)
            if (known := self._kept.get(digest)) is not None:
                self._found[key] = known.ms
                if known.lost_by is not None:
                    self._lost_by[key] = known.lost_by

    def _stands(self, key: Key, behind: Mapping[Key, float]) -> bool:
        """Whether the time of a structure is known as well as need be.

        What was given up after few turns may be wanted now: errors differ from model to model, and with them
        what a form must beat. Its time stands where it would be given up by it again.
        """
        return key in self._found and behind[key] >= self._lost_by.get(key, 0.0)

    def _copies(self, original: Rewrite) -> int:
        """How many copies of a site, or of what it may become, are in one run."""
        cost = original.cost(self._shape[2:])
        wanted = _RUN_MACS / max(self._shape[0] * cost.macs, 1)
        return int(np.clip(round(min(wanted, _RUN_PARAMS / cost.params)), 1, _MOST_COPIES))

    def _chunks(self, rewrites: Mapping[Key, Rewrite]) -> Iterator[list[Key]]:
        """The keys in portions whose sessions fit in memory together."""
        portion: list[Key] = []
        total = 0
        for key, rewrite in rewrites.items():
            size = _activations(rewrite, self._shape)
            if portion and (total + size > _ACTIVATION_BYTES or len(portion) == _MOST_SESSIONS):
                yield portion
                portion, total = [], 0
            portion.append(key)
            total += size
        yield portion

    def _hopeless(
        self,
        place: Sequence[tuple[Site, Sequence[Candidate]]],
        chunk: Sequence[Key],
        lost_by: dict[Key, float],
        tried: Sequence[float],
        turns: int,
    ) -> list[bool]:
        """Which of the structures are clearly beaten at every site, by their times after so many turns.

        They are added to `lost_by`, each with the factor that counts as clearly so early.
        """
        scale = self._found.get(chunk[0], tried[0]) / tried[0]
        known = {**self._found, **{key: ms * scale for key, ms in zip(chunk, tried, strict=True)}}
        behind = _behind(place, known)
        told = turns + 1 if tried[0] > _LONG_MS else turns
        clearly = _CLEARLY[min(told, len(_CLEARLY) - 1)]
        # the site as it is stays, however slow: all others are judged by it
        lost = [key != chunk[0] and behind[key] > clearly for key in chunk]
        for key in itertools.compress(chunk, lost):
            lost_by.setdefault(key, clearly)
        return lost


def _likeliest(candidates: Sequence[Candidate], target: Target) -> list[Candidate]:
    """The candidates without those tiles for a site as it is that are not among the likeliest to be fast."""
    waiting = _WAITING if target.threaded else 1.0

    def work(candidate: Candidate) -> float:
        written, read = candidate.cost.activations, candidate.skeleton.held_bytes / 4
        return candidate.cost.macs + waiting * (_WRITTEN * written + _READ * read)

    tiles = [each for each in candidates if isinstance(_lowering(each), Winograd)]
    unlikely = sorted(tiles, key=work)[_MOST_TILES:]
    return [each for each in candidates if each not in unlikely]


def _lightest(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates without tiles for a site as it is that are heavier than some of nearly that time."""
    tiles = [each for each in candidates if isinstance(_lowering(each), Winograd)]
    nearly = min((each.latency_ms for each in tiles), default=0.0) * _NEARLY
    light = min((each.skeleton.held_bytes for each in tiles if each.latency_ms <= nearly), default=0)
    heavy = [each for each in tiles if each.skeleton.held_bytes > light]
    return [each for each in candidates if each not in heavy]


def _behind(
    place: Sequence[tuple[Site, Sequence[Candidate]]], times: Mapping[Key, float]
) -> dict[Key, float]:
    """How many times as slow every structure is as the best that it must beat, where it comes nearest."""
    behind: dict[Key, float] = {}
    for _, candidates in place:
        for each, ratio in _ratios(candidates, times):
            key = _structure(each.skeleton)
            behind[key] = min(behind.get(key, np.inf), ratio)
    return behind


def _ratios(candidates: Sequence[Candidate], times: Mapping[Key, float]) -> Iterator[tuple[Candidate, float]]:
    """Every candidate with its time over the least of any with hardly more error, and of the site as it is.

    So 1 is what none beats; infinity is what was not measured.
    """
    known = [(each, times.get(_structure(each.skeleton), np.inf)) for each in candidates]
    for each, time in known:
        rivals = (rival for other, rival in known if other.error <= each.error * _HARDLY)
        yield each, time / min([known[0][1], *rivals]) if time < np.inf else np.inf


Way = Callable[[Rewrite], Rewrite | None]
"""Writes those stages of a rewrite that it can in another way; None where there are none."""


def _ways(place: Sequence[tuple[Site, Sequence[Candidate]]], times: _Times, block: int) -> list[Way]:
    """Phases or the tiles in which sites as they are gain, the fastest few first."""
    gained: dict[Lowering, float] = {}
    for _, candidates in place:
        for each in candidates:
            if isinstance(lowering := _lowering(each), Winograd | SubPixel):
                gained[lowering] = times[each]
    worthwhile = times[place[0][1][0]] * _WORTHWHILE
    fastest = [each for each in sorted(gained, key=lambda each: gained[each]) if gained[each] < worthwhile]
    return [
        partial(stages_in_tiles, tiles=each, block=block) if isinstance(each, Winograd) else stages_by_phases
        for each in fastest[:_MOST_WAYS]
    ]


def _lowered(
    candidates: Sequence[Candidate], times: _Times, ways: Sequence[Way], shape: Ints
) -> Iterator[Candidate]:
    """The contenders with stages in tiles or by phases."""
    direct = [each for each in candidates if each.pass_name is not None and each.skeleton.direct]
    known = {_structure(each.skeleton): times[each] for each in candidates}
    for each, ratio in _ratios([candidates[0], *direct], known):
        if each.pass_name is None or ratio > _CLEARLY[0]:
            continue
        for way in ways:
            if (found := way(each.skeleton)) is not None:
                error = each.error + found.rounding**2
                yield replace(each, skeleton=found, cost=found.cost(shape[2:]), error=error)


def _lowering(candidate: Candidate) -> Lowering | None:
    """How the only convolution of a candidate is written; None where there are several."""
    ((stage, *more), *others) = candidate.skeleton.branches
    return None if more or others else stage.lowering


def _feeds(site: Site, rewrite: Rewrite, shape: Ints) -> Feeds:
    rng = np.random.default_rng(0)
    feeds = {"x": rng.standard_normal(shape, dtype=np.float32)}
    if site.shortcut is not None:
        out = (shape[0], site.conv.out_channels, *rewrite.out_size(shape[2:]))
        feeds["shortcut"] = rng.standard_normal(out, dtype=np.float32)
    return {name: array.astype(site.dtype, copy=False) for name, array in feeds.items()}


def _activations(rewrite: Rewrite, shape: Ints) -> int:
    return 4 * shape[0] * (prod(shape[1:]) + 2 * rewrite.cost(shape[2:]).activations)


def place(site: Site, shape: Ints) -> Key:
    """What two sites must share for a form to take the same time at them."""
    return (shape, site.dtype, tuple(follower.key for follower in site.followers), *_stage(site.conv))


def _structure(rewrite: Rewrite) -> Key:
    return tuple(tuple(_stage(stage) for stage in branch) for branch in rewrite.branches)


def _stage(conv: Conv) -> Key:
    return (
        conv.weight.shape,
        conv.bias is None,
        conv.strides,
        conv.pads,
        conv.dilations,
        conv.group,
        conv.input_dilations,
        conv.lowering,
    )
