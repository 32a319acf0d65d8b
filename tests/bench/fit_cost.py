"""Seconds and peak memory of fitting one convolution with every pass, at all the ranks that it proposes.

    python tests/bench/fit_cost.py [--output-metric] [CHANNELS ...]

The covariance is made: smooth over the taps, correlated over the channels; the weights of the output, where
they are asked for, have a spectrum as wide. Each figure comes from a process
of its own; the baseline of memory is the same process without the fit.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import passes
from rewriter.conv import Conv
from rewriter.grid import Grid
from rewriter.metric import Metric, Moments


def metric(channels, rng, weighted):
    """A metric of 3 x 3 patches whose taps correlate with their distance and whose channels share factors."""
    place = np.array([(y, x) for y in range(3) for x in range(3)])
    distance = np.abs(place[:, None] - place).sum(axis=2)
    total = 0.0
    for reach in (0.5, 0.8, 0.95):
        loads = rng.standard_normal((channels, channels)) * np.geomspace(1, 1e-2, channels)
        total = total + np.kron(loads @ loads.T, reach**distance)
    cares = rng.standard_normal((channels, channels)) * np.geomspace(1, 1e-2, channels)
    moments = Moments(total[None], np.ones((1, len(total))), 20 * len(total))
    return Metric(moments, cares @ cares.T / channels if weighted else None)


def measure(name, channels, block, weighted):
    """Print the ranks, the seconds of wall and of processor time and the peak memory of one fit."""
    rng = np.random.default_rng(0)
    conv = Conv(rng.standard_normal((channels, channels, 3, 3), np.float32), None, pads=(1, 1, 1, 1))
    given = metric(channels, rng, weighted)
    (step,) = (step for step in passes.PASSES if step.name == name)
    ranks = step.ranks(conv, Grid(block))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, busy = time.perf_counter(), time.process_time()
    for _ in step.rewrites(conv, ranks, given):
        pass
    wall, cpu = time.perf_counter() - start, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = f"{before / 1024:.0f} | {peak / 1024:.0f}"
    print(f"| {name} | {channels} | {len(ranks)} | {wall:.2f} | {cpu:.2f} | {memory} |")


def main():
    """Print the table, one process a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("channels", nargs="*", type=int, default=[64, 128, 256, 512])
    parser.add_argument("--passes", default=",".join(step.name for step in passes.PASSES))
    parser.add_argument("--block", type=int, default=8)
    parser.add_argument("--output-metric", action="store_true", help="weigh the output's directions")
    parser.add_argument("--one", action="store_true", help="in this process, without the heading")
    options = parser.parse_args()
    names = options.passes.split(",")
    if options.one:
        measure(names[0], options.channels[0], options.block, options.output_metric)
        return
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    print(f"{model[0].split(':')[1].strip() if model else platform.processor()}, {os.cpu_count()} cores\n")
    print("| pass | channels | ranks | wall s | CPU s | MB before | MB peak |")
    print("|---|---|---|---|---|---|---|")
    for channels in options.channels:
        for name in names:
            command = [
                sys.executable,
                __file__,
                str(channels),
                "--passes",
                name,
                "--block",
                str(options.block),
                "--one",
                *(["--output-metric"] if options.output_metric else []),
            ]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
