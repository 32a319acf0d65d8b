"""`rewriter compare`: parse, call, print, exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rewriter.cli.configured import Configured
from rewriter.cli.options import (
    batch,
    max_drift,
    max_load,
    max_memory,
    min_speedup,
    preprocess,
    provider,
    provider_option,
    quiet,
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
  rewriter compare old.onnx new.onnx
  rewriter compare old.onnx new.onnx --evaluation samples.npz --max-drift rel_l2=0.01
  rewriter compare float.onnx fast.onnx --evaluation data.py:evaluation \\
      --max-drift top1_drop=1 --min-speedup 1.2 --threads 1 --report gate.json
  rewriter compare exported.onnx converted.onnx --locate

\b
Exit status:
  0    every gate that was asked for passed; without any, the models were compared
  1    a file, the samples or the environment is bad, or the interfaces differ
  2    an option or its value is bad
  3    a gate failed: the drift is over a budget, or AFTER is not faster by what was asked
  130  interrupted
"""


@click.command(
    cls=Configured, epilog=_EPILOG, short_help="Measure drift and latency of one model against another."
)
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--evaluation",
    metavar="SRC",
    help="Samples to judge by, labels too where there are any: an .npz keyed by input name, an "
    ".npy, a folder of images or of ONNX test_data_set_N, or script.py:function that yields dicts of "
    "arrays.  [default: random inputs]",
)
@preprocess
@max_drift(
    "A gate: the most that a measure of drift may come to. Measures: rel_l2, max_abs, noise_db, "
    "cosine_distance, kl, top1_flips (per cent); with labels top1_drop, top5_drop (points), psnr_drop_db; or "
    "your own as file.py:function. Repeatable."
)
@strict
@min_speedup("A gate: AFTER must be at least so many times as fast, at 99.9 % confidence.")
@max_load(None, "A gate: AFTER may take at most")
@max_memory(None, "A gate: AFTER may take at most")
@click.option(
    "--locate",
    is_flag=True,
    help="Where the outputs differ, say after which node the two first part.",
)
@provider
@provider_option
@threads()
@batch
@shapes()
@seed
@report
@quiet
def compare(before: Path, after: Path, quiet: bool, **more: Any) -> int:
    """Measures how far the outputs of AFTER are from those of BEFORE, and how much faster it is.

    Any two models whose inputs and outputs have the same names, types and sizes, whoever made them. Only the
    gates that are asked for decide the exit status.
    """
    from rewriter.compare import compare as run  # loads ONNX Runtime; usage errors need not wait for it

    with drawn_progress(quiet) as progress:
        report = run(before, after, max_drift=more.pop("max_drift") or None, progress=progress, **more)
    show(report, more["reports"], quiet)
    return 0 if report.improved else UNMET
