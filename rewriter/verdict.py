"""The final word: is a trial within budget on samples never used before, and faster beyond the noise?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rewriter import latency
from rewriter.budget import Verdict
from rewriter.drift import Drift
from rewriter.graph import Model
from rewriter.judge import Judge
from rewriter.latency import Latency
from rewriter.progress import Progress
from rewriter.report import Gate
from rewriter.runtime import Target
from rewriter.samples import Feeds
from rewriter.search import Trial

# The final samples are looked at for so many trials at most, the fastest first.
_LOOKS = 4
# A trial after one that was over budget has at most this share of its predicted squared drift.
_RETREAT = 0.4


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What is asked for: a model that is faster than another and keeps to its budgets.

    Attributes:
        original: The model as it came.
        judge: The budgets, and the samples that tell whether a model keeps to them.
        feeds: What to time models with.
        target: How they are deployed.
        min_speedup: What the lower bound of the speed-up must reach.
        seed: Of all that is drawn: patches and intervals.
        progress: Told what is being done.
    """

    original: Model
    judge: Judge
    feeds: Feeds
    target: Target
    min_speedup: float
    seed: int
    progress: Progress


@dataclass(frozen=True, slots=True, eq=False)
class Ending:
    """The final word: the trial that passed, or None, and what was measured on the way."""

    accepted: Trial | None
    verdict: str
    model: Model | None = None
    drift: tuple[Drift, ...] = ()
    gates: tuple[Gate, ...] = ()
    latency: Latency | None = None
    warnings: tuple[str, ...] = ()


def final_word(
    job: Job,
    trials: Sequence[Trial],
    retreat: Callable[[float], Trial | None],
    fallback: Trial | None,
    assemble: Callable[[Trial], Model],
) -> Ending:
    """The first of the trials, fastest first, that keeps to the budgets on the final samples and is faster.

    Where one is over budget on them the next must drift much less: their number is limited, and so is how
    often they may be looked at before the look itself becomes a choice.

    Args:
        job: What the trials must keep to.
        trials: What the search found, fastest first.
        retreat: Makes a trial with at most so much predicted squared drift, for when these run out.
        fallback: The model with its exact steps alone, if there are any; tried last.
        assemble: Puts a trial's model together.
    """
    ending = Ending(
        None,
        "Nothing was written: no rewrite is both within budget and faster where it was measured alone; "
        "a larger --max-drift may leave room for some.",
    )
    queue, looks = list(trials), 0
    while queue or fallback is not None:
        if queue:
            trial = queue.pop(0)
        else:
            assert fallback is not None
            trial, fallback = fallback, None
        looks += 1
        model = assemble(trial)
        measured, verdicts = job.judge.verdicts(model)
        gates = tuple(_gate(verdict) for verdict in verdicts)
        warnings = tuple(verdict.warning for verdict in verdicts if verdict.warning is not None)
        if looks > 1:
            warnings += (f"the final samples were looked at {looks} times, for so many models",)
        over = [gate for gate in gates if not gate.passed]
        if over:
            verdict = f"Nothing was written: on the final samples {_told(over)}."
            ending = Ending(None, verdict, None, measured, gates, ending.latency, warnings)
            limit = trial.plan.drift * _RETREAT
            queue = [other for other in queue if other.plan.drift <= limit]
            if looks == _LOOKS:
                queue = []
            elif not queue and limit > 0.0 and (smaller := retreat(limit)) is not None:
                queue = [smaller]
            continue
        timing = latency.compare(
            job.original.bytes(),
            model.bytes(),
            job.feeds,
            job.target,
            seed=job.seed,
            progress=lambda done, total: job.progress("comparing", done, total),
        )
        if timing.speedup_lower >= job.min_speedup:
            verdict = (
                f"{timing.speedup:.2f} times as fast (95 % interval {timing.speedup_low:.2f} to "
                f"{timing.speedup_high:.2f}), {_told(gates)}."
            )
            return Ending(trial, verdict, model, measured, gates, timing, warnings)
        verdict = (
            f"Nothing was written: within budget ({_told(gates)}), but {timing.speedup:.2f} times as fast, "
            f"at least {timing.speedup_lower:.2f} at 99.9 % confidence where {job.min_speedup:g} was asked."
        )
        ending = Ending(None, verdict, None, measured, gates, timing, warnings)
        # of the others only those may be faster that leave alone what gained too little
        queue = [other for other in queue if len(other.plan.rewritten) < len(trial.plan.rewritten)]
        if looks == _LOOKS:
            queue = []
    return ending


def _gate(verdict: Verdict) -> Gate:
    asked, found = verdict.budget, verdict.drift
    return Gate(asked.measure, asked.limit, found.value, found.low, found.high, found.samples, verdict.passed)


def _told(gates: Sequence[Gate]) -> str:
    return ", ".join(
        f"{gate.measure} {gate.value:.3g} of {gate.budget:g} on {gate.samples} samples" for gate in gates
    )
