"""How the share of a budget grows with a limit on the drift: as a power of it, known from two points."""

from dataclasses import dataclass
from typing import Final

import numpy as np

# Shares outside of these say no more about how far off a limit is; powers outside of these are noise.
_TELLING: Final = (0.02, 1e3)
_POWERS: Final = (0.3, 3.0)


@dataclass(frozen=True, slots=True)
class Point:
    """The share that is taken within a limit on the squared drift."""

    limit: float
    share: float

    @property
    def height(self) -> float:
        """The share where it says how far off the limit is: one sample in a hundred may take none of it."""
        return float(np.clip(self.share, *_TELLING))

    def power_to(self, other: "Point") -> float:
        """By what power of the limit the share grows between two points."""
        gain = np.log(other.height / self.height) / np.log(other.limit / self.limit)
        return float(np.clip(gain, *_POWERS))

    def limit_of(self, share: float, power: float) -> float:
        """The limit at which a share is likely, from here by a power."""
        return self.limit * float((share / self.height) ** (1.0 / power))
