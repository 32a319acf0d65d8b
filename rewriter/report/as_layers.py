"""An inspection as tables on a terminal, readable at 80 columns."""

from __future__ import annotations

from math import inf
from typing import Final

from rich.console import Console

from rewriter.conv import Ints
from rewriter.graph import Layer
from rewriter.report import rows, words
from rewriter.report.as_terminal import View
from rewriter.report.inspection import Inspection

# What the columns of the table need beside the layer's name.
_OTHER_COLUMNS: Final = 56
_LEAST_NAME_WIDTH: Final = 16
_MOST_REASONS: Final = 12
_MOST_NODES: Final = 2


def print_inspection(found: Inspection, console: Console) -> None:
    """Prints the layers, two lines each, why they keep their form, and the totals last."""
    view = View(console)
    for name, shape in found.inputs.items():
        view.say(f"Input '{name}': {_sizes(shape)}.")
    if found.layers:
        _layers(found, view)
        _reasons(found, view)
    console.print()
    view.say(found.conventions)
    if found.others_ms and found.total_ms:
        parts = [f"{kind} {words.percent(ms / found.total_ms)}" for kind, ms in found.others_ms.items()]
        view.say(f"Time in kernels of no layer: {', '.join(parts)}.")
    if found.uncounted:
        parts = [f"{count} {kind}" for kind, count in found.uncounted.items()]
        view.say(f"Warning: not counted are {', '.join(parts)}.", "yellow")
    timed = "" if found.total_ms is None else f", {words.milliseconds(found.total_ms)} in all kernels"
    view.say(
        f"{words.plural(len(found.layers), 'layer')}: {words.count(found.macs)} MACs, "
        f"{words.count(found.flops)} FLOPs, {words.count(found.params)} parameters{timed}.",
        "bold",
    )


def _layers(found: Inspection, view: View) -> None:
    room = max(view.console.width - _OTHER_COLUMNS, _LEAST_NAME_WIDTH)
    short = words.short_names((each.layer.name for each in found.layers), room)
    letters = _letters(found.passes)
    timed = found.total_ms is not None
    lines = []
    for each in found.layers:
        layer = each.layer
        first = [short[layer.name], _sizes(layer.in_shape), _kernel(layer), words.count(layer.macs)]
        second = [
            " ".join((*layer.kinds, layer.op_type))
            + (f", {dead} dead" if (dead := each.dead_outputs) else ""),
            _sizes(layer.out_shape),
            _field(layer),
            words.count(layer.flops),
        ]
        first += [words.count(layer.params)]
        second += ["".join(letters[name] for name in each.passes) or "-"]
        if timed:
            first.append(words.figure(each.ms))
            second.append(words.percent(each.share))
        lines += [first, second]
    header = ["Layer\nkind", "input\noutput", "kernel\nsees", "MACs\nFLOPs", "params\npasses"]
    view.console.print()
    view.table([*header, "ms\nshare"] if timed else header, lines)
    view.say(f"Passes: {', '.join(f'{letter} {name}' for name, letter in letters.items())}.")
    if dead := sum(each.dead_outputs for each in found.layers):
        computing = sum(each.dead_outputs > 0 for each in found.layers)
        view.say(
            f"{words.plural(dead, 'dead channel')} of {words.plural(computing, 'convolution')}: no output "
            "depends on them, and optimize removes them in blocks."
        )


def _reasons(found: Inspection, view: View) -> None:
    reasons = rows.refusal_rows(refusal for each in found.layers for refusal in each.refusals)
    lines = []
    for row in reasons[:_MOST_REASONS]:
        others = len(row.nodes) - _MOST_NODES
        nodes = ", ".join(words.folded(node, 30) for node in row.nodes[:_MOST_NODES])
        lines.append(
            (row.reason, row.pass_name or "all", nodes + (f" and {others} more" if others > 0 else ""))
        )
    if lines:
        view.console.print()
        view.table(("Why a pass has no form", "pass", "layers"), lines, right_from=3)
    if len(reasons) > _MOST_REASONS:
        view.say(f"{words.plural(len(reasons) - _MOST_REASONS, 'more reason')} with --json.")


def _letters(passes: tuple[str, ...]) -> dict[str, str]:
    """A letter for each pass, of its name."""
    letters: dict[str, str] = {}
    for name in passes:
        free = (letter for letter in name.upper() if letter.isalpha() and letter not in letters.values())
        letters[name] = next(free, "?")
    return letters


def _sizes(sizes: Ints) -> str:
    return "x".join(map(str, sizes)) or "scalar"


def _kernel(layer: Layer) -> str:
    """Taps, strides, dilations with the effective kernel, and groups, each where it is not 1."""
    window = layer.window
    if window is None:
        return _sizes(layer.weight_shape)
    parts = [_sizes(window.kernel_shape)]
    if max(window.strides) > 1:
        parts.append(f"s{_sizes(tuple(dict.fromkeys(window.strides)))}")
    if window.effective_kernel != window.kernel_shape:
        parts.append(f"d{_sizes(tuple(dict.fromkeys(window.dilations)))}={_sizes(window.effective_kernel)}")
    if window.group > 1:
        parts.append(f"g{window.group}")
    return " ".join(parts)


def _field(layer: Layer) -> str:
    """The receptive field, in values of the model's input."""
    if layer.window is None:
        return ""
    sizes = layer.window.receptive_field
    return "x".join("?" if size is None else "all" if size == inf else f"{size:g}" for size in sizes)
