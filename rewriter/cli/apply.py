"""`rewriter apply`: parse, call, print, exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rewriter.cli.configured import Configured
from rewriter.cli.options import (
    calibration,
    evaluation,
    external_data,
    max_drift,
    min_speedup,
    preprocess,
    provider_option,
    quiet,
    random_samples,
    report,
    shapes,
    threads,
)
from rewriter.cli.show import drawn_progress, show
from rewriter.cli.status import UNMET

_EPILOG = """\
\b
Examples:
  rewriter optimize model.onnx -o fast.onnx --calibration samples.npz --save-plan plan.json
  rewriter apply model.onnx --plan plan.json -o same.onnx --calibration samples.npz
  rewriter apply retrained.onnx --plan plan.json -o fast.onnx --calibration samples.npz \\
      --max-drift rel_l2=0.05 --min-speedup 1.1

\b
Exit status:
  0    the model was written
  1    a file, the samples or the environment is bad, or the plan does not fit; nothing was written
  2    an option or its value is bad; nothing was written
  3    a gate was not passed: no model was written, the report says why
  130  interrupted; nothing was written
"""


@click.command(
    cls=Configured, epilog=_EPILOG, short_help="Make the choices of a saved plan again, without a search."
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--plan",
    required=True,
    metavar="PLAN",
    type=click.Path(path_type=Path),
    help="The choices to make again, from rewriter optimize --save-plan.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Where the model goes.",
)
@external_data
@calibration("the plan is exact")
@evaluation
@preprocess
@random_samples
@max_drift(
    "A gate: write a model only if this measure of drift comes to no more; the measures are those of "
    "rewriter optimize. Repeatable.  [default: none]"
)
@min_speedup("A gate: write a model only if it is at least so many times as fast.  [default: none]")
@click.option("--provider", help="ONNX Runtime's execution provider.  [default: the plan's]")
@provider_option
@threads("the plan's")
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="Samples in one run, as deployed.  [default: the plan's]",
)
@shapes("  [default: the plan's]")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    help="Draws samples and positions.  [default: the plan's]",
)
@report
@quiet
def apply(
    model: Path,
    plan: Path,
    calibration: str | None,
    evaluation: str | None,
    output: Path,
    max_drift: dict[str, float],
    shapes: dict[str, tuple[int, ...]],
    provider_options: dict[str, str],
    quiet: bool,
    **options: Any,
) -> int:
    """Makes the choices of PLAN again on MODEL, without a search, and writes the result to OUT.

    The same model, samples, plan and seed give the same bytes. A model with other weights will do, as long
    as its convolutions have the names and shapes of those that the plan was made for: they are fitted anew.
    Drift and latency are measured either way.
    """
    from rewriter.apply import apply as run  # loads ONNX Runtime; usage errors need not wait for it

    with drawn_progress(quiet) as progress:
        result = run(
            model,
            plan,
            calibration,
            evaluation,
            output=output,
            max_drift=max_drift or None,
            shapes=shapes or None,
            provider_options=provider_options or None,
            progress=progress,
            **options,
        )
    written = [*([output] if result.improved else []), *options["reports"]]
    show(result.report, written, quiet)
    return 0 if result.improved else UNMET
