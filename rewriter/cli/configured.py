"""What commands that do long work share: options from a TOML file, the options as one, and a log."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from rewriter.errors import brief

_UNSAVED = ("config", "help", "print_config")
# Options that are tables in a file, and what is between a key and its value on the command line.
_TABLES = {"max_drift": "=", "preprocess": "=", "provider_options": "=", "shapes": ":"}


class Configured(click.Command):
    """A command with `--config`, `--print-config` and `--verbose`."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.params += [
            click.Option(
                ["--config"],
                metavar="FILE",
                type=click.Path(path_type=Path),
                is_eager=True,
                expose_value=False,
                callback=_take,
                help="Options from a TOML file, by their long names: threads = 1. What is given here as well "
                "counts instead; paths in the file are relative to it.",
            ),
            click.Option(
                ["--print-config"],
                is_flag=True,
                help="Print the options as such a file, those of --config included, and do nothing else.",
            ),
            click.Option(
                ["-v", "--verbose"], is_flag=True, help="Tell on standard error what is done, line by line."
            ),
        ]

    def invoke(self, context: click.Context) -> Any:
        """Runs the command, or prints its options."""
        if context.params["verbose"] and context.params["quiet"]:
            raise click.UsageError("--quiet and --verbose exclude each other; leave one of them out", context)
        if context.params["print_config"]:
            click.echo(_as_toml(context), nl=False)
            return 0
        del context.params["print_config"]
        with _log(context.params.pop("verbose")):
            return super().invoke(context)


@contextlib.contextmanager
def _log(wanted: bool) -> Iterator[None]:
    """While it lasts, what the program logs goes to standard error."""
    if not wanted:
        yield
        return
    logger, handler = logging.getLogger("rewriter"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file says, or a bad parameter."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.BadParameter(f"'{path}' cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # TOML's own exception, and text that is not UTF-8
        raise click.BadParameter(f"'{path}' is no TOML: {brief(error)}; mend it") from error


def _take(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Makes what the file says the defaults of the command."""
    if path is None:
        return
    known = {_key(each): each for each in context.command.params if each.name not in _UNSAVED}
    defaults = {}
    for key, value in read_toml(path).items():
        if key not in known:
            names = ", ".join(sorted(known))
            raise click.BadParameter(f"'{path}': there is no option '{key}'; there are {names}")
        try:
            typed = _typed(known[key], value)
        except ValueError as error:
            raise click.BadParameter(f"'{path}', {key}: {error}") from error
        defaults[str(known[key].name)] = _placed(known[key], typed, str(path.parent))
    context.default_map = defaults


def _key(parameter: click.Parameter) -> str:
    """What a parameter is called in a file: its long name, or an argument's own."""
    return max(parameter.opts, key=len).lstrip("-")


def _typed(parameter: click.Parameter, value: Any) -> Any:
    """A value of a file as it would be typed on the command line; flags as they count."""
    if isinstance(parameter, click.Option) and parameter.is_flag:
        if not isinstance(value, bool):
            raise ValueError(f"found {value!r}, which is not true or false")
        return bool(parameter.flag_value) is value
    if isinstance(value, Mapping):
        if parameter.name not in _TABLES:
            raise ValueError("found a table, which this option is not")
        return [f"{key}{_TABLES[parameter.name]}{_text(each)}" for key, each in value.items()]
    if getattr(parameter, "multiple", False):
        return [_text(each) for each in (value if isinstance(value, list) else [value])]
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_text, value))
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"found {value!r}, which is no text, number or list of them")


def _placed(parameter: click.Parameter, value: Any, folder: str) -> Any:
    """The value with its paths, if it has any, in a folder unless they are absolute."""
    if isinstance(value, list):
        return [_placed(parameter, each, folder) for each in value]
    is_path = isinstance(parameter.type, click.Path) or parameter.name in ("calibration", "evaluation")
    own_measure = parameter.name == "max_drift" and re.search(r"\.py:[^:=]*(=[^=]*)?$", str(value))
    steps = parameter.name == "preprocess" and str(value).endswith(".toml")
    return os.path.normpath(Path(folder, value)) if is_path or own_measure or steps else value


def _as_toml(context: click.Context) -> str:
    """Every option as it counts, as a file for `--config`; paths are absolute."""
    lines = []
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.name in _UNSAVED or value is None or value in ((), {}):
            continue
        if isinstance(parameter, click.Option) and parameter.is_flag:
            value = bool(parameter.flag_value) is value
        here = str(Path.cwd())
        if isinstance(value, Mapping):
            value = {_placed(parameter, name, here): each for name, each in value.items()}
        elif isinstance(value, str | Path | tuple):
            listed = list(value) if isinstance(value, tuple) else value
            value = _placed(parameter, listed, here)
        lines.append(f"{_key(parameter)} = {_toml(value)}\n")
    return "".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_toml(str(key))} = {_toml(each)}' for key, each in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    # JSON's texts are TOML's, but for one character that TOML wants escaped
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
