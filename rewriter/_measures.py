"""The arithmetic of drift: one value a sample from the outputs of two models, and intervals of averages.

Outputs have the batch as their first axis, `[n, ...]`; the values of n samples are float64 `[n]`.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import scipy.optimize
import scipy.special
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]

# Rows of float16 or rounded probabilities sum to one within this.
_SUM_TOLERANCE: Final = 1e-3
_LEAST_MAP_CLASSES: Final = 4
_MOST_MAP_CLASSES: Final = 1000
# Below this a probability is rounding: it bounds the divergence instead of making it infinite.
_LEAST_PROBABILITY: Final = 1e-12
# An output that hits its target image exactly counts as this many dB, not as infinitely many.
_MOST_PSNR_DB: Final = 100.0
# Targets beyond this are taken for 0 to 255 (images in 0 to 1 overshoot a little when they are made by
# models).
_UNIT_PEAK: Final = 1.5

# Of the samples those with the least margins, this share but not fewer than so many, tell how margins move.
_NEAR: Final = 0.3
_FEWEST_NEAR: Final = 10
# The width of the decision of the original, in standard deviations of these moves; the variance of what is
# told so, in that of counting; and how far it may be off, in points.
_SMOOTH: Final = 0.7
_SCATTER: Final = 0.4
_BIAS: Final = 0.5
# How far off what probabilities tell may be, as a share of the decisions that changed; and the bounds of
# their temperature.
_TRUST: Final = 0.12
_TEMPERATURES: Final = (0.05, 50.0)

_RESAMPLES: Final = 2000
_CHUNK: Final = 4_000_000
_Z: Final = 1.959964  # 97.5 % point of the normal distribution


@dataclass(frozen=True, slots=True)
class Scores:
    """Where the classes are in an output that looks like class scores or a class map.

    Attributes:
        axis: The axis of the classes in `[n, ...]`.
        probabilities: Whether they sum to one, else they are logits.
        single: Whether there is one row of scores a sample, else one a pixel or position.
    """

    axis: int
    probabilities: bool
    single: bool


def scores(output: Array) -> Scores | None:
    """Returns how to read an output as class scores, or None where it does not look like any.

    `[n, C]` and `[n, C, 1, 1]` with C >= 2 are scores. `[n, C, h, w]` is a class map where it sums to one
    over C, or where 4 <= C <= 1000: with fewer channels it is more likely an image. Three axes count only
    where they sum to one over the second or the last. Whether scores are probabilities is likewise read from
    the values.
    """
    if output.size == 0 or not np.issubdtype(output.dtype, np.floating) or output.ndim not in (2, 3, 4):
        return None
    sizes = output.shape
    if output.ndim == 3:
        found = next((axis for axis in (1, 2) if sizes[axis] >= 2 and _sums_to_one(output, axis)), None)
        return None if found is None else Scores(found, probabilities=True, single=False)
    if sizes[1] < 2:
        return None
    single = all(size == 1 for size in sizes[2:])
    probabilities = _sums_to_one(output, 1)
    if single or probabilities or _LEAST_MAP_CLASSES <= sizes[1] <= _MOST_MAP_CLASSES:
        return Scores(1, probabilities, single)
    return None


@dataclass(frozen=True, slots=True)
class Distances:
    """What every output is measured by, for each of n samples.

    Attributes:
        error: Sum of squared differences `[n]`; infinite where the second model made a NaN or an infinity.
        energy: Sum of squares of the first model's output `[n]`.
        largest: Largest absolute difference `[n]`.
        cosine: Cosine distance `[n]`.
    """

    error: Floats
    energy: Floats
    largest: Floats
    cosine: Floats


def distances(before: Array, after: Array) -> Distances:
    """Returns the distances between outputs `[n, ...]`; what is alike NaN or infinite in both is left out."""
    b = before.reshape(len(before), -1).astype(np.float64)
    a = after.reshape(len(after), -1).astype(np.float64)
    odd = ~np.isfinite(b)
    spoilt = np.zeros(len(b), dtype=bool)
    if odd.any() or not np.isfinite(a).all():
        same = (b == a) | (np.isnan(b) & np.isnan(a))
        spoilt = (~same & (odd | ~np.isfinite(a))).any(axis=1)
        keep = np.isfinite(b) & np.isfinite(a)
        b, a = np.where(keep, b, 0.0), np.where(keep, a, 0.0)
    d = a - b
    error, energy, other = (np.einsum("nk,nk->n", x, x) for x in (d, b, a))
    norms = np.sqrt(energy) * np.sqrt(other)
    dot = np.einsum("nk,nk->n", b, a)
    cosine = 1.0 - np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0)
    cosine[(energy == 0) & (other == 0)] = 0.0
    largest = np.abs(d).max(axis=1, initial=0.0)
    for values in (error, largest, cosine):
        values[spoilt] = np.inf
    # rounding leaves some 1e-16 of either sign where the two are parallel
    return Distances(error, energy, largest, np.maximum(cosine, 0.0))


def kl(before: Array, after: Array, how: Scores) -> Floats:
    """Returns Σ_c p_c (ln p_c - ln q_c) in nats, first scores p, second q, averaged over a sample's rows."""
    p, q = _log_probabilities(_rows(before, how), how), _log_probabilities(_rows(after, how), how)
    divergence: Floats = np.einsum("nrc,nrc->nr", np.exp(p), p - q).mean(axis=1)
    return np.maximum(divergence, 0.0)


