"""The views of a report: the same figures in each, and names that never become markup."""

import io
import json
import os
import re
import stat
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from example_report import EVIL, LONG, REFUSED, REWRITTEN, SITES
from rich.console import Console

from rewriter.errors import OptionError, OutputError
from rewriter.report import check_path, to_json, to_markdown, to_terminal, words, write
from rewriter.report.as_html import to_html
from rewriter.rewrite import Refusal


def terminal(report, width=80, **options):
    text = io.StringIO()
    to_terminal(report, Console(file=text, width=width, **options))
    return text.getvalue()


def cells(markdown, first):
    """The cells of the Markdown table row whose first cell is `first`."""
    lines = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in markdown.splitlines() if line.startswith("|")]
    return next(line for line in lines if line[0] == first)


# JSON


def test_json_holds_every_field_version_first():
    values = json.loads(to_json(REWRITTEN))
    assert next(iter(values)) == "schema_version"
    assert set(values) == {field.name for field in fields(REWRITTEN)}
    assert set(values["latency"]) == {field.name for field in fields(REWRITTEN.latency)}
    assert values["latency"]["before_times_ms"] == [2.39, 2.4, 2.38]
    assert values["sites"][0]["before"] == {"macs": 28_901_376, "params": 36_928, "activations": 50_176}
    assert values["sites"][1]["node"] == EVIL
    assert values["expenses"][1] == {
        "measure": "load_ms",
        "before": 41.5,
        "after": 38.27,
        "ratio": 38.27 / 41.5,
        "limit": 10.0,
        "allowed": 415.0,
        "passed": True,
    }
    assert values["refusals"][0] == {
        "node": "gate|1",
        "pass_name": None,
        "reason": "its weight is computed by `Mul`",
    }


def test_json_sorts_mappings_and_is_stable():
    values = json.loads(to_json(REWRITTEN))
    assert list(values["samples"]) == ["choose", "final", "fit"]
    shuffled = replace(REWRITTEN, samples=dict(reversed(REWRITTEN.samples.items())))
    assert to_json(shuffled) == to_json(REWRITTEN)


def test_json_has_no_bare_tokens():
    def refuse(token):
        raise AssertionError(token)

    text = to_json(replace(REWRITTEN, settings={"a": -np.inf, "b": np.float32(0.5), "c": np.arange(2)}))
    values = json.loads(text, parse_constant=refuse)
    assert values["latency"]["after_times_ms"] == [1.2, 1.21, "NaN"]
    assert values["drift"][2]["low"] == "-Infinity"
    assert values["settings"] == {"a": "-Infinity", "b": 0.5, "c": [0, 1]}


def test_json_takes_any_setting():
    settings = {"path": Path("a/b"), "function": len, "object": object(), "set": {"b", "a"}}
    values = json.loads(to_json(replace(REWRITTEN, settings=settings)))
    assert values["settings"] == {"function": "len", "object": "object", "path": "a/b", "set": ["a", "b"]}


def test_json_puts_raw_timings_on_one_line():
    assert '"before_times_ms": [2.39, 2.4, 2.38],' in to_json(REWRITTEN)


# Markdown


def test_markdown_begins_with_the_verdict():
    assert to_markdown(REWRITTEN).splitlines()[0] == (
        "**Wrote a model that is 1.98x as fast, within rel_l2 &lt;= 0.05.**"
    )


