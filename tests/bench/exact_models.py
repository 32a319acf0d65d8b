"""Whole models with exact rewrites, beside onnxsim and onnxslim: one process a model and thread setting.

    ZOO=FOLDER python tests/bench/exact_models.py [--threads 1] [--threads default] [--out DIR] [MODEL ...]

VGG-19's convolutions, ResNet-18, ResNet-50 and GoogLeNet are structure only: random weights, scaled so that
activations stay of order one. The trained models and their inputs come from the folder of
tests/bench/zoo.py.

All speed-ups are against the model as it came, by the same function on the same input. onnxsim and onnxslim
are optional (`pip install onnxsim onnxslim`): a dash where one is not installed. Load time is the median over
fresh processes; peak memory is that of a fresh process, interpreter and ONNX Runtime included, after three
runs.
"""

import functools
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import helper, numpy_helper

HERE = Path(__file__).resolve()
ZOO = Path(os.environ.get("ZOO", HERE.parents[3] / "shared" / "zoo"))

TRAINED = (
    "waifu2x_upconv7_scale2.0x_std",
    "ultraface_version-RFB-320",
    "style_mosaic_std",
    "sr_espcn_pytorch_x3",
    "seg_espnet_p_2_q_3_cityscapes",
    "cifar10_resnet20",
    "cifar10_resnet56",
    "cifar10_mlperftiny_resnet8",
    "imagenet_squeezenet_fp32",
)

# The first sample is timed; half of the others guide the choice and half judge.
DRAWN, MOST_SAMPLES = 9, 65
# What a simplified model may differ by before the table says so: the budget of exact rewrites.
ROUNDING = 1e-5
PROBES = 5

# A max pool keeps the largest of its window, which raises the root mean square behind a Relu by so much
# (about, measured on random inputs); the convolution in front of it makes up for that.
POOLED = {2: 1.5, 3: 2.2}
# The last convolution of a residual branch, as trained networks have it: or the sums grow block by block.
BRANCH = 0.3

# Only what a deployment imports, as this counts in the peak memory. On Linux not `ru_maxrss`, which survives
# exec: a child would report its parent's memory.
PROBE = """\
import json, re, resource, sys, time
from pathlib import Path
import numpy as np
import onnxruntime

def peak():
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"^VmHWM:\\s*(\\d+) kB$", status.read_text(), re.MULTILINE)[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

model, samples, threads = sys.argv[1:]
with np.load(samples) as archive:
    feeds = dict(archive)
baseline = peak()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
options.inter_op_num_threads = 1
options.log_severity_level = 4
start = time.perf_counter()
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
load_ms = (time.perf_counter() - start) * 1e3
for _ in range(3):
    session.run(None, feeds)
print(json.dumps({"load_ms": load_ms, "peak_bytes": peak(), "baseline_bytes": baseline}))
"""


# Structure only


class Network:
    """A model in the making, with random weights of He's scale; every method returns the tensor it makes."""

    def __init__(self):
        self.nodes, self.weights, self.channels = [], [], {"image": 3}
        self._rng = np.random.default_rng(0)

    def draw(self, *shape, scale):
        name = f"constant_{len(self.weights)}"
        array = self._rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind, *inputs, channels=None, **attributes):
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.channels[name] = channels or self.channels[inputs[0]]
        return name

    def conv(self, x, width, kernel, stride=1, gain=1.0):
        shape = (width, self.channels[x], kernel, kernel)
        scale = gain * np.sqrt(2 / np.prod(shape[1:]))
        # the bias is what a folded BatchNormalization leaves
        constants = self.draw(*shape, scale=scale), self.draw(width, scale=0.1)
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        return self.node("Conv", x, *constants, channels=width, **attributes)

    def conv_relu(self, x, width, kernel, stride=1, gain=1.0):
        return self.node("Relu", self.conv(x, width, kernel, stride, gain))

    def model(self, name, output, shape):
        """The finished model, its batch dynamic."""
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 3, 224, 224])],
            [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, ["n", *shape])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def vgg19():
    """The sixteen convolutions of VGG-19 with their pools, nothing behind."""
    network, x = Network(), "image"
    for width, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for index in range(count):
            x = network.conv_relu(x, width, 3, gain=1.0 if index < count - 1 else 1 / POOLED[2])
        x = network.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return network.model("vgg19_convolutions", x, (512, 7, 7))


