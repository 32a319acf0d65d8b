"""The least drift within a share of the multiply-adds: for hardware that cannot be measured, and to compare.

Nothing is timed: what counts of a form are its error and its multiply-adds, so only plain convolutions
compete, whose multiply-adds mean the same everywhere.
"""

from collections.abc import Callable, Sequence

import numpy as np

from rewriter.errors import OptionError
from rewriter.fitting import Survey
from rewriter.plan import Candidate, Plan, choose_by_macs, least_macs, undominated
from rewriter.progress import Progress
from rewriter.search import Rewrites, Round, Trial

# Errors of sites add up as squares where they have nothing to do with each other, as amplitudes where they
# agree; which it is the network itself says.
_POWERS = (1.0, 0.75, 0.5)


def check_options(ratio: float | None, *, exact: bool, strict: bool) -> None:
    """Returns if a share of the multiply-adds can be asked for, beside what else is.

    Args:
        ratio: The share, or None where none is asked for.
        exact: Whether rewrites are asked to be exact.
        strict: Whether budgets are asked to be kept to strictly, without there being any.

    Raises:
        OptionError: The share is not between 0 and 1, or something else makes no sense beside it.
    """
    if ratio is None:
        return
    if not 0.0 < ratio < 1.0:
        raise OptionError(
            f"--max-macs {ratio:g} is no share of the original's multiply-adds; give one between 0 and 1, "
            "such as 0.5"
        )
    if exact:
        raise OptionError(
            "--max-macs and --exact: an exact form is no cheaper convolution; leave one of them out"
        )
    if strict:
        raise OptionError(
            "--strict with --max-macs needs a budget; give one with --max-drift or leave it out"
        )


def offers(surveys: Sequence[Survey]) -> list[list[Candidate]]:
    """The candidates of every site that none beats in error and multiply-adds, the site as it is first."""
    return [
        undominated([candidate for candidate in each.candidates if candidate.skeleton.direct])
        for each in surveys
    ]


def shortfall(sites: Sequence[Sequence[Candidate]], ratio: float, total: int) -> str | None:
    """Why no choice of the candidates keeps to a share of so many multiply-adds, or None where one does."""
    least = least_macs(sites) / total if total else 1.0
    if least <= ratio:
        return None
    return (
        f"--max-macs {ratio:g} is out of reach: with all convolutions in their cheapest form that keeps at "
        f"least half of its output's variance, {least:.3g} of the multiply-adds are left"
    )


def search(
    sites: Sequence[Sequence[Candidate]],
    most_macs: float,
    build: Callable[[Plan], Rewrites],
    usage: Callable[[Rewrites], float],
    progress: Progress,
    *,
    gated: bool,
) -> tuple[list[Trial], list[Round]]:
    """The trial of least measured drift within so many multiply-adds, and the record of every round.

    Args:
        sites: Candidates with predicted drift, the site as it is first.
        most_macs: What the multiply-adds of all sites may come to.
        build: Refits a plan.
        usage: Measures it in the network on the choosing samples; less is better.
        progress: Told after every round.
        gated: Whether there are budgets of which that is a share.

    Returns:
        One trial, or none where no choice keeps to that.
    """
    trials: dict[tuple[Candidate, ...], Trial] = {}
    rounds = []
    for done, power in enumerate(_POWERS):
        plan = choose_by_macs(sites, most_macs, power)
        if plan is not None and plan.chosen not in trials:
            rewrites = build(plan)
            trial = trials[plan.chosen] = Trial(plan, rewrites, usage(rewrites))
            fits = not gated or trial.usage <= 1.0
            rounds.append(Round(len(plan.rewritten), float(np.sqrt(plan.drift)), trial.usage, None, fits))
        progress("searching", done + 1, len(_POWERS))
    return sorted(trials.values(), key=lambda trial: trial.usage)[:1], rounds
