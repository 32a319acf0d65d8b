"""What every site was and became, from its candidates and the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from rewriter.conv import Conv, Ints
from rewriter.fitting import Survey, as_it_is
from rewriter.graph import Site
from rewriter.plan import Candidate, Plan
from rewriter.report.content import SiteReport
from rewriter.rounding import Checked


def site_reports(
    surveys: Sequence[Survey],
    timed: Sequence[Sequence[Candidate]],
    shapes: Mapping[str, Ints],
    plan: Plan | None,
    checked: Sequence[Checked] | None = None,
    *,
    by_macs: bool = False,
) -> tuple[SiteReport, ...]:
    """One report a site.

    Args:
        surveys: Of the sites.
        timed: Of each the candidates that were left, the site as it is first.
        shapes: The shape of each site's input as deployed, batch first, by site name.
        plan: What was chosen, or None where every site stays as it is.
        checked: Of each what rounding makes of its candidates, if that was measured.
        by_macs: Whether multiply-adds were bounded and nothing timed.
    """
    became = [candidates[0] for candidates in timed] if plan is None else plan.chosen
    looks = checked or [Checked(tuple(candidates)) for candidates in timed]
    return tuple(
        _chosen_report(survey, shapes[survey.site.name], candidates, taken, look, plan is not None, by_macs)
        for survey, candidates, taken, look in zip(surveys, timed, became, looks, strict=True)
    )


def applied_reports(
    sites: Sequence[Site], shapes: Mapping[str, Ints], plan: Plan, accepted: bool
) -> tuple[SiteReport, ...]:
    """One report a site where nothing was searched: no site was timed alone.

    Args:
        sites: In the order of the graph.
        shapes: The shape of each site's input as deployed, batch first, by site name.
        plan: What was made, one candidate a site.
        accepted: Whether it passed its gates; otherwise every site stays as it is.
    """
    found = []
    for site, taken in zip(sites, plan.chosen, strict=True):
        before = as_it_is(site, shapes[site.name][2:])
        reason = None
        if taken.pass_name is None:
            reason = "the plan leaves it as it is"
        elif not accepted:
            reason = "the model did not pass its gates"
        became = taken if accepted else before
        found.append(_site_report(site, shapes[site.name], before, became, reason))
    return tuple(found)


def _chosen_report(
    survey: Survey,
    shape: Ints,
    timed: Sequence[Candidate],
    became: Candidate,
    look: Checked,
    accepted: bool,
    by_macs: bool,
) -> SiteReport:
    """What a site was and became; `timed` begins with the site as it is."""
    reason = None
    if became.pass_name is None:
        if len(survey.candidates) == 1:
            reason = "no pass has a form for it"
        elif len(timed) == 1:
            cheaper = "has fewer multiply-adds" if by_macs else "is faster here"
            reason = f"no form that keeps its output {cheaper}"
        elif len(look.candidates) == 1:
            reason = "every faster form of it loses too much to rounding"
        elif not accepted:
            reason = "no model with faster forms of it was accepted"
        elif by_macs:
            reason = "within the multiply-adds other convolutions lose less"
        else:
            reason = "within the budget other convolutions gain more"
    found = _site_report(survey.site, shape, timed[0], became, reason)
    return replace(
        found,
        latency_before_ms=None if len(timed) == 1 or by_macs else timed[0].latency_ms,
        latency_after_ms=None if len(timed) == 1 or by_macs else became.latency_ms,
        rounding_error=None
        if became.pass_name is None or look.direct is None
        else float(np.sqrt(became.error)),
        direct_rounding_error=look.direct,
    )


def _site_report(
    site: Site, shape: Ints, before: Candidate, became: Candidate, reason: str | None
) -> SiteReport:
    """What a site was and became, without what was measured of it alone."""
    return SiteReport(
        node=site.name,
        was=_describe(site.conv),
        in_shape=shape,
        became=became.pass_name,
        rank=became.rank if became.pass_name else None,
        before=before.cost,
        after=became.cost,
        predicted_error=float(np.sqrt(became.error)),
        latency_before_ms=None,
        latency_after_ms=None,
        reason=reason,
    )


def _describe(conv: Conv) -> str:
    """A convolution in a few characters: kernel, channels, then strides, dilations and groups where not 1."""
    words = ["x".join(map(str, conv.kernel_shape)), f"{conv.in_channels}->{conv.out_channels}"]
    for letter, values in (("s", conv.strides), ("d", conv.dilations), ("g", (conv.group,))):
        if max(values) > 1:
            words.append(letter + "x".join(map(str, values if len(set(values)) > 1 else values[:1])))
    return " ".join(words)