def resnet(name, blocks, bottleneck, early=False):
    """ResNet with its BatchNormalization folded.

    A bottleneck has its stride on the 3 x 3, as in torchvision, or early, on the 1 x 1 before it, as in the
    models of its authors and the first version of the ONNX Model Zoo's.
    """
    network = Network()
    x = network.conv_relu("image", 64, 7, stride=2, gain=1 / POOLED[3])
    x = network.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, count in enumerate(blocks):
        inner = 64 << stage
        width = inner * 4 if bottleneck else inner
        for index in range(count):
            stride = 2 if stage and not index else 1
            if bottleneck:
                branch = network.conv_relu(x, inner, 1, stride if early else 1)
                branch = network.conv_relu(branch, inner, 3, 1 if early else stride)
                branch = network.conv(branch, width, 1, gain=BRANCH)
            else:
                branch = network.conv_relu(x, inner, 3, stride)
                branch = network.conv(branch, width, 3, gain=BRANCH)
            if stride != 1 or network.channels[x] != width:
                x = network.conv(x, width, 1, stride)
            x = network.node("Relu", network.node("Add", branch, x))
    x = network.node("Flatten", network.node("GlobalAveragePool", x))
    matrix = network.draw(width, 1000, scale=width**-0.5)
    x = network.node("Gemm", x, matrix, network.draw(1000, scale=0.1))
    return network.model(name, x, (1000,))


# The widths of GoogLeNet's blocks (arXiv 1409.4842, table 1): 1 x 1, before and of 3 x 3, before and of
# 5 x 5, and behind the pool; None is a pool.
INCEPTIONS = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    None,
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    None,
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)


