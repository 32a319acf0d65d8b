"""The exceptions of the project; every message names what is wrong and how to mend it.

    RewriterError               a user can mend it: one line on the terminal, exit status 1
    ├── ModelError              the model cannot be read, checked or run
    ├── PlanError               a saved plan cannot be read, or does not fit the model
    ├── ReportError             a written report cannot be read
    ├── SampleError             calibration or evaluation samples are missing or unfit
    ├── ProviderError           the execution provider cannot be used on this machine
    ├── OutputError             the result cannot be written where it was asked for
    └── OptionError             an option's value makes no sense (exit status 2)

A convolution that cannot be rewritten is not an error: it is a `rewriter.conv.Refusal`, which is data.
"""

from collections.abc import Iterable


class RewriterError(Exception):
    """Something that the user can mend; the message is one line and says how."""


class ModelError(RewriterError):
    """The model cannot be read, checked or run."""


class PlanError(RewriterError):
    """A saved plan cannot be read, or does not fit the model."""


class ReportError(RewriterError):
    """A written report cannot be read."""


class SampleError(RewriterError):
    """Calibration or evaluation samples are missing or unfit."""


class ProviderError(RewriterError):
    """The execution provider cannot be used on this machine."""


class OutputError(RewriterError):
    """The result cannot be written where it was asked for."""


class OptionError(RewriterError):
    """An option's value makes no sense."""


def listed(names: Iterable[str]) -> str:
    """Names as a message tells them: 'a', 'b'."""
    return ", ".join(f"'{name}'" for name in names) or "nothing"


def brief(error: BaseException) -> str:
    """An exception as one line."""
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
