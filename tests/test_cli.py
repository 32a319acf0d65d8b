"""The command line: what it parses, what it calls, what it prints and how it exits."""

import io
import logging
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from example_report import REFUSED, REWRITTEN

from rewriter import cache, cli, errors
from rewriter.cache import Cache, Time
from rewriter.progress import logged as progress_of_a_command
from rewriter.report import Report, rendered, write

BASIC = ["optimize", "in.onnx", "-o", "out.onnx", "--calibration", "samples.npz"]


@pytest.fixture
def optimize(monkeypatch):
    return stand_in(monkeypatch, "optimize")


@pytest.fixture
def apply(monkeypatch):
    return stand_in(monkeypatch, "apply")


def stand_in(monkeypatch, command):
    """Stands in for a command: remembers its arguments, then returns or raises `outcome`."""

    class Stand:
        outcome = REWRITTEN
        arguments = ()
        options: dict = {}  # noqa: RUF012

        def __call__(self, *arguments, progress, **options):
            self.arguments, self.options = arguments, options
            for done in range(3):
                progress("fitting [bold]", done, 2)
            progress("timing", 0, 0)
            if not isinstance(self.outcome, Report):
                raise self.outcome
            return SimpleNamespace(model=None, report=self.outcome, improved=self.outcome.improved)

    module = ModuleType(f"rewriter.{command}")
    setattr(module, command, Stand())
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return getattr(module, command)


@pytest.fixture
def run(capsys):
    """Runs the entry point; returns its status, standard output and standard error."""

    def call(*args):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(arg) for arg in args])
        return ended.value.code, *capsys.readouterr()

    return call


def test_defaults(optimize, run):
    status, out, err = run(*BASIC)
    assert (status, err) == (0, "")
    assert optimize.arguments == (Path("in.onnx"), "samples.npz", None)
    assert optimize.options == {
        "output": Path("out.onnx"),
        "preprocess": None,
        "random_samples": None,
        "exact": False,
        "max_drift": None,
        "strict": False,
        "max_macs": None,
        "frontier": False,
        "passes": None,
        "exclude": (),
        "provider": "cpu",
        "provider_options": {},
        "threads": None,
        "batch": 1,
        "shapes": {},
        "seed": 0,
        "min_speedup": None,
        "max_load": 10.0,
        "max_memory": 5.0,
        "cache": True,
        "save_plan": None,
        "save_as_external_data": False,
        "size_threshold": 1024,
        "reports": (),
    }
    assert out.splitlines()[-2:] == [REWRITTEN.verdict, "Wrote out.onnx"]


def test_every_option(optimize, run):
    # fmt: off
    status, out, _ = run(
        *BASIC, "--evaluation", "data.py:feeds", "--max-drift", "noise_db=-40", "--exact",
        "--max-drift", "a=b/my.py:worst=1e-2", "--passes", "spatial_svd, tucker2",
        "--exclude", "stem", "--exclude", "head,1", "--provider", "cuda", "--threads", 3,
        "--provider-option", "a=b=c",
        "--batch", 8, "--shape", "input:0:1,3,32,32", "--shape", "mask:4", "--seed", 7,
        "--strict", "--max-macs", 0.5, "--frontier", "--random-samples", 9,
        "--preprocess", "scale=1/255", "--preprocess", "mean=0.5,0.4,0.3",
        "--min-speedup", 1.5, "--max-load", 3, "--max-memory", 1.5, "--no-cache",
        "--save-plan", "plan.json", "--report", "a.md", "--report", "b.json",
        "--save-as-external-data", "--size-threshold", 9,
    )
    # fmt: on
    assert status == 0
    assert optimize.arguments == (Path("in.onnx"), "samples.npz", "data.py:feeds")
    assert optimize.options == {
        "output": Path("out.onnx"),
        "preprocess": {"scale": "1/255", "mean": "0.5,0.4,0.3"},
        "random_samples": 9,
        "exact": True,
        "max_drift": {"noise_db": -40.0, "a=b/my.py:worst": 0.01},
        "strict": True,
        "max_macs": 0.5,
        "frontier": True,
        "passes": ("spatial_svd", "tucker2"),
        "exclude": ("stem", "head,1"),
        "provider": "cuda",
        "provider_options": {"a": "b=c"},
        "threads": 3,
        "batch": 8,
        "shapes": {"input:0": (1, 3, 32, 32), "mask": (4,)},
        "seed": 7,
        "min_speedup": 1.5,
        "max_load": 3.0,
        "max_memory": 1.5,
        "cache": False,
        "save_plan": Path("plan.json"),
        "save_as_external_data": True,
        "size_threshold": 9,
        "reports": (Path("a.md"), Path("b.json")),
    }
    wrote = ["out.onnx", "plan.json", "a.md", "b.json"]
    assert out.splitlines()[-4:] == [f"Wrote {path}" for path in wrote]


