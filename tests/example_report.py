"""Reports for the tests: of a rewritten model with names that want to be markup, plain and in all detail,
of a refusal, and of a comparison.
"""

import math
from dataclasses import replace

import numpy as np

from rewriter import pictures
from rewriter.conv import Cost
from rewriter.drift import Drift
from rewriter.latency import Latency
from rewriter.limits import Expense
from rewriter.parting import Parting, Place
from rewriter.report import (
    Comparison,
    Gate,
    LayerTime,
    OperatorTime,
    OutputDrift,
    Picture,
    Point,
    Report,
    SiteReport,
    Times,
    WorstSample,
)
from rewriter.rewrite import Refusal
from rewriter.search import Round

EVIL = "a|b`c`[bold]<script>alert(1)</script>\x1b[2J\nnew @user _x_"
LONG = "/backbone/features/stage_{}/block_{}/branch/convolution_3x3/Conv_output"

SITES = (
    SiteReport(
        node="stem",
        was="3x3 64->64 s2 g1",
        in_shape=(1, 64, 56, 56),
        became="depthwise_pointwise",
        rank=(2,),
        before=Cost(28_901_376, 36_928, 50_176),
        after=Cost(7_325_696, 9_408, 200_704),
        predicted_error=0.01234,
        latency_before_ms=0.8127,
        latency_after_ms=0.25,
    ),
    SiteReport(
        node=EVIL,
        was="1x1 256->512 s1 g1",
        in_shape=(1, 256, 14, 14),
        became="tucker2",
        rank=(64, 32),
        before=Cost(25_690_112, 131_072, 100_352),
        after=Cost(10_000_000, 50_000, 120_000),
        predicted_error=0.0,
        latency_before_ms=None,
        latency_after_ms=None,
    ),
    SiteReport(
        node="head",
        was="3x3 512->10 s1 g1",
        in_shape=(1, 512, 7, 7),
        became=None,
        rank=None,
        before=Cost(2_257_920, 46_090, 490),
        after=Cost(2_257_920, 46_090, 490),
        predicted_error=0.0,
        latency_before_ms=0.05,
        latency_after_ms=0.05,
    ),
)

REWRITTEN = Report(
    model="in.onnx",
    verdict="Wrote a model that is 1.98x as fast, within rel_l2 <= 0.05.",
    improved=True,
    sites=SITES,
    refusals=(
        Refusal("gate|1", None, "its weight is computed by `Mul`"),
        Refusal("head", "grouped_pointwise", "10 channels do not divide into blocks of 8"),
        *(Refusal(f"node{index}", "spatial_svd", "a 1 x 1 kernel has one axis") for index in range(5)),
    ),
    steps=("4 weights are no longer graph inputs",),
    before=Cost(56_849_408, 214_090, 151_018),
    after=Cost(19_583_616, 105_498, 321_194),
    gates=(Gate("rel_l2", 0.05, 0.0312, 0.0298, 0.0327, 200, True),),
    drift=(
        Drift("rel_l2", None, 0.0312, 0.0298, 0.0327, 200, 3),
        Drift("rel_l2", "logits", 0.0312, 0.0298, 0.0327, 200, 3),
        Drift("noise_db", "logits|<b>", -30.1, -math.inf, -29.5, 200, 3),
        Drift("my.py:worst", None, math.nan, 0.0, 1.0, 200, 0),
    ),
    latency=Latency(
        before_ms=2.3912,
        before_p10_ms=2.3,
        before_p90_ms=2.6,
        after_ms=1.2077,
        after_p10_ms=1.1,
        after_p90_ms=1.4,
        speedup=1.9812,
        speedup_low=1.9512,
        speedup_high=2.0112,
        speedup_lower=1.9312,
        pairs=400,
        batch=1,
        provider="cpu",
        threads=None,
        before_load_ms=41.5,
        after_load_ms=38.27,
        before_peak_bytes=81_234_567,
        after_peak_bytes=180_000_000,
        baseline_bytes=50_000_000,
        before_size_bytes=857_000,
        after_size_bytes=423_000,
        before_times_ms=(2.39, 2.4, 2.38),
        after_times_ms=(1.2, 1.21, math.nan),
    ),
    expenses=(
        Expense("file_size_bytes", 857_000, 423_000, 423 / 857, None, None, True),
        Expense("load_ms", 41.5, 38.27, 38.27 / 41.5, 10.0, 415.0, True),
        Expense("peak_bytes", 81_234_567, 180_000_000, 180_000_000 / 81_234_567, 5.0, 406_172_835, True),
    ),
    rounds=(Round(2, 0.03, 0.6, 1.2, True),),
    samples={"final": 200, "fit": 600, "choose": 200},
    warnings=("200 samples are few for `top1_drop` <= 0.1",),
    environment={"processor": "Some CPU", "cores": "2", "onnxruntime": "1.30.0"},
    settings={"max-drift": {"rel_l2": 0.05}, "threads": None, "calibration": len},
)

