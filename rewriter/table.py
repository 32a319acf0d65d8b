"""The latency table: what every candidate costs on the target, measured alone as it will run.

A candidate is timed with what fuses behind it, between neighbours in the runtime's own layout: what those
cost is in all candidates and cancels in the difference, and differences are all that a choice needs; but what
leaves that layout pays for it. Sites of one shape share their measurements.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from rewriter import graph, latency
from rewriter.conv import Conv, Ints, Rewrite
from rewriter.graph import Site
from rewriter.plan import Candidate, undominated
from rewriter.progress import Progress
from rewriter.runtime import Target

Key = tuple[object, ...]

# How much its multiply-adds may mislead about a form's time before it is dropped unmeasured.
_SLACK = 1.5
# A site is left alone unless a candidate is faster by this factor: less is lost in the noise of the network.
_WORTHWHILE = 0.95
_SECONDS_PER_SHAPE = 1.5
# Sessions alive at once may hold this much in activations.
_ACTIVATION_BYTES = 1 << 30


def measure(
    sites: Sequence[tuple[Site, Sequence[Candidate]]],
    shapes: Mapping[str, Ints],
    target: Target,
    progress: Progress,
) -> list[list[Candidate]]:
    """The candidates of every site with their latencies, those that are beaten or not worth it dropped.

    Args:
        sites: Each site with its candidates, the site as it is first.
        shapes: The shape of each site's input as deployed, batch first, by site name.
        target: Provider and threads.
        progress: Told after every distinct shape.
    """
    kept = [(site, undominated(candidates, _SLACK)) for site, candidates in sites]
    pools: dict[Key, dict[Key, tuple[Site, Rewrite]]] = {}
    for site, candidates in kept:
        pool = pools.setdefault(_place(site, shapes[site.name]), {})
        for candidate in candidates:
            pool.setdefault(_structure(candidate.skeleton), (site, candidate.skeleton))
    times: dict[tuple[Key, Key], float] = {}
    for index, (place, pool) in enumerate(pools.items()):
        for structure, value in _time(pool, shapes, target).items():
            times[place, structure] = value
        progress("timing", index + 1, len(pools))
    measured = []
    for site, candidates in kept:
        place = _place(site, shapes[site.name])
        timed = [replace(c, latency_ms=times[place, _structure(c.skeleton)]) for c in candidates]
        worthwhile = timed[0].latency_ms * _WORTHWHILE
        measured.append([c for c in timed if c.pass_name is None or c.latency_ms < worthwhile])
    return measured


def _time(
    pool: Mapping[Key, tuple[Site, Rewrite]], shapes: Mapping[str, Ints], target: Target
) -> dict[Key, float]:
    """Milliseconds of every structure of one place, in chunks that fit in memory, the first in each."""
    keys = list(pool)
    if len(keys) == 1:
        return {keys[0]: 0.0}
    shape = shapes[pool[keys[0]][0].name]
    largest = max(_activations(rewrite, shape) for _, rewrite in pool.values())
    size = int(np.clip(_ACTIVATION_BYTES // max(largest, 1), 2, 40))
    rng = np.random.default_rng(0)
    times: dict[Key, float] = {}
    for start in range(1, len(keys), size - 1):
        chunk = [keys[0], *keys[start : start + size - 1]]
        models = [graph.probe(*pool[key], shape, within=True) for key in chunk]
        feeds = [_feeds(*pool[key], shape, rng) for key in chunk]
        share = _SECONDS_PER_SHAPE * len(chunk) / len(keys)
        values = latency.interleaved(models, feeds, target, seconds=share)
        first = times.setdefault(keys[0], values[0])
        # the machine's speed may have changed since the first chunk; the original is in each
        times.update((key, value * first / values[0]) for key, value in zip(chunk, values, strict=True))
    return times


def _feeds(
    site: Site, rewrite: Rewrite, shape: Ints, rng: np.random.Generator
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    feeds = {"x": rng.standard_normal(shape, dtype=np.float32)}
    if site.shortcut is not None:
        out = (shape[0], site.conv.out_channels, *rewrite.out_size(shape[2:]))
        feeds["shortcut"] = rng.standard_normal(out, dtype=np.float32)
    return feeds


def _activations(rewrite: Rewrite, shape: Ints) -> int:
    return 4 * shape[0] * (prod(shape[1:]) + 2 * rewrite.cost(shape[2:]).activations)


def _place(site: Site, shape: Ints) -> Key:
    """What two sites must share to share their measurements."""
    return (shape, tuple(follower.key for follower in site.followers), *_stage(site.conv))


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
        conv.lowering,
    )
