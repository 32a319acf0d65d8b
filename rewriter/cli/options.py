"""Values of options, read from what was typed, a bad one refused in one line; options that commands share."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from rewriter.cli.configured import read_toml

Option = Callable[[Callable[..., Any]], Callable[..., Any]]
"""What puts an option on a command."""


def number(text: str) -> float:
    """A finite number; `float` alone would take `nan`, which no comparison ever fails."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise click.BadParameter(f"'{text}' is not a number; give one, such as 0.05")
    return value


def budget(text: str) -> tuple[str, float]:
    """`NAME=NUMBER` as a pair; the last `=` counts, since a path may hold it too."""
    name, _, value = text.rpartition("=")
    if not name:
        raise click.BadParameter(f"'{text}' is not of the form NAME=NUMBER, such as rel_l2=0.05")
    return name, number(value)


def setting(text: str) -> tuple[str, str]:
    """`KEY=VALUE` as a pair; the first `=` counts."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.BadParameter(f"'{text}' is not of the form KEY=VALUE, such as use_tf32=0")
    return name, value


def shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`NAME:SIZES` as a pair; the last `:` counts, since a name may hold it too."""
    name, _, sizes = text.rpartition(":")
    try:
        numbers = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        numbers = (0,)
    if not name or min(numbers) < 1:
        raise click.BadParameter(f"'{text}' is not of the form NAME:SIZES, such as image:1,3,224,224")
    return name, numbers


def once(_: click.Context, __: click.Parameter, pairs: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """The pairs as a dictionary; a name given twice would silently lose its first value."""
    names = [name for name, _value in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise click.BadParameter(f"'{min(twice)}' is given twice; give it once")
    return dict(pairs)


def listed(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    """`a,b` as a tuple; None where the option was not given."""
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise click.BadParameter(f"'{text}' is not of the form spatial_svd,tucker2")
    return names


def calibration(unless: str) -> Option:
    """Samples to fit to, needed unless something else is so."""
    return click.option(
        "--calibration",
        metavar="SRC",
        help="Samples to fit to: an .npz keyed by input name, an .npy, a folder of images or of ONNX "
        f"test_data_set_N, or script.py:function that yields dicts of arrays. Needed unless {unless}.",
    )


evaluation = click.option(
    "--evaluation",
    metavar="SRC",
    help="Samples to judge by, labels too where there are any.  [default: a part of the calibration samples]",
)


def steps(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> dict[str, Any] | None:
    """What TOML files and `KEY=VALUE` say, as one dictionary; what is typed counts."""
    read: dict[str, Any] = {}
    typed: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if text.endswith(".toml"):
            read |= read_toml(Path(text))
        elif not key or not equals:
            raise click.BadParameter(
                f"'{text}' is not of the form KEY=VALUE, such as scale=1/255, nor a .toml file"
            )
        elif key in typed:
            raise click.BadParameter(f"'{key}' is given twice; give it once")
        else:
            typed[key] = value
    return read | typed or None


preprocess = click.option(
    "--preprocess",
    multiple=True,
    metavar="KEY=VALUE",
    callback=steps,
    help="How the pixels of images become inputs: resize, crop (256 or 224x192), channels (rgb, bgr, gray), "
    "scale (1/255), mean, std, layout (NCHW, NHWC), dtype; or a .toml file of these. Repeatable.",
)
random_samples = click.option(
    "--random-samples",
    type=click.IntRange(min=3),
    metavar="N",
    help="Draw so many random inputs in place of samples, for work on latency; drift on them says little.",
)
strict = click.option(
    "--strict",
    is_flag=True,
    help="Ask the budgets of the upper ends of the drifts' 95 % intervals, not of the estimates.",
)


def max_load(default: float | None, meaning: str) -> Option:
    """The most that loading may take; what it means differs from command to command."""
    return click.option(
        "--max-load",
        default=default,
        show_default=default is not None,
        metavar="FACTOR",
        type=number,
        help=f"{meaning} so many times as long to load; 50 ms more are always allowed.",
    )


def max_memory(default: float | None, meaning: str) -> Option:
    """The same for the memory of its process."""
    return click.option(
        "--max-memory",
        default=default,
        show_default=default is not None,
        metavar="FACTOR",
        type=number,
        help=f"{meaning} so many times as much memory for its process; 32 MB more are always allowed.",
    )


def max_drift(meaning: str) -> Option:
    """Budgets of drift; what they mean differs from command to command."""
    return click.option(
        "--max-drift", multiple=True, metavar="NAME=VALUE", type=budget, callback=once, help=meaning
    )


def min_speedup(meaning: str) -> Option:
    """The least speed-up; what it means differs from command to command."""
    return click.option("--min-speedup", metavar="FACTOR", type=number, help=meaning)


provider = click.option(
    "--provider", default="cpu", show_default=True, help="ONNX Runtime's execution provider."
)


provider_option = click.option(
    "--provider-option",
    "provider_options",
    multiple=True,
    metavar="KEY=VALUE",
    type=setting,
    callback=once,
    help="An option of the provider itself, as deployed: use_tf32=0. Repeatable.",
)


def threads(default: str = "ONNX Runtime's own") -> Option:
    """Threads, and whose number it is where none is given."""
    return click.option(
        "--threads",
        type=click.IntRange(min=1),
        metavar="N",
        help=f"Threads inside one operator, as deployed.  [default: {default}]",
    )


batch = click.option(
    "--batch",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Samples in one run, as deployed.",
)


def shapes(more: str = "") -> Option:
    """Sizes of inputs with dynamic dimensions; `more` is said behind the help."""
    return click.option(
        "--shape",
        "shapes",
        multiple=True,
        metavar="NAME:SIZES",
        type=shape,
        callback=once,
        help="The shape of an input with dynamic dimensions, as deployed: image:1,3,224,224. Repeatable."
        + more,
    )


def external_data(command: Callable[..., Any]) -> Callable[..., Any]:
    """Whether weights go into a file beside the model, and which."""
    for option in (
        click.option(
            "--size-threshold",
            type=click.IntRange(min=0),
            default=1024,
            show_default=True,
            metavar="BYTES",
            help="Tensors of fewer bytes stay in OUT itself in any case.",
        ),
        click.option(
            "--save-as-external-data",
            is_flag=True,
            help="Write weights into one file beside OUT, named OUT.<digest>.data. A model over 2 GB always "
            "is written so, any other one as a single file by default, wherever its weights came from.",
        ),
    ):
        command = option(command)
    return command


seed = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Draws samples and positions; the same seed gives the same draws.",
)
report = click.option(
    "--report",
    "reports",
    multiple=True,
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Write a report too; the suffix chooses its form: .html, .json or .md. Repeatable.",
)
quiet = click.option("-q", "--quiet", is_flag=True, help="Only the verdict: no progress, no tables.")
