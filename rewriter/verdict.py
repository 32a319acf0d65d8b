"""The final word: is a trial within budget on samples never used before, faster, and light enough?

Where multiply-adds were bounded, every trial keeps to that, and it need not be faster nor within a budget
unless that was asked for, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

from rewriter import graph, latency
from rewriter.budget import Verdict
from rewriter.drift import Drift
from rewriter.graph import Model
from rewriter.judge import Judge
from rewriter.latency import Latency
from rewriter.limits import Expense, Limits
from rewriter.progress import Progress
from rewriter.report import Gate, words
from rewriter.runtime import Target
from rewriter.samples import Feeds
from rewriter.search import Trial

# The final samples are looked at for so many trials at most, the fastest first.
_LOOKS = 4
# A trial after one that was over budget aims at so much of it, with at least a share of its predicted squared
# drift, and at most another by the number of looks: the last is at what should be safe, for these samples
# have been hard on all before. Where they are counted, which tells little of how far over a trial is, the one
# before goes far, too, and the last need not go as far.
_AIM = 0.95
_LEAST = 0.3
_MOST = (0.85, 0.85, 0.3)
_MOST_COUNTED = (0.85, 0.55, 0.5)
# Load time and memory grow about as the weights that a session holds: a trial after one that was over a limit
# has at most this share of what would just be allowed.
_MARGIN = 0.8
# Models are compared so many times as long where the first look leaves open whether one is faster.
_LONGER = 4.0
# The original's own rounding is worth telling where it takes more of a budget than this.
_ROUNDED = 0.5
_OPTIONS = {"load_ms": "--max-load", "peak_bytes": "--max-memory"}


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """What is asked for: a model that is faster than another and keeps to its budgets.

    Attributes:
        original: The model as it came.
        judge: The budgets, and the samples that tell whether a model keeps to them.
        feeds: What to time models with.
        target: How they are deployed.
        min_speedup: What the lower bound of the speed-up must reach; 0 where that is no matter.
        limits: What loading it may take, and the memory to run it.
        seed: Of all that is drawn: patches and intervals.
        progress: Told what is being done.
        macs: The multiply-adds of the original's convolutions where they were bounded, else None.
    """

    original: Model
    judge: Judge
    feeds: Feeds
    target: Target
    min_speedup: float
    limits: Limits
    seed: int
    progress: Progress
    macs: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Ending:
    """The final word: the trial that passed, or None, and what was measured on the way.

    Attributes:
        accepted: The trial that passed.
        verdict: One sentence.
        model: The model of that trial.
        drift: Of the last model that was looked at, the accepted one if there is one.
        gates: The budgets, and what was measured of it against them.
        latency: Of the last that was timed.
        warnings: What is worth a warning.
        looked_at: The last model that was looked at; None where there was none.
    """

    accepted: Trial | None
    verdict: str
    model: Model | None = None
    drift: tuple[Drift, ...] = ()
    gates: tuple[Gate, ...] = ()
    latency: Latency | None = None
    warnings: tuple[str, ...] = ()
    looked_at: Model | None = None


def final_word(
    job: Job,
    trials: Sequence[Trial],
    retreat: Callable[[float, float, float], Trial | None],
    fallback: Trial | None,
    assemble: Callable[[Trial], Model],
    otherwise: str | None = None,
) -> Ending:
    """The first of the trials, fastest first, that keeps to the budgets on the final samples and is faster.

    Where one is over budget on them the next must drift much less: their number is limited, and so is how
    often they may be looked at before the look itself becomes a choice. Where one takes too long to load, or
    too much memory, the next must hold less in weights.

    Args:
        job: What the trials must keep to.
        trials: What the search found, fastest first.
        retreat: Makes a trial with at most so much predicted squared drift, so many bytes of weights added,
            and a predicted latency below so many ms, if there is one.
        fallback: The model with its exact steps alone, if there are any; tried last.
        assemble: Puts a trial's model together.
        otherwise: Why there is none, where that is known.
    """
    otherwise = otherwise or (
        "no rewrite is both within budget and faster where it was measured alone; a larger --max-drift may "
        "leave room for some"
    )
    ending = Ending(None, f"Nothing was written: {otherwise}.")
    queue, looks = list(trials), 0
    most_drift = most_bytes = inf
    passed_over: tuple[str, ...] = ()
    while queue or fallback is not None:
        if queue:
            trial = queue.pop(0)
        else:
            assert fallback is not None
            trial, fallback = fallback, None
        looks += 1
        model = assemble(trial)
        measured, verdicts = job.judge.verdicts(model)
        gates = tuple(gate_of(verdict) for verdict in verdicts)
        warnings = tuple(verdict.warning for verdict in verdicts if verdict.warning is not None)
        if looks > 1:
            warnings += (f"the final samples were looked at {looks} times, for so many models",)
        warnings += passed_over
        over = [gate for gate in gates if not gate.passed]
        if over:
            verdict = f"Nothing was written: on the final samples {told_gates(over)}."
            ending = Ending(None, verdict, None, measured, gates, ending.latency, warnings, model)
            most_drift = trial.plan.drift * _left(verdicts, looks)
            queue = [other for other in queue if other.plan.drift <= most_drift]
            if looks == _LOOKS:
                queue = []
            elif most_drift > 0.0:
                under_ms = queue[0].plan.latency_ms if queue else inf
                smaller = retreat(most_drift, most_bytes, under_ms)
                queue = queue if smaller is None else [smaller, *queue]
            continue
        timing = _timed(job, model)
        fast = timing.speedup_lower >= job.min_speedup
        heavy = [each for each in job.limits.expenses(timing) if not each.passed]
        share = "" if job.macs is None else f"{trial.plan.macs / job.macs:.3g} of the multiply-adds, "
        told = told_gates(gates) or told_drift(measured)
        kept = f"within budget ({told})" if gates else f"{share}{told}"
        if fast and not heavy:
            verdict = (
                f"{share}{timing.speedup:.2f} times as fast (95 % interval {timing.speedup_low:.2f} to "
                f"{timing.speedup_high:.2f}), {told}."
            )
            return Ending(trial, verdict, model, measured, gates, timing, warnings, model)
        if fast:
            why = f"{timing.speedup:.2f} times as fast, but {' and '.join(map(overrun, heavy))}"
            verdict = f"Nothing was written: {kept} and {why}."
            passed_over += (f"a model was passed over: {why}",)
        else:
            verdict = (
                f"Nothing was written: {kept}, but {timing.speedup:.2f} times as fast, at least "
                f"{timing.speedup_lower:.2f} at 99.9 % confidence where {job.min_speedup:g} was asked."
            )
        ending = Ending(None, verdict, None, measured, gates, timing, warnings, model)
        if fast and trial.plan.added_bytes > 0:
            most_drift = min(most_drift, trial.plan.drift)
            most_bytes = trial.plan.added_bytes * _MARGIN * min(each.allowed_growth for each in heavy)
            queue = [other for other in queue if other.plan.added_bytes <= most_bytes]
            if not queue and looks < _LOOKS and (lighter := retreat(most_drift, most_bytes, inf)) is not None:
                queue = [lighter]
        else:
            # of the others only those may be better that leave alone what gained too little, or took too much
            queue = [other for other in queue if len(other.plan.rewritten) < len(trial.plan.rewritten)]
        if looks == _LOOKS:
            queue = []
    return ending


def _left(verdicts: Sequence[Verdict], looks: int) -> float:
    """The share of a trial's predicted squared drift that the next may have, after so many looks."""
    counted = any(each.drift.likely is not None for each in verdicts if not each.passed)
    most = (_MOST_COUNTED if counted else _MOST)[min(looks, len(_MOST)) - 1]
    excess = max(1.0, *(each.likely_share for each in verdicts))
    return min(max((_AIM / excess) ** 2, _LEAST), most)


