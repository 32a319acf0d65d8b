"""How far the outputs of a rewritten model are from the original's, with confidence intervals and budgets.

Every measure is "smaller is better", so every budget is a maximum. Samples are the unit: each gives one
value, and the intervals tell how much the average would change with other samples.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rewriter import _measures
from rewriter.errors import OptionError, SampleError

Array = NDArray[Any]
Floats = NDArray[np.float64]
Custom = Callable[[list[Array], list[Array], Any], float]


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
_UNSURE_DB: Final = 3.0
# Below this many samples the bootstrap itself cannot tell how far their mean may be off.
_FEW: Final = 10


@dataclass(frozen=True, slots=True)
class Drift:
    """One measure on one set of samples.

    Attributes:
        measure: Its name in `MEASURES`, or of a custom one.
        output: The output's name; None for the model as a whole, which is its worst output.
        value: The estimate; infinite where a sample gave a NaN or an infinity that the original did not.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        samples: How many samples it is from.
        worst: Index of the sample with the largest value, in the order in which they came.
    """

    measure: str
    output: str | None
    value: float
    low: float
    high: float
    samples: int
    worst: int


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a measure may come to."""

    measure: str
    limit: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A budget and what was measured against it.

    Attributes:
        budget: What was asked.
        drift: What was measured, for the model as a whole.
        passed: Whether the estimate is within the budget.
        warning: Why the samples are too few to be sure, or None.
    """

    budget: Budget
    drift: Drift
    passed: bool
    warning: str | None


class Meter:
    """Takes the outputs of both models batch after batch and ends with their drift.

    Args:
        names: Names of the outputs, in the order in which they will come.
        custom: Further measures by name: functions of one sample's outputs before, after (lists of arrays
        with a
            batch of 1) and its target.
        peak: Peak of target images; None reads it from the first targets, 1 or 255.
        seed: Seeds the bootstrap.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        custom: Mapping[str, Custom] | None = None,
        peak: float | None = None,
        seed: int = 0,
    ) -> None:
        self._names = tuple(names)
        self._custom = dict(custom or {})
        self._peak = peak
        self._seed = seed
        self._scores: dict[str, _measures.Scores | None] = {}
        self._target: tuple[str, str] | None = (
            None  # the output that the targets are for: its name, and what kind
        )
        self._values: dict[tuple[str, str | None], list[Floats]] = {}

    def update(
        self, before: Sequence[Array], after: Sequence[Array], targets: Sequence[Any] | None = None
    ) -> None:
        """Takes one batch.

        The first axis of the outputs is the batch. Where the outputs differ in it (boxes of a detector, say)
        the whole batch is taken for one sample.

        Args:
            before: The original's outputs, in the order of the names.
            after: The other model's, in the same order.
            targets: One target a sample: class labels, class maps or images.

        Raises:
            SampleError: A custom measure failed, or the targets do not match the samples in number.
        """
        before, after = [np.asarray(x) for x in before], [np.asarray(x) for x in after]
        sizes = {x.shape[0] if x.ndim else None for x in (*before, *after)}
        size = next(iter(sizes)) if len(sizes) == 1 else None
        if size is None:
            before, after = [x[None] for x in before], [x[None] for x in after]
            size = 1
        if size == 0:
            return
        if targets is not None and len(targets) != size:
            raise SampleError(f"{len(targets)} targets for {size} samples; give one target a sample")
        for name, b, a in zip(self._names, before, after, strict=True):
            self._compare(name, b, a, size)
        if targets is not None:
            self._judge(before, after, targets)
        for measure, function in self._custom.items():
            values = np.array(
                [self._ask(measure, function, before, after, targets, index) for index in range(size)]
            )
            self._add(measure, None, values)

    def result(self) -> tuple[Drift, ...]:
        """Returns every measure that these samples allow: the model as a whole first, then single outputs.

        Raises:
            SampleError: No samples came.
        """
        if not self._values:
            raise SampleError("no samples to measure drift on; give at least one")
        values = {key: np.concatenate(parts) for key, parts in self._values.items()}
        drifts = []
        for measure in (*MEASURES, *self._custom):
            if measure in ("rel_l2", "noise_db"):
                error = {name: values["error", name] for name in self._names}
                energy = {name: values["energy", name] for name in self._names}
                drifts += _energies(measure, error, energy, self._seed)
                continue
            found = {name: sums for (key, name), sums in values.items() if key == measure}
            if found:
                drifts += _means(measure, found, self._single(measure, found), self._seed)
        return tuple(drifts)

    def _single(self, measure: str, found: Mapping[str | None, Floats]) -> bool:
        """Whether a sample's value is all or nothing: one row of scores."""
        if measure not in ("top1_flips", "top1_drop", "top5_drop") or len(found) != 1:
            return False
        name = next(iter(found)) or (self._target or ("", ""))[0]
        how = self._scores.get(name)
        return how is not None and how.single

    def _add(self, measure: str, output: str | None, values: Floats) -> None:
        self._values.setdefault((measure, output), []).append(values)

    def _compare(self, name: str, before: Array, after: Array, size: int) -> None:
        numeric = all(np.issubdtype(x.dtype, np.number) or x.dtype == np.bool_ for x in (before, after))
        if before.shape != after.shape or not numeric:
            # another number of boxes, say, or strings: equal or not, nothing between
            lost = 0.0 if before.shape == after.shape and bool((before == after).all()) else np.inf
            for measure in ("error", "max_abs", "cosine_distance"):
                self._add(measure, name, np.full(size, lost))
            self._add("energy", name, np.ones(size))
            return
        found = _measures.distances(before, after)
        for measure, values in (
            ("error", found.error),
            ("energy", found.energy),
            ("max_abs", found.largest),
            ("cosine_distance", found.cosine),
        ):
            self._add(measure, name, values)
        if name not in self._scores:  # the first batch decides, so that all samples are read alike
            self._scores[name] = _measures.scores(before)
        how = self._scores[name]
        if how is not None:
            spoilt = ~np.isfinite(found.error)
            with np.errstate(invalid="ignore"):
                for measure, values in (
                    ("kl", _measures.kl(before, after, how)),
                    ("top1_flips", _measures.flips(before, after, how)),
                ):
                    self._add(measure, name, np.where(spoilt, np.inf, values))

    def _judge(self, before: Sequence[Array], after: Sequence[Array], targets: Sequence[Any]) -> None:
        """Adds what needs targets, on the first output that they fit."""
        try:
            target = np.stack([np.asarray(each) for each in targets])
        except ValueError:
            return  # of several shapes, or no arrays at all: for custom measures only
        for name, b, a in zip(self._names, before, after, strict=True):
            kind = self._fits(name, b, target)
            if kind is None or self._target not in (None, (name, kind)) or a.shape != b.shape:
                continue
            self._target = (name, kind)
            spoilt = ~np.isfinite(a.reshape(len(a), -1).astype(np.float64)).all(axis=1)
            if kind == "image":
                self._peak = self._peak or _measures.peak_of(target)
                lost = {
                    "psnr_drop_db": _measures.psnr_db(b, target, self._peak)
                    - _measures.psnr_db(a, target, self._peak)
                }
            else:
                how = self._scores[name]
                assert how is not None
                lost = {
                    f"top{top}_drop": _measures.hits(b, target, how, top)
                    - _measures.hits(a, target, how, top)
                    for top in (1, 5)
                    if b.shape[how.axis] > top
                }
            for measure, values in lost.items():
                self._add(measure, None, np.where(spoilt, np.inf, values))
            return

    def _fits(self, name: str, output: Array, target: Array) -> str | None:
        how = self._scores.get(name)
        if np.issubdtype(target.dtype, np.integer) and how is not None:
            rows = output.size // (len(output) * output.shape[how.axis])
            return "labels" if target.size == len(output) * rows else None
        image = output.ndim >= 3 and output.shape == target.shape
        numeric = np.issubdtype(target.dtype, np.number)
        return "image" if image and numeric and np.issubdtype(output.dtype, np.floating) else None

    def _ask(
        self,
        measure: str,
        function: Custom,
        before: Sequence[Array],
        after: Sequence[Array],
        targets: Sequence[Any] | None,
        index: int,
    ) -> float:
        one = slice(index, index + 1)
        try:
            value = float(
                function(
                    [x[one] for x in before],
                    [x[one] for x in after],
                    None if targets is None else targets[index],
                )
            )
        except Exception as error:
            raise SampleError(
                f"measure {measure!r} failed on a sample: {type(error).__name__}: {error}; "
                "it takes (before, after, target) and returns a number"
            ) from error
        return math.inf if math.isnan(value) else value


