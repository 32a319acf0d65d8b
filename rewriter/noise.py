"""Noise on a model's outputs: what a drift of some size is likely to cost, before any model drifts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rewriter.drift import Drift
from rewriter.graph import Piece
from rewriter.meter import Custom, Meter, Pieces

Outputs = list[npt.NDArray[Any]]

# The first of the samples will do, until they have so many values or are so many.
_VALUES: Final = 1 << 20
_SAMPLES: Final = 1000


class Noise:
    """Measures noise of any size, the same at every size but for that.

    Args:
        names: Of the outputs.
        batches: Outputs of the model, and targets, batch by batch.
        custom: Measures by name; see `Meter`.
        seed: Draws the noise.
        pieces: Those of each output, with noise as large as what is in each; None where they have none.
    """

    def __init__(
        self,
        names: Sequence[str],
        batches: Iterable[tuple[Outputs, list[Any] | None]],
        custom: Mapping[str, Custom],
        seed: int,
        pieces: Pieces | None = None,
    ) -> None:
        self._names, self._custom, self._seed = names, custom, seed
        self._pieces = pieces or tuple((Piece(name),) for name in names)
        rng = np.random.default_rng(seed)
        self._parts: list[tuple[Outputs, list[npt.NDArray[np.float32] | None], list[Any] | None]] = []
        values = samples = 0
        for outputs, targets in batches:
            noise = [_like(*each, rng) for each in zip(outputs, self._pieces, strict=True)]
            self._parts.append((outputs, noise, targets))
            values += sum(array.size for array in outputs)
            samples += max((len(array) for array in outputs if array.ndim), default=1)
            if values >= _VALUES or samples >= _SAMPLES:
                break

    def measured(self, size: float) -> tuple[Drift, ...]:
        """The drift that noise is, by every measure; `size` is about its relative L2 drift."""
        meter = Meter(self._names, custom=self._custom, seed=self._seed, pieces=self._pieces)
        for outputs, noise, targets in self._parts:
            after = [
                array if part is None else (array + size * part).astype(array.dtype)
                for array, part in zip(outputs, noise, strict=True)
            ]
            meter.update(outputs, after, targets)
        return meter.result()


def _like(
    array: npt.NDArray[Any], pieces: Sequence[Piece], rng: np.random.Generator
) -> npt.NDArray[np.float32] | None:
    """Noise as large as what is in the pieces of an array; None for what is no real number."""
    if not np.issubdtype(array.dtype, np.floating) or not array.size or not np.isfinite(array).all():
        return None
    noise = rng.standard_normal(array.shape, np.float32)
    for each in pieces:
        noise_of = each.of(noise)
        noise_of *= np.float32(np.sqrt(np.mean(np.square(each.of(array), dtype=np.float64))))
    return noise