def _timed(job: Job, model: Model) -> Latency:
    """How much faster a model is; where that is likely but not sure, a longer look of its own decides."""

    def look(seconds: float, seed: int) -> Latency:
        return latency.compare(
            partial(graph.serialize, job.original),
            partial(graph.serialize, model),
            job.feeds,
            job.target,
            seconds=seconds,
            seed=seed,
            progress=lambda done, total: job.progress("comparing", done, total),
        )

    found = look(latency.SECONDS, job.seed)
    open_ = found.speedup_lower < job.min_speedup <= found.speedup
    return look(_LONGER * latency.SECONDS, job.seed + 1) if open_ else found


def own_rounding(judge: Judge, ending: Ending) -> tuple[str, ...]:
    """Warnings where the original's own rounding takes much of a budget that was not kept to."""
    over = {gate.measure for gate in ending.gates if not gate.passed}
    found = (each for each in judge.rounding() if each.budget.measure in over) if over else ()
    return tuple(
        f"rounding alone moves the original's outputs by {each.drift.measure} {each.drift.value:.2g}, as "
        "ONNX Runtime shows without its graph optimisations; exact rewrites can do little better, and "
        "a larger --max-drift leaves room for them"
        for each in found
        if each.share > _ROUNDED
    )


def gate_of(verdict: Verdict) -> Gate:
    """A verdict on a budget as reports tell it."""
    asked, found = verdict.budget, verdict.drift
    return Gate(
        asked.measure,
        asked.limit,
        found.value,
        found.low,
        found.high,
        found.samples,
        verdict.passed,
        verdict.strict,
    )


def overrun(expense: Expense) -> str:
    """By what an expense that did not pass is over its limit."""
    name, write = words.EXPENSES[expense.measure]
    return (
        f"its {name} is {expense.ratio:.3g} times the original's ({write(expense.after)} instead of "
        f"{write(expense.before)}), over {_OPTIONS[expense.measure]} {expense.limit:g}"
    )


def told_drift(drifts: Sequence[Drift]) -> str:
    """What the outputs drift by where no budget asks for a measure."""
    whole = next(each for each in drifts if each.measure == "rel_l2")
    return f"rel_l2 {whole.value:.3g} on {whole.samples} samples"


def told_gates(gates: Sequence[Gate]) -> str:
    """Budgets and what was measured against them."""

    def figures(gate: Gate) -> str:
        return f"{gate.value:.3g}, upper end {gate.high:.3g}" if gate.strict else f"{gate.value:.3g}"

    return ", ".join(
        f"{gate.measure} {figures(gate)} of {gate.budget:g} on {gate.samples} samples" for gate in gates
    )
