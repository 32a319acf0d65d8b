"""Models as ONNX Runtime runs them: its optimised form, and the time of each kernel."""

import bisect
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from rewriter.errors import ModelError
from rewriter.runtime.session import ModelSource, load, loadable, one_line, session_options
from rewriter.runtime.target import Target

_QUIET: Final = 0.1
# What ONNX Runtime says where it cannot write down what a provider has made.
_COMPILED: Final = "compiled nodes"
_PROFILE_WARM_UP: Final = 2
_LEAST_PROFILED: Final = 5
# The profiler keeps a million events at most.
_MOST_PROFILED: Final = 200


@dataclass(frozen=True, slots=True)
class Kernel:
    """A node as ONNX Runtime runs it, after fusions.

    Attributes:
        name: ONNX Runtime's name of it, often that of a node or tensor of the model with something behind.
        op_type: Its operator.
        ms: Time of one run.
        provider: ONNX Runtime's name of the provider that runs it.
    """

    name: str
    op_type: str
    ms: float
    provider: str = ""


def optimized(model: ModelSource, target: Target | None = None) -> bytes:
    """Returns the model's bytes as ONNX Runtime has rewritten it for this machine, before it would run it.

    On the CPU that shows layouts and fusions: a convolution in the blocked layout is a `com.microsoft.nchwc`
    node whose weight is padded to whole blocks of channels, so the block can be read from it. Providers that
    compile nodes (OpenVINO, TensorRT) show nothing of what they make: with them the model is as it came.

    Raises:
        ModelError: The model cannot be loaded.
    """
    target = target or Target()
    with tempfile.TemporaryDirectory(prefix="conv-rewriter-") as folder:
        written = Path(folder, "optimized.onnx")
        options = session_options(target)
        options.optimized_model_filepath = str(written)
        with loadable(model) as source:
            try:
                load(source, target, options, "the model")
            except ModelError as error:
                if _COMPILED not in str(error):
                    raise
                options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
                load(source, Target(), options, "the model")
        return written.read_bytes()


def profiled(
    model: ModelSource, feeds: Mapping[str, Any], target: Target | None = None, *, seconds: float = 3.0
) -> tuple[Kernel, ...]:
    """Returns the time of every kernel by ONNX Runtime's own profiler, in the order of execution.

    What holds bodies (If, Loop, Scan) is one kernel. Each time is the lowest tenth, which other programs
    disturb least, over as many runs as fit into the time, at least five; the first two warm up and do not
    count.

    Raises:
        ModelError: The model cannot be loaded or run.
    """
    target = target or Target()
    with tempfile.TemporaryDirectory(prefix="conv-rewriter-") as folder:
        options = session_options(target)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        with loadable(model) as source:
            session = load(source, target, options, "the model")
        end = time.perf_counter() + seconds
        for run in range(_MOST_PROFILED):
            if run >= _LEAST_PROFILED and time.perf_counter() > end:
                break
            try:
                session.run(None, dict(feeds))
            except Exception as error:
                raise ModelError(f"the model failed to run: {one_line(error)}") from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    times: dict[tuple[str, ...], list[float]] = {}
    until = 0
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        name, ran, _ = event["name"].rpartition("_kernel_time")
        # what runs in the body of a loop is part of the loop
        if event.get("cat") == "Node" and ran and event["ts"] >= until:
            until = event["ts"] + event["dur"]
            said = event["args"]
            key = (said.get("node_index", ""), name, said.get("op_name", ""), said.get("provider", ""))
            per_run = times.setdefault(key, [0.0] * len(starts))
            per_run[bisect.bisect(starts, event["ts"]) - 1] += event["dur"] / 1000
    return tuple(
        Kernel(name, op_type, float(np.quantile(per_run[_PROFILE_WARM_UP:], _QUIET)), provider)
        for (_, name, op_type, provider), per_run in times.items()
    )