def test_markdown_figures():
    text = to_markdown(REWRITTEN)
    assert cells(text, "Latency") == ["Latency", "2.39 ms", "1.21 ms", "1.98x", ""]
    assert cells(text, "File size") == ["File size", "857 kB", "423 kB", "-50.6 %", ""]
    assert cells(text, "MACs of convolutions")[1:] == ["56.8 M", "19.6 M", "-65.6 %", ""]
    assert cells(text, "Parameters of convolutions")[1:] == ["214 k", "105 k", "-50.7 %", ""]
    assert cells(text, "Load time")[1:] == ["41.5 ms", "38.3 ms", "-7.8 %", "415 ms"]
    assert cells(text, "Peak memory")[1:] == ["81.2 MB", "180 MB", "2.22 times", "406 MB"]
    assert cells(text, "`rel_l2`")[1:] == ["0.0312", "0.0298 to 0.0327", "200", "0.05", "within"]
    noise = cells(text, "<code>noise&#95;db of logits&#124;&#60;b&#62;</code>")
    assert noise[1:] == ["-30.1 dB", "-inf to -29.5", "200", "-", ""]
    assert cells(text, "`my.py:worst`")[1] == "nan"
    assert text.count("rel_l2`") == 1  # of the only output it would be the same again
    assert cells(text, "`stem`") == [
        "`stem`",
        "3x3 64-&gt;64 s2 g1",
        "depthwise_pointwise",
        "2",
        "28.9 M → 7.33 M",
        "36.9 k → 9.41 k",
        "1.23 %",
        "0.813 → 0.250",
    ]
    assert "2 of 4 convolutions rewritten, 1 kept as they were, 1 not rewritable." in text
    assert "head" not in text.split("<details>")[0]


def test_markdown_folds_refusals():
    text = to_markdown(REWRITTEN).split("<details>")[1]
    assert cells(text, "its weight is computed by \\`Mul\\`")[1:] == ["all", "<code>gate&#124;1</code>"]
    assert cells(text, "a 1 x 1 kernel has one axis")[1:] == [
        "spatial_svd",
        "`node0`, `node1`, `node2` and 2 more",
    ]


@pytest.mark.parametrize("field", ["verdict", "node", "reason", "note", "warning", "step", "was"])
def test_markdown_names_are_text(field):
    changes = {
        "verdict": {"verdict": EVIL},
        "node": {"sites": (replace(SITES[0], node=EVIL),)},
        "was": {"sites": (replace(SITES[0], was=EVIL),)},
        "reason": {"refusals": (Refusal(EVIL, EVIL, EVIL),)},
        "note": {"notes": (EVIL,)},
        "warning": {"warnings": (EVIL,)},
        "step": {"steps": (EVIL,)},
    }
    text = to_markdown(replace(REWRITTEN, **changes[field]))
    assert "<script" not in text
    assert "@user" not in text
    assert "\x1b" not in text
    assert "\nnew" not in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    for table in tables:  # every row has the cells of its header
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1


def test_markdown_of_a_large_network_fits_into_a_comment():
    sites = tuple(replace(SITES[0], node=LONG.format(i, 7) + "x" * 200) for i in range(500))
    refusals = tuple(Refusal(f"{i}" * 90, "tucker2", f"reason {i} " + "y" * 1000) for i in range(1000))
    text = to_markdown(replace(REWRITTEN, sites=sites, refusals=refusals))
    assert len(text.encode()) < 65_536  # GitHub's limit
    assert "400 more rewritten convolutions in the JSON report." in text
    assert "950 more reasons in the JSON report." in text


def test_markdown_keeps_node_names_apart():
    nodes = [f"{'a' * 40}{i}{'b' * 40}" for i in range(3)]
    text = to_markdown(replace(REWRITTEN, sites=tuple(replace(SITES[0], node=node) for node in nodes)))
    assert all(node in text for node in nodes)


def test_markdown_without_measurements():
    text = to_markdown(REFUSED)
    assert "Latency" not in text
    assert "| Drift" not in text
    assert "0 of 4 convolutions rewritten, 3 kept as they were, 1 not rewritable." in text


# Terminal


def test_terminal_says_what_markdown_says():
    lines = [" ".join(line.split()) for line in terminal(REWRITTEN).splitlines()]
    assert "stem 3x3 64->64 s2 g1 28.9 M 36.9 k 0.813" in lines
    assert "depthwise_pointwise 2 7.33 M 9.41 k 0.250 1.23 %" in lines
    assert "tucker2 64 x 32 10.0 M 50.0 k - 0 %" in lines
    assert "Latency 2.39 ms 1.21 ms 1.98x" in lines
    assert "Load time 41.5 ms 38.3 ms -7.8 % 415 ms" in lines
    assert "Peak memory 81.2 MB 180 MB 2.22 times 406 MB" in lines
    assert "rel_l2 0.0312 0.0298 to 0.0327 200 0.05 within" in lines
    assert lines[-1] == REWRITTEN.verdict


