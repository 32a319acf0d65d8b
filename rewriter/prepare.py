"""Options, files and samples -> what a run needs, or one line that says what is wrong with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

import passes as catalogue
from rewriter import adjoint, graph, patches, runtime
from rewriter import calibration as calibrate
from rewriter.conv import Array, Cost, Ints
from rewriter.errors import ModelError, OptionError
from rewriter.graph import Model, Norm, Site
from rewriter.grid import Grid
from rewriter.rewrite import Refusal, Rewrite
from rewriter.runtime import Session, Target
from rewriter.samples import Feeds, InputSpec, Samples
from rewriter.sources import load

if TYPE_CHECKING:
    from passes.base import Pass

# Samples to fit to: so many times what has the patches that the site with the smallest map wants, for patches
# of one sample resemble each other; fewer where their live tensors would not fit in memory.
_SPREAD = 1.25
_FEWEST_FITTED = 128
_MOST_FITTED = 384
_LIVE_BYTES = 1 << 30

# Samples of random values to choose and to judge by: rounding is much the same on all of them.
DRAWN: Final = 4
# BatchNormalizations near the input that tell its range, and samples to compare theirs with.
_NORMS = 3
_COMPARED = 2
# The deviations of what they see are off by some 12 times: none of the usual ranges is theirs.
_FAR = 5.0
# Neighbouring pixels are alike: with blocks of so many along an axis the first layers of three trained models
# saw at most 2.3 times the deviation that they expect; with independent values up to 3.6 times, and one of
# the models was taken for one of another range.
_BLOCK = 8


@dataclass(frozen=True, slots=True)
class Range:
    """Where random inputs are drawn from.

    Attributes:
        name: What reports call it.
        limits: Of uniform values; None for normal ones of mean 0 and variance 1.
        block: Neighbours along each spatial axis that share a value.
    """

    name: str
    limits: tuple[float, float] | None = None
    block: int = 1

    def draw(self, rng: np.random.Generator, shape: Ints) -> Array:
        """Values of a shape, batch and channels first."""
        coarse = tuple(-(-size // self.block) if axis > 1 else size for axis, size in enumerate(shape))
        values = rng.standard_normal(coarse) if self.limits is None else rng.uniform(*self.limits, coarse)
        for axis, size in enumerate(shape):
            if coarse[axis] != size:
                values = values.repeat(self.block, axis).take(range(size), axis)
        return np.asarray(values)


_UNKNOWN: Final = Range("normal values of mean 0 and variance 1")
# What images are usually scaled to.
_USUAL: Final = (
    Range("normal values of mean 0 and variance 1", None, _BLOCK),
    Range("uniform values of 0 to 1", (0.0, 1.0), _BLOCK),
    Range("uniform values of -1 to 1", (-1.0, 1.0), _BLOCK),
    Range("uniform values of 0 to 255", (0.0, 255.0), _BLOCK),
    Range("uniform values of -128 to 127", (-128.0, 127.0), _BLOCK),
)


def named_passes(names: Sequence[str] | None, exact: bool = False, plain: bool = False) -> tuple["Pass", ...]:
    """The passes of those names, all where None; where asked for only exact ones, or plain convolutions.

    With a minus before each name it is all but those.

    Raises:
        OptionError: There is no such pass, or it is not exact or not of plain convolutions; or only some
            names have a minus.
    """
    known = {each.name: each for each in (*catalogue.PASSES, catalogue.THINNING)}
    left_out = {name[1:] for name in names or () if name.startswith("-")}
    asked = [name for name in names or () if not name.startswith("-")]
    if asked and left_out:
        raise OptionError(f"--passes {','.join(names or ())}: give passes to try, or to leave out, not both")
    for name in (*asked, *sorted(left_out)):
        if name not in known:
            raise OptionError(f"unknown pass '{name}'; known are {', '.join(known)}")
    for name in asked:
        if exact and not known[name].exact:
            raise OptionError(f"--passes {name}: it is not exact; leave it or --exact out")
        if plain and known[name].lowers:
            raise OptionError(
                f"--passes {name}: its multiply-adds say too little to bound them; leave it or --max-macs out"
            )
        if plain and known[name] is catalogue.THINNING:
            raise OptionError(f"--passes {name}: it is chosen by time; leave it or --max-macs out")
    wanted = asked or [name for name in known if name not in left_out]
    return tuple(
        each
        for name, each in known.items()
        if name in wanted
        and (each.exact or not exact)
        and not (plain and (each.lowers or each is catalogue.THINNING))
    )


def of_networks(passes: Sequence["Pass"]) -> tuple["Pass | None", tuple["Pass", ...]]:
    """That of the passes which is done to whole networks, or None, and those for single sites."""
    whole = next((each for each in passes if each is catalogue.THINNING), None)
    return whole, tuple(each for each in passes if each is not whole)


def choose_sites(model: Model, exclude: Sequence[str]) -> tuple[tuple[Site, ...], tuple[Refusal, ...]]:
    """The sites that may be rewritten, and the refusals of all other convolutions.

    Raises:
        ModelError: The model has no convolution.
        OptionError: A node to exclude is no convolution of the model.
    """
    sites, refusals = graph.find_sites(model)
    if not sites and not refusals:
        raise ModelError(f"{model.label} has no convolution to rewrite; give a model with Conv nodes")
    found = [site.name for site in sites] + [refusal.node for refusal in refusals]
    tiled = dict.fromkeys(whole for name in found if (whole := graph.whole_of(name)) is not None)
    sites = tuple(site for site in sites if graph.whole_of(site.name) is None)
    refusals = tuple(refusal for refusal in refusals if graph.whole_of(refusal.node) is None)
    refusals += tuple(Refusal(name, None, "an earlier run has put it into tiles") for name in tiled)
    names = {site.name for site in sites}
    for name in exclude:
        if name not in names | {refusal.node for refusal in refusals}:
            raise OptionError(f"--exclude '{name}': no convolution of that name; there are {_some(names)}")
    excluded = tuple(Refusal(name, None, "excluded by --exclude") for name in exclude if name in names)
    return tuple(site for site in sites if site.name not in exclude), (*refusals, *excluded)


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """A model with what needs no rewrite done to it: what stands in front of convolutions, and dead channels.

    Attributes:
        model: The model.
        sites: Its convolutions that may be rewritten.
        refusals: Of the others.
        whole: The sites as they were with their dead channels.
    """

    model: Model
    sites: tuple[Site, ...]
    refusals: tuple[Refusal, ...]
    whole: tuple[Site, ...]


def exact_steps(
    model: Model, exclude: Sequence[str], block: int, planned: Mapping[str, Ints] | None = None
) -> Base:
    """Writes activations in one operator, folds what scales channels, removes dead channels, and the like.

    None of these costs time: what is folded is not computed, and channels go in blocks, which are what
    kernels compute. So the steps are not weighed one by one; the model that they give competes with the
    original.

    Args:
        model: The model, unpinned.
        exclude: Names of nodes to leave alone.
        block: What the numbers of channels are multiples of where some are removed.
        planned: The shapes of weights that a plan was made for, by site; no other convolutions are touched,
            and none loses channels where these shapes are there already.

    Raises:
        ModelError: The model has no convolution.
        OptionError: A node to exclude is no convolution of the model.
    """

    def free(sites: Sequence[Site]) -> list[Site]:
        return [site for site in sites if planned is None or site.name in planned]

    plain = graph.in_blocks(graph.as_fusible(graph.without_identities(model)))
    sites, refusals = choose_sites(plain, exclude)
    folded = graph.as_norms(graph.fold_around(plain, free(sites)))
    if folded is not plain:
        sites, refusals = choose_sites(folded, exclude)
    whole, smaller = sites, folded
    if planned is None or any(planned[site.name] != site.conv.weight.shape for site in free(sites)):
        smaller = graph.remove_dead(folded, free(sites), block)
    if smaller is not folded:
        sites, refusals = choose_sites(smaller, exclude)
    return Base(smaller, sites, refusals, whole)


def _some(names: set[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in sorted(names)[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def random_samples(
    model: Model, shapes: Mapping[str, Ints], seed: int, count: int = DRAWN
) -> tuple[Samples, str]:
    """So many random samples, and what to say of their values.

    They have the sizes to be fast at. The first BatchNormalizations choose their range, as far as running
    statistics tell it; without any they are normal. Integers are small counts, truth values toss a coin.

    Raises:
        OptionError: A size is dynamic and none is given, or an input has values of another kind.
    """
    norms = graph.find_norms(model, _NORMS)
    span, told = _expected(model, norms, shapes, seed) if norms else (_UNKNOWN, _UNKNOWN.name)
    return load(_drawn(model, shapes, span, count, seed), model.inputs, what="random"), told


def plain_feeds(model: Model, batch: int, shapes: Mapping[str, Ints]) -> Feeds:
    """Normal values of the batch size and shapes to run at, for what does not depend on values.

    Raises:
        OptionError: A size is dynamic and none is given, or the model does not take it.
    """
    fixed = graph.with_shapes(model, shapes)
    samples = load(_drawn(fixed, shapes, _UNKNOWN, 1, 0), fixed.inputs, what="random")
    return deployed_feeds(model, samples, batch, shapes)


def _drawn(model: Model, shapes: Mapping[str, Ints], span: Range, count: int, seed: int) -> list[Feeds]:
    rng = np.random.default_rng(seed)

    def value(spec: InputSpec) -> npt.NDArray[Any]:
        # a sample is one row; only what the model fixes is more, and a scalar has none
        given = shapes.get(spec.name, spec.shape)
        rows = [spec.fixed_batch or 1] if given else []
        shape = tuple(size for size in (*rows, *given[1:]) if isinstance(size, int))
        if len(shape) < len(given):
            takes = ",".join("?" if size is None else str(size) for size in (1, *given[1:]))
            raise OptionError(
                f"input '{spec.name}' has dynamic sizes; "
                f"give them, as in --shape {spec.name}:{takes}, or samples"
            )
        try:
            if spec.dtype.kind == "f":
                return span.draw(rng, shape).astype(spec.dtype)
            if spec.dtype.kind in "iub":
                return rng.integers(0, 2, shape).astype(spec.dtype)
        except (MemoryError, ValueError) as error:
            sizes = ",".join(map(str, shape))
            raise ModelError(f"input '{spec.name}' of the shape {sizes} does not fit into memory") from error
        raise OptionError(f"input '{spec.name}' takes {spec.dtype}, which cannot be drawn; give samples")

    return [{spec.name: value(spec) for spec in model.inputs} for _ in range(count)]


def _expected(
    model: Model, norms: Sequence[Norm], shapes: Mapping[str, Ints], seed: int
) -> tuple[Range, str]:
    """The usual range that gives the BatchNormalizations most nearly what they saw, and what to say of it."""
    names = list(dict.fromkeys(norm.input for norm in norms))
    session = Session(partial(graph.with_outputs, model, names), Target(spinning=False))

    def distance(span: Range) -> float:
        runs = [session.run(feeds, names) for feeds in _drawn(model, shapes, span, _COMPARED, seed)]
        return float(
            np.mean([_apart(norm, np.concatenate([run[norm.input] for run in runs])) for norm in norms])
        )

    distances = [distance(span) for span in _USUAL]
    nearest = int(np.argmin(distances))
    fits = "as" if distances[nearest] < _FAR else "although not what"
    return _USUAL[nearest], f"{_USUAL[nearest].name}, {fits} its BatchNormalizations expect"


def _apart(norm: Norm, values: Array) -> float:
    """How far values `[N, C, ...]` are from what a BatchNormalization expects, in the median of its channels.

    |log(var / running_var)| + |mean - running_mean| / deviation, the larger of the two deviations
    """
    axes = tuple(axis for axis in range(values.ndim) if axis != 1)
    if not np.isfinite(values).all():
        return np.inf
    mean, variance = values.mean(axes, dtype=np.float64), values.var(axes, dtype=np.float64)
    variance = np.maximum(variance, np.finfo(np.float32).tiny)
    spread = np.abs(np.log(variance / norm.variance))
    shift = np.abs(mean - norm.mean) / np.sqrt(np.maximum(variance, norm.variance))
    return float(np.median(spread) + np.median(shift))


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
        shape = sample.shape if batch == 1 or not spec.shape else (batch, *sample.shape[1:])
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


def grid_of(target: Target) -> Grid:
    """What a target likes, by what ONNX Runtime makes of a convolution there."""
    return Grid(graph.read_block(runtime.optimized(graph.block_probe(), target)), target.threaded)


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


def gradients(sites: Sequence[Site], sizes: Mapping[str, Ints]) -> int:
    """How many gradients of the model to take, by the work of its sites; `sizes` are of their maps."""
    return adjoint.enough(total_cost(sites, sizes).work)


def total_cost(sites: Sequence[Site], sizes: Mapping[str, Ints]) -> Cost:
    """What sites cost as they are; `sizes` are of their maps."""
    return sum((Rewrite(((site.conv,),)).cost(sizes[site.name]) for site in sites), Cost())


def fitting_samples(
    samples: Samples, sites: Sequence[Site], sizes: Mapping[str, Ints], live_bytes: int, seed: int
) -> Samples:
    """Samples to fit to: enough for every site, as far as two walks with them fit in memory.

    Args:
        samples: What there is.
        sites: Of the model.
        sizes: The spatial size of each site's input, by site name.
        live_bytes: The most that is alive of one sample on a walk through the network.
        seed: Draws the samples.
    """
    wanted = [patches.wanted(site.conv) / prod(site.conv.out_size(sizes[site.name])) for site in sites]
    needed = min(_SPREAD * max(wanted, default=0.0), _MOST_FITTED)
    # two walks, their outputs at the site, and what ONNX Runtime holds beside them
    held = _LIVE_BYTES // max(4 * live_bytes, 1)
    # what has patches enough without is not worth twice the memory
    count = min(max(held, min(needed, 2 * held), 2), max(needed, _FEWEST_FITTED))
    return drawn(samples, int(count), seed)


def drawn(samples: Samples, count: int, seed: int) -> Samples:
    """So many of the samples, as far as there are any, in their order."""
    order = np.random.default_rng(seed).permutation(len(samples))[:count]
    return samples.subset(sorted(order))


def fitting_batches(samples: Samples) -> list[Feeds]:
    """All of the samples in batches to fit to."""
    batches = [feeds for feeds, _ in samples.batches()]
    # a part is held out by batches, so there should be several
    return batches if len(batches) >= 4 else [feeds for feeds, _ in samples.batches(-(-len(samples) // 4))]
