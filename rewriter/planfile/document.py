"""A plan as JSON, and back from a file that people, or other versions, may have written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, get_args

from rewriter.conv import Ints, Lowering
from rewriter.errors import PlanError
from rewriter.joined import Joined
from rewriter.plan import Thinning
from rewriter.planfile.content import SCHEMA_VERSION, SavedForm, SavedPlan, SavedSite
from rewriter.planfile.fields import ANEW, Fields, shown
from rewriter.rewrite import Lowerings
from rewriter.winograd import Winograd

# by the names that documents give them
_LOWERINGS: Final[Mapping[str, type[Lowering]]] = MappingProxyType(
    {kind.__name__.lower(): kind for kind in get_args(Lowering)}
)


def to_json(plan: SavedPlan) -> str:
    """The plan as JSON text, `schema_version` first, one line a site; the same plan gives the same text."""
    head = {
        "schema_version": SCHEMA_VERSION,
        "tool": plan.tool,
        "model": plan.model,
        "exact": plan.exact,
        "passes": list(plan.passes),
        "seed": plan.seed,
        "provider": plan.provider,
        "provider_options": dict(plan.provider_options),
        "threads": plan.threads,
        "batch": plan.batch,
        "shapes": {name: list(plan.shapes[name]) for name in sorted(plan.shapes)},
        "block": plan.block,
        "samples": plan.samples,
        "gradients": plan.gradients,
        **({"expanded": list(plan.expanded)} if plan.expanded else {}),
        **({} if plan.thinning is None else {"thinning": _from_thinning(plan.thinning)}),
    }
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    sites = ",\n    ".join(json.dumps(_from_site(site)) for site in plan.sites)
    lines.append(f'"sites": [\n    {sites}\n  ]' if sites else '"sites": []')
    return "{\n  " + ",\n  ".join(lines) + "\n}\n"


def read(path: str | os.PathLike[str]) -> SavedPlan:
    """The plan in a file.

    Raises:
        PlanError: There is no such file, or it is no plan of this version.
    """
    label = f"plan '{os.fspath(path)}'"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise PlanError(f"there is no {label}; check its name") from error
    except OSError as error:
        raise PlanError(f"cannot read {label}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise PlanError(f"{label} is no plan: it is not text; {ANEW}") from error
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "its numbers or depth"
        raise PlanError(f"{label} is not JSON, or only a part of it ({where}); {ANEW}") from error
    if not isinstance(value, dict) or "schema_version" not in value:
        raise PlanError(f"{label} is no plan: it has no schema_version; {ANEW}")
    version = value["schema_version"]
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise PlanError(
            f"{label} has schema_version {shown(version)}, this version of rewriter reads {SCHEMA_VERSION}; "
            f"{ANEW}"
        )
    return _plan(Fields(value, label))


def _plan(given: Fields) -> SavedPlan:
    shapes, exact = given.object("shapes"), given.flag("exact")
    options = given.object("provider_options")
    return SavedPlan(
        tool=given.text("tool"),
        model=given.text("model"),
        exact=exact,
        passes=given.texts("passes"),
        seed=given.count("seed", 0),
        provider=given.text("provider"),
        provider_options={name: options.text(name) for name in options.names()},
        threads=given.count("threads", 1) if "threads" in given else None,
        batch=given.count("batch", 1),
        shapes={name: shapes.counts(name, 1) for name in shapes.names()},
        block=given.count("block", 1),
        samples=given.count("samples", 0 if exact else 1),
        gradients=given.count("gradients", 0 if exact else 1),
        expanded=given.texts("expanded") if "expanded" in given else (),
        thinning=_thinning(given.object("thinning")) if "thinning" in given else None,
        sites=tuple(map(_site, given.objects("sites"))),
    )


def _from_thinning(done: Thinning) -> dict[str, Any]:
    return {"ranks": dict(done.ranks), "samples": done.samples}


def _thinning(given: Fields) -> Thinning:
    ranks = given.object("ranks")
    return Thinning({name: ranks.count(name, 1) for name in ranks.names()}, given.count("samples", 1))


def _site(given: Fields) -> SavedSite:
    return SavedSite(
        node=given.text("node"),
        weight_shape=given.counts("weight_shape", 1),
        strides=given.counts("strides", 1),
        pads=given.counts("pads", 0),
        dilations=given.counts("dilations", 1),
        group=given.count("group", 1),
        input_dilations=_input_dilations(given),
        weights_sha256=given.text("weights_sha256"),
        form=_form(given.object("form")) if "form" in given else None,
    )


def _input_dilations(given: Fields) -> Ints:
    """Ones where there are none: most convolutions are not transposed."""
    name = "input_dilations"
    return given.counts(name, 1) if name in given else (1,) * len(given.counts("strides", 1))


def _form(given: Fields) -> SavedForm:
    return SavedForm(
        pass_name=given.text("pass"),
        rank=given.counts("rank", 0),
        lowerings=_lowerings(given) if "lowerings" in given else (),
        predicted_error=given.number("predicted_error"),
        predicted_drift=given.number("predicted_drift"),
        latency_ms=given.number("latency_ms"),
    )


def _lowerings(given: Fields) -> Lowerings:
    return tuple(tuple(_lowering(each) for each in row) for row in given.rows("lowerings"))


def _lowering(given: Fields) -> Lowering:
    kind = given.one_of("as", _LOWERINGS)
    if issubclass(kind, Joined):
        return Joined(given.count("group", 1))
    if not issubclass(kind, Winograd):
        return kind()
    return Winograd(given.counts("m", 1), "threaded" in given and given.flag("threaded"))


def _from_site(site: SavedSite) -> dict[str, object]:
    return {
        "node": site.node,
        "weight_shape": site.weight_shape,
        "strides": site.strides,
        "pads": site.pads,
        "dilations": site.dilations,
        "group": site.group,
        **({"input_dilations": site.input_dilations} if max(site.input_dilations) > 1 else {}),
        "weights_sha256": site.weights_sha256,
        "form": None if site.form is None else _from_form(site.form),
    }


def _from_form(form: SavedForm) -> dict[str, object]:
    lowerings = [[_from_lowering(each) for each in row] for row in form.lowerings]
    return {
        "pass": form.pass_name,
        "rank": form.rank,
        **({"lowerings": lowerings} if lowerings else {}),
        "predicted_error": form.predicted_error,
        "predicted_drift": form.predicted_drift,
        "latency_ms": form.latency_ms,
    }


def _from_lowering(lowering: Lowering) -> dict[str, object]:
    given = {field.name: getattr(lowering, field.name) for field in fields(lowering)}
    return {"as": type(lowering).__name__.lower(), **given}
