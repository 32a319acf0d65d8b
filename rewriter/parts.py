"""Samples as they were given, or drawn in their place -> the parts of them that a run needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rewriter import prepare
from rewriter.conv import Ints
from rewriter.errors import OptionError, SampleError
from rewriter.graph import Model
from rewriter.samples import Samples, split
from rewriter.sources import Preprocess, Source, check_preprocess, load

# How the calibration samples are split into fitting, choosing and judging where no evaluation samples are
# given.
_SPLIT = (0.6, 0.2, 0.2)

Preprocessing = Mapping[str, Any] | str | os.PathLike[str]
"""How pixels become inputs: the keys of `rewriter.sources.Preprocess`, or a TOML file of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """What a command was given to fit to and to judge by.

    Attributes:
        calibration: Samples to fit to.
        evaluation: Samples to judge by.
        preprocess: How the pixels of images become inputs.
        random: How many random samples to draw in place of these.

    Raises:
        OptionError: They exclude each other, or the preprocessing makes no sense.
    """

    calibration: Source | None
    evaluation: Source | None = None
    preprocess: Preprocess | None = None
    random: int | None = None

    @classmethod
    def of(
        cls,
        calibration: Source | None,
        evaluation: Source | None,
        preprocess: Preprocessing | None,
        random: int | None = None,
    ) -> Given:
        """From what a user says."""
        return cls(calibration, evaluation, None if preprocess is None else Preprocess.of(preprocess), random)

    def __post_init__(self) -> None:
        samples = (self.calibration, self.evaluation)
        if self.random is not None and samples != (None, None):
            raise OptionError(
                "--random-samples stands in for samples; leave it, or --calibration and --evaluation, out"
            )
        if self.random is not None and self.random < len(_SPLIT):
            raise OptionError(
                f"--random-samples {self.random}: fitting, choosing and judging need at least 3"
            )
        check_preprocess(self.preprocess, samples)

    @property
    def preprocessing(self) -> dict[str, Any] | None:
        """What was said of the pixels, by key, for the report; None where nothing was."""
        if self.preprocess is None:
            return None
        said = {field.name: getattr(self.preprocess, field.name) for field in fields(self.preprocess)}
        return {key: value for key, value in said.items() if value is not None}

    def check_enough(self, exact: bool, otherwise: str) -> None:
        """Raises a `SampleError` where there is nothing to fit to; `otherwise` says what needs nothing."""
        if self.calibration is None and self.random is None and not (exact and self.evaluation is None):
            raise SampleError(
                "no samples were given; --calibration takes an .npz, a folder of images or "
                f"script.py:function, and {otherwise}"
            )


@dataclass(frozen=True, slots=True)
class Parts:
    """Samples for what a run needs them for; none is in two parts, but where few random ones only check.

    Attributes:
        fit: For fitting, and for timing.
        choosing: For choosing.
        final: For the final word.
        remarks: What a report warns of.
        notes: What a report says of how they were read.
    """

    fit: Samples
    choosing: Samples
    final: Samples
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def parts(model: Model, given: Given, shapes: Mapping[str, Ints], seed: int) -> Parts:
    """The samples that were given, split by the seed; random ones where there are none."""
    if given.random is not None:
        samples, told = prepare.random_samples(model, shapes, seed, given.random)
        return Parts(*_three(samples, seed), (noise(told, "--calibration"),))
    if given.calibration is None:
        samples, told = prepare.random_samples(model, shapes, seed, 2 * prepare.DRAWN)
        choosing = samples.subset(range(prepare.DRAWN))
        final = samples.subset(range(prepare.DRAWN, 2 * prepare.DRAWN))
        remark = f"no samples were given; in their place random inputs, {told}"
        return Parts(samples.subset([0]), choosing, final, (remark,))
    fit = load(given.calibration, model.inputs, what="calibration", preprocess=given.preprocess)
    if given.evaluation is None:
        return Parts(*_three(fit, seed), notes=fit.notes)
    judging = load(given.evaluation, model.inputs, what="evaluation", preprocess=given.preprocess)
    choosing, final = split(judging, (1, 1), seed, what="evaluation")
    return Parts(fit, choosing, final, notes=fit.notes + judging.notes)


def noise(told: str, option: str) -> str:
    """What a report says where random inputs, of the values `told`, stand in for real ones."""
    return (
        f"no samples were given; in their place random inputs, {told}: "
        f"drift on noise says little of drift on real inputs, give some with {option}"
    )


def _three(samples: Samples, seed: int) -> tuple[Samples, Samples, Samples]:
    fit, choosing, final = split(samples, _SPLIT, seed)
    return fit, choosing, final