@pytest.mark.parametrize("width", [80, 100, 200])
def test_terminal_cuts_nothing_off(width):
    nodes = [LONG.format(i, 7) for i in range(9)]
    text = terminal(replace(REWRITTEN, sites=tuple(replace(SITES[0], node=node) for node in nodes)), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert text.count("depthwise_pointwise") == 9
    if width == 200:
        assert all(node in text for node in nodes)


def test_terminal_keeps_node_names_apart():
    # these differ in the middle alone, so they are wrapped rather than shortened
    nodes = [f"{'a' * 40}{i}{'b' * 40}" for i in range(3)]
    text = terminal(replace(REWRITTEN, sites=tuple(replace(SITES[0], node=node) for node in nodes)))
    column = "".join(line.split()[0] for line in text.splitlines() if re.match("[ab]", line))
    assert all(node in column for node in nodes)


def test_terminal_names_are_text():
    text = terminal(replace(REWRITTEN, verdict=EVIL, notes=(EVIL,), warnings=(EVIL,), steps=(EVIL,)), 200)
    assert text.count("[bold]<script>") == 5
    assert "\x1b" not in text


def test_terminal_without_unicode():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    to_terminal(replace(REWRITTEN, sites=(replace(SITES[0], node="größe"),)), Console(file=file, width=80))
    file.flush()
    assert b"gr" in raw.getvalue()


def test_terminal_without_measurements():
    text = terminal(REFUSED)
    assert "Latency" not in text
    assert text.splitlines()[-1] == REFUSED.verdict


# Files


@pytest.mark.parametrize(
    ("name", "view"), [("a.json", to_json), ("b.md", to_markdown), ("C.JSON", to_json), ("d.html", to_html)]
)
def test_write(tmp_path, name, view):
    path = tmp_path / name
    path.write_text("older")
    write(REWRITTEN, path)
    assert path.read_bytes() == view(REWRITTEN).encode()
    assert list(tmp_path.iterdir()) == [path]


def test_write_gives_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    write(REWRITTEN, tmp_path / "a.md")
    assert stat.S_IMODE((tmp_path / "a.md").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "usual").stat().st_mode
    )


@pytest.mark.parametrize("name", ["a.pdf", "a", "json"])
def test_unknown_suffix(tmp_path, name):
    for ask in (check_path, lambda path: write(REWRITTEN, path)):
        with pytest.raises(OptionError, match=r"known are \.html, \.json, \.md"):
            ask(tmp_path / name)


def test_missing_folder(tmp_path):
    for ask in (check_path, lambda path: write(REWRITTEN, path)):
        with pytest.raises(OutputError, match="there is no folder"):
            ask(tmp_path / "none" / "a.md")


def test_path_is_a_folder(tmp_path):
    (tmp_path / "a.md").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_path(tmp_path / "a.md")


def test_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.md"
    path.write_text("older")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        write(REWRITTEN, path)
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


# Words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.05, "0.0500"),
        (9.996, "10.0"),
        (-41.23, "-41.2"),
        (123456.0, "123000"),
        (1.5e-9, "1.50e-09"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_figure(value, text):
    assert words.figure(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (650, "650"), (999, "999"), (36_928, "36.9 k"), (999_600, "1.00 M")]
)
def test_count(value, text):
    assert words.count(value) == text


def test_change():
    assert words.change(200, 100) == "-50.0 %"
    assert words.change(100, 150) == "+50.0 %"
    assert words.change(100, 250) == "2.50 times"
    assert words.change(100, 100) == "0 %"
    assert words.change(0, 100) == "-"


def test_size_unknown():
    assert words.size(0) == "-"


def test_notes_are_told_before_warnings():
    found = replace(REWRITTEN, notes=("latencies of 2 of 3 shapes",), warnings=("few samples",))
    for text in (terminal(found, 200), to_markdown(found)):
        assert 0 < text.index("Note: latencies of 2 of 3 shapes") < text.index("Warning: few samples")
