"""What sums of unlike forms would gain: the fastest plan within a predicted drift with and without them.

    ZOO=FOLDER python tests/bench/sums.py [--threads 1] [CASE ...]

A channel or spatial SVD or a Tucker-2 and a depthwise separable branch, fitted in turn to what the other
leaves (each step is the best for its branch, for both see the same patches), compete with all other forms on
measured latency. Prints the times that the sites of the fastest plans take by the table.
"""

import os
import sys
from dataclasses import dataclass
from typing import ClassVar

import click
from zoo import BUDGETS, ZOO

import passes
import rewriter
from passes.base import finished
from rewriter import search
from rewriter.plan import choose

NAMES = ("cifar10_resnet20", "imagenet_squeezenet_fp32", "sr_espcn_pytorch_x3", "lprnet_plates")
FIRST = ("spatial_svd", "channel_svd", "tucker2")
SECOND = ("depthwise_pointwise", "pointwise_depthwise")
LIMITS = (0.02, 0.05, 0.1, 0.2, 0.3)
RANKS, TURNS = 5, 3
# beyond, a site's fits take minutes
MOST_VALUES = 1200


class FoundError(Exception):
    """Ends a run where its candidates are known."""


@dataclass(frozen=True, slots=True)
class Sum:
    """Rank (i, j, *rank): the i-th of the first forms at a rank, and the j-th of the second at rank 1."""

    name: ClassVar[str] = "sum"
    exact: ClassVar[bool] = False
    lowers: ClassVar[bool] = False

    def refuse(self, conv):
        """What one of the forms refuses, and groups and large kernels."""
        if conv.group > 1 or conv.taps < 4 or conv.matrix.shape[2] > MOST_VALUES:
            return "it is not tried here"
        return next((reason for each in (*FIRST, *SECOND) if (reason := by_name(each).refuse(conv))), None)

    def ranks(self, conv, grid):
        """The lowest ranks of the first forms."""
        return [
            (i, j, *rank)
            for i, first in enumerate(FIRST)
            for rank in by_name(first).ranks(conv, grid)[:RANKS]
            for j in range(len(SECOND))
        ]

    def rewrites(self, conv, ranks, metric):
        """Each branch in turn fitted to what the other leaves."""
        for i, j, *rank in ranks:
            first, second = by_name(FIRST[i]), by_name(SECOND[j])
            (one,) = first.rewrites(conv, [tuple(rank)], metric)
            for _ in range(TURNS):
                (other,) = second.rewrites(lacking(conv, one), [(1,)], metric)
                (one,) = first.rewrites(lacking(conv, other), [tuple(rank)], metric)
            yield finished(conv, [*one.with_bias(None).branches, *other.with_bias(None).branches], metric)


def by_name(name):
    """The pass of that name."""
    return next(each for each in passes.PASSES if each.name == name)


def lacking(conv, rewrite):
    """What a rewrite leaves of a kernel."""
    return conv.with_(weight=conv.weight - rewrite.dense(conv))


def candidates(case, threads):
    """The candidates of a case's sites, with sums among them."""
    found = []

    def keep(sites, *_):
        found.extend(sites)
        raise FoundError

    passes.PASSES = (*passes.PASSES, Sum())
    search.search = keep
    try:
        rewriter.optimize(
            case.model,
            case.calibration,
            case.evaluation,
            max_drift=BUDGETS[case.name],
            threads=threads,
            cache=False,
        )
    except FoundError:
        return found
    return []


@click.command()
@click.argument("names", nargs=-1)
@click.option("--threads", type=int, default=1)
def main(names, threads):
    """Print what sums gain on the cases."""
    names = names or NAMES
    if len(names) > 1:
        for name in names:
            os.spawnl(os.P_WAIT, sys.executable, sys.executable, __file__, "--threads", str(threads), name)
        return
    sys.path.insert(0, str(ZOO))
    from cases import CASES

    sites = candidates(CASES[names[0]], threads)
    plain = [[each for each in offers if each.pass_name != "sum"] for offers in sites]
    for limit in LIMITS:
        without, with_them = (choose(each, limit**2).latency_ms for each in (plain, sites))
        print(
            f"{names[0]}, drift {limit}: {without:.4f} ms, with sums {with_them:.4f} ms, "
            f"{100 * (without / with_them - 1):.2f} % faster",
            flush=True,
        )


if __name__ == "__main__":
    main()
