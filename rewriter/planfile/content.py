"""What is kept of a plan: every choice, and all that making it again depends on beside model and samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rewriter.conv import Conv, Ints
from rewriter.graph import Site
from rewriter.plan import Candidate, Plan, Thinning
from rewriter.rewrite import Lowerings
from rewriter.runtime import Target
from rewriter.version import version

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class SavedForm:
    """What a site becomes.

    Attributes:
        pass_name: The pass.
        rank: Its rank.
        lowerings: How the stages of each branch are written; empty where all are direct.
        predicted_error: Relative L2 error of the site's output on the samples that it was fitted to.
        predicted_drift: Relative L2 drift of the model's outputs from this site alone.
        latency_ms: Measured alone, with what fuses behind it, where the plan was made.
    """

    pass_name: str
    rank: Ints
    lowerings: Lowerings
    predicted_error: float
    predicted_drift: float
    latency_ms: float


@dataclass(frozen=True, slots=True)
class SavedSite:
    """A convolution that the plan was made for.

    Attributes:
        node: Its name.
        weight_shape: `[M, C/group, *kernel]`.
        strides: One a spatial axis.
        pads: All begins, then all ends.
        dilations: One a spatial axis.
        group: Its groups.
        input_dilations: One a spatial axis: the strides of a ConvTranspose.
        weights_sha256: Of its weight and bias, a BatchNormalization folded in.
        form: What it becomes, or None where it stays as it is.
    """

    node: str
    weight_shape: Ints
    strides: Ints
    pads: Ints
    dilations: Ints
    group: int
    input_dilations: Ints
    weights_sha256: str
    form: SavedForm | None


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """The choices of a run.

    Attributes:
        tool: The program and its version.
        model: What the model was called.
        exact: Whether all forms compute the same up to rounding, and nothing is fitted.
        passes: The names of the passes that were tried.
        seed: Splits the samples and draws patches and gradients.
        provider: The execution provider that the model was to run on.
        provider_options: The provider's own options.
        threads: Threads of one operator there; None is ONNX Runtime's own default.
        batch: The batch size to be fast at.
        shapes: Sizes of inputs to be fast at, by input name, where they were given.
        block: Channels that the target computes at once; ranks are on its grid.
        samples: How many samples the forms were fitted to; 0 where nothing was fitted.
        gradients: How many gradients told how much the outputs care about each direction; 0 likewise.
        sites: All that might have been rewritten, in the order of the graph.
        expanded: The operators that are written in others, by the tensors that they give.
        thinning: What was taken out of the network before; the sites are those of what was left.
    """

    tool: str
    model: str
    exact: bool
    passes: tuple[str, ...]
    seed: int
    provider: str
    provider_options: Mapping[str, str]
    threads: int | None
    batch: int
    shapes: Mapping[str, Ints]
    block: int
    samples: int
    gradients: int
    sites: tuple[SavedSite, ...]
    expanded: tuple[str, ...] = ()
    thinning: Thinning | None = None


def record(
    plan: Plan,
    sites: Sequence[Site],
    *,
    model: str,
    exact: bool,
    passes: Sequence[str],
    seed: int,
    target: Target,
    batch: int,
    shapes: Mapping[str, Ints],
    block: int,
    samples: int,
    gradients: int,
    expanded: Sequence[str] = (),
    thinning: Thinning | None = None,
) -> SavedPlan:
    """What is kept of a plan for some sites; the other arguments are those of `SavedPlan`."""
    return SavedPlan(
        tool=" ".join(filter(None, ("conv-rewriter", version()))),
        model=model,
        exact=exact,
        passes=tuple(passes),
        seed=seed,
        provider=target.provider,
        provider_options=dict(target.options),
        threads=target.threads,
        batch=batch,
        shapes={name: tuple(shape) for name, shape in shapes.items()},
        block=block,
        samples=samples,
        gradients=gradients,
        expanded=tuple(expanded),
        thinning=thinning,
        sites=tuple(_site(site, taken) for site, taken in zip(sites, plan.chosen, strict=True)),
    )


def fingerprint(conv: Conv) -> str:
    """The SHA-256 of a convolution's weight and bias, in hexadecimal digits."""
    found = hashlib.sha256(np.asarray(conv.weight, "<f4").tobytes())
    if conv.bias is not None:
        found.update(np.asarray(conv.bias, "<f4").tobytes())
    return found.hexdigest()


def _site(site: Site, taken: Candidate) -> SavedSite:
    conv, form = site.conv, None
    if taken.pass_name is not None:
        form = SavedForm(
            taken.pass_name,
            taken.rank,
            taken.lowerings,
            float(np.sqrt(taken.error)),
            float(np.sqrt(taken.drift)),
            taken.latency_ms,
        )
    return SavedSite(
        site.name,
        tuple(int(size) for size in conv.weight.shape),
        conv.strides,
        conv.pads,
        conv.dilations,
        conv.group,
        conv.input_dilations,
        fingerprint(conv),
        form,
    )