def parse_budget(text: str) -> Budget:
    """Returns the budget of `NAME=VALUE`, a measure or `file.py:function` and the most it may come to.

    Raises:
        OptionError: The measure is unknown, or the value is no number or one that no model can meet.
    """
    name, equals, value = text.rpartition("=")
    if not equals:
        raise OptionError(f"budget {text!r} is not of the form NAME=VALUE, such as rel_l2=0.05")
    return budget(name.strip(), value)


def budget(measure: str, limit: object) -> Budget:
    """Returns a checked budget; see `parse_budget`."""
    custom = ".py:" in measure
    if measure not in MEASURES and not custom:
        raise OptionError(
            f"unknown measure {measure!r}; known are {', '.join(MEASURES)}, and file.py:function"
        )
    try:
        number = float(limit)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise OptionError(f"budget {measure}={limit} is not a number; give one, such as {measure}=0.05")
    if number < 0 and measure != "noise_db" and not custom:
        raise OptionError(f"budget {measure}={limit} is negative; drift is at least 0")
    return Budget(measure, number)


def within(drifts: Sequence[Drift], budgets: Sequence[Budget]) -> tuple[Verdict, ...]:
    """Returns the verdict on every budget, by the estimates for the model as a whole.

    Raises:
        SampleError: A budget is on a measure that these samples or outputs do not allow.
    """
    whole = {drift.measure: drift for drift in drifts if drift.output is None}
    verdicts = []
    for each in budgets:
        drift = whole.get(each.measure)
        if drift is None:
            known = MEASURES.get(each.measure)
            needs = known.needs if known is not None else "its function to be given to the meter"
            raise SampleError(f"measure {each.measure} needs {needs}; add that or budget rel_l2 instead")
        verdicts.append(Verdict(each, drift, drift.value <= each.limit, _warning(drift, each)))
    return tuple(verdicts)


def _warning(drift: Drift, asked: Budget) -> str | None:
    half = (drift.high - drift.low) / 2 if math.isfinite(drift.value) else 0.0
    are = "sample is" if drift.samples == 1 else "samples are"
    few = f"{drift.samples} {are} too few for {asked.measure}"
    if asked.measure in ("top1_flips", "top1_drop", "top5_drop") and 100.0 / drift.samples > asked.limit:
        return f"{few} = {asked.limit:g}: one sample is {100.0 / drift.samples:.3g} per cent"
    if drift.samples < _FEW:
        return f"{few} = {asked.limit:g}: fewer than {_FEW} say little about others"
    if half > (_UNSURE_DB if asked.measure == "noise_db" else asked.limit):
        return f"{few} = {asked.limit:g}: the interval is ±{half:.2g}"
    return None


def _energies(
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


def _means(measure: str, found: Mapping[str | None, Floats], single: bool, seed: int) -> list[Drift]:
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
