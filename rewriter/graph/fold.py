"""Folds what scales and shifts channels into the convolutions before it, rewritten or not."""

from __future__ import annotations

from collections.abc import Collection

from rewriter.graph.model import Model
from rewriter.graph.sites import Site, find_sites
from rewriter.graph.splice import splice
from rewriter.rewrite import Rewrite


def fold(model: Model, sites: Collection[Site] | None = None) -> Model:
    """The model with what is behind some sites (all, if none are named) and scales them folded into them.

    The same model where there is none. Sites found before the folding do not fit the result, which has other
    nodes.
    """
    chosen = find_sites(model)[0] if sites is None else sites
    folded = [(site, Rewrite(((site.conv,),))) for site in chosen if len(site.nodes) > 1]
    return splice(model, folded) if folded else model
