"""Three published ways to make a network low-rank without fine-tuning, at given multiply-adds.

    uniform      the kernel's own SVD, the same share of the full rank everywhere (Denton et al. 2014)
    threshold    the kernel's own SVD, at every layer the least rank that keeps a share of the squared
                 singular values, one share for all
    lagrangian   the SVD under the second moments of the patches, ranks by Lagrangian relaxation: the most
                 retained energy, as a share of each layer's own, for the multiply-adds (BALF, arXiv
                 2509.25136)

All of them split a convolution into one with fewer channels and a pointwise one, keep its bias, and leave a
layer as it is where that takes no more multiply-adds. The first two see no data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from passes.channel_svd import ChannelSVD
from rewriter import calibration, graph
from rewriter.calibration import Walk
from rewriter.conv import Array, Conv, Ints
from rewriter.graph import Model, Site
from rewriter.metric import Metric, Moments
from rewriter.rewrite import Rewrite
from rewriter.runtime import Target
from rewriter.samples import Feeds

Ranks = list[int]
"""One a layer: the channels of each group between the stages; the length of `Layer.macs` is as it is."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution and what its ranks cost and keep.

    Attributes:
        site: Where it is.
        macs: At rank 1, 2, ... as long as that is less than the convolution's own, which comes last.
        full: Its full rank.
        plain: The share of the squared singular values of the kernel that each of these keeps; 1 comes last.
        whitened: The same of the kernel times the root of the second moments, i.e. of the output's energy.
        second: The second moments of its patches, not centred.
    """

    site: Site
    macs: Array
    full: int
    plain: Array
    whitened: Array
    second: Moments

    def rewrite(self, rank: int, metric: Metric) -> Rewrite:
        """The best factors of a rank under a metric."""
        (rewrite,) = ChannelSVD().rewrites(self.site.conv, [(rank,)], metric)
        return rewrite


def layers(model: Model, sites: Sequence[Site], batches: Sequence[Feeds]) -> list[Layer]:
    """Every site of a model with the moments of all its patches over all samples."""
    target = Target(spinning=False)
    walk = Walk(model, sites, batches, target)
    found = []
    for site in sites:
        inputs = walk.inputs()
        found.append(_layer(site, inputs))
        walk.provide(calibration.apply(Rewrite(((site.conv,),)), inputs, target))
    return found


def _layer(site: Site, inputs: Sequence[Array]) -> Layer:
    conv, size = site.conv, inputs[0].shape[2:]
    places = prod(conv.out_size(size))
    everywhere = [np.arange(len(batch) * places) for batch in inputs]
    centred = calibration.moments(conv, inputs, everywhere)
    second = centred.covariance + np.einsum("gk,gl->gkl", centred.mean, centred.mean)
    full = min(conv.matrix.shape[1:])
    own = conv.macs(size)
    each = _rank_macs(conv, size)
    ranks = [rank for rank in range(1, full + 1) if rank * each < own]
    return Layer(
        site,
        np.array([*(rank * each for rank in ranks), own], np.float64),
        full,
        _kept(conv, np.broadcast_to(np.eye(second.shape[1]), second.shape), len(ranks)),
        _kept(conv, second, len(ranks)),
        Moments(second, np.zeros_like(centred.mean), centred.count),
    )


def _rank_macs(conv: Conv, size: Ints) -> int:
    """Multiply-adds that one channel of each group between the stages takes."""
    return prod(conv.out_size(size)) * (conv.group * conv.matrix.shape[2] + conv.out_channels)


def _kept(conv: Conv, second: Array, ranks: int) -> Array:
    """The share of tr(W C Wᵀ) that the best factors of rank 1, 2, ... keep under C, then 1."""
    energies = sum(
        np.linalg.eigvalsh(W @ C @ W.T)[::-1]
        for W, C in zip(conv.matrix.astype(np.float64), second, strict=True)
    )
    kept = np.cumsum(np.maximum(energies, 0.0)) / np.sum(np.maximum(energies, 0.0))
    return np.array([*kept[:ranks], 1.0])


def total(chosen: Sequence[Layer], ranks: Ranks) -> float:
    """Multiply-adds of a choice."""
    return float(sum(layer.macs[rank - 1] for layer, rank in zip(chosen, ranks, strict=True)))


def uniform(found: Sequence[Layer], most: float) -> Ranks:
    """The largest share of the full rank, the same for all layers, within `most` multiply-adds."""
    shares = {rank / layer.full for layer in found for rank in range(1, layer.full + 1)}

    def ranks(share: float) -> Ranks:
        # the tolerance keeps r / n · n at r
        return [min(int(np.ceil(share * layer.full - 1e-9)), len(layer.macs)) for layer in found]

    return _largest(found, sorted(shares), ranks, most)


def threshold(found: Sequence[Layer], most: float) -> Ranks:
    """The largest share of the squared singular values, kept by every layer, within `most` multiply-adds."""
    shares = {float(share) for layer in found for share in layer.plain}

    def ranks(share: float) -> Ranks:
        return [int(np.searchsorted(layer.plain, share)) + 1 for layer in found]

    return _largest(found, sorted(shares), ranks, most)


def _largest(
    found: Sequence[Layer], shares: Sequence[float], ranks: Callable[[float], Ranks], most: float
) -> Ranks:
    """The choice of the largest share that fits; ranks rise with the share."""
    low, high = 0, len(shares)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total(found, ranks(shares[middle])) <= most else (low, middle)
    return _fitting(found, ranks(shares[low]), most)


def lagrangian(found: Sequence[Layer], most: float) -> Ranks:
    """The most retained energy within `most` multiply-adds, by Lagrangian relaxation, the rest filled up.

    max_r Σ e(r) - λ Σ macs(r) goes, as λ falls, along the upper concave hulls of the layers, steepest edge
    first: the last choice on that way that fits is the one of the best multiplier. What it leaves over goes
    to single layers, the most energy a multiply-add first.
    """
    ranks = [1] * len(found)
    edges = sorted(
        (
            (-slope, index, rank)
            for index, layer in enumerate(found)
            for slope, rank in _hull(layer.macs, layer.whitened)
        ),
    )
    for _, index, rank in edges:
        raised = [*ranks[:index], rank, *ranks[index + 1 :]]
        if total(found, raised) > most:
            break
        ranks = raised
    while steps := list(_steps(found, ranks, most - total(found, ranks))):
        _, index, rank = max(steps)
        ranks[index] = rank
    return _fitting(found, ranks, most)


def _hull(macs: Array, kept: Array) -> list[tuple[float, int]]:
    """The edges of the upper concave hull from rank 1 on: slope and the rank that each leads to."""
    edges: list[tuple[float, int]] = []
    at = 0
    while at < len(macs) - 1:
        slopes = (kept[at + 1 :] - kept[at]) / (macs[at + 1 :] - macs[at])
        steepest = int(np.argmax(slopes))
        at += steepest + 1
        edges.append((float(slopes[steepest]), at + 1))
    return edges


def _steps(found: Sequence[Layer], ranks: Ranks, left: float) -> list[tuple[float, int, int]]:
    """Every way to raise one layer within what is left: energy a multiply-add, index and rank."""
    return [
        (
            (layer.whitened[rank] - layer.whitened[now - 1]) / (layer.macs[rank] - layer.macs[now - 1]),
            i,
            rank + 1,
        )
        for i, (layer, now) in enumerate(zip(found, ranks, strict=True))
        for rank in range(now, len(layer.macs))
        if layer.macs[rank] - layer.macs[now - 1] <= left
    ]


def _fitting(found: Sequence[Layer], ranks: Ranks, most: float) -> Ranks:
    if total(found, ranks) > most:
        raise ValueError("rank 1 everywhere takes more multiply-adds than that")
    return ranks


def built(model: Model, found: Sequence[Layer], ranks: Ranks, whitened: bool) -> Model:
    """The model with its layers at these ranks."""
    rewrites = [
        (
            layer.site,
            layer.rewrite(rank, Metric(layer.second) if whitened else Metric.isotropic(layer.site.conv)),
        )
        for layer, rank in zip(found, ranks, strict=True)
        if rank < len(layer.macs)
    ]
    return graph.splice(model, rewrites)
