"""The command line: parse, call, print, exit status; no logic. One file a command.

0  done          1  bad file, data or environment     2  bad option or option value
3  nothing met the budget and was faster, or a gate failed            130  interrupted
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from rewriter.cli.apply import apply
from rewriter.cli.cache import cache
from rewriter.cli.compare import compare
from rewriter.cli.inspect import inspect
from rewriter.cli.optimize import optimize
from rewriter.cli.report import report
from rewriter.cli.status import FAILED, INTERRUPTED, MISUSED
from rewriter.errors import OptionError, RewriterError
from rewriter.version import version


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
        click.echo(f"rewriter {version() or '(not installed)'}")
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


cli.add_command(optimize)
cli.add_command(apply)
cli.add_command(cache)
cli.add_command(compare)
cli.add_command(inspect)
cli.add_command(report)


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