def test_apply_leaves_to_the_plan_what_is_not_given(apply, run):
    args = ["apply", "in.onnx", "--plan", "plan.json", "-o", "out.onnx"]
    status, out, err = run(*args)
    assert (status, err) == (0, "")
    assert apply.arguments == (Path("in.onnx"), Path("plan.json"), None, None)
    options = {"provider": None, "threads": None, "batch": None, "shapes": None, "seed": None}
    options["provider_options"] = None
    options |= {"preprocess": None, "random_samples": None}
    gates = {"max_drift": None, "min_speedup": None}
    stored = {"save_as_external_data": False, "size_threshold": 1024}
    assert apply.options == {"output": Path("out.onnx"), "reports": (), **options, **gates, **stored}
    assert out.splitlines()[-1] == "Wrote out.onnx"
    # fmt: off
    given = run(
        *args, "--calibration", "a.npz", "--evaluation", "b.npz", "--max-drift", "kl=0.1",
        "--min-speedup", 1.5, "--provider", "cuda", "--threads", 3, "--batch", 8, "--shape", "x:1,2",
        "--seed", 0, "--report", "a.md", "--preprocess", "resize=256", "--random-samples", 3,
    )
    # fmt: on
    assert given[0] == 0
    assert apply.arguments[2:] == ("a.npz", "b.npz")
    options = {"provider": "cuda", "threads": 3, "batch": 8, "shapes": {"x": (1, 2)}, "seed": 0}
    options["provider_options"] = None
    options |= {"preprocess": {"resize": "256"}, "random_samples": 3}
    gates = {"max_drift": {"kl": 0.1}, "min_speedup": 1.5}
    assert apply.options == {
        "output": Path("out.onnx"),
        "reports": (Path("a.md"),),
        **options,
        **gates,
        **stored,
    }


def test_apply_that_passes_no_gate(apply, run):
    apply.outcome = REFUSED
    status, out, _ = run("apply", "in.onnx", "--plan", "plan.json", "-o", "out.onnx")
    assert status == 3
    assert "out.onnx" not in out


@pytest.mark.parametrize("missing", ["--plan", "-o"])
def test_apply_needs_plan_and_output(apply, run, missing):
    args = {"--plan": "plan.json", "-o": "out.onnx"}
    del args[missing]
    status, _, err = run("apply", "in.onnx", *(word for pair in args.items() for word in pair))
    assert status == 2
    assert f"Missing option '{missing}'" in err


def test_nothing_paid(optimize, run):
    optimize.outcome = REFUSED
    status, out, err = run(*BASIC, "--report", "why.json")
    assert (status, err) == (3, "")
    assert REFUSED.verdict in out
    assert "Wrote why.json" in out
    assert "out.onnx" not in out


def test_quiet_prints_the_verdict_alone(optimize, run):
    long = replace(REWRITTEN, verdict="word " * 40 + "[bold]end")
    optimize.outcome = long
    assert run(*BASIC, "--quiet", "--report", "a.md") == (0, long.verdict + "\n", "")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (errors.ModelError("no file 'in.onnx'; check the path"), 1, "no file 'in.onnx'; check the path"),
        (errors.SampleError("two\nlines\x1b[2J"), 1, "two lines [2J"),
        (errors.ProviderError("no cuda"), 1, "no cuda"),
        (errors.OutputError("no folder"), 1, "no folder"),
        (errors.OptionError("unknown pass 'svdd'; known are"), 2, "unknown pass 'svdd'; known are"),
        (MemoryError(), 1, "out of memory; try a smaller --batch, or fewer or smaller samples"),
    ],
)
def test_errors_are_one_line(optimize, run, error, status, line):
    optimize.outcome = error
    assert run(*BASIC) == (status, "", f"Error: {line}\n")


