"""The page: the figures of the other views, names that never become markup, nothing from the network."""

import html
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from example_report import COMPARED, DETAILED, EVIL, LONG, REFUSED, REWRITTEN, SITES
from rich.console import Console

from rewriter.report import LayerTime, rows, to_json, to_markdown, to_terminal, words
from rewriter.report.as_html import to_html
from rewriter.report.strip import layers


class Page(HTMLParser):
    """The texts, tags and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(
    params=[REWRITTEN, DETAILED, REFUSED, COMPARED], ids=["rewritten", "detailed", "refused", "compared"]
)
def report(request):
    return request.param


def test_the_verdict_comes_first():
    page = Page(to_html(DETAILED))
    assert (
        page.text.index(DETAILED.verdict) < page.text.index("Speed-up") < page.text.index("Before and after")
    )


def test_nothing_comes_from_elsewhere(report):
    page = Page(to_html(report))
    assert all(address.startswith("data:") for address in page.addresses)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/)", to_html(report))


def test_names_are_text(report):
    page = Page(to_html(replace(report, model=EVIL, verdict=EVIL, notes=(EVIL,), warnings=(EVIL,))))
    assert page.tags.count("script") == 1
    assert "alert(1)" in page.text
    assert "\x1b" not in to_html(report)


def test_the_same_report_gives_the_same_page(report):
    assert to_html(report) == to_html(report)


def test_three_views_say_the_same(report):
    page = Page(to_html(report)).text
    text = io.StringIO()
    to_terminal(report, Console(file=text, width=400))
    terminal = " ".join(text.getvalue().split())
    markdown = " ".join(re.sub(r"\\(.)", r"\1", html.unescape(to_markdown(report))).split())
    figures = [report.verdict, rows.kept_sentence(report) if report.comparison is None else ""]
    for row in rows.model_rows(report):
        figures += [row.name, row.before, row.after, row.change, row.limit]
    for row in rows.drift_rows(report):
        figures += [row.value, row.interval, row.samples, row.budget]
    for row in rows.site_rows(report):
        figures += [row.was, row.became, row.rank, *row.macs, *row.params, *(row.latency or ())]
        figures += [row.error]
    for line in rows.frontier_rows(report)[1]:
        figures += line
    figures += [rows.latency_sentence(report), *report.warnings, *report.notes, *report.steps]
    for figure in filter(None, figures):
        for view in (page, terminal, markdown):
            assert " ".join(figure.split()) in view


def test_json_holds_what_the_page_shows():
    text = to_json(DETAILED)
    picture = DETAILED.outputs[0].worst[0].picture
    for each in (picture.before_png, picture.after_png, picture.difference_png):
        assert each in text
        assert each in to_html(DETAILED)
    assert "my out.onnx" in text
    assert "'my out.onnx'" in Page(to_html(DETAILED)).text  # quoted for a shell


def test_a_refusal_says_so():
    page = Page(to_html(REFUSED)).text
    assert "Accepted" not in page
    assert REFUSED.verdict in page
    assert "Speed-up" not in page


def test_a_comparison_says_which_gate_failed():
    page = Page(to_html(COMPARED)).text
    assert 'class="verdict bad"' in to_html(COMPARED)
    assert COMPARED.verdict in page
    assert "compared with out.onnx" in page
    assert "They part at 'x'" in page


def test_layers_tell_what_became_of_them():
    found = {layer.name: layer for layer in layers(DETAILED)}
    stem = found["stem"]
    assert (stem.kind, stem.became, stem.before, stem.after) == (
        "rewritten",
        "depthwise_pointwise",
        100.0,
        36.36,
    )
    assert dict(stem.facts)["Time in the network"] == "1.10 → 0.400 ms"
    assert dict(stem.facts)["Predicted alone"] == "0.813 → 0.250 ms"
    assert dict(stem.facts)["Predicted error"] == "1.23 %"
    assert (found["gate|1"].kind, found["gate|1"].before) == ("kept", None)
    assert dict(found["gate|1"].facts)["Why it stays"] == "its weight is computed by `Mul`"
    assert found["head"].refusals == (("grouped_pointwise", "10 channels do not divide into blocks of 8"),)
    assert (found["scores"].kind, found["scores"].became) == ("other", "Gemm")
    assert list(found)[:5] == ["stem", words.printable(EVIL), "gate|1", "head", "scores"]


def test_without_times_the_layers_are_the_convolutions():
    found = layers(REWRITTEN)
    assert [layer.name for layer in found][:3] == ["stem", words.printable(EVIL), "head"]
    assert found[0].before == 100.0
    assert found[1].before is None


def test_a_large_network_stays_a_small_page():
    names = [LONG.format(index, 7) for index in range(400)]
    sites = tuple(replace(SITES[0], node=name) for name in names)
    times = replace(DETAILED.times, layers=tuple(LayerTime(name, "Conv", 0.1, 0.05) for name in names))
    text = to_html(replace(DETAILED, sites=sites, times=times))
    assert len(text.encode()) < 1_000_000
    assert text.count('class="layer rewritten"') == 400
