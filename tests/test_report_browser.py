"""The page in a browser: nothing fails, charts are drawn, layers can be chosen, it fits any width."""

import os
import shutil
from dataclasses import replace

import pytest
from example_report import COMPARED, DETAILED, LONG, REFUSED, SITES

from rewriter.report import LayerTime, write

sync_api = pytest.importorskip("playwright.sync_api")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NAMES = [LONG.format(index, 7) for index in range(60)]
LARGE = replace(
    DETAILED,
    sites=tuple(replace(SITES[0], node=name) for name in NAMES),
    times=replace(DETAILED.times, layers=tuple(LayerTime(name, "Conv", 0.1, 0.05) for name in NAMES)),
)
REPORTS = {"detailed": DETAILED, "refused": REFUSED, "compared": COMPARED, "large": LARGE}


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium is installed")
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"] if root else []
        )  # Chromium's sandbox refuses root
        yield found
        found.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens the page of a report; nothing may be said on its console, nor asked of a network."""
    said, pages = [], []

    def opened(report, **options):
        path = tmp_path / "report.html"
        write(report, path)
        page = browser.new_page(offline=True, **options)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or said.append(asked.url))
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert said == []


@pytest.mark.parametrize("name", REPORTS)
def test_no_width_needs_scrolling_sideways(show, name):
    page = show(REPORTS[name])
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    beyond = """() => [...document.querySelectorAll('body *')].filter((each) => !each.closest('[hidden]')
        && each.getBoundingClientRect().right > innerWidth + 1).map((each) => each.outerHTML.slice(0, 100))"""
    for width in (320, 360, 700, 950, 1280):
        page.set_viewport_size({"width": width, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, width
        assert page.evaluate(beyond) == [], width


def test_charts_are_drawn(show):
    page = show(DETAILED)
    charts = page.locator("figure.chart svg")
    assert charts.count() == 4  # latency, trade-off, operators, samples
    for index in range(4):
        box = charts.nth(index).bounding_box()
        assert box["width"] > 200
        assert box["height"] > 100
    assert page.locator("#tradeoff .series.chosen .dot").count() == 1
    assert page.locator("#tradeoff .series.tried .dot").count() == 2
    assert page.locator("#time .series.before .rect").count() == 9  # eight operators, and the others
    pictures = page.locator(".pictures img")
    assert pictures.evaluate_all("all => all.map((each) => each.naturalWidth)") == [48, 48, 48]


def test_points_say_what_they_are(show):
    page = show(DETAILED)
    page.locator("#tradeoff .series.chosen .dot").hover()
    assert page.locator("#tip").is_visible()
    assert page.locator("#tip").inner_text().startswith("1.98x (1.78 to 2.18), rel_l2 0.0312, 2 sites")
    page.mouse.move(0, 0)
    assert page.locator("#tip").is_hidden()


def test_layers_can_be_chosen(show):
    page = show(DETAILED)
    layers, shown = page.locator(".strip .layer"), page.locator(".chosen-layer article:visible")
    assert layers.count() == 10
    assert shown.locator("h3").inner_text().split() == ["stem", "depthwise_pointwise"]  # the slowest
    layers.nth(2).hover()
    assert "its weight is computed by `Mul`" in shown.inner_text()
    page.mouse.move(0, 0)
    assert "depthwise_pointwise" in shown.inner_text()  # what was chosen stays
    layers.nth(3).click()
    page.mouse.move(0, 0)
    assert shown.locator("h3").inner_text().split()[0] == "head"
    page.keyboard.press("ArrowRight")
    assert shown.locator("h3").inner_text().split()[0] == "scores"
    page.keyboard.press("Home")
    assert shown.count() == 1
    assert shown.locator("h3").inner_text().split()[0] == "stem"


def luminance(colour):
    red, green, blue = (int(part) / 255 for part in colour[4:-1].split(",")[:3])
    parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(show, scheme):
    page = show(DETAILED, color_scheme=scheme)
    ground = luminance(page.locator("body").evaluate("each => getComputedStyle(each).backgroundColor"))
    assert (ground < 0.1) == (scheme == "dark")
    for where, of in (("h1", "color"), (".note", "color"), (".warning", "color"), (".chart text", "fill")):
        text = luminance(page.locator(where).first.evaluate(f"each => getComputedStyle(each).{of}"))
        # WCAG 2.2, 1.4.3: at least 4.5 to 1
        assert (max(text, ground) + 0.05) / (min(text, ground) + 0.05) >= 4.5, where


def test_paper_has_the_tables(show):
    page = show(LARGE)
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator("#layers details").first.evaluate("each => each.open")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#layers details").nth(-2).evaluate("each => each.open")
    assert (
        page.locator("body").evaluate("each => getComputedStyle(each).backgroundColor")
        == "rgb(255, 255, 255)"
    )
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.pdf(format="A4").startswith(b"%PDF")
