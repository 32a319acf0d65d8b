"""Timing: two models against each other as deployed, and many small ones side by side.

On a shared machine the speed drifts by tens of per cent within seconds, far more than the differences that
are to be shown. So nothing here is timed in sequence: models take turns, and only what ran close together is
compared.
"""

import contextlib
import gc
import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import special

from rewriter._worker import Worker, time_runs
from rewriter.errors import ModelError, OptionError
from rewriter.runtime import Clock, ModelSource, Session, Target
from rewriter.serialized import Parts, write_model

Floats = NDArray[np.float64]
Feeds = Mapping[str, NDArray[Any]]

SECONDS: Final = 8.0
"""How long two models are compared where nothing else is said."""

# Every round starts both processes anew, as where a process lands in memory may shift its speed.
_ROUNDS: Final = 4
# A quad is bursts in the order ABBA, or BAAB: a steady change of the machine's speed cancels in it.
_LEAST_QUADS: Final = 3
# Long enough to run warm, short enough that both sides see the same machine (20 ms was noisier).
_BURST_MS: Final = 5.0
_MOST_RUNS: Final = 200
_WARM_UP_MS: Final = 50.0
# The first runs of a burst find caches that the other model has used, and are dropped where they are cheap.
_DROPPED_MS: Final = 1.0
_MOST_DROPPED: Final = 10
_CHEAP_MS: Final = 500.0
# Neighbouring quads are correlated (measured: 0.25), so the bootstrap draws short blocks of them.
_BLOCK: Final = 4
_RESAMPLES: Final = 20_000
_KEPT_TIMES: Final = 2000

