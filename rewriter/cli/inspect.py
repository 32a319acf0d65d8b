"""`rewriter inspect`: parse, call, print, exit status."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from rewriter.cli.options import batch, provider, provider_option, shapes, threads

_EPILOG = """\
\b
Examples:
  rewriter inspect model.onnx
  rewriter inspect model.onnx --shape image:1,3,480,640 --profile --threads 1
  rewriter inspect model.onnx --json > layers.json

\b
Exit status:
  0    the layers were listed
  1    the file or the environment is bad
  2    an option or its value is bad, or a dynamic size is not given
  130  interrupted
"""


@click.command(epilog=_EPILOG, short_help="List a model's layers, their costs and their passes.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--profile", is_flag=True, help="Run the model, too, and say where its time goes.")
@provider
@provider_option
@threads()
@batch
@shapes()
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def inspect(model: Path, as_json: bool, **more: Any) -> int:
    """Lists the layers of MODEL: shapes, kind, MACs, FLOPs, parameters, and which passes have a form.

    Every Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN; nothing is written.
    """
    from rewriter.inspect import inspect as run  # loads ONNX Runtime; usage errors need not wait for it
    from rewriter.report import print_inspection, to_json

    found = run(model, **more)
    with contextlib.suppress(KeyboardInterrupt):
        if as_json:
            click.echo(to_json(found), nl=False)
        else:
            print_inspection(found, Console(markup=False, highlight=False, emoji=False))
    return 0
