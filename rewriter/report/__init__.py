"""One `Report`; a page, JSON, Markdown and terminal text are views of it.

content         what a run found out
details         where the time goes, and which samples drift the most
sites           what every site was and became
words           how figures and names are written for people
rows            the tables that the views for people share
as_html, as_json, as_markdown, as_terminal      one view each
charts, plots, strip   what the page draws
from_json       a report read back
inspection, as_layers      what `inspect` found out, and its view for people
files           a view written to a path, chosen by its suffix; the page's libraries are loaded only for it
"""

from rewriter.report.as_json import to_json
from rewriter.report.as_layers import print_inspection
from rewriter.report.as_markdown import to_markdown
from rewriter.report.as_terminal import to_terminal
from rewriter.report.content import SCHEMA_VERSION, Comparison, Gate, Point, Report, SiteReport
from rewriter.report.details import LayerTime, OperatorTime, OutputDrift, Picture, Times, WorstSample
from rewriter.report.files import check_path, rendered, write
from rewriter.report.from_json import parse, read
from rewriter.report.inspection import Inspection, LayerReport
from rewriter.report.sites import applied_reports, site_reports

__all__ = [
    "SCHEMA_VERSION",
    "Comparison",
    "Gate",
    "Inspection",
    "LayerReport",
    "LayerTime",
    "OperatorTime",
    "OutputDrift",
    "Picture",
    "Point",
    "Report",
    "SiteReport",
    "Times",
    "WorstSample",
    "applied_reports",
    "check_path",
    "parse",
    "print_inspection",
    "read",
    "rendered",
    "site_reports",
    "to_json",
    "to_markdown",
    "to_terminal",
    "write",
]
