"""What wins on which execution provider: speed-up within a budget, and the forms that were chosen.

    ZOO=FOLDER python tests/bench/providers.py --provider cpu [--provider cuda] [--half] [--threads 1] [CASE]

Each case is optimised for each provider that the installed ONNX Runtime has; others are named and left out.
`--half` adds a row in float16, converted with ONNX Runtime's own tool. Cases are those of `zoo.py` and the
structures of `exact_models.py`; the latter have random weights and a loose budget, so that only their speed
means anything.
"""

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import click
import onnx
from exact_models import STRUCTURES, prepare
from onnxruntime.transformers.float16 import convert_float_to_float16
from zoo import BUDGETS, ZOO

import rewriter
from rewriter import runtime
from rewriter.errors import ProviderError

DEFAULT = ("sr_espcn_pytorch_x3", "cifar10_resnet20", "faceboxes")
LOOSE = {"rel_l2": 0.5}


def job(name, folder):
    """A case's model, its samples to fit to and to judge by, and its budget."""
    if name in STRUCTURES:
        path, samples = prepare(name, folder)
        return onnx.load(path), samples, None, LOOSE
    sys.path.insert(0, str(ZOO))
    from cases import CASES

    case = CASES[name]
    return onnx.load(case.model), case.calibration, case.evaluation, BUDGETS[name]


def told(result):
    """The cells of a row: the speed-up, the time before, and how often each form was taken."""
    timed = result.report.latency
    if timed is None:
        return "nothing to time", "-", "-"
    forms = Counter(site.became for site in result.report.sites if site.became is not None)
    written = "" if result.improved else "nothing written, "
    speed = f"{written}{timed.speedup:.2f}x ({timed.speedup_low:.2f} to {timed.speedup_high:.2f})"
    return speed, f"{timed.before_ms:.3g}", ", ".join(f"{form} {n}" for form, n in forms.most_common()) or "-"


@click.command()
@click.argument("cases", nargs=-1)
@click.option("--provider", "providers", multiple=True, default=("cpu",))
@click.option("--threads", type=int, default=None)
@click.option("--half", is_flag=True)
def main(cases, providers, threads, half):
    """Print the table."""
    print(f"{runtime.versions()}\n")
    print("| case | provider | type | ms before | speed-up (95 % interval) | forms |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in cases or DEFAULT:
            for provider in providers:
                try:
                    runtime.check_provider(provider)
                except ProviderError as error:
                    print(f"| {name} | {provider} | | | {error} | |")
                    continue
                model, calibration, evaluation, budget = job(name, Path(folder))
                kinds = {"float32": model}
                if half:
                    kinds["float16"] = convert_float_to_float16(model, keep_io_types=True)
                for kind, each in kinds.items():
                    result = rewriter.optimize(
                        each,
                        calibration,
                        evaluation,
                        max_drift=budget,
                        provider=provider,
                        threads=threads,
                        cache=False,
                    )
                    speed, before, forms = told(result)
                    print(f"| {name} | {provider} | {kind} | {before} | {speed} | {forms} |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    main()
