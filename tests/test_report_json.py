"""Reports as JSON: the schema that is shipped, and reading them back."""

import json
import re
from dataclasses import replace
from importlib.resources import files

import jsonschema
import pytest
from example_report import COMPARED, DETAILED, REFUSED, REWRITTEN
from report_schema import schema

from rewriter.errors import ReportError
from rewriter.report import SCHEMA_VERSION, parse, read, to_json, to_markdown
from rewriter.report.as_html import to_html

REPORTS = {"rewritten": REWRITTEN, "detailed": DETAILED, "refused": REFUSED, "compared": COMPARED}


@pytest.fixture(params=REPORTS)
def report(request):
    return REPORTS[request.param]


def test_the_shipped_schema_is_that_of_the_types(request):
    path = files("rewriter.report") / "schema.json"
    text = json.dumps(schema(), indent=1) + "\n"
    if request.config.getoption("--update-golden"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), "schema.json: see --update-golden"
    jsonschema.Draft202012Validator.check_schema(schema())


def test_what_is_written_keeps_to_the_schema(report):
    jsonschema.validate(json.loads(to_json(report)), schema())


@pytest.mark.parametrize("change", [{"verdict": 3}, {"sites": [{}]}, {"more": 1}, {"schema_version": 1}])
def test_the_schema_refuses(change):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**json.loads(to_json(DETAILED)), **change}, schema())


def test_read_back_all_views_are_the_same(report):
    again = parse(to_json(report))
    assert to_json(again) == to_json(report)
    assert to_markdown(again) == to_markdown(report)
    assert to_html(again) == to_html(report)
    assert again.sites == report.sites
    assert again.gates == report.gates


def test_a_report_of_the_first_version_is_read():
    values = json.loads(to_json(REWRITTEN))
    for name in ("times", "outputs", "command"):
        del values[name]
    for each in values["rounds"]:
        del each["chosen"]
    again = parse(json.dumps({**values, "schema_version": 1}))
    assert to_json(again) == to_json(REWRITTEN)
    assert again.schema_version == SCHEMA_VERSION


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, "this program knows up to 2"),
        ({"schema_version": "2"}, "has '2' as schema_version"),
        ({"verdict": 3}, "verdict is not a text"),
        ({"improved": 1}, "improved is not true or false"),
        ({"more": 1}, "more is no field that is known"),
        ({"latency": {}}, "latency.before_ms is missing"),
        ({"sites": {}}, "sites is not a list"),
        ({"samples": {"final": "all"}}, "samples.final is not a whole number"),
        ({"max_macs": "half"}, "max_macs is not a number"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(ReportError, match=re.escape(message)):
        parse(json.dumps({**json.loads(to_json(REWRITTEN)), **change}))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"schema_version": 1}', "[" * 100_000, "\x00"])
def test_what_is_no_report_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ReportError) as caught:
        read(tmp_path / "a.json")
    assert "a.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\xfa")
    for name, why in (("none.json", "No such file"), ("bytes.json", "it is no text"), (".", "directory")):
        with pytest.raises(ReportError, match=why):
            read(tmp_path / name)


def test_settings_of_python_are_read_as_their_names():
    again = parse(to_json(replace(REWRITTEN, settings={"calibration": len, "seed": 3})))
    assert again.settings == {"calibration": "len", "seed": 3}
