"""The command line that does a run again, from what it was given."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

# Keys of --preprocess that are sizes, with a cross between.
_SIZES = ("crop", "resize")
# Options of which one takes all values, with commas between.
_JOINED = ("passes",)


def command_line(name: str, given: Sequence[object], options: Mapping[str, object]) -> tuple[str, ...]:
    """The words of a command line; empty where something was given that only Python can give.

    Args:
        name: Of the command.
        given: Its arguments, paths.
        options: By their names there; None, False and what is empty were not given.
    """
    words: list[str | None] = ["rewriter", name]
    words += [_text(each) if isinstance(each, str | os.PathLike) else None for each in given]
    for option, value in options.items():
        flag = f"-{option}" if len(option) == 1 else f"--{option}"
        if value is True:
            words.append(flag)
        elif isinstance(value, Mapping):
            sign = ":" if option == "shape" else "="
            words += [word for key, each in value.items() for word in (flag, _pair(key, sign, each))]
        elif isinstance(value, list | tuple) and option not in _JOINED:
            words += [word for each in value for word in (flag, _text(each))]
        elif value is not None and value is not False:
            words += [flag, _text(value)]
    told = tuple(word for word in words if word is not None)
    return told if len(told) == len(words) else ()


def _pair(key: str, sign: str, value: object) -> str | None:
    text = _text(value, "x" if key in _SIZES else ",")
    return None if text is None else f"{key}{sign}{text}"


def _text(value: object, between: str = ",") -> str | None:
    """A value as it is typed, or None."""
    match value:
        case str() | os.PathLike():
            return os.fspath(value)
        case float():
            return f"{value:g}"
        case int():
            return str(value)
        case list() | tuple():
            return between.join(map(str, value))
    return None
