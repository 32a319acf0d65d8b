"""The ranks that a target computes without waste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np


@dataclass(frozen=True, slots=True)
class Grid:
    """What the target likes.

    Attributes:
        block: channels are computed in blocks of this many (ONNX Runtime's NCHWc kernels: 16 with AVX-512, 8
            with AVX2).
        threaded: Whether several threads share an operator.
    """

    block: int = 8
    threaded: bool = False

    def ranks(self, limit: float, most: int = 8) -> Sequence[int]:
        """At most `most` multiples of the block below `limit`; half blocks where few of them fit."""
        step = self.block if limit > 2 * self.block else max(self.block // 2, 1)
        multiples = np.arange(step, ceil(limit), step)
        if len(multiples) > most:
            wanted = np.geomspace(multiples[0], multiples[-1], most)
            nearest = [int(np.abs(multiples - value).argmin()) for value in wanted]
            multiples = multiples[sorted(set(nearest))]
        return [int(value) for value in multiples]