REFUSED = replace(
    REWRITTEN,
    verdict="Nothing was written: no rewrite was faster within rel_l2 <= 0.05.",
    improved=False,
    sites=tuple(
        replace(site, became=None, rank=None, after=site.before, predicted_error=0.0) for site in SITES
    ),
    steps=(),
    after=REWRITTEN.before,
    gates=(),
    drift=(),
    latency=None,
    expenses=(),
    rounds=(),
    warnings=(),
)


def picture(height=40, width=48):
    """A picture of a gradient with a spot that comes out darker."""
    before = np.tile(np.linspace(0.0, 1.0, width), (1, height, 1)).reshape(height, width, 1)
    after = before.copy()
    after[8:16, 8:16] *= 0.9
    shown = [pictures.png(each) for each in pictures.shown(before, after)]
    return Picture(width, height, shown[0], shown[1], shown[2], pictures.GAIN)


def _point(sites, drift, speedup, chosen=False):
    measured = (Drift("rel_l2", None, drift, drift * 0.9, drift * 1.1, 200, 3),)
    return Point(sites, 0.5, drift * 0.8, measured, 1.5, speedup, speedup * 0.9, speedup * 1.1, chosen)


DETAILED = replace(
    REWRITTEN,
    rounds=(
        Round(2, 0.03, 0.6, 1.2, True, chosen=True),
        Round(1, 0.01, 0.2, 2.0, True),
        Round(2, 0.09, 1.8, 1.0, False),
    ),
    frontier=(_point(1, 0.004, 1.2), _point(2, 0.0312, 1.98, chosen=True), _point(3, 0.2, 3.1)),
    latency=replace(
        REWRITTEN.latency,
        before_times_ms=tuple(2.39 + 0.01 * (index % 7) for index in range(100)),
        after_times_ms=tuple(1.2 + 0.01 * (index % 5) for index in range(100)),
    ),
    times=Times(
        2.2,
        1.3,
        (
            LayerTime("stem", "Conv", 1.1, 0.4),
            LayerTime(EVIL, "Conv", 0.9, 0.7),
            LayerTime("gate|1", "Conv", None, None),
            LayerTime("head", "Conv", 0.05, 0.05),
            LayerTime("scores", "Gemm", 0.1, 0.1),
        ),
        (
            OperatorTime("Conv", 2.0, 1.1),
            OperatorTime(EVIL, 0.1, 0.1),
            *(OperatorTime(f"Small{index}", 0.01, 0.01) for index in range(10)),
        ),
    ),
    outputs=(
        OutputDrift(
            EVIL,
            (1, 40, 48),
            tuple(0.01 + 0.001 * index for index in range(50)),
            (WorstSample(49, 0.059, picture()), WorstSample(48, 0.058)),
        ),
        OutputDrift("scores", (10,), (0.01, math.inf), (WorstSample(1, math.inf),)),
    ),
    command=("rewriter", "optimize", "in.onnx", "-o", "my out.onnx", "--max-drift", "rel_l2=0.05"),
)

COMPARED = replace(
    DETAILED,
    verdict="Failed: the outputs are different (rel_l2 0.0312 of 0.02 on 200 samples).",
    improved=False,
    sites=(),
    refusals=(),
    steps=(),
    before=None,
    after=None,
    gates=(Gate("rel_l2", 0.02, 0.0312, 0.0298, 0.0327, 200, False),),
    rounds=(),
    frontier=(),
    comparison=Comparison(
        "out.onnx", False, False, None, True, Parting(None, None, Place("x", "stem", "Conv"), None, 0.5)
    ),
)
