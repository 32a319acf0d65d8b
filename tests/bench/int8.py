"""Quantises original and rewritten models to int8 and compares what each of the four loses.

    ZOO=FOLDER python tests/bench/int8.py [--out out/int8] [--rewritten FOLDER] [CASE ...]

Static quantization by onnxruntime.quantization as its documentation has it for processors without VNNI: after
its own preprocessing, QDQ nodes, a scale for each channel of the weights, ranges by smallest and largest
value over at most 100 calibration inputs. Weights of eight bits lose least, but pairs of products saturate
there, which costs some models more than the eighth bit brings, so both are tried and each model, original or
rewritten, has the better one on the evaluation samples. (With seven bits sr_espcn_pytorch_x3 loses 11 dB, all
but 2 of them in its last layer; it is the rounding, as without any optimisation it loses the same.)

Where there are calibration inputs enough, scores in int8 are means over several draws of them: of a few
hundred samples one draw more or less is some chance.

Models are rewritten without Winograd tiles, which int8 kernels do not need and whose intermediate values
are quantised badly. Scores are over all evaluation samples, latencies against the original, one thread.
"""

import logging
import os
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from zoo import BUDGETS, ZOO

import rewriter
from rewriter import latency
from rewriter.runtime import Session, Target

CASES = ("cifar10_resnet20", "sr_espcn_pytorch_x3", "lprnet_plates")
INPUTS = 100
DRAWS = 5


class Reader(CalibrationDataReader):
    """Inputs, one after the other."""

    def __init__(self, inputs):
        self._left = iter(inputs)

    def get_next(self):
        """The next one; None where there are no more."""
        return next(self._left, None)


def draws(case):
    """Calibration inputs, one sample each: several draws of at most 100, or one of all there are."""
    singles = [
        {name: array[at : at + 1] for name, array in feeds.items()}
        for feeds in case.calibration()
        for at in range(len(next(iter(feeds.values()))))
    ]
    if len(singles) <= INPUTS:
        return [singles]
    rng = np.random.default_rng(0)
    return [[singles[i] for i in rng.choice(len(singles), INPUTS, replace=False)] for _ in range(DRAWS)]


def quantised(model, inputs, seven_bits):
    """The model with static int8 quantization, as bytes."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("model.onnx", "prepared.onnx", "int8.onnx")]
        onnx.save(model, paths[0])
        # the symbolic shapes of a network with free sizes are of no use to it, and not always found
        quant_pre_process(paths[0], paths[1], skip_symbolic_shape=True)
        quantize_static(
            paths[1],
            paths[2],
            Reader(inputs),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=seven_bits,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return paths[2].read_bytes()


def score(case, data, reference):
    """A model's score."""
    return case.score(runner(data), reference=reference)


def runner(data):
    """A function from feeds to a model's outputs."""
    session = Session(data)
    return lambda feeds: list(session.run(feeds).values())


def best(case, model, reference):
    """A model in int8 as seven or eight bits make it better: its score, the bits, and its bytes."""
    found = []
    for bits in (7, 8):
        made = [quantised(model, inputs, bits == 7) for inputs in draws(case)]
        scores = [score(case, data, reference) for data in made]
        found.append((float(np.mean(scores)), bits, made[0]))
    return max(found, key=lambda each: each[0])


def rewrite(case, path):
    """The rewritten model, taken from a path where it is there already."""
    if not path.exists():
        result = rewriter.optimize(
            case.model,
            case.calibration,
            case.evaluation,
            max_drift=BUDGETS[case.name],
            passes=["-winograd"],
            threads=1,
        )
        onnx.save(result.model, path)
    return onnx.load(path)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/int8"))
@click.option(
    "--rewritten", type=click.Path(path_type=Path, exists=True), help="NAME.rewritten.onnx are there"
)
def main(names, out, rewritten):
    """Print the table, and keep the models."""
    sys.path.insert(0, str(ZOO))
    from cases import CASES as ALL

    logging.disable(logging.WARNING)  # it asks for the preprocessing that was done
    out.mkdir(parents=True, exist_ok=True)
    print("| case | metric | original | rewritten | original int8 | rewritten int8 | int8 loses more by |")
    print("|---|---|---|---|---|---|---|")
    for name in names or CASES:
        case = ALL[name]
        models = {
            "original": onnx.load(case.model),
            "rewritten": rewrite(case, (rewritten or out) / f"{name}.rewritten.onnx"),
        }
        before = models["original"].SerializeToString()
        reference = runner(before)
        feeds = {key: array[:1] for key, array in next(case.calibration()).items()}
        rows = {}
        for what, model in models.items():
            data = model.SerializeToString()
            rows[what] = score(case, data, reference), "", data
            value, bits, data = best(case, model, reference)
            rows[f"{what} int8"] = value, f" with {bits} bits", data
        cells = []
        for what in ("original", "rewritten", "original int8", "rewritten int8"):
            value, how, data = rows[what]
            (out / f"{name}.{what.replace(' ', '.')}.onnx").write_bytes(data)
            timed = latency.compare(before, data, feeds, Target(threads=1), seconds=3.0)
            cells.append(f"{value:.2f}{how}, {timed.speedup:.2f}x")
        lost = {what: rows[what][0] - rows[f"{what} int8"][0] for what in models}
        more = lost["rewritten"] - lost["original"]
        print(f"| {name} | {case.unit} | {' | '.join(cells)} | {more:.2f} |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    main()
