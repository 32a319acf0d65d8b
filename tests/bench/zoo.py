"""Optimises real trained models and measures what their users care about, one process a case.

    ZOO=FOLDER python tests/bench/zoo.py [--threads 1] [--out out/zoo] [CASE ...]

The models, their inputs and metrics come from a folder with a `cases.py`, which is not part of the project.
The tool fits and chooses on a case's calibration inputs and sees its evaluation samples
only as `--evaluation`; the score in the table is measured over all of them.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import click

HERE = Path(__file__).resolve()
ZOO = Path(os.environ.get("ZOO", HERE.parents[3] / "shared" / "zoo"))

BUDGETS = {
    "imagenet_squeezenet_fp32": {"top1_drop": 1.0},
    "cifar10_resnet20": {"top1_drop": 1.0},
    "cifar10_resnet56": {"top1_drop": 1.0},
    "cifar10_mlperftiny_resnet8": {"top1_drop": 1.0},
    "mnist_ort": {"top1_drop": 1.0},
    "vww_mlperftiny_mobilenet025": {"top1_drop": 1.0},
    "lprnet_plates": {f"{HERE}:plate_drop": 1.0},
    "sr_espcn_pytorch_x3": {"psnr_drop_db": 0.1},
    "waifu2x_upconv7_scale2.0x_std": {"psnr_drop_db": 0.2},
    "mtcnn_onet": {"noise_db": -30.0},
    "ultraface_version-RFB-320": {"noise_db": -30.0},
    "faceboxes": {"noise_db": -30.0},
    "seg_espnet_p_2_q_3_cityscapes": {"top1_flips": 1.0},
    "style_mosaic_std": {f"{HERE}:minus_psnr_db": -30.0},
}


def plate_drop(before, after, target):
    """Points of plates that are no longer read right."""
    sys.path.insert(0, str(ZOO))
    from cases import plate_percent

    return plate_percent(before, target) - plate_percent(after, target)


def minus_psnr_db(before, after, target):
    """Minus the peak signal-to-noise ratio to the original's image, which has values to 255."""
    sys.path.insert(0, str(ZOO))
    from cases import agreement_psnr_db

    return -agreement_psnr_db(after, before)


def run_case(name, threads, passes, out):
    """Optimises one case and writes its row."""
    sys.path.insert(0, str(ZOO))
    from cases import CASES

    import rewriter
    from rewriter.runtime import Session

    case = CASES[name]
    began = time.perf_counter()
    stages = {}

    def progress(stage, done, total):
        stages[stage] = round(time.perf_counter() - began, 1)
        print(f"{name} {stages[stage]:7.1f} s  {stage} {done}/{total}", flush=True)

    result = rewriter.optimize(
        case.model,
        case.calibration,
        case.evaluation,
        max_drift=BUDGETS[name],
        threads=threads,
        passes=passes,
        cache=False,
        output=out / f"{name}.onnx",
        reports=[out / f"{name}.json", out / f"{name}.md"],
        progress=progress,
    )
    seconds = time.perf_counter() - began
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    def runner(model):
        session = Session(model)
        return lambda feeds: list(session.run(feeds).values())

    before = runner(case.model)
    after = runner(result.model.SerializeToString())
    report = result.report
    row = {
        "case": name,
        "unit": case.unit,
        "before": case.score(before, reference=before),
        "after": case.score(after, reference=before),
        "improved": result.improved,
        "speedup": report.latency.speedup if result.improved else 1.0,
        "macs": report.after.macs / report.before.macs,
        "rewritten": sum(site.became is not None for site in report.sites),
        "sites": len(report.sites),
        "seconds": seconds,
        "peak_gb": peak_gb,
        "stages": stages,
        "verdict": report.verdict,
    }
    (out / f"{name}.row.json").write_text(json.dumps(row, indent=1))


def table(rows):
    """A Markdown table of the rows."""
    lines = [
        "| case | metric | before | after | speed-up | MACs | sites rewritten | time | peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        speed = f"{row['speedup']:.2f}x" if row["improved"] else "nothing written"
        lines.append(
            f"| {row['case']} | {row['unit']} | {row['before']:.2f} | {row['after']:.2f} | {speed} | "
            f"{row['macs']:.2f} | {row['rewritten']} of {row['sites']} | {row['seconds']:.0f} s | "
            f"{row['peak_gb']:.1f} GB |"
        )
    return "\n".join(lines)


@click.command()
@click.argument("cases", nargs=-1)
@click.option("--threads", type=int, default=None)
@click.option("--passes", default=None)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/zoo"))
@click.option("--single", is_flag=True, hidden=True)
def main(cases, threads, passes, out, single):
    """Run the cases (all by default) and print their table."""
    out.mkdir(parents=True, exist_ok=True)
    names = cases or tuple(BUDGETS)
    if single:
        for name in names:
            run_case(name, threads, passes.split(",") if passes else None, out)
        return
    for name in names:
        arguments = [sys.executable, str(HERE), name, "--single", "--out", str(out)]
        arguments += ["--threads", str(threads)] if threads else []
        arguments += ["--passes", passes] if passes else []
        (out / f"{name}.row.json").unlink(missing_ok=True)
        if subprocess.run(arguments, check=False).returncode:
            print(f"{name} failed", flush=True)
    rows = [out / f"{name}.row.json" for name in names]
    print(table(json.loads(row.read_text()) for row in rows if row.exists()))


if __name__ == "__main__":
    main()
