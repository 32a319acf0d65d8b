"""Samples that a program hands over: iterables, callables that return one, and readers with `get_next`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from rewriter.errors import SampleError, brief
from rewriter.sources.scripts import line_of

Item = Mapping[str, Any] | tuple[Mapping[str, Any], Any]
"""What a script or an iterable yields: feeds, or feeds with their target."""


class Reader(Protocol):
    """Gives feeds until there are none, as ONNX Runtime's `CalibrationDataReader` does."""

    def get_next(self) -> Item | None:
        """The next feeds, or None at the end."""


Source = str | Path | Iterable[Item] | Reader | Callable[[], Iterable[Item] | Reader]
"""Where samples come from; see `rewriter.sources.load`."""


def iterate(source: Any, where: str) -> Iterator[Any]:
    """The items of an iterable, of a reader or of what a callable returns.

    Raises:
        SampleError: it is none of these, or raised something; `where` begins the message.
    """
    try:
        made = source() if callable(source) else source
        if callable(following := getattr(made, "get_next", None)):
            made = iter(following, None)
        if isinstance(made, Mapping) or _is_pair(made):
            made = [made]
        if isinstance(made, Iterable) and not isinstance(made, str | bytes):
            yield from made
            return
    except (Exception, SystemExit) as error:
        raise SampleError(
            f"{where}: the function raised {brief(error)}{line_of(error, __file__)}; mend it"
        ) from error
    raise SampleError(f"{where}: found {type_name(made)}, expected an iterable of feeds; yield them")


def name_of(source: Any) -> str:
    """A source as messages name it."""
    if isinstance(source, str | Path):
        return str(source)
    return f"from {getattr(source, '__name__', None) or type_name(source)}"


def type_name(value: Any) -> str:
    """A value's type as messages name it."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _is_pair(source: Any) -> bool:
    """Whether this source is one pair of feeds and target, rather than a tuple of two feeds."""
    if not isinstance(source, tuple) or len(source) != 2:
        return False
    return isinstance(source[0], Mapping) and not isinstance(source[1], Mapping | tuple)
