"""How far the outputs of a rewritten model are from the original's: measures, and averages with intervals.

Every measure is "smaller is better", so every budget is a maximum. Samples are the unit: each gives one
value, and the intervals tell how much the average would change with other samples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rewriter import _measures

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measure:
    """What a measure of drift is.

    Attributes:
        text: One line for people.
        unit: Its unit, empty for a plain ratio.
        needs: What must be there for it, empty where any model and samples do.
    """

    text: str
    unit: str = ""
    needs: str = ""


_SCORES: Final = "an output that looks like class scores or a class map"
_LABELS: Final = f"integer labels with the samples and {_SCORES}"

MEASURES: Final[Mapping[str, Measure]] = MappingProxyType(
    {
        "rel_l2": Measure("root of the summed squared differences over the summed squares of the original"),
        "max_abs": Measure("largest absolute difference of any value of any sample"),
        "noise_db": Measure("energy of the difference over the energy of the original, minus the SNR", "dB"),
        "cosine_distance": Measure("one minus the cosine of the angle between the outputs of a sample"),
        "kl": Measure("Kullback-Leibler divergence from the original's class probabilities", "nats", _SCORES),
        "top1_flips": Measure("samples, or pixels of class maps, whose highest class changes", "%", _SCORES),
        "top1_drop": Measure("loss of top-1 accuracy", "points", _LABELS),
        "top5_drop": Measure("loss of top-5 accuracy", "points", f"{_LABELS} with more than 5 classes"),
        "psnr_drop_db": Measure(
            "loss of peak signal-to-noise ratio against the target images",
            "dB",
            "target images with the samples, of the shape of an output",
        ),
    }
)

# Where nothing differs at all the noise is minus infinity, which neither tables nor JSON can hold.
_SILENCE_DB: Final = -300.0


@dataclass(frozen=True, slots=True)
class Drift:
    """One measure on one set of samples.

    Attributes:
        measure: Its name in `MEASURES`, or of a custom one.
        output: The output's name, or that of a piece of it; None for the model as a whole, which is its worst
            output or piece.
        value: The estimate; infinite where a sample gave a NaN or an infinity that the original did not.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        samples: How many samples it is from.
        worst: Index of the sample with the largest value, in the order in which they came.
        likely: What more samples would most likely show, where these tell it better than by counting; else
            None.
    """

    measure: str
    output: str | None
    value: float
    low: float
    high: float
    samples: int
    worst: int
    likely: float | None = None


def energies(
    measure: str, error: Mapping[str, Floats], energy: Mapping[str, Floats], seed: int
) -> list[Drift]:
    """rel_l2 = sqrt(Σ_n error / Σ_n energy), or noise_db = 20 log10 of it."""
    names = list(error)
    sums = np.stack(
        [np.stack([error[n] for n in names]), np.stack([energy[n] for n in names])]
    )  # [2, outputs, n]
    unit = _decibels if measure == "noise_db" else _same
    values = unit(_measures.relative(*sums.sum(axis=2)))
    spread = unit(_measures.relative(*_measures.resampled(sums, seed))) if np.isfinite(sums).all() else None
    return _drifts(measure, names, values, spread, _measures.relative(*sums).argmax(axis=1), sums.shape[2])


def means(measure: str, found: Mapping[str | None, Floats], single: bool, seed: int) -> list[Drift]:
    """The average over the samples; of max_abs the largest, which is what a bound on it means."""
    names = list(found)
    samples = np.stack([found[n] for n in names])  # [outputs, n]
    judged = ~np.isnan(samples).any(axis=0)  # the others had no label
    count = int(judged.sum())
    if count == 0:
        return []
    worst = np.where(judged, samples, -np.inf).argmax(axis=1)
    samples = samples[:, judged]
    largest = measure == "max_abs"
    values = samples.max(axis=1) if largest else samples.mean(axis=1)
    if not np.isfinite(samples).all():
        return _drifts(measure, names, values, None, worst, count)
    if single:
        low, high = (_measures.proportion if measure == "top1_flips" else _measures.paired)(samples[0])
        value = float(values[0])
        return [Drift(measure, None, value, min(low, value), max(high, value), count, int(worst[0]))]
    return _drifts(measure, names, values, _measures.resampled(samples, seed, largest=largest), worst, count)


def _drifts(
    measure: str,
    names: Sequence[str | None],
    values: Floats,
    spread: Floats | None,
    worst: NDArray[np.intp],
    count: int,
) -> list[Drift]:
    """The model as a whole, which is its worst output, then the outputs where there are several.

    `spread` are the bootstrap estimates, `[outputs, resamples]`, or None where the drift is infinite.
    """
    top = int(values.argmax())
    if spread is None:
        lows = highs = np.concatenate([values[[top]], values])
    else:
        estimates = np.vstack([spread.max(axis=0), spread])
        # without interpolation, as draws of nothing but zeros in the original give infinite estimates
        lows, highs = np.quantile(estimates, (0.025, 0.975), axis=1, method="inverted_cdf")
    rows = [(None, top), *((name, index) for index, name in enumerate(names) if len(names) > 1)]
    return [
        Drift(
            measure,
            name,
            float(values[index]),
            min(float(lows[row]), float(values[index])),
            max(float(highs[row]), float(values[index])),
            count,
            int(worst[index]),
        )
        for row, (name, index) in enumerate(rows)
    ]


def _same(ratio: Floats) -> Floats:
    return ratio


def _decibels(ratio: Floats) -> Floats:
    level: Floats = np.log10(np.maximum(ratio, 10.0 ** (_SILENCE_DB / 20)))
    return 20.0 * level
