"""A saved plan on a model: what becomes of which site, or one line that says why it does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rewriter.errors import PlanError, listed
from rewriter.graph import Site
from rewriter.grid import Grid
from rewriter.planfile.content import SavedForm, SavedPlan, SavedSite, fingerprint
from rewriter.rewrite import Refusal

if TYPE_CHECKING:
    from passes.base import Pass

_ANOTHER = "save a plan for this model with rewriter optimize --save-plan"
# Names in a message.
_MOST_NAMES = 5


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """A plan on a model.

    Attributes:
        sites: Those of the model that the plan was made for, in the order of the graph.
        chosen: Those of them that it rewrites, with their forms.
        remarks: What a report says of them.
    """

    sites: tuple[Site, ...]
    chosen: tuple[tuple[Site, SavedForm], ...]
    remarks: tuple[str, ...]


def match(
    plan: SavedPlan,
    sites: Sequence[Site],
    refusals: Sequence[Refusal],
    passes: Sequence[Pass],
    label: str,
    model: str,
) -> Match:
    """The plan on the sites of a model, which may have other weights than when the plan was made.

    Args:
        plan: What to do.
        sites: Of the model, in the order of the graph.
        refusals: Its other convolutions.
        passes: All that there are.
        label: What messages call the plan.
        model: What messages call the model.

    Raises:
        PlanError: A site that the plan rewrites is not in the model or another convolution there, or cannot
            take the form.
    """
    by_name = {site.name: site for site in sites}
    barred = {refusal.node: refusal.reason for refusal in refusals}
    saved: dict[str, SavedSite] = {}
    for each in plan.sites:
        if each.node in saved:
            raise PlanError(f"{label} has the node '{each.node}' twice; take one of them out")
        saved[each.node] = each
        if each.form is None:
            continue
        where = f"{label} rewrites '{each.node}'"
        site = by_name.get(each.node)
        if site is None and each.node in barred:
            raise PlanError(f"{where}, which cannot be rewritten in {model}: {barred[each.node]}; {_ANOTHER}")
        if site is None:
            raise PlanError(f"{where}, and {model} has no such convolution, but {_some(by_name)}; {_ANOTHER}")
        if (other := _other(each, site)) is not None:
            raise PlanError(f"{where} with {other}; {_ANOTHER}")
        if (obstacle := _obstacle(each.form, site, plan, passes)) is not None:
            raise PlanError(f"{where} as {each.form.pass_name}, {obstacle}")
    known = tuple(site for site in sites if site.name in saved)
    chosen = [(site, saved[site.name].form) for site in known]
    unknown = len(sites) - len(known)
    anew = [site.name for site in known if fingerprint(site.conv) != saved[site.name].weights_sha256]
    remark = (
        f"{len(anew)} of {len(known)} convolutions have other weights than those that the plan was made for: "
        "its predictions are not theirs, and other choices may be better"
        + (f"; {unknown} more, of which it does not know, stay as they are" if unknown else "")
    )
    return Match(
        known,
        tuple((site, form) for site, form in chosen if form is not None),
        (remark,) if anew else (),
    )


def _other(saved: SavedSite, site: Site) -> str | None:
    """What makes a site another convolution than the saved one, or None."""
    conv = site.conv
    for what, was, now in (
        ("a weight of shape", saved.weight_shape, conv.weight.shape),
        ("strides", saved.strides, conv.strides),
        ("pads", saved.pads, conv.pads),
        ("dilations", saved.dilations, conv.dilations),
        ("input dilations", saved.input_dilations, conv.input_dilations),
    ):
        if was != now:
            return f"{what} {list(was)}, the model has {list(now)}"
    return None if saved.group == conv.group else f"group {saved.group}, the model has {conv.group}"


def _obstacle(form: SavedForm, site: Site, plan: SavedPlan, passes: Sequence[Pass]) -> str | None:
    """Why a site cannot take a form, with what to do, or None."""
    by_name = {each.name: each for each in passes}
    found = by_name.get(form.pass_name)
    if found is None:
        return f"and there is no such pass; there are {', '.join(by_name)}"
    if plan.exact and not found.exact:
        return "which is not exact as the plan says that all are; set exact to false, and give samples"
    reason = found.refuse(site.conv)
    if reason is None and (found.lowers or form.lowerings):
        reason = site.obstacle
    if reason is not None:
        return f"which refuses it: {reason}; {_ANOTHER}"
    ranks = found.ranks(site.conv, Grid(plan.block))
    if form.rank not in {tuple(rank) for rank in ranks}:
        there = ", ".join("x".join(map(str, rank)) for rank in ranks) or "none"
        rank = "x".join(map(str, form.rank))
        return f"which has no rank {rank} for it in blocks of {plan.block}; there are {there}"
    return None


def _some(names: dict[str, Site]) -> str:
    shown = listed(sorted(names)[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return shown if more <= 0 else f"{shown} and {more} more"
