"""How a command tells what it is at."""

import logging
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Told a stage, how much of it is done, and how much there is."""

_log = logging.getLogger(__name__)


def silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


def logged(progress: Progress | None) -> Progress:
    """Logs every stage as it begins, and tells whoever else is to be told."""
    told, last = progress or silent, ""

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal last
        if stage != last:
            _log.info("%s", stage)
            last = stage
        told(stage, done, total)

    return tell
