"""`compare`: two models with the same interface in; how far their outputs are apart, and their times, out."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rewriter import graph, latency, parting, prepare, runtime
from rewriter.closeup import Closeup, look
from rewriter.command import command_line
from rewriter.conv import Ints
from rewriter.drift import Drift
from rewriter.errors import OptionError
from rewriter.graph import Model
from rewriter.judge import Judge
from rewriter.latency import Latency
from rewriter.limits import Expense, Limits
from rewriter.outcome import Wanted
from rewriter.parts import Given, Preprocessing, noise
from rewriter.profile import elsewhere
from rewriter.progress import Progress, logged
from rewriter.report import Comparison, Gate, Report
from rewriter.runtime import Session, Target
from rewriter.samples import Samples
from rewriter.sources import Source, load
from rewriter.verdict import gate_of, overrun, told_drift, told_gates

# Relative L2 drift up to which outputs are called equal: what two orders of summation differ by.
_ROUNDING = 1e-5


def compare(
    before: graph.Source,
    after: graph.Source,
    evaluation: Source | None = None,
    *,
    preprocess: Preprocessing | None = None,
    max_drift: Mapping[str, float] | None = None,
    strict: bool = False,
    min_speedup: float | None = None,
    max_load: float | None = None,
    max_memory: float | None = None,
    provider: str = "cpu",
    provider_options: Mapping[str, str] | None = None,
    threads: int | None = None,
    batch: int = 1,
    shapes: Mapping[str, Ints] | None = None,
    seed: int = 0,
    locate: bool = False,
    reports: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Report:
    """Measures drift and latency of one model against another, whoever made them.

    Both run on the target, in the same sessions as `optimize` measures with; the gates that are asked for
    decide whether `report.comparison.passed`.

    Args:
        before: The model to compare with: a path, the bytes of a file, or an `onnx.ModelProto`.
        after: The other one; its inputs and outputs have the same names and types, and sizes that fit.
        evaluation: Samples, with targets where there are any: a path to an `.npz` keyed by input name, a
            `script.py:function` that yields feeds, or whatever else `optimize` takes. Random inputs where
            None.
        preprocess: As for `optimize`.
        max_drift: The most of each measure that is allowed, by name (see `rewriter.drift`).
        strict: Ask the budgets of the upper ends of the 95 % intervals, not of the estimates.
        min_speedup: What `after` must be faster by, at 99.9 % confidence.
        max_load: How many times the load time of `before` it may take, at least 1; 50 ms more are never too
            much. No limit where None.
        max_memory: How many times its peak memory it may take to load and run, the process included, at least
            1; 32 MB more are never too much. No limit where None.
        provider: The execution provider.
        provider_options: The provider's own options, as it is deployed, such as `{"use_tf32": "0"}`.
        threads: Threads of one operator; None is ONNX Runtime's own default.
        batch: The batch size to time.
        shapes: Sizes of inputs with dynamic dimensions to time, by input name; the samples' otherwise.
        seed: Draws random inputs and the intervals.
        locate: Whether to look for the tensors at which the two part, if their outputs differ.
        reports: Paths of reports to write; the suffix chooses the view.
        progress: Told a stage, how much of it is done, and how much there is.

    Raises:
        OptionError: An option's value makes no sense.
        ModelError: A model cannot be read or run, or their interfaces differ.
        SampleError: The samples do not fit the models, or a budget needs more than they have.
        ProviderError: The provider cannot be used here.
        OutputError: A report cannot be written where it was asked for.
    """
    progress = logged(progress)
    target = Target(provider, threads, options=tuple((provider_options or {}).items()))
    runtime.check_provider(provider)
    limits = Limits(max_load, max_memory)
    if strict and not max_drift:
        raise OptionError("--strict needs a budget; give one with --max-drift or leave it out")
    given = Given.of(None, evaluation, preprocess)
    wanted = Wanted(reports=reports)
    wanted.check([before, after, evaluation])
    first, second = graph.load(before), graph.load(after)
    both = graph.common_interface(first, second)
    samples, remarks = _samples(both, given, shapes or {}, seed)
    feeds = prepare.deployed_feeds(both, samples, batch, shapes or {})
    for model in (first, second):
        Session(partial(graph.loadable, model), target, model.label).run(feeds)

    progress("measuring drift", 0, 0)
    choosing = samples if strict else samples.subset([0])  # nothing is chosen; strictness looks at both
    judge = Judge(first, max_drift or {}, choosing, samples, seed, strict=strict, target=target.precise)
    drift, verdicts = judge.verdicts(second)
    whole = next(each for each in drift if each.measure == "rel_l2" and each.output is None)
    timing = latency.compare(
        partial(graph.serialize, first),
        partial(graph.serialize, second),
        feeds,
        target,
        seed=seed,
        progress=lambda done, total: progress("comparing", done, total),
    )
    place = None
    if locate and whole.value > 0.0:
        # samples come in batches; where outputs do not tell them apart the first of the batch stands for all
        worst = samples.feeds[whole.worst * len(samples) // whole.samples]
        place = parting.locate(
            first, second, worst, target, lambda done, total: progress("locating", done, total)
        )

    slow = min_speedup is not None and timing.speedup_lower < min_speedup
    gates = tuple(map(gate_of, verdicts))
    expenses = limits.expenses(timing)
    heavy = [each for each in expenses if not each.passed]
    comparison = Comparison(
        other=second.label.strip("'"),
        passed=not slow and not heavy and all(each.passed for each in gates),
        equal=whole.value <= _ROUNDING,
        min_speedup=min_speedup,
        located=locate,
        parting=place,
    )
    settings = {
        "preprocess": given.preprocessing,
        "max-drift": dict(max_drift or {}),
        "strict": strict,
        "min-speedup": min_speedup,
        "max-load": max_load,
        "max-memory": max_memory,
        "provider": provider,
        "provider-option": dict(target.options),
        "threads": threads,
        "batch": batch,
        "shape": {name: list(shape) for name, shape in (shapes or {}).items()},
        "seed": seed,
        "locate": locate,
    }
    closeup = Closeup()
    if reports:
        progress("profiling", 0, 0)
        closeup = look(judge, first, second, True, feeds, target)
    report = Report(
        model=first.label.strip("'"),
        verdict=_verdict(comparison, gates, whole, timing, limits, heavy),
        improved=comparison.passed,
        sites=(),
        refusals=(),
        steps=(),
        before=None,
        after=None,
        gates=gates,
        drift=drift,
        latency=timing,
        expenses=expenses,
        rounds=(),
        samples={"final": len(samples)},
        warnings=(
            *remarks,
            *(each.warning for each in verdicts if each.warning is not None),
            *(said for each in (first, second) for said in elsewhere(each, feeds, target, each.label)),
            *closeup.warnings,
        ),
        environment={**runtime.versions(), **runtime.deployment(target)},
        settings=settings,
        comparison=comparison,
        times=closeup.times,
        outputs=closeup.outputs,
        command=command_line("compare", [before, after], {"evaluation": evaluation, **settings}),
        notes=samples.notes,
    )
    wanted.write(report, None)
    return report


def _samples(
    model: Model, given: Given, shapes: Mapping[str, Ints], seed: int
) -> tuple[Samples, tuple[str, ...]]:
    """What to judge by, and what a report warns of."""
    if given.evaluation is not None:
        return load(given.evaluation, model.inputs, what="evaluation", preprocess=given.preprocess), ()
    samples, told = prepare.random_samples(graph.with_shapes(model, shapes), shapes, seed)
    return samples, (noise(told, "--evaluation"),)


def _verdict(
    found: Comparison,
    gates: Sequence[Gate],
    drift: Drift,
    timing: Latency,
    limits: Limits,
    heavy: Sequence[Expense],
) -> str:
    """One sentence: whether the gates passed, how far the outputs are apart, how fast the second model is."""
    limited = limits != Limits(None, None)
    asked = bool(gates) or found.min_speedup is not None or limited
    equal = "equal up to rounding" if found.equal else "different"
    if drift.value == 0.0:
        equal = "the same"
    measured = told_gates(gates) or told_drift([drift])
    speed = (
        f"{timing.speedup:.2f} times as fast (95 % interval {timing.speedup_low:.2f} to "
        f"{timing.speedup_high:.2f})"
    )
    if found.min_speedup is not None:
        speed += f", at least {timing.speedup_lower:.2f} at 99.9 % confidence"
        speed += f" where {found.min_speedup:g} was asked"
    if heavy:
        speed += f"; {' and '.join(map(overrun, heavy))}"
    said = f"the outputs are {equal} ({measured}); {speed}."
    return f"{'Passed' if found.passed else 'Failed'}: {said}" if asked else f"T{said[1:]}"
