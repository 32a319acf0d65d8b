"""The budgets and the samples that say whether a model keeps to them: some guide the choice, others judge."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter import drift
from rewriter.drift import Budget, Drift, Verdict
from rewriter.graph import Model
from rewriter.runtime import Session, Target
from rewriter.samples import Feeds, Samples, load_function

Outputs = list[npt.NDArray[Any]]

# The original's outputs are made before the other model is loaded and, for the choosing samples, which every
# round needs again, kept: up to about this size.
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
        self._kept: Sequence[Outputs] = ()
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
        batches = list(samples.batches())
        references = self._references(samples, batches)
        # one session at a time: each holds the weights of the whole model
        session = Session(model.bytes(), Target())
        for index, (feeds, targets) in enumerate(batches):
            before = references[index] if index < len(references) else self._original_outputs([feeds])[0]
            meter.update(before, list(session.run(feeds).values()), targets)
        return meter.result()

    def _references(self, samples: Samples, batches: Sequence[tuple[Feeds, Any]]) -> Sequence[Outputs]:
        """The original's outputs for the first of the batches, as many as may be kept."""
        if samples is self._choosing and self._kept:
            return self._kept
        (first,) = self._original_outputs([batches[0][0]])
        size = max(sum(array.nbytes for array in first), 1)
        count = min(len(batches), max(_KEPT_BYTES // size, 1))
        found = [first, *self._original_outputs([feeds for feeds, _ in batches[1:count]])]
        if samples is self._choosing:
            self._kept = found
        return found

    def _original_outputs(self, batches: Sequence[Feeds]) -> list[Outputs]:
        if not batches:
            return []
        session = Session(self._original.bytes(), Target())
        return [list(session.run(feeds).values()) for feeds in batches]


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
