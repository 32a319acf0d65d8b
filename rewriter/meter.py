"""The outputs of two models, batch after batch -> every measure of drift that they allow."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rewriter import _measures
from rewriter.drift import MEASURES, Drift, energies, means
from rewriter.errors import SampleError
from rewriter.graph import Piece

Array = NDArray[Any]
Floats = NDArray[np.float64]
Custom = Callable[[list[Array], list[Array], Any], float]
Pieces = Sequence[Sequence[Piece]]
"""Of every output, in their order."""

# So many labelled samples tell what a model's probabilities are worth; of more, counting tells enough.
_CALIBRATED: Final = 1000


def by_sample(before: Sequence[Array], after: Sequence[Array]) -> tuple[list[Array], list[Array], int]:
    """A batch of outputs with the samples along the first axis, and how many these are.

    Where the outputs differ in that axis (boxes of a detector, say) the whole batch is taken for one sample.
    """
    before, after = [np.asarray(x) for x in before], [np.asarray(x) for x in after]
    sizes = {x.shape[0] if x.ndim else None for x in (*before, *after)}
    size = next(iter(sizes)) if len(sizes) == 1 else None
    if size is None:
        return [x[None] for x in before], [x[None] for x in after], 1
    return before, after, size


class Meter:
    """Takes the outputs of both models batch after batch and ends with their drift.

    Args:
        names: Names of the outputs, in the order in which they will come.
        custom: Further measures by name: functions of one sample's outputs before and after (lists of arrays
            with a batch of 1) and of its target.
        peak: Peak of target images; None reads it from the first targets, 1 or 255.
        seed: Seeds the bootstrap.
        pieces: Those of each output, which drift each by itself; None where outputs have none.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        custom: Mapping[str, Custom] | None = None,
        peak: float | None = None,
        seed: int = 0,
        pieces: Pieces | None = None,
    ) -> None:
        self._names = tuple(names)
        self._pieces = pieces or tuple((Piece(name),) for name in names)
        self._custom = dict(custom or {})
        self._peak = peak
        self._seed = seed
        self._scores: dict[str, _measures.Scores | None] = {}
        # the output that the targets are for: its name, and what kind
        self._target: tuple[str, str] | None = None
        self._values: dict[tuple[str, str | None], list[Floats]] = {}

    def update(
        self, before: Sequence[Array], after: Sequence[Array], targets: Sequence[Any] | None = None
    ) -> None:
        """Takes one batch.

        The first axis of the outputs is the batch; see `by_sample`.

        Args:
            before: The original's outputs, in the order of the names.
            after: The other model's, in the same order.
            targets: One target a sample: class labels, class maps or images.

        Raises:
            SampleError: A custom measure failed, or the targets do not match the samples in number.
        """
        before, after, size = by_sample(before, after)
        if size == 0:
            return
        if targets is not None and len(targets) != size:
            raise SampleError(f"{len(targets)} targets for {size} samples; give one target a sample")
        for name, pieces, b, a in zip(self._names, self._pieces, before, after, strict=True):
            errors = [self._apart(each.name, each.of(b), each.of(a), size) for each in pieces]
            if b.shape == a.shape:
                self._classes(name, b, a, ~np.isfinite(np.sum(errors, axis=0)))
        if targets is not None:
            self._judge(before, after, targets)
        for measure, function in self._custom.items():
            values = np.array(
                [self._ask(measure, function, before, after, targets, index) for index in range(size)]
            )
            self._add(measure, None, values)

    def result(self) -> tuple[Drift, ...]:
        """Returns every measure that these samples allow: the model as a whole first, then single outputs.

        Raises:
            SampleError: No samples came.
        """
        if not self._values:
            raise SampleError("no samples to measure drift on; give at least one")
        values = {key: np.concatenate(parts) for key, parts in self._values.items()}
        drifts = []
        for measure in (*MEASURES, *self._custom):
            if measure in ("rel_l2", "noise_db"):
                names = [each.name for pieces in self._pieces for each in pieces]
                error = {name: values["error", name] for name in names}
                energy = {name: values["energy", name] for name in names}
                drifts += energies(measure, error, energy, self._seed)
                continue
            found = {name: sums for (key, name), sums in values.items() if key == measure}
            if found:
                drifts += means(measure, found, self._single(measure, found), self._seed)
        if len(values.get(("label", None), ())):
            margins = np.stack([values["margin before", None], values["margin after", None]])
            before, after = margins[:, np.isfinite(margins).all(axis=0)]
            expected = _measures.expected_losses(
                values["scores", None], values["label", None], values["decision", None]
            )
            drifts = [
                replace(each, likely=_measures.likely_drop(before, after, expected))
                if each.measure == "top1_drop" and np.isfinite(each.value)
                else each
                for each in drifts
            ]
        return tuple(drifts)

    def _single(self, measure: str, found: Mapping[str | None, Floats]) -> bool:
        """Whether a sample's value is all or nothing: one row of scores."""
        if measure not in ("top1_flips", "top1_drop", "top5_drop") or len(found) != 1:
            return False
        name = next(iter(found)) or (self._target or ("", ""))[0]
        how = self._scores.get(name)
        return how is not None and how.single

    def _add(self, measure: str, output: str | None, values: Floats) -> None:
        self._values.setdefault((measure, output), []).append(values)

    def _apart(self, name: str, before: Array, after: Array, size: int) -> Floats:
        """Adds how far apart the values of a piece are; returns the summed squares of each sample."""
        numeric = all(np.issubdtype(x.dtype, np.number) or x.dtype == np.bool_ for x in (before, after))
        if before.shape != after.shape or not numeric:
            # another number of boxes, say, or strings: equal or not, nothing between
            same = before.shape == after.shape and bool((before == after).all())
            lost = np.full(size, 0.0 if same else np.inf)
            for measure in ("error", "max_abs", "cosine_distance"):
                self._add(measure, name, lost)
            self._add("energy", name, np.ones(size))
            return lost
        found = _measures.distances(before, after)
        for measure, values in (
            ("error", found.error),
            ("energy", found.energy),
            ("max_abs", found.largest),
            ("cosine_distance", found.cosine),
        ):
            self._add(measure, name, values)
        return found.error

    def _classes(self, name: str, before: Array, after: Array, spoilt: NDArray[np.bool_]) -> None:
        """Adds how an output's decisions differ, where it looks like any.

        Args:
            name: The output's.
            before: Its values from the original.
            after: From the other model, as many.
            spoilt: The samples for which these are not finite `[n]`.
        """
        if name not in self._scores:  # the first batch decides, so that all samples are read alike
            self._scores[name] = _measures.scores(before)
        how = self._scores[name]
        if how is not None:
            with np.errstate(invalid="ignore"):
                for measure, values in (
                    ("kl", _measures.kl(before, after, how)),
                    ("top1_flips", _measures.flips(before, after, how)),
                ):
                    self._add(measure, name, np.where(spoilt, np.inf, values))

    def _judge(self, before: Sequence[Array], after: Sequence[Array], targets: Sequence[Any]) -> None:
        """Adds what needs targets, on the first output that they fit."""
        try:
            target = np.stack([np.asarray(each) for each in targets])
        except ValueError:
            return  # of several shapes, or no arrays at all: for custom measures only
        for name, b, a in zip(self._names, before, after, strict=True):
            kind = self._fits(name, b, target)
            if kind is None or self._target not in (None, (name, kind)) or a.shape != b.shape:
                continue
            self._target = (name, kind)
            spoilt = ~np.isfinite(a.reshape(len(a), -1).astype(np.float64)).all(axis=1)
            if kind == "image":
                self._peak = self._peak or _measures.peak_of(target)
                lost = {
                    "psnr_drop_db": _measures.psnr_db(b, target, self._peak)
                    - _measures.psnr_db(a, target, self._peak)
                }
            else:
                how = self._scores[name]
                assert how is not None
                lost = {
                    f"top{top}_drop": _measures.hits(b, target, how, top)
                    - _measures.hits(a, target, how, top)
                    for top in (1, 5)
                    if b.shape[how.axis] > top
                }
                if how.single:
                    self._decide(_measures.log_scores(b, how), _measures.log_scores(a, how), target)
            for measure, values in lost.items():
                self._add(measure, None, np.where(spoilt, np.inf, values))
            return

    def _decide(self, before: Floats, after: Floats, labels: Array) -> None:
        """Adds what tells the likely loss of accuracy from scores `[n, C]`."""
        margins = [_measures.margins(each, labels) for each in (before, after)]
        for key, each in zip(("margin before", "margin after"), margins, strict=True):
            self._add(key, None, each)
        (sure,) = np.nonzero(np.isfinite(margins).all(axis=0))
        sure = sure[: _CALIBRATED - sum(map(len, self._values.get(("label", None), ())))]
        for key, values in (
            ("scores", before),
            ("label", labels.reshape(len(before))),
            ("decision", after.argmax(axis=1)),
        ):
            self._add(key, None, values[sure])

    def _fits(self, name: str, output: Array, target: Array) -> str | None:
        how = self._scores.get(name)
        if np.issubdtype(target.dtype, np.integer) and how is not None:
            rows = output.size // (len(output) * output.shape[how.axis])
            return "labels" if target.size == len(output) * rows else None
        image = output.ndim >= 3 and output.shape == target.shape
        numeric = np.issubdtype(target.dtype, np.number)
        return "image" if image and numeric and np.issubdtype(output.dtype, np.floating) else None

    def _ask(
        self,
        measure: str,
        function: Custom,
        before: Sequence[Array],
        after: Sequence[Array],
        targets: Sequence[Any] | None,
        index: int,
    ) -> float:
        one = slice(index, index + 1)
        try:
            value = float(
                function(
                    [x[one] for x in before],
                    [x[one] for x in after],
                    None if targets is None else targets[index],
                )
            )
        except Exception as error:
            raise SampleError(
                f"measure {measure!r} failed on a sample: {type(error).__name__}: {error}; "
                "it takes (before, after, target) and returns a number"
            ) from error
        return math.inf if math.isnan(value) else value
