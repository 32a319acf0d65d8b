"""`rewriter report`: parse, call, print, exit status."""

from __future__ import annotations

from pathlib import Path

import click

_EPILOG = """\
\b
Examples:
  rewriter report result.json -o result.html
  rewriter report result.json -o result.md -o result.html

\b
Exit status:
  0    the reports were written
  1    a file is bad, or was written by a later version; nothing was written
  2    an option or its value is bad; nothing was written
"""


@click.command(epilog=_EPILOG)
@click.argument("result", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    "outputs",
    required=True,
    multiple=True,
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Where a report goes; the suffix chooses its form: .html, .json or .md. Repeatable.",
)
def report(result: Path, outputs: tuple[Path, ...]) -> int:
    """Draws a report again from RESULT, the .json that --report wrote.

    Nothing is measured: the report is the one that the run itself would have written.
    """
    from rewriter.outcome import Wanted  # loads ONNX Runtime; usage errors need not wait for it
    from rewriter.report import read

    wanted = Wanted(reports=outputs)
    wanted.check([result])
    wanted.write(read(result), None)
    for path in outputs:
        click.echo(f"Wrote {path}")
    return 0