def flips(before: Array, after: Array, how: Scores) -> Floats:
    """Returns the per cent of a sample's rows whose highest class is another."""
    changed = _rows(before, how).argmax(axis=2) != _rows(after, how).argmax(axis=2)
    share: Floats = changed.mean(axis=1, dtype=np.float64)
    return 100.0 * share


def hits(output: Array, labels: Array, how: Scores, top: int) -> Floats:
    """Returns the per cent of a sample's labelled rows whose label is among the highest `top` classes.

    Labels outside the classes (255 or -1, as usual for "ignore") are left out; NaN where nothing is labelled.
    """
    rows = _rows(output, how)
    wanted = labels.reshape(len(rows), -1, 1)
    counted = (wanted >= 0) & (wanted < rows.shape[2])
    own = np.take_along_axis(rows, np.where(counted, wanted, 0), axis=2)
    # ties count by their order, as argmax does
    earlier = np.arange(rows.shape[2]) < wanted
    above = ((rows > own) | ((rows == own) & earlier)).sum(axis=2, keepdims=True)
    right = ((above < top) & counted).sum(axis=(1, 2))
    total = counted.sum(axis=(1, 2))
    result = np.full(len(rows), np.nan)
    np.divide(100.0 * right, total, out=result, where=total > 0)
    return result


def log_scores(output: Array, how: Scores) -> Floats:
    """Returns samples with one row of scores as `[n, C]`, in logarithms where these are probabilities."""
    rows = _rows(output, how)[:, 0]
    return np.log(np.maximum(rows, _LEAST_PROBABILITY)) if how.probabilities else rows


def margins(scores: Floats, labels: Array) -> Floats:
    """Returns by how much the label of a sample is ahead of the other classes in its scores `[n, C]`.

    NaN where the label is none of the classes.
    """
    wanted = labels.reshape(len(scores))
    counted = (wanted >= 0) & (wanted < scores.shape[1])
    index = (np.arange(len(scores)), np.where(counted, wanted, 0))
    own = scores[index]
    others = scores.copy()
    others[index] = -np.inf
    return np.where(counted, own - others.max(axis=1), np.nan)


def expected_losses(scores: Floats, labels: Array, decisions: Array) -> Floats:
    """Returns how much likelier the highest class of each sample is than what else was decided, 0 to 1 `[n]`.

    By the probabilities of its scores `[n, C]` at the one temperature that makes the labels `[n]` likeliest
    (Guo et al. 2017, arXiv 1706.04599).
    """
    samples = np.arange(len(scores))

    def log_probabilities(coldness: float) -> Floats:
        found: Floats = scipy.special.log_softmax(scores * math.exp(coldness), axis=1)
        return found

    def surprise(coldness: float) -> float:
        return -float(log_probabilities(coldness)[samples, labels].mean())

    warmest, coldest = (-math.log(each) for each in reversed(_TEMPERATURES))
    best = scipy.optimize.minimize_scalar(surprise, bounds=(warmest, coldest), method="bounded").x
    found = np.exp(log_probabilities(best))
    lost: Floats = found.max(axis=1) - found[samples, decisions]
    return lost


def likely_drop(before: Floats, after: Floats, expected: Floats) -> float:
    """Returns the points of accuracy that more samples would most likely lose, by what a few tell.

    Counting sees only the samples whose label was won or lost. How far the margins near 0 move says as much
    of all others: as if every sample's margin had moved by any of these. And where a decision changed, the
    original's own probabilities tell how much less likely the new one is. The three are weighed by their
    variances; the second leans on the moves being alike, which costs up to half a point, the third on the
    probabilities, by an eighth of the changes (measured on four networks: on 150 samples all three together
    scatter half as much as counting, and a quarter less than the first two).

    Args:
        before: Margins of the original `[n]`.
        after: Of the other model `[n]`.
        expected: See `expected_losses`; of some of the samples.
    """
    count = len(before)
    counted = 100.0 * float(np.mean(before > 0) - np.mean(after > 0))
    changed = float(np.mean((before > 0) != (after > 0)))
    near = np.argsort(np.abs(before))[: max(_FEWEST_NEAR, round(_NEAR * count))]
    moves = (after - before)[near]
    spread = float(moves.std())
    if not np.isfinite(spread) or spread <= 0.0:
        return counted
    # both sides are smoothed, so that what samples are at hand matters less
    smooth = scipy.special.ndtr(before / (_SMOOTH * spread)) - scipy.special.ndtr(
        (before + moves.mean()) / (math.hypot(1.0, _SMOOTH) * spread)
    )
    variance = 1e4 * max(changed, 1.0 / count) / count
    flipped = max(float(np.mean(expected > 0.0)), 1.0 / len(expected))
    told = [
        (counted, variance),
        (100.0 * float(smooth.mean()), max(_SCATTER * variance, _BIAS**2)),
        (
            100.0 * float(expected.mean()),
            1e4 * ((_TRUST * flipped) ** 2 + float(expected.var()) / len(expected)),
        ),
    ]
    return sum(value / doubt for value, doubt in told) / sum(1.0 / doubt for _, doubt in told)