def googlenet():
    """GoogLeNet with its two LRNs, without the classifiers that training had beside."""
    network = Network()
    smaller = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}
    x = network.conv_relu("image", 64, 7, stride=2, gain=1 / POOLED[3])
    x = network.node("LRN", network.node("MaxPool", x, **smaller), size=5)
    x = network.conv_relu(network.conv_relu(x, 64, 1), 192, 3, gain=1 / POOLED[3])
    x = network.node("MaxPool", network.node("LRN", x, size=5), **smaller)
    for widths in INCEPTIONS:
        if widths is None:
            x = network.node("MaxPool", x, **smaller)
            continue
        one, before_three, three, before_five, five, pooled = widths
        pool = network.node("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4)
        branches = (
            network.conv_relu(x, one, 1),
            network.conv_relu(network.conv_relu(x, before_three, 1), three, 3),
            network.conv_relu(network.conv_relu(x, before_five, 1), five, 5),
            network.conv_relu(pool, pooled, 1, gain=1 / POOLED[3]),
        )
        x = network.node("Concat", *branches, channels=one + three + five + pooled, axis=1)
    x = network.node("Flatten", network.node("GlobalAveragePool", x))
    x = network.node("Gemm", x, network.draw(1024, 1000, scale=1024**-0.5), network.draw(1000, scale=0.1))
    return network.model("googlenet", network.node("Softmax", x), (1000,))


STRUCTURES = {
    "vgg19_convolutions": vgg19,
    "resnet18": functools.partial(resnet, "resnet18", (2, 2, 2, 2), bottleneck=False),
    "googlenet": googlenet,
    "resnet50": functools.partial(resnet, "resnet50", (3, 4, 6, 3), bottleneck=True),
    "resnet50_early": functools.partial(resnet, "resnet50_early", (3, 4, 6, 3), bottleneck=True, early=True),
}
MODELS = (*STRUCTURES, *TRAINED)


# One model


def prepare(name, folder):
    """The model's path and single samples of the shape to be fast at."""
    if name in STRUCTURES:
        path = folder / f"{name}.onnx"
        onnx.save(STRUCTURES[name](), path)
        rng = np.random.default_rng(1)
        draws = (rng.standard_normal((1, 3, 224, 224), dtype=np.float32) for _ in range(DRAWN))
        return path, [{"image": image} for image in draws]
    sys.path.insert(0, str(ZOO))
    from cases import CASES

    case = CASES[name]
    singles = (
        {key: array[row : row + 1] for key, array in feeds.items()}
        for feeds in case.calibration()
        for row in range(len(next(iter(feeds.values()))))
    )
    return case.model, list(itertools.islice(singles, MOST_SAMPLES))


def probe(paths, samples, threads):
    """Load time and peak memory of every model by its label: medians over fresh processes, in turns."""
    found = {label: [] for label in paths}
    for turn in range(PROBES):
        for label in sorted(paths, reverse=turn % 2 == 1):
            command = [sys.executable, "-c", PROBE, str(paths[label]), str(samples), str(threads or 0)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            found[label].append(json.loads(done.stdout))
    return {
        label: {key: float(np.median([each[key] for each in probes])) for key in probes[0]}
        for label, probes in found.items()
    }


def by_onnxsim(model):
    import onnxsim

    return onnxsim.simplify(model)[0]


def by_onnxslim(model):
    import onnxslim

    return onnxslim.slim(model)


SIMPLIFIERS = {"onnxsim": by_onnxsim, "onnxslim": by_onnxslim}


def simplify(tool, path, feeds, target):
    """What a tool makes of the model: its speed-up and how far off it is on the timed sample."""
    from rewriter.latency import compare
    from rewriter.runtime import Session

    try:
        version = importlib.metadata.version(tool)
    except importlib.metadata.PackageNotFoundError:
        return None
    try:
        model = SIMPLIFIERS[tool](onnx.load(path)).SerializeToString()
        found = compare(path, model, feeds, target)
        before, after = (list(Session(each).run(feeds).values()) for each in (path, model))
    except Exception as error:  # whatever it is, it is the tool's result
        return {"version": version, "error": f"{type(error).__name__}: {error}"}
    return {
        "version": version,
        **speed(found),
        "rel_l2": max(map(rel_l2, before, after)),
        "size_bytes": found.after_size_bytes,
    }


def rel_l2(before, after):
    before, after = np.float64(before), np.float64(after)
    return float(np.linalg.norm(after - before) / max(np.linalg.norm(before), 1e-30))


def speed(found):
    """A `Latency` in the row's words."""
    return {
        "speedup": found.speedup,
        "low": found.speedup_low,
        "high": found.speedup_high,
        "lower": found.speedup_lower,
        "before_ms": found.before_ms,
        "after_ms": found.after_ms,
    }


def run_model(name, threads, out):
    """Measures one model with one thread setting and writes its row."""
    import rewriter
    from rewriter.runtime import Target

    stem = row_path(out, name, threads).name.removesuffix(".row.json")
    with tempfile.TemporaryDirectory(prefix="exact-models-") as folder:
        path, samples = prepare(name, Path(folder))
        feeds = samples[0]
        written = Path(folder, "rewritten.onnx")
        began, shown = time.perf_counter(), None

        def progress(stage, done, total):
            nonlocal shown
            if stage != shown:
                print(f"{stem} {time.perf_counter() - began:7.1f} s  {stage}", flush=True)
                shown = stage

        # nothing is fitted, so the calibration sample only says what to be fast at
        result = rewriter.optimize(
            path,
            [feeds],
            samples[1:],
            exact=True,
            threads=threads,
            cache=False,
            output=written,
            reports=[out / f"{stem}.json"],
            progress=progress,
        )
        report, seconds = result.report, time.perf_counter() - began
        paths = {"before": path, **({"after": written} if result.improved else {})}
        print(f"{stem} {seconds:7.1f} s  {report.verdict}", flush=True)
        np.savez(Path(folder, "feeds.npz"), **feeds)
        row = {
            "model": name,
            "threads": threads,
            "exit": 0 if result.improved else 3,
            "verdict": report.verdict,
            "latency": None if report.latency is None else speed(report.latency),
            "rel_l2": next((gate.value for gate in report.gates if gate.measure == "rel_l2"), None),
            "samples": next((gate.samples for gate in report.gates), 0),
            "sites": len(report.sites),
            "rewritten": {
                site.node: f"{site.became} {'x'.join(map(str, site.rank or ()))}"
                for site in report.sites
                if site.became
            },
            "steps": list(report.steps),
            "size_bytes": {label: each.stat().st_size for label, each in paths.items()},
            "probe": probe(paths, Path(folder, "feeds.npz"), threads),
            "seconds": seconds,
            "environment": report.environment,
        }
        for tool in SIMPLIFIERS:
            row[tool] = simplify(tool, path, feeds, Target(threads=threads))
            print(f"{stem} {time.perf_counter() - began:7.1f} s  {tool} {simplified(row[tool])}", flush=True)
    row_path(out, name, threads).write_text(json.dumps(row, indent=1))


# All of them


def row_path(out, name, threads):
    return out / f"{name}.threads-{threads or 'default'}.row.json"


def times(found):
    """A speed-up with its 95 % interval."""
    return f"{found['speedup']:.2f}x ({found['low']:.2f} to {found['high']:.2f})"


def rewritten(row):
    """The cell of the exact rewrite; where nothing was written, what was measured all the same."""
    measured = times(row["latency"]) if row["latency"] else None
    if row["exit"] == 0:
        return measured
    return f"nothing written: {measured}" if measured else "nothing written"


def simplified(found):
    """The cell of a simplifier."""
    if found is None:
        return "-"
    if "error" in found:
        return "failed"
    off = found["rel_l2"]
    return times(found) if off <= ROUNDING else f"{times(found)}, off by {off:.1g}"


def table(rows):
    """A Markdown table of the rows; where there is an arrow, of the original and the result."""
    columns = ("model", "threads", "original", "exact rewrites (95 % interval)", "rel_l2", "sites rewritten")
    columns += (*SIMPLIFIERS, "file MB", "load ms", "peak MB", "time")
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:

        def arrow(figures, unit=1.0, digits=0):
            return " → ".join(
                f"{figures[key] / unit:.{digits}f}" for key in ("before", "after") if key in figures
            )

        timed = row["latency"] or next(
            (row[tool] for tool in SIMPLIFIERS if "before_ms" in (row[tool] or {})), None
        )
        cells = [
            row["model"],
            row["threads"] or "default",
            f"{timed['before_ms']:.3g} ms" if timed else "-",
            rewritten(row),
            "-" if row["rel_l2"] is None else f"{row['rel_l2']:.1e}",
            "; ".join([f"{len(row['rewritten'])} of {row['sites']}", *row["steps"]]),
            *(simplified(row[tool]) for tool in SIMPLIFIERS),
            arrow(row["size_bytes"], 1e6, 2),
            arrow({label: found["load_ms"] for label, found in row["probe"].items()}),
            arrow({label: found["peak_bytes"] for label, found in row["probe"].items()}, 1e6),
            f"{row['seconds']:.0f} s",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def as_threads(text):
    """A number of threads; None is ONNX Runtime's default."""
    if text == "default":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"'{text}' is neither a number of threads nor 'default'")
    return int(text)


@click.command()
@click.argument("models", nargs=-1, type=click.Choice(MODELS), metavar="[MODEL]...")
@click.option(
    "--threads",
    "settings",
    multiple=True,
    type=as_threads,
    metavar="N|default",
    help="Repeatable; both by default.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/exact"))
@click.option("--single", is_flag=True, hidden=True)
def main(models, settings, out, single):
    """Measure the models (all by default) and print their table."""
    out.mkdir(parents=True, exist_ok=True)
    jobs = list(itertools.product(models or MODELS, settings or (1, None)))
    if single:
        for name, threads in jobs:
            run_model(name, threads, out)
        return
    for name, threads in jobs:
        row_path(out, name, threads).unlink(missing_ok=True)
        command = [sys.executable, str(HERE), name, "--single", "--threads", str(threads or "default")]
        # threads of linear algebra would only disturb those that are timed
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        if subprocess.run([*command, "--out", str(out)], check=False, env=environment).returncode:
            print(f"{name} failed", flush=True)
    rows = [path for job in jobs if (path := row_path(out, *job)).exists()]
    print(table(json.loads(path.read_text()) for path in rows))
    if len(rows) < len(jobs):
        sys.exit(1)


if __name__ == "__main__":
    main()
