"""The metric of errors: what the input of a site looks like, and how much a rewrite is off under it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rewriter import linalg
from rewriter.conv import Array, Conv
from rewriter.rewrite import Rewrite

# Values a patch from which errors are summed in float32: several times faster, and a sum of squares loses
# nothing.
_WIDE = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """First and second moments of the input patches of a site.

    A patch is what the kernel sees at one output position, padding zeros included; K = C/group * taps values
    in (c, *kernel) order.

    Attributes:
        covariance: `[G, K, K]`, centred.
        mean: `[G, K]`.
        count: how many patches were seen; 0 where the moments were assumed.
    """

    covariance: Array
    mean: Array
    count: int

    @classmethod
    def isotropic(cls, conv: Conv) -> Moments:
        """White patches of mean zero: with them a fit is the data-free one."""
        group, _, size = conv.matrix.shape
        return cls(np.broadcast_to(np.eye(size), (group, size, size)), np.zeros((group, size)), 0)


@dataclass(frozen=True, eq=False)
class Metric:
    """What an error Δ = W - Ŵ of a kernel costs: tr(A Δ C Δᵀ).

    Attributes:
        input: the moments of the patches; C is their covariance.
        output: A `[M, M]`, symmetric positive definite, how much the final outputs care about each direction
            of the site's output; None for the identity. Where the site has groups only its G diagonal blocks
            count.
    """

    input: Moments
    output: Array | None = None

    @classmethod
    def isotropic(cls, conv: Conv) -> Metric:
        """The data-free metric: the squared Frobenius norm of the kernel's error."""
        return cls(Moments.isotropic(conv))

    @property
    def covariance(self) -> Array:
        """C `[G, K, K]`, with the ridge that makes it safely positive definite."""
        return self._rooted[0]

    @property
    def root(self) -> Array:
        """L `[G, K, K]`, lower triangular, C = L Lᵀ but for some of the ridge; float32 where C is wide."""
        return self._rooted[1]

    @cached_property
    def _rooted(self) -> tuple[Array, Array]:
        """C and L, made together: to find the ridge is to factorise."""
        shape = self.input.covariance.shape
        covariance, root = np.empty(shape), np.empty(shape, np.float64 if shape[1] < _WIDE else np.float32)
        for g, block in enumerate(self.input.covariance):
            covariance[g], root[g] = linalg.rooted(block)
        return covariance, root

    def weights(self, group: int, channels: int) -> Array:
        """A as its `[G, M/G, M/G]` diagonal blocks, for G groups of `channels` output channels."""
        if self.output is None:
            return np.broadcast_to(np.eye(channels), (group, channels, channels))
        return self._weights(group, channels)[0]

    def roots(self, group: int, channels: int) -> Array:
        """The roots R `[G, M/G, M/G]` of the blocks of A, A = R Rᵀ."""
        if self.output is None:
            return np.broadcast_to(np.eye(channels), (group, channels, channels))
        return self._weights(group, channels)[1]

    def _weights(self, group: int, channels: int) -> tuple[Array, Array]:
        """The blocks of A and their roots R, A = R Rᵀ; remembered."""
        if (group, channels) not in self._blocks:
            assert self.output is not None
            blocks = self.output.reshape(group, channels, group, channels)
            pairs = [linalg.rooted(blocks[g, :, g]) for g in range(group)]
            weights, roots = (np.stack(each) for each in zip(*pairs, strict=True))
            self._blocks[group, channels] = weights, roots
        return self._blocks[group, channels]

    @cached_property
    def _blocks(self) -> dict[tuple[int, int], tuple[Array, Array]]:
        return {}

    @cached_property
    def _energies(self) -> dict[int, tuple[Array, float]]:
        return {}

    def squared(self, delta: Array) -> float:
        """tr(A Δ C Δᵀ) = ‖Rᵀ Δ L‖² for Δ `[G, M/G, K]`, with A = R Rᵀ and C = L Lᵀ."""
        # what is only written in another way has none, and may be offered in many ways
        if not delta.any():
            return 0.0
        total = 0.0
        roots = None if self.output is None else self._weights(*delta.shape[:2])[1]
        for g, L in enumerate(self.root):
            rows = delta[g] if roots is None else roots[g].T @ delta[g]
            total += linalg.triangular_square(rows, L)
        return total

    def energy(self, conv: Conv) -> float:
        """tr(A W C Wᵀ), the variance of the output; remembered for all the rewrites of a site."""
        known = self._energies.get(id(conv.weight))
        if known is None or known[0] is not conv.weight:
            known = conv.weight, self.squared(conv.matrix)
            self._energies[id(conv.weight)] = known
        return known[1]


def free_bias(conv: Conv, dense: Array, moments: Moments) -> Array:
    """The bias b + (W - Ŵ)μ `[M]` that makes a rewrite's mean output that of the original.

    Jointly optimal with the best Ŵ under the centred covariance (Zhang et al. 2015, section 3.1).
    """
    delta = conv.matrix - dense.reshape(conv.matrix.shape)
    shift: Array = np.einsum("gmk,gk->gm", delta, moments.mean).reshape(-1)
    return shift if conv.bias is None else conv.bias + shift


def squared_error(conv: Conv, rewrite: Rewrite, metric: Metric) -> float:
    """The expected squared output error of a rewrite: tr(A Δ C Δᵀ) plus that of the mean."""
    dense = rewrite.dense(conv)
    bias = free_bias(conv, dense, metric.input) - (0.0 if rewrite.bias is None else rewrite.bias)
    bias = bias.reshape(conv.group, -1)
    weights = metric.weights(*bias.shape)
    mean = float(np.einsum("gm,gmn,gn->", bias, weights, bias))
    return metric.squared(conv.matrix - dense.reshape(conv.matrix.shape)) + mean


def relative_error(conv: Conv, rewrite: Rewrite, metric: Metric) -> float:
    """The root of squared error over the output's variance under A: 0 is exact, 1 keeps the mean alone."""
    energy = metric.energy(conv)
    if energy <= 0.0:
        return 0.0
    # rounding may leave the error of an exact rewrite a little below zero
    return float(np.sqrt(max(squared_error(conv, rewrite, metric), 0.0) / energy))
