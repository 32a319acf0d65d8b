"""The budgets and the samples that say whether a model keeps to them: some guide the choice, others judge."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from rewriter import budget, drift, graph
from rewriter.budget import Budget, Scale, Verdict
from rewriter.drift import Drift
from rewriter.graph import Model
from rewriter.growth import Point
from rewriter.meter import Meter
from rewriter.noise import Noise, Outputs
from rewriter.runtime import Session, Target
from rewriter.samples import Feeds, Samples
from rewriter.sources import load_function

Batch = tuple[Feeds, list[Any] | None]
Run = Callable[[Model, Sequence[Batch]], Iterator[Outputs]]

# Both models run in turn on as many batches as have about so much of outputs, for two sessions at once would
# hold the weights twice. The first part of the choosing samples, which every round needs again, is kept.
_KEPT_BYTES = 1 << 29
# Where noise on the outputs does not tell how large a relative L2 drift may be, the search starts here.
_FIRST_GUESS = 0.05
# What is lost against targets grows by about the square of the drift, the decisions that change by the drift.
_USUAL_POWER = 0.75
# So often noise of another size is tried, until it takes about so much of a budget. More than the most says
# nothing: what is spread over the scores of a thousand classes hardly meets the largest.
_TRIES = 4
_ASKED, _NEAR = 0.9, (0.7, 1.0)
_MOST_NOISE = 0.3
# Sizes of noise that make the scale of a budget which has none of its own.
_SIZES = np.geomspace(1e-4, 1.0, 13)
# These measures sum up squares; what is so many times as large as most else is all that counts in them.
_OF_ENERGY = frozenset({"rel_l2", "noise_db", "cosine_distance"})
_UNLIKE = 100.0


class Judge:
    """Measures models against the original.

    Args:
        original: The model as it came.
        budgets: The most of each measure, by its name or `file.py:function`; there may be none.
        choosing: Samples for `usage`.
        final: Samples for `verdicts`; none of them among the choosing ones.
        seed: Of the intervals.
        strict: Ask the budgets of the upper ends of the intervals.
        target: Where the models run.

    Raises:
        OptionError: A budget is on an unknown measure or no number.
        SampleError: A budget needs labels or outputs that are not there, its function cannot be loaded, or
            the samples are too few for it to be met by anything.
    """

    def __init__(
        self,
        original: Model,
        budgets: Mapping[str, float],
        choosing: Samples,
        final: Samples,
        seed: int,
        *,
        strict: bool = False,
        target: Target | None = None,
    ) -> None:
        self.budgets = [budget.checked(name, limit) for name, limit in budgets.items()]
        self._custom = {
            name: load_function(name, what="--max-drift") for name in budgets if name not in drift.MEASURES
        }
        self._choosing, self._final, self._seed, self._strict = choosing, final, seed, strict
        self._outputs = original.outputs
        self._pieces = graph.output_pieces(original)
        self._original = original
        self._target = target or Target()
        self._run = partial(_run, names=original.outputs, target=self._target)
        budget.within(self._measure(original, choosing.subset([0])), self.budgets)
        self.budgets = [self._scaled(each) for each in self.budgets]
        if strict:
            for samples, what in ((final, "the final word"), (choosing, "choosing")):
                budget.check_reachable(self._verdicts(self._measure(original, samples)), what)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in the original's order."""
        return self._outputs

    def start(self) -> tuple[float, float]:
        """A squared relative L2 drift to search from, and by what power of it a budget's share may grow.

        Noise of that size on the original's outputs takes most of a budget; where no noise does, it is a
        guess.
        """
        last, power = None, _USUAL_POWER
        limit = _FIRST_GUESS**2
        for _ in range(_TRIES):
            verdicts = self._verdicts(self._noise.measured(float(np.sqrt(limit))))
            point = Point(limit, max((each.likely_share for each in verdicts), default=0.0))
            power = power if last is None else last.power_to(point)
            limit = min(point.limit_of(_ASKED, power), _MOST_NOISE**2)
            if _NEAR[0] <= point.share <= _NEAR[1] or limit == point.limit:
                break
            last = point
        return (limit, power) if limit < _MOST_NOISE**2 else (_FIRST_GUESS**2, _USUAL_POWER)

    def doubts(self) -> tuple[str, ...]:
        """What to say of outputs, or pieces of them, with unlike things of which the small hardly count."""
        if not {each.measure for each in self.budgets} & _OF_ENERGY:
            return ()
        found = []
        outputs = zip(self._pieces, self._kept[0], strict=True)
        for name, array in ((each.name, each.of(array)) for pieces, array in outputs for each in pieces):
            if array.ndim < 3 or array.dtype.kind != "f":
                continue
            # what an output holds of each place: boxes and scores, or classes
            axis = 1 + int(np.argmin(array.shape[1:]))
            others = tuple(each for each in range(array.ndim) if each != axis)
            sizes = np.sqrt(np.mean(np.square(array, dtype=np.float64), others))
            most, half = np.max(sizes), np.median(sizes)
            if np.isfinite(most) and most > _UNLIKE * half:
                found.append(
                    f"output '{name}' holds values of unlike sizes along axis {axis}, up to {most:.2g} where "
                    f"half are below {half:.2g}: its budget says little of the small ones; judge them by a "
                    "measure of your own, --max-drift file.py:function=LIMIT"
                )
        return tuple(found)

    def usage(self, model: Model) -> float:
        """The largest share of a budget that a model takes on the choosing samples; at most 1 fits.

        Without any budget it is the relative L2 drift.
        """
        measured = self._measure(model, self._choosing)
        if not self.budgets:
            return next(each.value for each in measured if each.measure == "rel_l2")
        return max(each.likely_share for each in self._verdicts(measured))

    def drifts(self, model: Model) -> tuple[Drift, ...]:
        """The drift of the model as a whole on the choosing samples: relative L2, and what has a budget."""
        measured = self._measure(model, self._choosing)
        whole = {each.measure: each for each in measured if each.output is None}
        return tuple(whole[name] for name in dict.fromkeys(("rel_l2", *(b.measure for b in self.budgets))))

    def verdicts(self, model: Model) -> tuple[tuple[Drift, ...], tuple[Verdict, ...]]:
        """Every measure on the final samples, and the verdict on every budget."""
        measured = self._measure(model, self._final)
        return measured, self._verdicts(measured)

    def rounding(self) -> tuple[Verdict, ...]:
        """What rounding alone does to the original on the final samples, against every budget.

        It rounds otherwise where ONNX Runtime leaves its graph as it is, with nothing fused or laid out anew.
        """
        plain = partial(self._run, target=replace(self._target, optimizing=False))
        return self._verdicts(self._measure(self._original, self._final, plain))

    def _verdicts(self, measured: Sequence[Drift]) -> tuple[Verdict, ...]:
        return budget.within(measured, self.budgets, self._strict)

    def final_outputs(self, model: Model) -> Iterator[tuple[Outputs, Outputs]]:
        """What the original and a model give on the final samples, batch after batch, in their order."""
        return ((before, after) for before, after, _ in self._pairs(model, self._final))

    def _measure(self, model: Model, samples: Samples, run: Run | None = None) -> tuple[Drift, ...]:
        meter = Meter(self._outputs, custom=self._custom, seed=self._seed, pieces=self._pieces)
        for before, after, targets in self._pairs(model, samples, run):
            meter.update(before, after, targets)
        return meter.result()

    @cached_property
    def _kept(self) -> list[Outputs]:
        """What the original gives for the first of the choosing samples."""
        return _first(self._run(self._original, list(self._choosing.batches())), _KEPT_BYTES)

    @cached_property
    def _noise(self) -> Noise:
        """Noise on what the original gives for the first of the choosing samples."""
        targets = (targets for _, targets in self._choosing.batches())
        # of many samples those beyond the kept outputs are left out
        batches = zip(self._kept, targets, strict=False)
        return Noise(self._outputs, batches, self._custom, self._seed, self._pieces)

    def _scaled(self, asked: Budget) -> Budget:
        """A budget with a scale by noise where its limit is not above zero, as with minus a PSNR."""
        if asked.measure not in self._custom or asked.limit > 0.0:
            return asked
        found = [self._noise.measured(float(size)) for size in _SIZES]
        values = [next(each.value for each in drifts if each.measure == asked.measure) for drifts in found]
        return replace(asked, scale=Scale.of(_SIZES.tolist(), values, asked.limit))

    def _pairs(
        self, model: Model, samples: Samples, run: Run | None = None
    ) -> Iterator[tuple[Outputs, Outputs, list[Any] | None]]:
        batches = list(samples.batches())
        references = self._kept if samples is self._choosing else []
        while batches:
            references = references or _first(self._run(self._original, batches), _KEPT_BYTES)
            part, batches = batches[: len(references)], batches[len(references) :]
            found = (run or self._run)(model, part)
            for (_, targets), before, after in zip(part, references, found, strict=True):
                yield before, after, targets
            references = []


def _first(run: Iterator[Outputs], most_bytes: int) -> list[Outputs]:
    """A model's outputs for the first of its batches: as many as fit, at least one."""
    found, total = [], 0
    for outputs in run:
        found.append(outputs)
        size = sum(array.nbytes for array in outputs)
        total += size
        if total + size > most_bytes:
            break
    return found


def _run(model: Model, batches: Sequence[Batch], names: Sequence[str], target: Target) -> Iterator[Outputs]:
    """A model's outputs, batch by batch; its session lives no longer than this is iterated over."""
    session = Session(partial(graph.loadable, model), target)
    for feeds, _ in batches:
        yield list(session.run(feeds, names).values())
