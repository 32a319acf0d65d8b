"""`optimize`: a trained model and samples in; a faster model within a drift budget out, or a clear no."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from rewriter import (
    graph,
    macs,
    network,
    offers,
    planfile,
    prepare,
    runtime,
    search,
)
from rewriter.cache import Cache
from rewriter.command import command_line
from rewriter.conv import Ints
from rewriter.expansions import faster_expansions
from rewriter.frontier import trace
from rewriter.judge import Judge
from rewriter.limits import Limits
from rewriter.offers import Scene
from rewriter.outcome import Result, Wanted, put_together, result, steps_to, told
from rewriter.parts import Given, Preprocessing, parts
from rewriter.plan import choose
from rewriter.progress import Progress, logged
from rewriter.report import site_reports
from rewriter.runtime import Target
from rewriter.search import Rewrites, Trial
from rewriter.sources import Source
from rewriter.thinning import thinned
from rewriter.verdict import Job, final_word, own_rounding

DEFAULT_MAX_DRIFT: Mapping[str, float] = {"rel_l2": 0.05}
DEFAULT_MIN_SPEEDUP = 1.02
EXACT_MAX_DRIFT: Mapping[str, float] = {"rel_l2": 1e-5}
# Of a layer in float16 the weights alone are rounded by some 2e-4, and so is what it gives.
HALF_MAX_DRIFT: Mapping[str, float] = {"rel_l2": 5e-3}


def optimize(
    model: graph.Source,
    calibration: Source | None = None,
    evaluation: Source | None = None,
    *,
    preprocess: Preprocessing | None = None,
    random_samples: int | None = None,
    output: str | Path | None = None,
    exact: bool = False,
    max_drift: Mapping[str, float] | None = None,
    strict: bool = False,
    max_macs: float | None = None,
    frontier: bool = False,
    passes: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    provider: str = "cpu",
    provider_options: Mapping[str, str] | None = None,
    threads: int | None = None,
    batch: int = 1,
    shapes: Mapping[str, Ints] | None = None,
    seed: int = 0,
    min_speedup: float | None = None,
    max_load: float = 10.0,
    max_memory: float = 5.0,
    cache: bool = True,
    save_plan: str | Path | None = None,
    save_as_external_data: bool = False,
    size_threshold: int = graph.SIZE_THRESHOLD,
    reports: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Result:
    """Rewrites the convolutions of a trained model: faster, with its outputs within a budget of drift.

    Every convolution is fitted to what the network feeds it; method and rank are chosen by latency measured
    on the target; the result is judged on samples that had no part in either.

    Args:
        model: A path, the bytes of a file, or an `onnx.ModelProto`.
        calibration: Inputs such as the model will see, without labels: a path to an `.npz` keyed by input
            name, to an `.npy`, to a folder of images or of ONNX test data; a `script.py:function` that yields
            feeds; an iterable of feeds (dicts of arrays, batch first), a reader with `get_next`, or a
            callable that returns one. A few hundred are enough; none are needed with `exact`.
        evaluation: More of them, where there are any with targets: half guide the choice, half have the final
            word. Without it the calibration samples are split for all three.
        preprocess: How the pixels of folders of images become inputs: a TOML file, or a mapping, of `resize`,
            `crop`, `channels`, `scale`, `mean`, `std`, `layout`, `dtype`; see `rewriter.sources.preprocess`.
        random_samples: So many random inputs in place of samples, of the usual range that the model expects,
            for work on latency: drift on noise says little of drift on real inputs.
        output: Where to write the model; only written if it is what was asked for.
        max_drift: The most of each measure that is allowed, by name (see `rewriter.drift`); all must hold.
            Default: `{"rel_l2": 0.05}`, with `exact` `{"rel_l2": 1e-5}`, or 5e-3 where a convolution is in
            float16, with `max_macs` none.
        strict: Ask the budgets of the upper ends of the 95 % intervals, not of the estimates.
        max_macs: What the multiply-adds of the convolutions that may be rewritten may come to, as a share of
            what they were. Drift is made least within that; nothing is timed to choose, and the result need
            be within a budget or faster only if `max_drift` or `min_speedup` is given.
        frontier: Measure the whole trade-off of speed against drift, too, for the report.
        exact: Only rewrites that compute the same up to rounding. Nothing is fitted; without samples, random
            inputs judge.
        passes: Names of the passes to try, or with a minus before each (`["-winograd"]`) of those to leave
            out; all where None.
        exclude: Names of nodes to leave alone.
        provider: The execution provider that the model will run on.
        provider_options: The provider's own options, as it is deployed, such as `{"use_tf32": "0"}`.
        threads: Threads of one operator there; None is ONNX Runtime's own default.
        batch: The batch size to be fast at.
        shapes: Sizes of inputs with dynamic dimensions to be fast at, by input name; the samples' otherwise.
        seed: Splits the samples and draws the patches.
        min_speedup: What the model must be faster by, at 99.9 % confidence, to be worth writing. Default:
            1.02, with `max_macs` none.
        max_load: How many times the original's load time the model may take, at least 1; 50 ms more are never
            too much.
        max_memory: How many times the original's peak memory it may take to load and run, the process
            included, at least 1; 32 MB more are never too much.
        cache: Whether latencies of forms that earlier runs measured on this machine are taken over, and new
            ones kept, in the user's cache folder or that which the variable REWRITER_CACHE_DIR names. Those
            of the two models are always measured.
        save_plan: Where to write the plan of the model that was made, for `rewriter.apply`; only written if
            there is one.
        save_as_external_data: Write weights into a file beside the model even where one file can hold all;
            always done where it cannot (2 GB).
        size_threshold: Tensors of fewer bytes stay in the model's own file in any case.
        reports: Paths of reports to write; the suffix chooses the view.
        progress: Told a stage, how much of it is done, and how much there is.

    Returns:
        The rewritten model with its report; the original with a report that says why where nothing was
        gained.

    Raises:
        OptionError: An option's value makes no sense.
        ModelError: The model cannot be read or run.
        SampleError: The samples do not fit the model, or are too few.
        ProviderError: The provider cannot be used here.
        OutputError: The output or a report cannot be written where it was asked for.
    """
    progress = logged(progress)
    target = Target(provider, threads, options=tuple((provider_options or {}).items()))
    runtime.check_provider(provider)
    limits = Limits(max_load, max_memory)
    by_macs = max_macs is not None
    macs.check_options(max_macs, exact=exact, strict=strict and not max_drift)
    chosen_passes = prepare.named_passes(passes, exact, plain=by_macs)
    if min_speedup is None:
        min_speedup = 0.0 if by_macs else DEFAULT_MIN_SPEEDUP
    given = Given.of(calibration, evaluation, preprocess, random_samples)
    given.check_enough(exact, "--exact and --random-samples need none")
    original = graph.load(model)
    storage = graph.Storage(save_as_external_data, size_threshold)
    wanted = Wanted(output, save_plan, reports, storage)
    wanted.check([original.path, *original.data, calibration, evaluation])
    unpinned = graph.unpin(original)
    grid = prepare.grid_of(target)
    ground = prepare.exact_steps(unpinned, exclude, grid.block)
    halves = any(site.dtype == np.float16 for site in ground.sites)
    rounded = HALF_MAX_DRIFT if halves else EXACT_MAX_DRIFT
    default = rounded if exact else {} if by_macs else DEFAULT_MAX_DRIFT
    budgets = dict(max_drift or default)
    shapes = shapes or {}
    samples = parts(unpinned, given, shapes, seed)
    remarks = samples.remarks
    feeds = prepare.deployed_feeds(original, samples.fit, batch, shapes)
    judge = Judge(
        original, budgets, samples.choosing, samples.final, seed, strict=strict, target=target.precise
    )
    if not exact:
        remarks += judge.doubts()
    job = Job(original, judge, feeds, target, min_speedup, limits, seed, progress)

    conditions = runtime.conditions(target) if cache else None
    kept = None if conditions is None else Cache(conditions)
    thinner, single = prepare.of_networks(chosen_passes)

    def scene_of(base: graph.Model, sites: Sequence[graph.Site]) -> Scene:
        in_shapes, live_bytes = prepare.scout(base, sites, feeds, offers.CALM)
        return Scene(base, sites, in_shapes, live_bytes, single, grid, target, seed, progress, kept)

    scene = scene_of(ground.model, ground.sites)
    before = prepare.total_cost(ground.whole, scene.sizes)
    start = thinning = None
    if thinner is not None:
        start = search.Start(*judge.start())
        found = thinned(scene, thinner, samples, feeds, batch, start.limit, judge.usage)
        if found is not None:
            smaller, thinning = found
            scene = scene_of(smaller, prepare.choose_sites(smaller, exclude)[0])
    base, sites, in_shapes = scene.model, scene.sites, scene.in_shapes
    expansions = () if by_macs else faster_expansions(base, feeds, target, progress)
    expanded = [each.output for each in expansions]
    offered = offers.exact(scene, samples) if exact else offers.fitted(scene, samples, batch, by_macs=by_macs)
    remarks += offered.remarks
    if kept is not None:
        remarks += kept.warnings
    candidates, build = offered.candidates, offered.build

    def usage(rewrites: Rewrites) -> float:
        return judge.usage(graph.splice(base, rewrites))

    assemble = partial(put_together, base, expanded, thinner=None if thinning is None else thinning.ranks)
    if max_macs is not None:
        job = replace(job, macs=before.macs)
        trials, rounds = macs.search(
            candidates, max_macs * before.macs, build, usage, progress, gated=bool(budgets)
        )
    else:
        # the upper end of an interval leaves room enough
        attempts = search.Attempts(build, usage, progress, 1.0 if strict else search.MARGIN)
        clock = network.clock(base, scene.places, feeds, target, scene.live_bytes)
        start = start or search.Start(*judge.start())
        trials, candidates = search.search(candidates, start, attempts, clock)
        rounds = attempts.rounds
    if exact and trials and (cautious := search.cautious(candidates, trials[0])) is not None:
        trials.append(Trial(cautious, build(cautious), trials[0].usage))
    steps = steps_to(original, ground.model, expansions, base)
    fallback = search.unchanged(candidates) if steps and not by_macs else None

    def retreat(limit: float, most_bytes: float, under_ms: float) -> Trial | None:
        if by_macs:
            return None  # no plan within the multiply-adds is known to drift less
        plan = choose(candidates, limit, most_bytes)
        return Trial(plan, build(plan), 0.0) if plan.rewritten and plan.latency_ms < under_ms else None

    otherwise = None if max_macs is None else macs.shortfall(candidates, max_macs, before.macs)
    if not sites:
        otherwise = "the model has no convolution that can be rewritten; 'rewriter inspect' tells what it has"
    elif exact and otherwise is None:
        otherwise = "no exact rewrite is faster where it was measured alone"
    ending = final_word(job, trials, retreat, fallback, assemble, otherwise)
    if exact and ending.accepted is None:
        remarks += own_rounding(judge, ending)
    taken = None if ending.accepted is None else ending.accepted.plan
    points, cut_short = (
        trace(job, candidates, trials, ending, build, assemble, before.macs) if frontier else ((), ())
    )
    plan_text = None
    if taken is None and save_plan is not None:
        remarks += ("no plan was saved: there is no rewritten model to make again",)
    elif taken is not None:
        saved = planfile.record(
            taken,
            sites,
            model=original.label.strip("'"),
            exact=exact,
            passes=[each.name for each in chosen_passes],
            seed=seed,
            target=target,
            batch=batch,
            shapes=shapes,
            block=grid.block,
            samples=offered.fitted,
            gradients=offered.draws,
            expanded=expanded,
            thinning=thinning,
        )
        plan_text = planfile.to_json(saved)
    settings = {
        "exact": exact,
        "preprocess": given.preprocessing,
        "random-samples": random_samples,
        "max-drift": budgets,
        "strict": strict,
        "max-macs": max_macs,
        "frontier": frontier,
        "passes": [each.name for each in chosen_passes],
        "exclude": list(exclude),
        "provider": provider,
        "provider-option": dict(target.options),
        "threads": threads,
        "batch": batch,
        "shape": {name: list(shape) for name, shape in shapes.items()},
        "seed": seed,
        "min-speedup": min_speedup,
        "max-load": max_load,
        "max-memory": max_memory,
        "no-cache": not cache,
    }
    command = command_line(
        "optimize",
        [model],
        {
            "o": output,
            "calibration": calibration,
            "evaluation": evaluation,
            "save-plan": save_plan,
            **settings,
            "passes": passes,
        },
    )
    report = told(
        job,
        steps,
        site_reports(offered.surveys, offered.timed, in_shapes, taken, offered.checked, by_macs=by_macs),
        before=before,
        refusals=(*ground.refusals, *offered.refusals),
        rounds=rounds,
        ending=ending,
        remarks=(*remarks, *cut_short),
        notes=(*samples.notes, *(() if kept is None else kept.notes)),
        samples={"fit": offered.fitted, "choose": len(samples.choosing), "final": len(samples.final)},
        settings=settings,
        max_macs=max_macs,
        frontier=points,
        command=command,
        detailed=bool(reports),
    )
    wanted.write(report, ending.model, plan_text)
    return result(job, ending, report)
