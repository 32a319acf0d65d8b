"""What a command ends with: a report, and the files that were asked for, all of them or none."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from rewriter import files, graph, runtime
from rewriter.closeup import Closeup, look
from rewriter.conv import Cost
from rewriter.errors import OutputError
from rewriter.graph import Expansion, Model
from rewriter.plan import Candidate
from rewriter.profile import elsewhere
from rewriter.report import Point, Report, SiteReport, check_path, rendered
from rewriter.report.words import plural
from rewriter.rewrite import Refusal
from rewriter.search import Round, Trial
from rewriter.verdict import Ending, Job
from rewriter.version import version
from rewriter.winograd import Winograd

# What metadata say of a convolution that stays one, with other weights.
_REFITTED = "refitted"


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What came out of a command.

    Attributes:
        model: An `onnx.ModelProto`: the rewritten model where one was made, else the original as it came.
        report: What was done and measured.
        improved: Whether `model` is a rewritten one that passed every gate that was asked for.
    """

    model: Any
    report: Report
    improved: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """The files that are to be written.

    Attributes:
        model: Path of the model, if any.
        plan: Path of the plan, if any.
        reports: Paths of reports; the suffix chooses the view.
        storage: Where the model's weights go.
    """

    model: str | Path | None = None
    plan: str | Path | None = None
    reports: Sequence[str | Path] = ()
    storage: graph.Storage = field(default_factory=graph.Storage)

    def check(self, sources: Sequence[object]) -> None:
        """Checks, before any work is done, that all can be written.

        Args:
            sources: What is read; those that are paths must not be written to.

        Raises:
            OptionError: The suffix of a report names no view.
            OutputError: A folder is missing or cannot be written to, or a file is an input or another one.
        """
        for path in self.reports:
            check_path(path)
        taken: list[tuple[str, str | Path]] = []
        for what, path in self._all():
            for source in (None, *sources):
                files.check_output(path, source if isinstance(source, str | Path) else None, what)
            for other, where in taken:
                if files.same_file(path, where):
                    raise OutputError(f"{what} '{path}' is the {other}; choose another name")
            taken.append((what, path))

    def write(self, report: Report, model: Model | None, plan: str | None = None) -> None:
        """Writes the report in any case, the model and the plan where there is one.

        Raises:
            OutputError: A file cannot be written; then none is.
        """
        contents: dict[files.PathLike, files.Content] = {}
        if plan is not None and self.plan is not None:
            contents[self.plan] = plan.encode()
        contents.update((path, rendered(report, path)) for path in self.reports)
        if model is not None and self.model is not None:
            graph.save(model, self.model, self.storage, contents)
        else:
            files.write(contents)

    def _all(self) -> list[tuple[str, str | Path]]:
        found = [("output", self.model), ("plan", self.plan), *(("report", path) for path in self.reports)]
        return [(what, path) for what, path in found if path is not None]


def put_together(
    base: Model, expanded: Collection[str], trial: Trial, thinner: Mapping[str, int] | None = None
) -> Model:
    """The model with a trial's rewrites and operators written in others, and what was done in its metadata.

    Args:
        base: The model with all other steps done.
        expanded: The operators to write in others, by the tensors that they give.
        trial: What sites become.
        thinner: How many channels those convolutions read that read fewer, by name.

    The same model and the same rewrites give the same bytes, so nothing that was measured is in it. What
    earlier runs did stays: a convolution that is rewritten again has both forms, the first one first.
    """
    done = _done_before(base)
    forms = {each.site: _form(each) for each in trial.plan.rewritten}
    thinned = [(name, f"fitted to {rank} in-channels") for name, rank in sorted((thinner or {}).items())]
    rewritten = [(site.name, forms.get(site.name, _REFITTED)) for site, _ in trial.rewrites]
    for name, form in [*thinned, *rewritten]:
        done[name] = f"{done[name]}; {form}" if name in done else form
    provenance = {"rewriter.sites": json.dumps(done, ensure_ascii=False, separators=(",", ":"))}
    if found := version():
        provenance["rewriter.version"] = found
    return graph.expanded(graph.splice(base, trial.rewrites, provenance), expanded)


def _form(candidate: Candidate) -> str:
    """A form as metadata tell it: `tucker2 16x16`, and the tiles of its stages where its rank does not."""
    told = f"{candidate.pass_name} {'x'.join(map(str, candidate.rank))}"
    tiles = {
        "x".join(map(str, lowering.m))
        for branch in candidate.lowerings
        for lowering in branch
        if isinstance(lowering, Winograd) and lowering.m != candidate.rank
    }
    return f"{told} in tiles {' '.join(sorted(tiles))}" if tiles else told