@pytest.mark.parametrize("args", [["--provider", "gpu9"], ["--passes", "svdd"]])
def test_unknown_names(run, args):
    status, out, err = run(*BASIC, *args)
    assert (status, out) == (2, "")
    assert re.fullmatch(rf"Error: .*'{args[1]}'.*known are .*\n", err)


@pytest.mark.parametrize("option", ["--max-load", "--max-memory"])
@pytest.mark.parametrize("value", ["0.99", "0", "-2"])
def test_limits_below_what_the_original_takes(run, option, value):
    status, out, err = run(*BASIC, option, value)
    assert (status, out) == (2, "")
    assert err == f"Error: {option} {value} is below 1, what the original takes; give 1 or more\n"


@pytest.mark.parametrize("value", ["0", "1", "-0.5", "50"])
def test_shares_of_multiply_adds_are_between_nothing_and_all(run, value):
    status, out, err = run(*BASIC, "--max-macs", value)
    assert (status, out) == (2, "")
    assert err.startswith(f"Error: --max-macs {value} is no share of the original's multiply-adds; give one ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--exact"], "--max-macs and --exact"),
        (["--strict"], "--strict with --max-macs needs a budget; give one with --max-drift"),
        (["--passes", "tucker2,winograd"], "--passes winograd: .*; leave it or --max-macs out"),
    ],
)
def test_what_makes_no_sense_with_bounded_multiply_adds(run, args, message):
    status, out, err = run(*BASIC, "--max-macs", "0.5", *args)
    assert (status, out) == (2, "")
    assert re.match(f"Error: {message}", err)


def test_interrupted(optimize, run):
    optimize.outcome = KeyboardInterrupt()
    status, out, err = run(*BASIC)
    assert (status, out, err.strip()) == (130, "", "Interrupted; nothing was written.")


@pytest.mark.parametrize("bug", [ZeroDivisionError("bug"), EOFError("bug"), KeyError("bug")])
def test_bugs_show(optimize, bug):
    optimize.outcome = bug
    with pytest.raises(type(bug), match="bug"):
        cli.main(BASIC)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--max-drift", "rel_l2=much"], "'much' is not a number"),
        (["--max-drift", "rel_l2="], "'' is not a number"),
        (["--max-drift", "rel_l2=nan"], "'nan' is not a number"),
        (["--max-drift", "rel_l2=inf"], "'inf' is not a number"),
        (["--max-drift", "0.05"], "'0.05' is not of the form NAME=NUMBER"),
        (["--max-drift", "kl=1", "--max-drift", "kl=2"], "'kl' is given twice"),
        (["--max-macs", "half"], "'half' is not a number"),
        (["--max-macs", "nan"], "'nan' is not a number"),
        (["--min-speedup", "fast"], "'fast' is not a number"),
        (["--min-speedup", "nan"], "'nan' is not a number"),
        (["--max-load", "long"], "'long' is not a number"),
        (["--max-memory", "inf"], "'inf' is not a number"),
        (["--shape", "1,3,8,8"], "'1,3,8,8' is not of the form NAME:SIZES"),
        (["--shape", "x:1,0"], "'x:1,0' is not of the form NAME:SIZES"),
        (["--shape", "x:"], "'x:' is not of the form NAME:SIZES"),
        (["--shape", "x:1", "--shape", "x:2"], "'x' is given twice"),
        (["--passes", "tucker2,"], "'tucker2,' is not of the form"),
        (["--threads", "0"], "0 is not in the range"),
        (["--batch", "many"], "'many' is not a valid integer"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--preprocess", "scale"], "'scale' is not of the form KEY=VALUE"),
        (["--preprocess", "scale=1", "--preprocess", "scale=2"], "'scale' is given twice"),
        (["--preprocess", "none.toml"], "'none.toml' cannot be read: No such file"),
        (["--random-samples", "2"], "2 is not in the range"),
        (["--quiet", "--verbose"], "--quiet and --verbose exclude each other"),
        (["--frobnicate"], "No such option"),
    ],
)
def test_bad_options(optimize, run, args, message):
    status, out, err = run(*BASIC, *args)
    assert (status, out) == (2, "")
    assert message in " ".join(err.split())
    assert optimize.options == {}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_on_a_terminal(optimize, monkeypatch):
    stderr, stdout = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(SystemExit):
        cli.main(BASIC)
    drawn = stderr.getvalue()
    assert "fitting [bold]" in drawn
    assert "2/2" in drawn
    assert drawn.rstrip("\r").endswith("\x1b[2K")  # the last bar is wiped out
    assert "fitting" not in stdout.getvalue()


