"""How a model is deployed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from rewriter.errors import OptionError
from rewriter.runtime.providers import PROVIDERS

Clock = Literal["processor", "wall"]
"""Times of a thread on a processor, or on the wall."""


@dataclass(frozen=True, slots=True)
class Target:
    """How a model is deployed.

    Attributes:
        provider: Short name of the execution provider, one of `PROVIDERS`.
        threads: Threads inside one operator; None is ONNX Runtime's own default (one a physical core).
        spinning: Whether idle threads spin for a while when a run has ended, as is ONNX Runtime's default;
            within a run they do in any case.
        arena: Whether a session keeps the memory of a run for the next one, as is ONNX Runtime's default.
        options: The provider's own options, pairs of a name and a value.
        optimizing: Whether ONNX Runtime optimises graphs, as is its default.
    """

    provider: str = "cpu"
    threads: int | None = None
    spinning: bool = True
    arena: bool = True
    options: tuple[tuple[str, str], ...] = ()
    optimizing: bool = True

    def __post_init__(self) -> None:
        if self.provider not in PROVIDERS:
            raise OptionError(f"unknown provider {self.provider!r}; known are {', '.join(PROVIDERS)}")
        if self.threads is not None and self.threads < 1:
            raise OptionError(f"threads must be at least 1, not {self.threads}; leave it out for the default")
        if self.options and self.provider == "cpu":
            raise OptionError(f"provider 'cpu' takes no options, and {self.options[0][0]!r} was given")

    @property
    def parallel(self) -> bool:
        """Whether a session has a pool of threads that may spin while it is idle."""
        return (cores() if self.threads is None else self.threads) > 1

    @property
    def threaded(self) -> bool:
        """Whether several threads share an operator: one of ONNX Runtime's own, those of its CPU provider."""
        return self.provider == "cpu" and self.parallel

    @property
    def graphs(self) -> bool:
        """Whether whole runs are recorded as CUDA graphs and played again."""
        return dict(self.options).get("enable_cuda_graph", "0").lower() in ("1", "true")

    @property
    def precise(self) -> Target:
        """The same provider for measuring drift: its threads as many as it likes, nothing rounded for speed.

        CUDA's tensor cores round float32 to 10 bits (TF32) unless told otherwise, which drowns small drifts;
        and a CUDA graph plays one run again on the same memory.
        """
        options = {name: value for name, value in self.options if name != "enable_cuda_graph"}
        if self.provider == "cuda":
            options["use_tf32"] = "0"
        return Target(self.provider, options=tuple(options.items()))

    @property
    def clock(self) -> Clock:
        """What tells how long a run takes.

        Where the calling thread does all the work its processor time counts, to which other programs on the
        machine add little: beside six busy processes on two cores, times of identical models differed by
        1.1 % (root mean square), on the wall by 9.3 %.
        """
        return "processor" if self.provider == "cpu" and not self.parallel else "wall"


def cores() -> int:
    """Returns how many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
