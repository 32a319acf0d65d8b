"""`apply`: a model, a saved plan and samples in; the plan's choices fitted anew out, and measured."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rewriter import fitting, graph, planfile, prepare, runtime, thinning
from rewriter.adjoint import output_metrics
from rewriter.command import command_line
from rewriter.conv import Ints
from rewriter.graph import Site
from rewriter.judge import Judge
from rewriter.limits import Limits
from rewriter.offers import CALM
from rewriter.outcome import Result, Wanted, put_together, result, steps_to, told
from rewriter.parts import Given, Preprocessing, parts
from rewriter.plan import Candidate, Plan
from rewriter.planfile import SavedForm
from rewriter.progress import Progress, logged
from rewriter.refit import Refit
from rewriter.report import applied_reports
from rewriter.runtime import Target
from rewriter.search import Rewrites, Trial
from rewriter.sources import Source
from rewriter.verdict import Ending, Job, final_word


def apply(
    model: graph.Source,
    plan: str | os.PathLike[str],
    calibration: Source | None = None,
    evaluation: Source | None = None,
    *,
    preprocess: Preprocessing | None = None,
    random_samples: int | None = None,
    output: str | Path | None = None,
    save_as_external_data: bool = False,
    size_threshold: int = graph.SIZE_THRESHOLD,
    max_drift: Mapping[str, float] | None = None,
    min_speedup: float | None = None,
    provider: str | None = None,
    provider_options: Mapping[str, str] | None = None,
    threads: int | None = None,
    batch: int | None = None,
    shapes: Mapping[str, Ints] | None = None,
    seed: int | None = None,
    reports: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Result:
    """Makes the choices of a saved plan again, without a search.

    Every convolution that the plan rewrites is fitted to what the network feeds it, front to back. The same
    model, samples, plan and seed give the same bytes. The model may have other weights than the one that the
    plan was made for, as long as its convolutions have the same names and shapes. Drift and latency are
    measured as by `optimize`, on samples that had no part in the fit; they refuse only where a gate is given.

    Args:
        model: A path, the bytes of a file, or an `onnx.ModelProto`.
        plan: Path of a plan, as `optimize` saves it.
        calibration: As for `optimize`; an exact plan needs none.
        evaluation: As for `optimize`. The samples are split as there, so that those that may have chosen the
            plan do not judge it.
        preprocess: As for `optimize`.
        random_samples: As for `optimize`.
        output: Where to write the model; only written if it passes the gates.
        max_drift: Gates: the most of each measure that is allowed, by name; none where None.
        min_speedup: A gate: what the model must be faster by, at 99.9 % confidence; none where None.
        provider: The execution provider that the model will run on; the plan's where None.
        provider_options: The provider's own options; the plan's where None, if the provider is the plan's.
        threads: Threads of one operator there; the plan's where None.
        batch: The batch size to time; the plan's where None.
        shapes: Sizes of inputs with dynamic dimensions to time; the plan's where None.
        seed: Splits the samples and draws the patches; the plan's where None.
        save_as_external_data: Write weights into a file beside the model even where one file can hold all;
            always done where it cannot (2 GB).
        size_threshold: Tensors of fewer bytes stay in the model's own file in any case.
        reports: Paths of reports to write; the suffix chooses the view.
        progress: Told a stage, how much of it is done, and how much there is.

    Returns:
        The rewritten model with its report; the original with a report that says why where a gate refused it.

    Raises:
        OptionError: An option's value makes no sense.
        PlanError: The plan cannot be read, or does not fit the model.
        ModelError: The model cannot be read or run.
        SampleError: The samples do not fit the model, or are too few.
        ProviderError: The provider cannot be used here.
        OutputError: The output or a report cannot be written where it was asked for.
    """
    progress = logged(progress)
    saved = planfile.read(plan)
    if provider_options is None:
        provider_options = saved.provider_options if provider in (None, saved.provider) else {}
    target = Target(
        provider or saved.provider,
        saved.threads if threads is None else threads,
        options=tuple(provider_options.items()),
    )
    runtime.check_provider(target.provider)
    batch = saved.batch if batch is None else batch
    shapes = saved.shapes if shapes is None else shapes
    seed = saved.seed if seed is None else seed
    given = Given.of(calibration, evaluation, preprocess, random_samples)
    given.check_enough(saved.exact, "only --random-samples and a plan made with --exact need none")
    original = graph.load(model)
    storage = graph.Storage(save_as_external_data, size_threshold)
    wanted = Wanted(output, reports=reports, storage=storage)
    wanted.check([original.path, *original.data, Path(plan), calibration, evaluation])
    unpinned = graph.unpin(original)
    planned = {site.node: site.weight_shape for site in saved.sites}
    ground = prepare.exact_steps(unpinned, (), saved.block, planned)
    samples = parts(unpinned, given, shapes, seed)
    thinner, passes = prepare.of_networks(prepare.named_passes(None))
    base, sites = ground.model, ground.sites
    if saved.thinning is not None:
        few = prepare.fitting_batches(prepare.drawn(samples.fit, saved.thinning.samples, seed))
        free = [site for site in sites if site.name in planned]
        assert thinner is not None
        base = thinning.again(base, free, saved.thinning, thinner, few, saved.block, seed, progress)
        sites = prepare.choose_sites(base, ())[0]
    expansions = [each for each in graph.find_expansions(base) if each.output in saved.expanded]
    matched = planfile.match(
        saved, sites, ground.refusals, passes, f"plan '{os.fspath(plan)}'", original.label
    )
    feeds = prepare.deployed_feeds(original, samples.fit, batch, shapes)
    judge = Judge(
        original, dict(max_drift or {}), samples.choosing, samples.final, seed, target=target.precise
    )
    job = Job(original, judge, feeds, target, min_speedup or 0.0, Limits(None, None), seed, progress)

    in_shapes, _ = prepare.scout(base, sites, feeds, CALM)
    fitted = 0
    if saved.exact or not matched.chosen:
        rewrites = fitting.exact_rewrites(matched.chosen, passes)
        remarks = (*matched.remarks, *samples.remarks)
    else:
        fit = prepare.drawn(samples.fit, saved.samples, seed)
        batches, fitted = prepare.fitting_batches(fit), len(fit)
        metrics = output_metrics(base, matched.sites, batches, seed, CALM, progress, saved.gradients)
        refit = Refit(base, matched.sites, passes, batches, metrics.weights, seed, CALM, progress)
        rewrites = refit(matched.chosen)
        remarks = (*matched.remarks, *metrics.remarks)

    made = _plan(sites, in_shapes, matched.chosen, rewrites)
    written = [each.output for each in expansions]
    ranks = None if saved.thinning is None else saved.thinning.ranks
    assemble = partial(put_together, base, written, thinner=ranks)
    ending = final_word(job, [Trial(made, rewrites, 0.0)], lambda *_: None, None, assemble)
    settings = {
        "plan": os.fspath(plan),
        "exact": saved.exact,
        "preprocess": given.preprocessing,
        "random-samples": random_samples,
        "max-drift": dict(max_drift or {}),
        "provider": target.provider,
        "provider-option": dict(target.options),
        "threads": target.threads,
        "batch": batch,
        "shape": {name: list(shape) for name, shape in shapes.items()},
        "seed": seed,
        "min-speedup": min_speedup,
    }
    command = command_line(
        "apply",
        [model],
        {"o": output, "calibration": calibration, "evaluation": evaluation, **settings, "exact": None},
    )
    report = told(
        job,
        steps_to(original, ground.model, expansions, base),
        applied_reports(sites, in_shapes, made, ending.accepted is not None),
        before=prepare.total_cost(ground.whole, {name: shape[2:] for name, shape in in_shapes.items()}),
        refusals=ground.refusals,
        ending=ending,
        remarks=(*remarks, *_doubts(ending)),
        notes=samples.notes,
        samples={"fit": fitted, "choose": 0, "final": len(samples.final)},
        settings=settings,
        command=command,
        detailed=bool(reports),
    )
    wanted.write(report, ending.model)
    return result(job, ending, report)


def _plan(
    sites: Sequence[Site],
    shapes: Mapping[str, Ints],
    chosen: Sequence[tuple[Site, SavedForm]],
    rewrites: Rewrites,
) -> Plan:
    """The saved choices on these sites: what they cost here, and what was predicted of them."""
    forms = {site.name: form for site, form in chosen}
    fitted = {site.name: rewrite for site, rewrite in rewrites}
    made = []
    for site in sites:
        size = shapes[site.name][2:]
        candidate = fitting.as_it_is(site, size)
        if site.name in forms:
            form, rewrite = forms[site.name], fitted[site.name]
            candidate = Candidate(
                site.name,
                form.pass_name,
                form.rank,
                fitting.skeleton(rewrite),
                rewrite.cost(size),
                form.predicted_error**2,
                form.predicted_drift**2,
            )
        made.append(candidate)
    return Plan(tuple(made), sum(each.drift for each in made), 0.0, 0.0)


def _doubts(ending: Ending) -> tuple[str, ...]:
    """What to say where a model was made that need not be faster."""
    timed = ending.latency
    if ending.accepted is None or timed is None or timed.speedup_low >= 1.0:
        return ()
    doubt = (
        f"it need not be faster here: {timed.speedup_low:.2f} to {timed.speedup_high:.2f} times; "
        "--min-speedup 1 refuses such a model"
    )
    return (doubt,)
