"""The budgets and the samples that say whether a model keeps to them: some guide the choice, others judge."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter import drift
from rewriter.drift import Budget, Drift, Verdict
from rewriter.graph import Model
from rewriter.runtime import Session, Target
from rewriter.samples import Samples, load_function

# Outputs of the original are kept for the choosing samples, which every round needs again, up to this size.
_KEPT_BYTES = 1 << 29
# Where no budget says how large a relative L2 drift may be, the search starts here.
_FIRST_GUESS = 0.05


class Judge:
    """Measures models against the original.

    Args:
        original: The model as it came.
        budgets: The most of each measure, by its name or `file.py:function`.
        choosing: Samples for `usage`.
        final: Samples for `verdicts`; none of them among the choosing ones.
        seed: Of the intervals.

    Raises:
        OptionError: A budget is on an unknown measure or no number.
        SampleError: A budget needs labels or outputs that are not there, or its function cannot be loaded.
    """

    def __init__(
        self, original: Model, budgets: Mapping[str, float], choosing: Samples, final: Samples, seed: int
    ) -> None:
        self.budgets = [drift.budget(name, limit) for name, limit in budgets.items()]
        self._custom = {
            name: load_function(name, what="--max-drift") for name in budgets if name not in drift.MEASURES
        }
        self._choosing, self._final, self._seed = choosing, final, seed
        self._outputs = original.outputs
        self._original = original
        self._kept: list[list[npt.NDArray[Any]]] = []
        first = choosing.subset([0])
        drift.within(self._measure(original, first), self.budgets)

    @property
    def start(self) -> float:
        """A squared relative L2 drift to start the search from."""
        guesses = [_as_rel_l2(each) for each in self.budgets]
        return min((guess for guess in guesses if guess > 0.0), default=_FIRST_GUESS) ** 2

    def usage(self, model: Model) -> float:
        """The largest share of a budget that a model takes on the choosing samples; at most 1 fits."""
        measured = self._measure(model, self._choosing)
        return max(_share(verdict) for verdict in drift.within(measured, self.budgets))

    def verdicts(self, model: Model) -> tuple[tuple[Drift, ...], tuple[Verdict, ...]]:
        """Every measure on the final samples, and the verdict on every budget."""
        measured = self._measure(model, self._final)
        return measured, drift.within(measured, self.budgets)

    def _measure(self, model: Model, samples: Samples) -> tuple[Drift, ...]:
        meter = drift.Meter(self._outputs, custom=self._custom, seed=self._seed)
        batches = samples.batches()
        session = Session(model.bytes(), Target())
        for (feeds, targets), before in zip(batches, self._references(samples), strict=True):
            meter.update(before, list(session.run(feeds).values()), targets)
        return meter.result()

    def _references(self, samples: Samples) -> Iterable[Sequence[npt.NDArray[Any]]]:
        """The original's outputs, batch by batch."""
        keep = samples is self._choosing
        if keep:
            yield from self._kept
        size = sum(array.nbytes for outputs in self._kept for array in outputs)
        rest = list(samples.batches())[len(self._kept) if keep else 0 :]
        if not rest:
            return
        # made anew where it is needed: kept, it would hold the weights of a large model a second time
        session = Session(self._original.bytes(), Target())
        for index, (feeds, _) in enumerate(rest, len(self._kept) if keep else 0):
            outputs = list(session.run(feeds).values())
            size += sum(array.nbytes for array in outputs)
            # without gaps: once one batch was too much, none behind it is kept
            if keep and size <= _KEPT_BYTES and index == len(self._kept):
                self._kept.append(outputs)
            yield outputs


def _as_rel_l2(budget: Budget) -> float:
    """About the relative L2 drift that a budget allows."""
    match budget.measure:
        case "rel_l2":
            return budget.limit
        case "noise_db":
            return float(10 ** (budget.limit / 20))
        case "cosine_distance":
            return float(np.sqrt(2 * max(budget.limit, 0.0)))
        case _:
            return _FIRST_GUESS


def _share(verdict: Verdict) -> float:
    """How much of its budget a drift takes; infinite where the budget is nothing and the drift is not."""
    value, limit = verdict.drift.value, verdict.budget.limit
    if verdict.budget.measure == "noise_db":
        return float(10 ** ((value - limit) / 20))
    if limit > 0.0:
        return max(value, 0.0) / limit
    return 0.0 if value <= limit else np.inf