def _done_before(model: Model) -> dict[str, str]:
    """The forms that earlier runs have written into a model."""
    try:
        done = json.loads(model.metadata.get("rewriter.sites", "{}"))
    except ValueError:
        return {}
    return (
        {name: form for name, form in done.items() if isinstance(form, str)} if isinstance(done, dict) else {}
    )


def told(
    job: Job,
    steps: tuple[str, ...],
    sites: tuple[SiteReport, ...],
    *,
    before: Cost,
    refusals: tuple[Refusal, ...],
    ending: Ending,
    samples: Mapping[str, int],
    settings: Mapping[str, object],
    rounds: Sequence[Round] = (),
    remarks: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    max_macs: float | None = None,
    frontier: tuple[Point, ...] = (),
    command: tuple[str, ...] = (),
    detailed: bool = False,
) -> Report:
    """All that is known of a run.

    Args:
        job: What was asked for.
        steps: What was done to the model before any rewrite.
        sites: What every site of the base was and became.
        before: What all sites of the original cost.
        refusals: Why nodes stay as they are.
        ending: The final word.
        samples: How many samples were for what.
        settings: The options in effect.
        rounds: The record of the search.
        remarks: Warnings beside those of the ending.
        notes: What is worth knowing.
        max_macs: What the multiply-adds were bounded by.
        frontier: The trade-off.
        command: What does it again.
        detailed: Whether to measure where the time goes and look at single samples, too, for files to show.
    """
    improved = ending.accepted is not None
    closeup = Closeup()
    if detailed:
        job.progress("profiling", 0, 0)
        closeup = look(job.judge, job.original, ending.looked_at, improved, job.feeds, job.target)
    if ending.accepted is not None and (
        repaired := len(ending.accepted.rewrites) - len(ending.accepted.plan.rewritten)
    ):
        steps += (f"{plural(repaired, 'other convolution')} refitted to what the rewritten ones give",)
    away: tuple[str, ...] = ()
    if ending.model is not None:
        away = elsewhere(ending.model, job.feeds, job.target, "the rewritten model")
    return Report(
        model=job.original.label.strip("'"),
        verdict=ending.verdict,
        improved=improved,
        sites=sites,
        refusals=refusals,
        steps=steps if improved else (),
        before=before,
        after=sum((site.after for site in sites), Cost()) if improved else before,
        gates=ending.gates,
        drift=ending.drift,
        latency=ending.latency,
        expenses=() if ending.latency is None else job.limits.expenses(ending.latency),
        rounds=tuple(replace(each, chosen=_is(each, ending.accepted)) for each in rounds),
        samples=dict(samples),
        warnings=(*remarks, *ending.warnings, *away, *closeup.warnings),
        environment={**runtime.versions(), **runtime.deployment(job.target)},
        settings=dict(settings),
        max_macs=max_macs,
        frontier=frontier,
        notes=notes,
        times=closeup.times,
        outputs=closeup.outputs,
        command=command,
    )


def _is(round_: Round, trial: Trial | None) -> bool:
    """Whether a round is that of a trial."""
    return trial is not None and (round_.sites, round_.predicted_drift, round_.budget_share) == (
        len(trial.plan.rewritten),
        float(np.sqrt(trial.plan.drift)),
        trial.usage,
    )


def steps_to(
    original: Model, base: Model, expansions: Iterable[Expansion], thinner: Model | None = None
) -> tuple[str, ...]:
    """What is done to a model beside any rewrite, as far as it makes a difference to its time.

    Args:
        original: The model as it came.
        base: The model with its exact steps done.
        expansions: The operators that are written in others.
        thinner: The model without channels that others make up for.
    """
    freed = len(original.pinned) - len(base.pinned)
    before, after = (Counter(node.op_type for node in graph.flow(model)) for model in (original, base))
    leaky = after["LeakyRelu"] - before["LeakyRelu"]
    folded = graph.computing(original) - graph.computing(base)
    kinds = Counter(each.kind for each in expansions)
    dead = graph.removed_channels(original, base)
    fewer = 0 if thinner is None else graph.removed_channels(base, thinner)
    moved = graph.moved_resizes(original, base)
    return (
        *((f"{freed} weights are no longer graph inputs",) if freed else ()),
        *((f"{plural(folded, 'node')} folded into those beside",) if folded else ()),
        *((f"{plural(dead, 'dead channel')} removed from convolutions",) if dead else ()),
        *((f"{plural(fewer, 'channel')} removed that others make up for",) if fewer else ()),
        *((f"{plural(leaky, 'PRelu')} as LeakyRelu",) if leaky else ()),
        *((f"{plural(moved, 'Resize')} in the layout of convolutions",) if moved else ()),
        *(f"{count} x {kind} in faster operators" for kind, count in sorted(kinds.items())),
    )


def result(job: Job, ending: Ending, report: Report) -> Result:
    """What the caller gets."""
    best = job.original if ending.model is None else ending.model
    return Result(best.proto, report, report.improved)
