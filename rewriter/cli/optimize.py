"""`rewriter optimize`: parse, call, print, exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rewriter.cli.configured import Configured
from rewriter.cli.options import (
    batch,
    calibration,
    evaluation,
    external_data,
    listed,
    max_drift,
    max_load,
    max_memory,
    min_speedup,
    number,
    preprocess,
    provider,
    provider_option,
    quiet,
    random_samples,
    report,
    seed,
    shapes,
    strict,
    threads,
)
from rewriter.cli.show import drawn_progress, show
from rewriter.cli.status import UNMET

_EPILOG = """\
\b
Examples:
  rewriter optimize model.onnx -o fast.onnx --exact
  rewriter optimize model.onnx -o fast.onnx --calibration samples.npz
  rewriter optimize model.onnx -o fast.onnx --calibration data.py:calibration \\
      --evaluation data.py:evaluation --max-drift top1_drop=1 --threads 1
  rewriter optimize model.onnx -o fast.onnx --calibration samples.npz \\
      --shape image:1,3,224,224 --report drift.md --report drift.json
  rewriter optimize model.onnx -o small.onnx --calibration samples.npz --max-macs 0.5
  rewriter optimize model.onnx -o fast.onnx --calibration photos --preprocess resize=256 \\
      --preprocess crop=224 --preprocess scale=1/255
  rewriter optimize --config run.toml --threads 1

\b
Exit status:
  0    a faster model within the budget was written
  1    a file, the samples or the environment is bad; nothing was written
  2    an option or its value is bad; nothing was written
  3    nothing met the budget and was faster: no model was written, the report says why
  130  interrupted; nothing was written
"""


@click.command(cls=Configured, epilog=_EPILOG, short_help="Make a model faster within a drift budget.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Where the faster model goes; written only if there is one.",
)
@calibration("--exact")
@evaluation
@preprocess
@random_samples
@max_drift(
    "A budget: the most that a measure of drift may come to. Measures: rel_l2, max_abs, noise_db, "
    "cosine_distance, kl, top1_flips (per cent); with labels top1_drop, top5_drop (points), psnr_drop_db; or "
    "your own as file.py:function. Repeatable.  [default: rel_l2=0.05, with --exact rel_l2=1e-5]"
)
@strict
@click.option(
    "--max-macs",
    metavar="RATIO",
    type=number,
    help="Bound the multiply-adds instead of minimising time: the least drift with at most this share of "
    "those of the convolutions that may be rewritten, between 0 and 1. Drift and speed are reported, and "
    "gate only where --max-drift or --min-speedup is given.",
)
@click.option(
    "--frontier",
    is_flag=True,
    help="Measure the whole trade-off of speed against drift, too, for the report; takes about as long again "
    "as the search.",
)
@click.option(
    "--exact",
    is_flag=True,
    help="Only rewrites that compute the same up to rounding; without samples, random inputs judge.",
)
@click.option(
    "--passes",
    metavar="A,B",
    callback=listed,
    help="Try only these forms, such as spatial_svd,tucker2, or all but these: -winograd.  [default: all]",
)
@click.option("--exclude", multiple=True, metavar="NODE", help="Leave this node as it is. Repeatable.")
@provider
@provider_option
@threads()
@batch
@shapes()
@seed
@min_speedup(
    "Write a model only if it is at least so many times as fast.  [default: 1.02, with --max-macs none]"
)
@max_load(10.0, "Write a model only if it takes at most")
@max_memory(5.0, "Write a model only if it takes at most")
@click.option(
    "--no-cache",
    "cache",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Measure the latencies of all forms anew, and keep none for later runs; see 'rewriter cache'.",
)
@click.option(
    "--save-plan",
    metavar="PLAN",
    type=click.Path(path_type=Path),
    help="Write the choices too, as JSON, for rewriter apply; only if there is a faster model.",
)
@external_data
@report
@quiet
def optimize(
    model: Path,
    output: Path,
    calibration: str | None,
    evaluation: str | None,
    max_drift: dict[str, float],
    save_plan: Path | None,
    quiet: bool,
    **options: Any,
) -> int:
    """Makes MODEL faster within a drift budget, proves both, and writes the result to OUT.

    Convolutions become depthwise, grouped or low-rank forms wherever that is faster on this machine. Drift is
    measured on samples that had no part in the fitting, latency on both models in alternation.
    """
    from rewriter.optimize import optimize as run  # loads ONNX Runtime; usage errors need not wait for it

    with drawn_progress(quiet) as progress:
        result = run(
            model,
            calibration,
            evaluation,
            output=output,
            max_drift=max_drift or None,
            save_plan=save_plan,
            progress=progress,
            **options,
        )
    made = [output, save_plan] if result.improved else []
    written = [path for path in (*made, *options["reports"]) if path is not None]
    show(result.report, written, quiet)
    return 0 if result.improved else UNMET
