"""The transforms of Winograd's convolutions, for any number of outputs and taps.

With m outputs of a kernel of r taps and a = m + r - 1,

    y = Aᵀ [(G g) ∘ (Bᵀ d)]        d [a], g [r], y [m]; Bᵀ [a, a], G [a, r], Aᵀ [m, a]

takes a multiplications instead of m·r; along two axes the transforms apply to each (Lavin and Gray 2016,
arXiv 1509.09308). They come from interpolation at a - 1 points and infinity (Toom and Cook), in fractions.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache, reduce
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Small numerators and denominators, and signs in pairs, keep the rounding small (Barabasz et al. 2018,
# arXiv 1803.10986); pairs also leave zeros in Bᵀ. Of those tried in float32 these were the best, or within a
# half of the best, which left no zeros.
_POINTS: Final = tuple(Fraction(*p) for p in ((0, 1), (1, 1), (-1, 1), (2, 1), (-2, 1), (1, 2), (-1, 2)))

UNIT: Final = 1
"""The row of the point 1, where Aᵀ has a column of ones: a constant added to that product is added to y."""

_CHANNELS: Final = 64

LARGEST: Final = len(_POINTS) + 1
"""The most that a = m + r - 1 may be."""


@dataclass(frozen=True, slots=True, eq=False)
class Transforms:
    """The matrices of F(m, r).

    Attributes:
        input: Bᵀ `[a, a]`.
        kernel: G `[a, r]`.
        output: Aᵀ `[m, a]`.
    """

    input: Floats
    kernel: Floats
    output: Floats


@cache
def transforms(m: int, r: int) -> Transforms:
    """The transforms of F(m, r), exact up to their rounding to float64; F(1, 1) is the identity.

    Raises:
        ValueError: There are no such, or they would need more points than there are.
    """
    size = m + r - 1
    if m < 1 or r < 1 or size > LARGEST:
        raise ValueError(f"F({m}, {r}) is not offered: m + r - 1 must be 1 to {LARGEST}")
    points = _POINTS[: size - 1]
    others = [points[:j] + points[j + 1 :] for j in range(size - 1)]
    scales = [_value(roots, point) for roots, point in zip(others, points, strict=True)]
    infinity = [Fraction(int(k == r - 1)) for k in range(r)]
    kernel = [[p**k / scale for k in range(r)] for p, scale in zip(points, scales, strict=True)]
    output = [[*(p**i for p in points), Fraction(int(i == m - 1))] for i in range(m)]
    rows = [[*_polynomial(roots), Fraction(0)] for roots in others]
    return Transforms(_array([*rows, _polynomial(points)]), _array([*kernel, infinity]), _array(output))


@dataclass(frozen=True, slots=True)
class Window:
    """The taps of a row of Bᵀ that are computed.

    Attributes:
        first: The first of them.
        last: The last of them.
        dilation: The distance from one to the next.
    """

    first: int
    last: int
    dilation: int

    @property
    def taps(self) -> range:
        """Their positions in the row."""
        return range(self.first, self.last + 1, self.dilation)


def window(row: npt.NDArray[Any], begin: int, end: int) -> Window:
    """The fewest evenly spaced taps that hold all of a row `[a]` that is not zero.

    Zeros at its ends may be left out only as far as the pads there allow, for pads are never negative.

    Args:
        row: Of Bᵀ.
        begin: The pad in front of the whole row.
        end: The pad behind it.
    """
    nonzero = np.flatnonzero(row)
    first = min(int(nonzero[0]), begin)
    last = max(int(nonzero[-1]), len(row) - 1 - end)
    return Window(first, last, max(int(np.gcd.reduce([*(nonzero - first), last - first])), 1))


@cache
def rounding(m: tuple[int, ...], kernel_shape: tuple[int, ...]) -> float:
    """The relative error of F(m, r) along each of some axes in float32, tried on normal values.

    It hardly depends on the kernel or the number of channels (64 here).
    """
    each = [transforms(outputs, taps) for outputs, taps in zip(m, kernel_shape, strict=True)]
    wide, kernel, out = (
        reduce(np.kron, [getattr(one, name) for one in each]) for name in ("input", "kernel", "output")
    )
    rng = np.random.default_rng(0)
    values = rng.standard_normal((wide.shape[1], _CHANNELS, _CHANNELS)).astype(np.float32)
    weights = rng.standard_normal((kernel.shape[1], _CHANNELS, _CHANNELS)).astype(np.float32)

    def tile(dtype: type[np.floating[Any]]) -> npt.NDArray[Any]:
        B, G, A = (matrix.astype(dtype) for matrix in (wide, kernel, out))
        products = np.tensordot(G, weights.astype(dtype), 1) @ np.tensordot(B, values.astype(dtype), 1)
        return np.asarray(np.tensordot(A, products, 1), np.float64)

    exact = tile(np.float64)
    return float(np.linalg.norm(tile(np.float32) - exact) / np.linalg.norm(exact))


def _polynomial(roots: tuple[Fraction, ...]) -> list[Fraction]:
    """The coefficients of Π (x - root), that of x⁰ first."""
    found = [Fraction(1)]
    for root in roots:
        found = [
            high - root * low for high, low in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)
        ]
    return found


def _value(roots: tuple[Fraction, ...], point: Fraction) -> Fraction:
    """Π (point - root)."""
    product = Fraction(1)
    for root in roots:
        product *= point - root
    return product


def _array(rows: list[list[Fraction]]) -> Floats:
    found = np.array([[float(value) for value in row] for row in rows])
    found.flags.writeable = False
    return found