_LEAST_TURNS: Final = 5
_LEAST_TURN_MS: Final = 0.2
_FASTEST: Final = 3
_SLOW_MS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Two models timed as deployed; `speedup` is before over after, above 1 is better.

    Attributes:
        before_ms: Median time of one run.
        before_p10_ms: Its 10th percentile.
        before_p90_ms: Its 90th percentile.
        speedup: Median over the quads of the ratio of neighbouring bursts; not exactly before_ms / after_ms.
        speedup_low: Lower end of its 95 % interval.
        speedup_high: Upper end of its 95 % interval.
        speedup_lower: One-sided 99.9 % bound: the true speed-up is below it once in a thousand times.
        pairs: Bursts of one model that were compared with a neighbouring burst of the other.
        batch: Samples in one run: the first dimension of the first input.
        provider: Short name of the execution provider.
        threads: Threads inside one operator; None is ONNX Runtime's default.
        before_load_ms: Time to create the session, median over fresh processes.
        before_peak_bytes: Peak memory of a fresh process that loads the model and runs it once, all in all.
        baseline_bytes: What such a process needs without any model; 0 where the system does not tell.
        before_size_bytes: Size of the model's files; where it was given as a path, without external data.
        before_times_ms: Times of single runs in their order, thinned to at most 2000.
        clock: What told the times of the runs.
    """

    before_ms: float
    before_p10_ms: float
    before_p90_ms: float
    after_ms: float
    after_p10_ms: float
    after_p90_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    speedup_lower: float
    pairs: int
    batch: int
    provider: str
    threads: int | None
    before_load_ms: float
    after_load_ms: float
    before_peak_bytes: int
    after_peak_bytes: int
    baseline_bytes: int
    before_size_bytes: int
    after_size_bytes: int
    before_times_ms: tuple[float, ...]
    after_times_ms: tuple[float, ...]
    clock: Clock = "wall"


@dataclass(frozen=True, slots=True)
class Speedup:
    """A ratio of times with its uncertainty; the fields are those of `Latency`."""

    value: float
    low: float
    high: float
    lower: float


def compare(
    before: ModelSource,
    after: ModelSource,
    feeds: Feeds,
    target: Target | None = None,
    *,
    seconds: float = SECONDS,
    max_pairs: int = 2000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Latency:
    """Returns how much faster `after` runs than `before`, both as deployed on the target.

    Each model lives in a process of its own, and the two take turns in short bursts; the idle one is stopped,
    or its spinning threads would slow the other down. Every round starts both processes anew.

    Args:
        before: The original model: serialised, what serialises it, or its path.
        after: The other model, with the same inputs.
        feeds: Arrays by input name, at the batch size that is to be timed.
        target: How the models are deployed.
        seconds: Time to spend; slow models take longer, for each needs at least 24 bursts.
        max_pairs: Stop at so many pairs even if there is time left.
        seed: Seeds the bootstrap.
        progress: Told the rounds done and their number.

    Raises:
        ModelError: A model cannot be loaded or run, or its process died.
        OptionError: The time to spend is not positive.
    """
    if not seconds > 0 or max_pairs < 1:
        raise OptionError("the time to spend on timing and the number of pairs must be positive")
    target = target or Target()
    ratios: list[Floats] = []
    times: tuple[list[Floats], list[Floats]] = ([], [])
    loads: tuple[list[float], list[float]] = ([], [])
    peaks: tuple[list[int], list[int]] = ([], [])
    baselines = []
    count = max(math.ceil(max_pairs / (2 * _ROUNDS)), 1)
    with contextlib.ExitStack() as stack:
        files = (stack.enter_context(_file(before)), stack.enter_context(_file(after)))
        for turn in range(_ROUNDS):
            with contextlib.ExitStack() as pair:
                first = turn % 2  # neither model is always the first to be started
                workers = {
                    side: pair.enter_context(Worker(files[side][0], feeds, target))
                    for side in (first, 1 - first)
                }
                for side, worker in workers.items():
                    loads[side].append(worker.load_ms)
                    peaks[side].append(worker.peak_bytes)
                    baselines.append(worker.baseline_bytes)
                least = min(_LEAST_QUADS, count) if turn == 0 else count
                found, runs = _round((workers[0], workers[1]), seconds / _ROUNDS, least, count)
            # the bootstrap wants rounds of one length, so the first sets it
            count = found.size
            ratios.append(found)
            for side in (0, 1):
                times[side].append(runs[side])
            if progress is not None:
                progress(turn + 1, _ROUNDS)
    speedup = estimate(np.stack(ratios), seed)
    both = [np.concatenate(side) for side in times]
    (before_p10, before_ms, before_p90), (after_p10, after_ms, after_p90) = (
        np.quantile(side, (0.1, 0.5, 0.9)).tolist() for side in both
    )
    array = next(iter(feeds.values()), np.zeros(()))
    return Latency(
        before_ms=before_ms,
        before_p10_ms=before_p10,
        before_p90_ms=before_p90,
        after_ms=after_ms,
        after_p10_ms=after_p10,
        after_p90_ms=after_p90,
        speedup=speedup.value,
        speedup_low=speedup.low,
        speedup_high=speedup.high,
        speedup_lower=speedup.lower,
        pairs=2 * count * _ROUNDS,
        batch=array.shape[0] if array.ndim else 1,
        provider=target.provider,
        threads=target.threads,
        before_load_ms=float(np.median(loads[0])),
        after_load_ms=float(np.median(loads[1])),
        before_peak_bytes=int(np.median(peaks[0])),
        after_peak_bytes=int(np.median(peaks[1])),
        baseline_bytes=int(np.median(baselines)),
        before_size_bytes=files[0][1],
        after_size_bytes=files[1][1],
        before_times_ms=_thin(both[0]),
        after_times_ms=_thin(both[1]),
        clock=target.clock,
    )


def estimate(log_ratios: Floats, seed: int = 0) -> Speedup:
    """Returns the speed-up with its intervals from the log ratios of quads, `[rounds, quads]`.

    The estimate is the median of paired ratios, not the ratio of medians: what slows both sides of a pair
    cancels before the median is taken (measured with identical models of 0.2 ms on two busy cores, six rounds
    of 80 pairs: paired medians 0.994 to 1.002, ratios of medians 0.87 to 1.03).

    The intervals are bootstrapped in two stages, rounds and then blocks of neighbouring quads, and widened
    from the normal's to Student's quantiles, as percentile intervals of few samples are too narrow
    (Hesterberg 2015, "What teachers should know about the bootstrap", section 3.3).
    """
    rng = np.random.default_rng(seed)
    rounds, quads = log_ratios.shape
    block = max(min(_BLOCK, quads // 3), 1)
    blocks = math.ceil(quads / block)
    centre = float(np.median(log_ratios))
    medians = np.empty(_RESAMPLES)
    chunk = max(min(_RESAMPLES, 4_000_000 // log_ratios.size), 1)
    for start in range(0, _RESAMPLES, chunk):
        size = min(chunk, _RESAMPLES - start)
        chosen = rng.integers(rounds, size=(size, rounds, 1))
        starts = rng.integers(quads, size=(size, rounds, blocks, 1))
        inside = ((starts + np.arange(block)) % quads).reshape(size, rounds, -1)[..., :quads]
        medians[start : start + size] = np.median(log_ratios[chosen, inside].reshape(size, -1), axis=1)
    samples = log_ratios.size

    def bound(level: float) -> float:
        if samples < 2:
            return math.copysign(math.inf, level - 0.5)
        student = float(special.stdtrit(samples - 1, level)) * math.sqrt(samples / (samples - 1))
        widen = student / float(special.ndtri(level))
        return centre + (float(np.quantile(medians, level)) - centre) * widen

    return Speedup(
        math.exp(centre),
        math.exp(min(bound(0.025), centre)),
        math.exp(max(bound(0.975), centre)),
        math.exp(min(bound(0.001), centre)),
    )


def interleaved(
    models: Sequence[ModelSource],
    feeds: Sequence[Feeds],
    target: Target | None = None,
    *,
    seconds: float = 2.0,
    seed: int = 0,
    hopeless: Callable[[Sequence[float], int], Sequence[bool]] | None = None,
) -> list[float]:
    """Returns the milliseconds of one run of every model, measured side by side in this process.

    All take turns in an order that is drawn anew each time, so that a change of the machine's speed meets all
    of them; a turn lasts at least 0.2 ms. Differences and ratios mean more than the times: models in one
    process do not find their caches and threads as they would alone.

    Where one thread does all it is the average of a model's three fastest turns, which other processes
    disturbed least. With several they stop spinning when a run ends, or those of one model would take the
    cores from the next. Then waking them, once a run, is part of the time, the fastest turns are luck, and it
    is the median: identical models came within 6 %, but for one round of 18. Six layers of 16 channels take
    0.26 ms alone, 0.30 so, and 0.47 where threads never spin, which are woken for each. So it is for
    long runs: what waits for memory is fast in its fastest turns alone (forms chosen by these were 0.80 to
    1.00 times as fast as the original, by the median 1.00 to 1.14).

    Args:
        models: Small models.
        feeds: Arrays by input name, for every model.
        target: How they will be deployed.
        seconds: Time to spend; it takes longer where five turns of each model do, or three of slow ones.
        seed: Seeds the order.
        hopeless: Says, by the milliseconds of a first try and then after so many turns, which models need
            not be measured any better.

    Raises:
        ModelError: A model cannot be loaded or run.
    """
    target = replace(target or Target(), spinning=False)
    rng = np.random.default_rng(seed)
    jobs = [Session(model, target).bound(feed) for model, feed in zip(models, feeds, strict=True)]
    with _no_collection():
        once = [_first_try(job, target) for job in jobs]
        runs = [math.ceil(_LEAST_TURN_MS / max(ms, 1e-3)) for ms in once]
        # of long runs, each an average of its own, the first try counts as a turn, and fewer of them do
        slow = not target.parallel and min(once, default=0.0) > _SLOW_MS
        turns: list[list[float]] = [[ms] if slow else [] for ms in once]
        least = _FASTEST if slow else _LEAST_TURNS
        racing = list(range(len(jobs)))
        end = time.perf_counter() + seconds
        for turn in itertools.count():
            if hopeless is not None and turn < least:
                # a turn that another process cut into says nothing against a model whose first try was fast
                lost = hopeless(np.minimum(_so_far(turns, once, target), once).tolist(), turn)
                racing = [index for index in racing if not lost[index]]
            if not racing or (turn >= least and time.perf_counter() > end):
                break
            for index in rng.permutation(racing):
                # the first run of a short turn warms the caches and is not counted
                extra = 1 if once[index] < _DROPPED_MS else 0
                times = time_runs(jobs[index], target.clock, runs[index] + extra)
                turns[index].append(float(np.mean(times[extra:])))
    return _so_far(turns, once, target)


def _first_try(job: Callable[[], object], target: Target) -> float:
    """Milliseconds of a run, the best one of two after one that warms up, or of three with several threads.

    By what the first run takes of memory ONNX Runtime plans that of the second, and where that is new the
    system must first hand it over: of 50 MB, in a run of 30 ms, that takes up to 100 ms more. Several threads
    wait for each other besides.
    """
    time_runs(job, target.clock, 1)
    return float(np.min(time_runs(job, target.clock, 3 if target.parallel else 2)))


def _so_far(turns: Sequence[Sequence[float]], once: Sequence[float], target: Target) -> list[float]:
    """The time that stands for a model's turns, or for its first try where it had none."""
    if target.parallel:
        return [float(np.median(each or [ms])) for each, ms in zip(turns, once, strict=True)]
    return [float(np.mean(np.sort(each or [ms])[:_FASTEST])) for each, ms in zip(turns, once, strict=True)]


