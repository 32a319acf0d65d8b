"""Rewrites the convolutions of trained ONNX models into cheaper equivalents.

    import rewriter

    result = rewriter.optimize("model.onnx", "samples.npz", output="fast.onnx", max_drift={"rel_l2": 0.05})
    print(result.report.verdict)

The house, from the ground up; nothing imports what stands below it here:

    errors                the exceptions; every message says how to mend what is wrong
    conv, linalg, factor  a convolution, its rewrites, their cost and error; factorisations, arrays to arrays
    toomcook, winograd    the transforms of tiles; where they apply and what they cost
    lowering              how one convolution becomes nodes
    samples               what the user has, cut into single samples
    graph                 the only room that knows ONNX: load, find convolutions, splice rewrites in, save
    runtime               the only room that knows ONNX Runtime: sessions with pinned options
    calibration           the statistics of every convolution's input
    drift, latency        what the gates measure, with confidence intervals
    plan                  candidates, and the fastest choice of them within a budget
    fitting, sensitivity, table      candidates fitted to the samples, what each costs in drift and in time
    report                one `Report`; JSON, Markdown and terminal text are views of it
    search                plans tried on the network itself
    verdict               the final word: within budget on fresh samples, and faster
    optimize              the command, one story from top to bottom
    cli                   the command line: parse, call, print, exit status

The package `passes` beside this one holds the forms that a convolution may take, one a file.
"""

from rewriter.errors import (
    ModelError,
    OptionError,
    OutputError,
    ProviderError,
    RewriterError,
    SampleError,
)
from rewriter.optimize import Result, optimize
from rewriter.report import Report

__all__ = [
    "ModelError",
    "OptionError",
    "OutputError",
    "ProviderError",
    "Report",
    "Result",
    "RewriterError",
    "SampleError",
    "optimize",
]
