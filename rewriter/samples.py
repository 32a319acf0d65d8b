"""Single samples: what a model takes, and what there is of it, in batches and in disjoint parts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter.errors import OptionError, SampleError

Feeds = dict[str, npt.NDArray[Any]]
"""One batch of model inputs keyed by input name, batch first."""

# Activations take some ten to hundred times the memory of the inputs.
_BATCH_BYTES = 1 << 22


def samples_in(feeds: Feeds) -> int:
    """How many parts a batch can be cut into: one where an input has no axis for samples."""
    if any(array.ndim == 0 for array in feeds.values()):
        return 1
    return len(next(iter(feeds.values())))


def cut(feeds: Feeds, start: int, stop: int) -> Feeds:
    """The samples of a batch from one up to another; a batch that cannot be cut as it is."""
    if samples_in(feeds) == 1:
        return feeds
    return {name: array[start:stop] for name, array in feeds.items()}


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What a model takes at one input; a dimension that is a name or None is dynamic."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    @property
    def fixed_batch(self) -> int | None:
        """The size of axis 0 where the model fixes it, else None (dynamic, or no axes at all)."""
        first = self.shape[0] if self.shape else None
        return first if isinstance(first, int) else None


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Single samples in order, each a batch of one (of b where the model's batch is fixed at b).

    Attributes:
        feeds: one read-only feeds dictionary a sample.
        targets: what is right for each sample (a label, an image, …), or None where nothing is known.
        joinable: whether samples may be joined along axis 0, i.e. every input's axis 0 is a dynamic batch.
        notes: what was taken for granted where they were read, for reports; parts of them leave it behind.
    """

    feeds: tuple[Feeds, ...]
    targets: tuple[Any, ...] | None = None
    joinable: bool = True
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.targets is not None and len(self.targets) != len(self.feeds):
            raise ValueError(f"{len(self.feeds)} samples with {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.feeds)

    def subset(self, indices: Iterable[int]) -> "Samples":
        """The samples at `indices`, in that order."""
        chosen = [int(i) for i in indices]
        targets = None if self.targets is None else tuple(self.targets[i] for i in chosen)
        return Samples(tuple(self.feeds[i] for i in chosen), targets, self.joinable)

    def batches(self, size: int | None = None) -> Iterator[tuple[Feeds, list[Any] | None]]:
        """Batches of at most `size` neighbouring samples of equal shapes, in order, with their targets.

        Samples that may not be joined come one by one, as they are. Without a size it is what is quick to
        run: up to 16, fewer where they are large.
        """
        if size is None:
            largest = max(sum(array.nbytes for array in feeds.values()) for feeds in self.feeds)
            size = min(max(_BATCH_BYTES // max(largest, 1), 1), 16)
        if size < 1:
            raise ValueError(f"a batch holds at least one sample, not {size}")
        shapes_of = [{name: array.shape for name, array in feeds.items()} for feeds in self.feeds]
        start = 0
        while start < len(self):
            shapes = shapes_of[start]
            stop = start + 1
            if self.joinable and all(shape[:1] == (1,) for shape in shapes.values()):
                last = min(start + size, len(self))
                while stop < last and shapes_of[stop] == shapes:
                    stop += 1
            group = self.feeds[start:stop]
            feeds = dict(group[0])
            if len(group) > 1:
                feeds = {name: np.concatenate([f[name] for f in group]) for name in shapes}
            yield feeds, None if self.targets is None else list(self.targets[start:stop])
            start = stop


def split(
    samples: Samples, fractions: Sequence[float], seed: int, *, what: str = "calibration"
) -> tuple[Samples, ...]:
    """Disjoint random parts that together hold every sample, sized as `fractions`, none of them empty.

    The same seed gives the same parts; within a part the samples keep their order.

    Raises:
        SampleError: there are fewer samples than parts.
    """
    weights = np.asarray(fractions, dtype=np.float64)
    if weights.size == 0 or not np.all(np.isfinite(weights)) or np.any(weights <= 0):
        raise OptionError(f"samples cannot be split by {list(fractions)}; give positive fractions")
    n, parts = len(samples), len(weights)
    if n < parts:
        raise SampleError(
            f"{what} samples: found {n}, but {parts} disjoint parts need at least {parts}; give more samples"
        )
    exact = n * weights / weights.sum()
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: n - counts.sum()]] += 1
    while counts.min() == 0:
        counts[counts.argmax()] -= 1
        counts[counts.argmin()] += 1
    order = np.random.default_rng(seed).permutation(n)
    return tuple(samples.subset(np.sort(part)) for part in np.split(order, np.cumsum(counts)[:-1]))