def _round(
    workers: tuple[Worker, Worker], seconds: float, least: int, most: int
) -> tuple[Floats, tuple[Floats, Floats]]:
    """Returns the log ratio, before over after, of every quad, and each side's times of runs in ms."""
    plans = [_plan(worker) for worker in workers]
    ratios: list[float] = []
    times: tuple[list[Floats], list[Floats]] = ([], [])
    end = time.perf_counter() + seconds
    while len(ratios) < least or (len(ratios) < most and time.perf_counter() < end):
        logs: tuple[list[float], list[float]] = ([], [])
        for side in (0, 1, 1, 0) if len(ratios) % 2 == 0 else (1, 0, 0, 1):
            drop, keep = plans[side]
            burst = workers[side].burst(drop + keep)[drop:]
            times[side].append(burst)
            logs[side].append(math.log(max(float(np.median(burst)), 1e-6)))
        ratios.append((sum(logs[0]) - sum(logs[1])) / 2)
    return np.array(ratios), (np.concatenate(times[0]), np.concatenate(times[1]))


def _plan(worker: Worker) -> tuple[int, int]:
    """Warms a model up and returns how many runs of a burst to drop and how many to keep."""
    once = float(np.median(worker.burst(3)))
    if once < _WARM_UP_MS / 3:
        once = float(np.median(worker.burst(min(math.ceil(_WARM_UP_MS / max(once, 1e-3)), _MOST_RUNS))))
    once = max(once, 1e-3)
    drop = min(math.ceil(_DROPPED_MS / once), _MOST_DROPPED) if once < _CHEAP_MS else 0
    return drop, min(max(round(_BURST_MS / once), 1), _MOST_RUNS)


@contextlib.contextmanager
def _file(model: ModelSource) -> Iterator[tuple[Path, int]]:
    """The model as a file, which is gone afterwards where it was made here, and its size."""
    if isinstance(model, bytes | Parts) or callable(model):
        with tempfile.TemporaryDirectory(prefix="conv-rewriter-") as folder:
            path = Path(folder, "model.onnx")
            write_model(model() if callable(model) else model, path)
            yield path, sum(each.stat().st_size for each in path.parent.iterdir())
    else:
        path = Path(model).absolute()
        if not path.is_file():
            raise ModelError(f"'{os.fspath(model)}' is not a file; check the path")
        yield path, path.stat().st_size


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _thin(times: Floats) -> tuple[float, ...]:
    step = max(math.ceil(times.size / _KEPT_TIMES), 1)
    return tuple(times[::step].tolist())
