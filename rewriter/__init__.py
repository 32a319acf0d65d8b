"""Rewrites the convolutions of trained ONNX models into cheaper equivalents.

    import rewriter

    result = rewriter.optimize("model.onnx", "samples.npz", output="fast.onnx", max_drift={"rel_l2": 0.05})
    print(result.report.verdict)

The house, from the ground up; nothing imports what stands below it here:

    errors, progress      the exceptions; every message says how to mend what is wrong; stages of a run
    files, version        files written whole or not at all, several of them together; which version this is
    cache                 latencies kept from run to run
    conv, rewrite, grid   a convolution and its cost; what stands for it; the ranks that a target likes
    linalg, factor        factorisations, arrays to arrays
    metric                what a convolution's input looks like, and the error of a rewrite under it
    toomcook, winograd    the transforms of tiles; where they apply and what they cost
    transposed, joined    transposed convolutions, as one node and by their phases; groups as fewer wider ones
    layers                what a layer is and costs, whatever its operator
    lowering              how one convolution becomes nodes
    samples               single samples, in batches and in disjoint parts
    graph                 the only room that knows ONNX: load, find convolutions, splice rewrites in, save
    runtime               the only room that knows ONNX Runtime: sessions with pinned options
    sources               what the user has, read and cut into samples
    calibration           the statistics of every convolution's input
    adjoint               how much the outputs care about each direction of a convolution's output
    drift, meter, budget, latency    what the gates measure, with confidence intervals
    limits                what loading and memory may come to, beside what was measured
    plan                  candidates, and the fastest choice of them within a budget
    prepare, parts        options and samples made ready, or one line that says what is wrong
    judge                 models measured against the original, on samples kept for that
    parting               where two models part, tensor by tensor
    expansions            operators that the target computes faster in others
    balance               the scales of the channels between the stages of a rewrite
    fitting, sensitivity, table      candidates fitted to the samples, what each costs in drift and in time
    rounding              the error of exact forms against float64, and those that lose too much
    profile               times of a runtime's kernels, told to the layers of the model
    refit                 the forms that a plan takes, fitted front to back to the network as rewritten
    offers                what every site may become, with its likely drift and its latency
    thinning              channels that others make up for, taken out before what is left is rewritten
    report                one `Report`; a page, JSON, Markdown and terminal text are views of it
    search, network, macs plans tried on the network itself and timed in it; least drift within multiply-adds
    verdict               the final word: within budget on fresh samples, faster, and light enough
    frontier              the whole trade-off of speed against drift
    closeup, pictures     what reports show beside the verdict: times of layers, the worst samples, images
    command               the command line that does a run again
    outcome               what a command ends with: its report, and the files that were asked for
    planfile              a plan as a file, to be made again without a search
    optimize, apply, compare, inspect      the commands, one story each from top to bottom
    cli                   the command line: parse, call, print, exit status

The package `passes` beside this one holds the forms that a convolution may take, one a file.
"""

from rewriter.apply import apply
from rewriter.compare import compare
from rewriter.errors import (
    ModelError,
    OptionError,
    OutputError,
    PlanError,
    ProviderError,
    ReportError,
    RewriterError,
    SampleError,
)
from rewriter.inspect import inspect
from rewriter.optimize import optimize
from rewriter.outcome import Result
from rewriter.report import Inspection, Report

__all__ = [
    "Inspection",
    "ModelError",
    "OptionError",
    "OutputError",
    "PlanError",
    "ProviderError",
    "Report",
    "ReportError",
    "Result",
    "RewriterError",
    "SampleError",
    "apply",
    "compare",
    "inspect",
    "optimize",
]
