"""What a command prints: progress while it runs, the report when it is done."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

if TYPE_CHECKING:
    from rewriter.progress import Progress
    from rewriter.report import Report


def show(report: Report, written: Sequence[Path], quiet: bool) -> None:
    """Prints the report, or its verdict alone, and what was written."""
    with contextlib.suppress(KeyboardInterrupt):  # all is written by now; only the text would be cut short
        from rewriter.report import rows, to_terminal, words

        console = Console(markup=False, highlight=False, emoji=False)
        if quiet:
            for sentence in filter(None, (rows.parting_sentence(report), report.verdict)):
                console.print(words.printable(sentence), soft_wrap=True)
            return
        to_terminal(report, console)
        for path in written:
            console.print(f"Wrote {path}", soft_wrap=True)


@contextlib.contextmanager
def drawn_progress(quiet: bool) -> Iterator[Progress]:
    """Yields what draws a vanishing bar for each stage on standard error; nothing where it is no terminal.

    Nor where stages are logged.

    The bar is drawn when it is called, never by a thread of its own, which would disturb the timing.
    """
    verbose = logging.getLogger("rewriter").isEnabledFor(logging.INFO)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars = Bars(
        *columns,
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        disable=quiet or verbose or not sys.stderr.isatty(),
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
