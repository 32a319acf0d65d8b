"""The command line: parse, call, print, exit status; no logic.

0  done          1  bad file, data or environment     2  bad option or option value
3  nothing met the budget and was faster              130  interrupted
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from rewriter.errors import OptionError, RewriterError

if TYPE_CHECKING:
    from rewriter.progress import Progress
    from rewriter.report import Report

FAILED, MISUSED, UNMET, INTERRUPTED = 1, 2, 3, 130

_EPILOG = """\
\b
Examples:
  rewriter optimize model.onnx -o fast.onnx --exact
  rewriter optimize model.onnx -o fast.onnx --calibration samples.npz
  rewriter optimize model.onnx -o fast.onnx --calibration data.py:calibration \\
      --evaluation data.py:evaluation --max-drift top1_drop=1 --threads 1
  rewriter optimize model.onnx -o fast.onnx --calibration samples.npz \\
      --shape image:1,3,224,224 --report drift.md --report drift.json

\b
Exit status:
  0    a faster model within the budget was written
  1    a file, the samples or the environment is bad; nothing was written
  2    an option or its value is bad; nothing was written
  3    nothing met the budget and was faster: no model was written, the report says why
  130  interrupted; nothing was written
"""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The console entry point: runs a command and exits with its status."""
    try:
        status = cli.main(args, prog_name="rewriter", standalone_mode=False)
    except click.ClickException as error:
        status = _usage(error)
    except OptionError as error:
        status = _fail(error, MISUSED)
    except RewriterError as error:
        status = _fail(error, FAILED)
    except MemoryError:
        status = _fail("out of memory; try a smaller --batch, or fewer or smaller samples", FAILED)
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # click takes it for an interrupt; here it is a bug
            raise error.__cause__ from None
        click.echo("Interrupted; nothing was written.", err=True)
        status = INTERRUPTED
    sys.exit(status)


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        try:
            version = metadata.version("conv-rewriter")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        click.echo(f"rewriter {version}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Rewrites the convolutions of trained ONNX models into cheaper equivalents.

    Rewrites are fitted to real activations, chosen by measured latency and checked for drift. "rewriter
    COMMAND --help" explains a command.
    """


def _number(text: str) -> float:
    """A finite number; `float` alone would take `nan`, which no comparison ever fails."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise click.BadParameter(f"'{text}' is not a number; give one, such as 0.05")
    return number


def _budget(text: str) -> tuple[str, float]:
    """`NAME=NUMBER` as a pair; the last `=` counts, since a path may hold it too."""
    name, _, number = text.rpartition("=")
    if not name:
        raise click.BadParameter(f"'{text}' is not of the form NAME=NUMBER, such as rel_l2=0.05")
    return name, _number(number)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`NAME:SIZES` as a pair; the last `:` counts, since a name may hold it too."""
    name, _, sizes = text.rpartition(":")
    try:
        shape = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        shape = (0,)
    if not name or min(shape) < 1:
        raise click.BadParameter(f"'{text}' is not of the form NAME:SIZES, such as image:1,3,224,224")
    return name, shape


def _once(_: click.Context, __: click.Parameter, pairs: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """The pairs as a dictionary; a name given twice would silently lose its first value."""
    names = [name for name, _value in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise click.BadParameter(f"'{min(twice)}' is given twice; give it once")
    return dict(pairs)


def _listed(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    """`a,b` as a tuple; None where the option was not given."""
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise click.BadParameter(f"'{text}' is not of the form spatial_svd,tucker2")
    return names


@cli.command(epilog=_EPILOG)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="OUT",
    type=click.Path(path_type=Path),
    help="Where the faster model goes; written only if there is one.",
)
@click.option(
    "--calibration",
    metavar="SRC",
    help="Samples to fit to: an .npz keyed by input name, or script.py:function that yields dicts of arrays. "
    "Needed unless --exact.",
)
@click.option(
    "--evaluation",
    metavar="SRC",
    help="Samples to judge by, labels too where there are any.  [default: a part of the calibration samples]",
)
@click.option(
    "--max-drift",
    multiple=True,
    metavar="NAME=VALUE",
    type=_budget,
    callback=_once,
    help="A budget: the most that a measure of drift may come to. Measures: rel_l2, max_abs, noise_db, "
    "cosine_distance, kl, top1_flips (per cent); with labels top1_drop, top5_drop (points), psnr_drop_db; or "
    "your own as file.py:function. Repeatable.  [default: rel_l2=0.05, with --exact rel_l2=1e-5]",
)
@click.option(
    "--exact",
    is_flag=True,
    help="Only rewrites that compute the same up to rounding; without samples, random inputs judge.",
)
@click.option(
    "--passes",
    metavar="A,B",
    callback=_listed,
    help="Try only these forms, such as spatial_svd,tucker2.  [default: all]",
)
@click.option("--exclude", multiple=True, metavar="NODE", help="Leave this node as it is. Repeatable.")
@click.option("--provider", default="cpu", show_default=True, help="ONNX Runtime's execution provider.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads inside one operator, as deployed.  [default: ONNX Runtime's own]",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Samples in one run, as deployed.",
)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="NAME:SIZES",
    type=_shape,
    callback=_once,
    help="The shape of an input with dynamic dimensions, as deployed: image:1,3,224,224. Repeatable.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Draws samples and positions; the same seed gives the same draws.",
)
@click.option(
    "--min-speedup",
    default=1.02,
    show_default=True,
    metavar="FACTOR",
    type=_number,
    help="Write a model only if it is at least so many times as fast.",
)
@click.option(
    "--max-load",
    default=10.0,
    show_default=True,
    metavar="FACTOR",
    type=_number,
    help="Write a model only if it takes at most so many times as long to load; 50 ms more are always "
    "allowed.",
)
@click.option(
    "--max-memory",
    default=5.0,
    show_default=True,
    metavar="FACTOR",
    type=_number,
    help="Write a model only if its process takes at most so many times as much memory; 32 MB more are "
    "always allowed.",
)
@click.option(
    "--report",
    "reports",
    multiple=True,
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Write a report too; the suffix chooses its form: .json or .md. Repeatable.",
)
@click.option("-q", "--quiet", is_flag=True, help="Only the verdict: no progress, no tables.")
def optimize(
    model: Path,
    output: Path,
    calibration: str | None,
    evaluation: str | None,
    max_drift: dict[str, float],
    quiet: bool,
    **options: Any,
) -> int:
    """Makes MODEL faster within a drift budget, proves both, and writes the result to OUT.

    Convolutions become depthwise, grouped or low-rank forms wherever that is faster on this machine. Drift is
    measured on samples that had no part in the fitting, latency on both models in alternation.
    """
    from rewriter.optimize import optimize as run  # loads ONNX Runtime; usage errors need not wait for it

    with _progress(quiet) as progress:
        result = run(
            model,
            calibration,
            evaluation,
            output=output,
            max_drift=max_drift or None,
            progress=progress,
            **options,
        )
    written = [*([output] if result.improved else []), *options["reports"]]
    with contextlib.suppress(KeyboardInterrupt):  # all is written by now; only the text would be cut short
        _show(result.report, written, quiet)
    return 0 if result.improved else UNMET


def _show(report: Report, written: Sequence[Path], quiet: bool) -> None:
    """Prints the report, or its verdict alone, and what was written."""
    from rewriter.report import to_terminal

    console = Console(markup=False, highlight=False, emoji=False)
    if quiet:
        console.print(report.verdict, soft_wrap=True)
        return
    to_terminal(report, console)
    for path in written:
        console.print(f"Wrote {path}", soft_wrap=True)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """Yields what draws a vanishing bar for each stage on standard error; nothing where it is no terminal.

    The bar is drawn when it is called, never by a thread of its own, which would disturb the timing.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Bars(
        *columns,
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        disable=quiet or not sys.stderr.isatty(),
    )
    shown, drawn = "", -math.inf

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal shown, drawn
        if stage != shown:
            for task in bars.task_ids:
                bars.remove_task(task)
            bars.add_task(escape(stage), total=None)
            shown, drawn = stage, -math.inf
        bars.update(bars.task_ids[0], completed=done, total=total or None)
        if time.monotonic() - drawn > 0.1 or done == total:
            bars.refresh()
            drawn = time.monotonic()

    with bars:
        yield progress


def _usage(error: click.ClickException) -> int:
    """Prints a misuse as one line, the whole help where no command was given, and returns the status."""
    message = error.format_message()
    if message.startswith("Usage:"):
        error.show()
        return error.exit_code
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "rewriter"
    return _fail(f"{message.rstrip('.')}; see '{command} --help'", error.exit_code)


def _fail(message: object, status: int) -> int:
    """Prints one line, whatever the message holds, and returns the status."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(message)).split())
    click.echo(f"Error: {line}", err=True)
    return status
