"""Command lines told from options: what `click` reads from them is what was given."""

from pathlib import Path

import pytest

from rewriter.cli import cli
from rewriter.command import command_line


def parsed(words):
    """The parameters that a command reads from a command line."""
    command = cli.commands[words[1]]
    return command.make_context(words[1], list(words[2:])).params


def test_optimize():
    words = command_line(
        "optimize",
        [Path("my model.onnx")],
        {
            "o": "out.onnx",
            "calibration": "a.npz",
            "evaluation": None,
            "max-drift": {"rel_l2": 1e-5, "my.py:worst": 0.25},
            "exact": False,
            "frontier": True,
            "passes": ("tucker2", "stacked"),
            "exclude": ["a,b", "--c"],
            "threads": 1,
            "shape": {"x:0": [1, 3, 8, 8]},
            "seed": 0,
            "no-cache": True,
        },
    )
    found = parsed(words)
    assert (found["model"], found["output"]) == (Path("my model.onnx"), Path("out.onnx"))
    assert found["max_drift"] == {"rel_l2": 1e-5, "my.py:worst": 0.25}
    assert (found["exact"], found["frontier"], found["cache"]) == (False, True, False)
    assert found["passes"] == ("tucker2", "stacked")
    assert found["exclude"] == ("a,b", "--c")
    assert (found["shapes"], found["threads"], found["seed"]) == ({"x:0": (1, 3, 8, 8)}, 1, 0)
    assert (found["calibration"], found["evaluation"]) == ("a.npz", None)


def test_compare():
    words = command_line(
        "compare", ["a.onnx", "b.onnx"], {"locate": True, "min-speedup": 1.5, "max-drift": {}}
    )
    assert words == ("rewriter", "compare", "a.onnx", "b.onnx", "--locate", "--min-speedup", "1.5")
    assert parsed(words)["locate"] is True


@pytest.mark.parametrize("given", [b"model", [{"x": 1}], len, None])
def test_what_has_no_name_there(given):
    assert command_line("optimize", [given], {}) == ()
    if given is not None:
        assert command_line("optimize", ["a.onnx"], {"calibration": given}) == ()
