"""Options from a file: what they become, what counts where both are given, and mistakes in one line."""

import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from example_report import REWRITTEN

from rewriter import cli

FULL = """
model = "net.onnx"
output = "out/fast.onnx"
calibration = "data.py:feeds"
evaluation = "/data/samples.npz"
max-drift = { top1_drop = 1, "own.py:worst" = 1e-2 }
preprocess = { resize = [256, 320], scale = "1/255", mean = [0.5, 0.4, 0.3] }
strict = true
passes = ["spatial_svd", "tucker2"]
exclude = ["stem", "head"]
threads = 2
min-speedup = 1.5
no-cache = true
report = ["a.md", "b.json"]

[shape]
"input:0" = [1, 3, 8, 8]
"""


@pytest.fixture
def called(monkeypatch):
    """Stands in for the commands; remembers the arguments and options of the last one."""
    last = SimpleNamespace(arguments=None, options=None)

    def call(*arguments, progress, **options):
        last.arguments, last.options = arguments, options
        return SimpleNamespace(report=REWRITTEN, improved=True)

    for name in ("optimize", "apply"):
        module = ModuleType(f"rewriter.{name}")
        setattr(module, name, call)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return last


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    monkeypatch.chdir(tmp_path)

    def call(*args, text=None):
        if text is not None:
            Path("conf/run.toml").write_text(text)
        with pytest.raises(SystemExit) as ended:
            cli.main([str(arg) for arg in args])
        return ended.value.code, *capsys.readouterr()

    return call


def test_every_option_may_be_in_a_file(called, run):
    assert run("optimize", "--config", "conf/run.toml", text=FULL)[0] == 0
    assert called.arguments == (Path("conf/net.onnx"), "conf/data.py:feeds", "/data/samples.npz")
    expected = {
        "output": Path("conf/out/fast.onnx"),
        "max_drift": {"top1_drop": 1.0, "conf/own.py:worst": 0.01},
        "preprocess": {"resize": "256,320", "scale": "1/255", "mean": "0.5,0.4,0.3"},
        "strict": True,
        "exact": False,
        "passes": ("spatial_svd", "tucker2"),
        "exclude": ("stem", "head"),
        "threads": 2,
        "batch": 1,
        "min_speedup": 1.5,
        "max_load": 10.0,
        "cache": False,
        "reports": (Path("conf/a.md"), Path("conf/b.json")),
        "shapes": {"input:0": (1, 3, 8, 8)},
    }
    assert {key: called.options[key] for key in expected} == expected


def test_the_command_line_wins(called, run):
    args = ("other.onnx", "--threads", 1, "--max-drift", "kl=0.1", "--exclude", "tail", "-o", "o.onnx")
    assert run("optimize", *args, "--config", "conf/run.toml", text=FULL)[0] == 0
    assert called.arguments[0] == Path("other.onnx")
    options = called.options
    assert (options["threads"], options["output"], options["exclude"]) == (1, Path("o.onnx"), ("tail",))
    assert options["max_drift"] == {"kl": 0.1}
    assert options["strict"]


@pytest.mark.parametrize(
    "args", [("--config", "conf/run.toml"), ("in.onnx", "-o", 'a "b".onnx', "--exact")], ids=["file", "typed"]
)
def test_what_is_printed_can_be_fed_back(called, run, tmp_path, args):
    status, printed, err = run("optimize", *args, "--print-config", text=FULL)
    assert (status, err, called.options) == (0, "", None)
    assert tomllib.loads(printed)["output"].startswith(str(tmp_path))
    (tmp_path / "other").mkdir()
    Path("other/again.toml").write_text(printed)
    assert run("optimize", "--config", "other/again.toml", "--print-config")[1] == printed
    assert run("optimize", *args)[0] == 0
    first = (called.arguments, called.options)
    assert run("optimize", "--config", "other/again.toml")[0] == 0

    def absolute(value):
        """With every path as it would be from anywhere, for what was typed is relative."""
        match value:
            case dict():
                return {absolute(key): absolute(each) for key, each in value.items()}
            case tuple():
                return tuple(map(absolute, value))
            case Path():
                return str(value.absolute())
            case str() if ".py:" in value:
                return str(Path(value).absolute())
        return value

    assert absolute((called.arguments, called.options)) == absolute(first)


def test_other_commands_take_a_file_too(called, run):
    text = 'model = "a.onnx"\nplan = "plan.json"\noutput = "b.onnx"\nseed = 3\n'
    assert run("apply", "--config", "conf/run.toml", text=text)[0] == 0
    assert called.arguments[:2] == (Path("conf/a.onnx"), Path("conf/plan.json"))
    assert called.options["seed"] == 3
    status, printed, _ = run("compare", "a.onnx", "b.onnx", "--locate", "--print-config")
    assert status == 0
    assert tomllib.loads(printed)["locate"] is True


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("thread = 1", "'conf/run.toml': there is no option 'thread'; there are batch, calibration, "),
        ("config = 'x.toml'", "there is no option 'config'"),
        ("threads = = 1", "'conf/run.toml' is no TOML: "),
        ("threads = 'many'", "'many' is not a valid integer"),
        ("threads = true", "'conf/run.toml', threads: found True, which is no text, number or list of them"),
        ("strict = 'yes'", "strict: found 'yes', which is not true or false"),
        ("threads = { a = 1 }", "threads: found a table, which this option is not"),
        ("max-drift = 0.05", "'0.05' is not of the form NAME=NUMBER"),
        ("max-drift = { kl = 'much' }", "'much' is not a number"),
        ("min-speedup = nan", "'nan' is not a number"),
    ],
)
def test_mistakes(called, run, text, words):
    status, out, err = run("optimize", "in.onnx", "-o", "o.onnx", "--config", "conf/run.toml", text=text)
    assert (status, out, called.options) == (2, "", None)
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert words in err


def test_a_file_that_is_not_there(run):
    status, _, err = run("optimize", "in.onnx", "-o", "o.onnx", "--config", "none.toml")
    assert status == 2
    assert "'none.toml' cannot be read: No such file or directory" in err