def peak_of(target: Array) -> float:
    """Returns the peak of an image target by its range: 1, or 255."""
    return 1.0 if float(np.max(target, initial=0.0)) <= _UNIT_PEAK else 255.0


def psnr_db(output: Array, target: Array, peak: float) -> Floats:
    """Returns 10 log10(peak² / mean squared error) against the target, outputs clipped to [0, peak]."""
    d = np.clip(output.astype(np.float64), 0.0, peak) - target.astype(np.float64)
    error = np.square(d).reshape(len(d), -1).mean(axis=1)
    least = peak**2 * 10.0 ** (-_MOST_PSNR_DB / 10)
    ratio: Floats = peak**2 / np.maximum(error, least)
    return 10.0 * np.log10(ratio)


def _sums_to_one(output: Array, axis: int) -> bool:
    values = output.astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1 + _SUM_TOLERANCE:
        return False
    return bool(np.abs(values.sum(axis=axis) - 1.0).max() <= _SUM_TOLERANCE)


def _rows(output: Array, how: Scores) -> Floats:
    """Returns scores as `[n, rows, classes]`."""
    moved = np.moveaxis(output, how.axis, -1)
    return moved.reshape(len(output), -1, moved.shape[-1]).astype(np.float64)


def _log_probabilities(rows: Floats, how: Scores) -> Floats:
    if how.probabilities:
        return np.log(np.maximum(rows, _LEAST_PROBABILITY))
    shifted = rows - rows.max(axis=2, keepdims=True)
    logs: Floats = shifted - np.log(np.exp(shifted).sum(axis=2, keepdims=True))
    return np.maximum(logs, np.log(_LEAST_PROBABILITY))


def relative(error: Floats, energy: Floats) -> Floats:
    """Returns sqrt(error / energy), elementwise: 0 of nothing over nothing, infinite of something over it."""
    ratio = np.where(error > 0, np.inf, 0.0)
    np.divide(error, energy, out=ratio, where=(energy > 0) & np.isfinite(error))
    return np.sqrt(ratio)


def resampled(sums: Floats, seed: int, *, largest: bool = False) -> Floats:
    """Returns bootstrap averages over samples, `[..., n]` -> `[..., resamples]`, one draw for all rows."""
    count = sums.shape[-1]
    rows = max(sums.size // count, 1) if largest else 1
    chunk = max(min(_RESAMPLES, _CHUNK // (count * rows)), 1)
    result = np.empty((*sums.shape[:-1], _RESAMPLES))
    for start in range(0, _RESAMPLES, chunk):
        size = min(chunk, _RESAMPLES - start)
        if largest:
            part = sums[..., _draws(count, size, seed, start)].max(axis=-1)
        else:
            part = sums @ _shares(count, size, seed, start).T
        result[..., start : start + size] = part
    return result


def _draws(count: int, size: int, seed: int, start: int) -> NDArray[np.int64]:
    """The samples of some resamples, `[size, count]`."""
    return np.random.default_rng((seed, start)).integers(count, size=(size, count))


@lru_cache(maxsize=1)
def _shares(count: int, size: int, seed: int, start: int) -> Floats:
    """The share of each sample in the same resamples, `[size, count]`; every measure wants them again."""
    cells = _draws(count, size, seed, start) + count * np.arange(size)[:, None]
    times = np.bincount(cells.reshape(-1), minlength=size * count)
    shares: Floats = times.reshape(size, count) / count
    return shares


def proportion(values: Floats) -> tuple[float, float]:
    """Returns the 95 % interval of a share of samples, in per cent (Wilson 1927): sound at 0 hits too."""
    count = len(values)
    share = float(np.mean(values)) / 100.0
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return 100.0 * max(centre - half, 0.0), 100.0 * min(centre + half, 1.0)


def paired(values: Floats) -> tuple[float, float]:
    """Returns the 95 % interval of a difference of paired shares, in points, from values -100, 0 and 100.

    Half a sample is added to each of the four cells of the table (Agresti and Min 2005, section 4), so that
    it is sound where no sample changed.
    """
    lost, won = float((values > 0).sum()) + 0.5, float((values < 0).sum()) + 0.5
    count = len(values) + 2.0
    mean = (lost - won) / count
    half = _Z * math.sqrt(lost + won - (lost - won) ** 2 / count) / count
    return 100.0 * max(mean - half, -1.0), 100.0 * min(mean + half, 1.0)