def test_no_progress_when_quiet(optimize, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr := Terminal())
    with pytest.raises(SystemExit):
        cli.main([*BASIC, "--quiet"])
    assert stderr.getvalue() == ""


def test_verbose_logs_stages_in_place_of_bars(optimize, monkeypatch):
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    logged = optimize.__class__.__call__

    def call(self, *arguments, progress, **options):
        return logged(self, *arguments, progress=progress_of_a_command(progress), **options)

    monkeypatch.setattr(optimize.__class__, "__call__", call)
    with pytest.raises(SystemExit):
        cli.main([*BASIC, "--verbose"])
    lines = [line.partition(" ")[2] for line in stderr.getvalue().splitlines()]
    assert lines == ["rewriter.progress: fitting [bold]", "rewriter.progress: timing"]
    root = logging.getLogger("rewriter")
    assert (root.handlers, root.level) == ([], logging.NOTSET)


def test_what_is_typed_of_the_preprocessing_counts(optimize, run, tmp_path):
    path = tmp_path / "steps.toml"
    path.write_text("resize = [256, 320]\nscale = 1\n")
    assert run(*BASIC, "--preprocess", "scale=0.5", "--preprocess", path)[0] == 0
    assert optimize.options["preprocess"] == {"resize": [256, 320], "scale": "0.5"}


@pytest.mark.parametrize("missing", ["in.onnx", "-o"])
def test_missing_arguments(optimize, run, missing):
    at = BASIC.index(missing)
    status, _, err = run(*BASIC[:at], *BASIC[at + (1 if missing == "in.onnx" else 2) :])
    assert status == 2
    assert "Missing" in err


def test_help(run):
    status, out, _ = run("optimize", "--help")
    assert status == 0
    for words in (
        "[default: cpu]",
        "[default: 1.02, with --max-macs none]",
        "[default: 10.0]",
        "[default: 5.0]",
        "Exit status:",
        "130",
        "Examples:",
        "--max-drift NAME=VALUE",
    ):
        assert words in " ".join(out.split())
    status, out, _ = run("--help")
    assert status == 0
    assert "..." not in out.partition("Commands:")[2]  # each is told whole
    assert run("--version")[1].startswith("rewriter ")


def test_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "rewriter", "optimize"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Missing" in done.stderr


def test_the_folder_of_the_cache_is_printed(run, cache_folder):
    assert run("cache", "path") == (0, f"{cache_folder}\n", "")


def test_the_cache_is_cleared(run, cache_folder):
    Cache({}).write("one", {"one": Time(1.0)})
    assert run("cache", "clear") == (0, f"Removed 1 file from {cache_folder}\n", "")
    assert run("cache", "clear") == (0, f"Removed 0 files from {cache_folder}\n", "")


def test_a_cache_that_cannot_be_cleared_is_one_line(run, monkeypatch):
    def refuse():
        raise errors.OutputError("cannot clear the cache: 'a.json': Permission denied")

    monkeypatch.setattr(cache, "clear", refuse)
    assert run("cache", "clear") == (1, "", "Error: cannot clear the cache: 'a.json': Permission denied\n")


def test_report_draws_again(run, tmp_path):
    source = tmp_path / "result.json"
    write(REWRITTEN, source)
    paths = [tmp_path / f"again{suffix}" for suffix in (".html", ".md", ".json")]
    status, out, err = run("report", source, *(word for path in paths for word in ("-o", path)))
    assert (status, err) == (0, "")
    assert out.splitlines() == [f"Wrote {path}" for path in paths]
    for path in paths:
        assert path.read_bytes() == rendered(REWRITTEN, path)


@pytest.mark.parametrize(
    ("output", "status", "message"),
    [
        ("a.pdf", 2, "has the suffix .pdf; known are .html, .json, .md"),
        ("none/a.html", 1, "there is no folder"),
        ("bad.json", 1, "is the input"),
        ("a.html", 1, "is no report of optimize, apply or compare"),
    ],
)
def test_report_refuses_in_one_line(run, tmp_path, output, status, message):
    (tmp_path / "bad.json").write_text("{}")
    found, out, err = run("report", tmp_path / "bad.json", "-o", tmp_path / output)
    assert (found, out) == (status, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]
