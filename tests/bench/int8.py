"""Quantises original and rewritten models to int8 and compares what each of the four loses.

    ZOO=FOLDER python tests/bench/int8.py [--out out/int8] [CASE ...]

Static quantization by onnxruntime.quantization as most use it: QDQ nodes, a scale for each channel of the
weights, ranges by smallest and largest value over at most 100 calibration inputs; weights of seven bits, as
processors without VNNI saturate with eight. Models are rewritten without Winograd tiles, which int8 kernels
do not need and whose intermediate values are quantised badly. Scores are over all evaluation samples,
latencies against the original, one thread.
"""

import itertools
import os
import sys
import tempfile
from pathlib import Path

import click
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from zoo import BUDGETS, ZOO

import rewriter
from rewriter import latency
from rewriter.runtime import Session, Target

CASES = ("cifar10_resnet20", "sr_espcn_pytorch_x3", "lprnet_plates")
INPUTS = 100


class Reader(CalibrationDataReader):
    """The calibration inputs of a case, in batches of one."""

    def __init__(self, case):
        singles = (
            {name: array[at : at + 1] for name, array in feeds.items()}
            for feeds in case.calibration()
            for at in range(len(next(iter(feeds.values()))))
        )
        self._feeds = itertools.islice(singles, INPUTS)

    def get_next(self):
        """The next one; None where there are no more."""
        return next(self._feeds, None)


def quantised(model, case):
    """The model with static int8 quantization, as bytes."""
    copy = onnx.ModelProto()  # the tool moves the weights of what it is given into files
    copy.CopyFrom(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "int8.onnx")
        quantize_static(
            copy,
            path,
            Reader(case),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return path.read_bytes()


@click.command()
@click.argument("names", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/int8"))
def main(names, out):
    """Print the table, and keep the models."""
    sys.path.insert(0, str(ZOO))
    from cases import CASES as ALL

    out.mkdir(parents=True, exist_ok=True)
    print("| case | metric | original | rewritten | original int8 | rewritten int8 | int8 loses more by |")
    print("|---|---|---|---|---|---|---|")
    for name in names or CASES:
        case = ALL[name]
        result = rewriter.optimize(
            case.model,
            case.calibration,
            case.evaluation,
            max_drift=BUDGETS[name],
            passes=["-winograd"],
            threads=1,
        )
        models = {"original": onnx.load(case.model), "rewritten": result.model}
        models |= {
            f"{what} int8": onnx.load_from_string(quantised(each, case)) for what, each in models.items()
        }
        scores, cells = {}, []
        feeds = {key: array[:1] for key, array in next(case.calibration()).items()}
        for what, model in models.items():
            data = model.SerializeToString()
            (out / f"{name}.{what.replace(' ', '.')}.onnx").write_bytes(data)
            session = Session(data)
            run = lambda given, session=session: list(session.run(given).values())  # noqa: E731
            first = scores.setdefault("run", run)
            scores[what] = case.score(run, reference=first)
            before = models["original"].SerializeToString()
            timed = latency.compare(before, data, feeds, Target(threads=1), seconds=3.0)
            cells.append(f"{scores[what]:.2f}, {timed.speedup:.2f}x")
        more = (scores["original"] - scores["original int8"]) - (
            scores["rewritten"] - scores["rewritten int8"]
        )
        print(f"| {name} | {case.unit} | {' | '.join(cells)} | {-more:.2f} |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    main()
