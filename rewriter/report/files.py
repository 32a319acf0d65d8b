"""Reports as files: the suffix of the path chooses the view."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from rewriter import files
from rewriter.errors import OptionError, OutputError
from rewriter.report.as_json import to_json
from rewriter.report.as_markdown import to_markdown
from rewriter.report.content import Report


def _page(report: Report) -> str:
    from rewriter.report.as_html import to_html  # loads what draws; few runs need it

    return to_html(report)


VIEWS: Final[Mapping[str, Callable[[Report], str]]] = MappingProxyType(
    {".html": _page, ".json": to_json, ".md": to_markdown}
)


def check_path(path: str | os.PathLike[str]) -> None:
    """Returns if a report can go to `path`; to be asked before a long run.

    Raises:
        OptionError: the suffix names no view.
        OutputError: the folder is missing or cannot be written, or `path` is a folder.
    """
    path = Path(path)
    if path.suffix.lower() not in VIEWS:
        raise OptionError(
            f"report '{path}' has {f'the suffix {path.suffix}' if path.suffix else 'no suffix'}; "
            f"known are {', '.join(VIEWS)}"
        )
    if not path.parent.is_dir():
        raise OutputError(f"report '{path}': there is no folder '{path.parent}'; create it first")
    if path.is_dir():
        raise OutputError(f"report '{path}' is a folder; name a file")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"report '{path}': the folder '{path.parent}' is not writable; choose another")


def rendered(report: Report, path: str | os.PathLike[str]) -> bytes:
    """The view that the suffix of `path` names, as that file holds it."""
    return VIEWS[Path(path).suffix.lower()](report).encode()


def write(report: Report, path: str | os.PathLike[str]) -> None:
    """Writes the view that the suffix of `path` names; a file that is there is replaced whole or not at all.

    Raises:
        OptionError: the suffix names no view.
        OutputError: the file cannot be written.
    """
    check_path(path)
    files.write({path: rendered(report, path)})
