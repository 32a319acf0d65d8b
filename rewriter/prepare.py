"""Options, files and samples -> what a run needs, or one line that says what is wrong with them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import passes as catalogue
from rewriter import calibration as calibrate
from rewriter import graph
from rewriter.conv import Ints, Refusal, Rewrite
from rewriter.errors import ModelError, OptionError
from rewriter.graph import Model, Site
from rewriter.runtime import Target
from rewriter.samples import Feeds, InputSpec, Samples, split
from rewriter.sources import Source, load

if TYPE_CHECKING:
    from passes.base import Pass

# How the calibration samples are split into fitting, choosing and judging where no evaluation samples are
# given.
_SPLIT = (0.6, 0.2, 0.2)
# More samples than this improve no fit; fewer are taken where their live tensors would not fit in memory.
_MOST_FITTED = 512
_LIVE_BYTES = 1 << 30

# Samples of random values to choose and to judge by: rounding is much the same on all of them.
_DRAWN = 4


def named_passes(names: Sequence[str] | None, exact: bool = False) -> tuple["Pass", ...]:
    """The passes of those names, all where None, only exact ones where asked for.

    Raises:
        OptionError: There is no such pass, or it is not exact.
    """
    known = {each.name: each for each in catalogue.PASSES}
    for name in names or ():
        if name not in known:
            raise OptionError(f"unknown pass '{name}'; known are {', '.join(known)}")
        if exact and not known[name].exact:
            raise OptionError(f"--passes {name}: it is not exact; leave it or --exact out")
    wanted = known if names is None else names
    return tuple(each for name, each in known.items() if name in wanted and (each.exact or not exact))


def choose_sites(model: Model, exclude: Sequence[str]) -> tuple[tuple[Site, ...], tuple[Refusal, ...]]:
    """The sites that may be rewritten, and the refusals of all other convolutions.

    Raises:
        ModelError: The model has no convolution.
        OptionError: A node to exclude is no convolution of the model.
    """
    sites, refusals = graph.find_sites(model)
    if not sites and not refusals:
        raise ModelError(f"{model.label} has no convolution to rewrite; give a model with Conv nodes")
    names = {site.name for site in sites}
    for name in exclude:
        if name not in names | {refusal.node for refusal in refusals}:
            raise OptionError(f"--exclude '{name}': no convolution of that name; there are {_some(names)}")
    excluded = tuple(Refusal(name, None, "excluded by --exclude") for name in exclude if name in names)
    return tuple(site for site in sites if site.name not in exclude), (*refusals, *excluded)


def _some(names: set[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in sorted(names)[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def split_samples(
    model: Model, calibration: Source, evaluation: Source | None, seed: int
) -> tuple[Samples, Samples, Samples]:
    """Samples for fitting, for choosing and for the final word; none is in two of them."""
    given = load(calibration, model.inputs, what="calibration")
    if evaluation is None:
        fit, choosing, final = split(given, _SPLIT, seed, what="calibration")
        return fit, choosing, final
    choosing, final = split(
        load(evaluation, model.inputs, what="evaluation"), (1, 1), seed, what="evaluation"
    )
    return given, choosing, final


def random_samples(model: Model, shapes: Mapping[str, Ints], seed: int) -> tuple[Samples, Samples, Samples]:
    """Samples of normal values for timing, for choosing and for the final word, of the sizes to be fast at.

    Integers are small counts, truth values toss a coin.

    Raises:
        OptionError: A size is dynamic and none is given, or an input has values of another kind.
    """
    rng = np.random.default_rng(seed)

    def value(spec: InputSpec) -> npt.NDArray[Any]:
        # a sample is one row; only what the model fixes is more
        given = shapes.get(spec.name, spec.shape)
        shape = tuple(size for size in (spec.fixed_batch or 1, *given[1:]) if isinstance(size, int))
        if len(shape) < len(given):
            takes = ",".join("?" if size is None else str(size) for size in (1, *given[1:]))
            raise OptionError(
                f"input '{spec.name}' has dynamic sizes; "
                f"give them, as in --shape {spec.name}:{takes}, or samples"
            )
        if spec.dtype.kind == "f":
            return rng.standard_normal(shape).astype(spec.dtype)
        if spec.dtype.kind in "iub":
            return rng.integers(0, 2, shape).astype(spec.dtype)
        raise OptionError(f"input '{spec.name}' takes {spec.dtype}, which cannot be drawn; give samples")

    drawn = [{spec.name: value(spec) for spec in model.inputs} for _ in range(2 * _DRAWN)]
    samples = load(drawn, model.inputs, what="random")
    return samples.subset([0]), samples.subset(range(_DRAWN)), samples.subset(range(_DRAWN, 2 * _DRAWN))


def deployed_feeds(model: Model, samples: Samples, batch: int, shapes: Mapping[str, Ints]) -> Feeds:
    """The first sample at the batch size and shapes to be fast at, repeated or cut to fit.

    Raises:
        OptionError: The model does not take that batch size or shape.
    """
    if batch < 1:
        raise OptionError(f"--batch {batch}: a batch has at least one sample")
    specs = {spec.name: spec for spec in model.inputs}
    for name in shapes:
        if name not in specs:
            raise OptionError(f"--shape {name}: no such input; there are {_some(set(specs))}")
    feeds = {}
    for name, spec in specs.items():
        sample = samples.feeds[0][name]
        if batch > 1 and spec.fixed_batch not in (None, batch):
            raise OptionError(
                f"--batch {batch}: the model fixes the batch of '{name}' at {spec.fixed_batch}; leave it out"
            )
        shape = sample.shape if batch == 1 else (batch, *sample.shape[1:])
        shape = tuple(shapes.get(name, shape))
        fits = len(shape) == len(spec.shape) and all(
            not isinstance(wanted, int) or wanted == size
            for wanted, size in zip(spec.shape, shape, strict=True)
        )
        if not fits:
            takes = ", ".join("?" if size is None else str(size) for size in spec.shape)
            raise OptionError(
                f"--shape {name}:{','.join(map(str, shape))}: the model takes [{takes}]; give sizes that fit"
            )
        feeds[name] = np.resize(sample, shape)
    return feeds


def scout(model: Model, sites: Sequence[Site], feeds: Feeds, target: Target) -> tuple[dict[str, Ints], int]:
    """The shape of every site's input as deployed, by site name, and the most bytes alive at once."""
    walk = calibrate.Walk(model, sites, [feeds], target)
    shapes, most = {}, 1
    for site in sites:
        (x,) = walk.inputs()
        shapes[site.name] = x.shape
        (y,) = calibrate.apply(Rewrite(((site.conv,),)), [x], target)
        most = max(most, walk.live_bytes + y.nbytes)
        walk.provide([y])
    return shapes, most


def fitting_batches(samples: Samples, live_bytes: int, seed: int) -> list[Feeds]:
    """Batches to fit to: as many samples as keep two walks through the network within their memory."""
    # two walks, their outputs at the site, and what ONNX Runtime holds beside them
    count = int(np.clip(_LIVE_BYTES // max(4 * live_bytes, 1), 2, _MOST_FITTED))
    order = np.random.default_rng(seed).permutation(len(samples))[:count]
    chosen = samples.subset(sorted(order))
    batches = [feeds for feeds, _ in chosen.batches()]
    # a part is held out by batches, so there should be several
    return batches if len(batches) >= 4 else [feeds for feeds, _ in chosen.batches(-(-len(chosen) // 4))]
