"""Who knows whom: every module can be imported first, imports go one way, exported names are pinned."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import passes
import rewriter

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for package in ("rewriter", "passes") for path in (ROOT / package).rglob("*.py"))

# A module imports from tiers above its own, or from its own as long as that makes no circle.
TIERS = (
    {"command", "errors", "growth", "knapsack", "linalg", "pictures", "progress", "serialized", "toomcook"},
    {"files", "version"},
    {"cache", "conv", "factor", "grid", "joined", "layers", "rewrite", "transposed", "winograd"},
    {"lowering", "metric", "samples"},
    {"graph", "runtime", "_worker"},
    {"parallel", "patches", "sources"},
    {"_measures", "adjoint", "balance", "budget", "calibration", "drift", "latency", "meter", "noise"},
    {"limits", "plan"},
    {
        "expansions",
        "fitting",
        "judge",
        "macs",
        "network",
        "parting",
        "parts",
        "prepare",
        "search",
        "sensitivity",
        "table",
    },
    {"profile", "references", "rounding"},
    {"refit"},
    {"offers", "report"},
    {"closeup", "frontier", "thinning", "verdict"},
    {"outcome", "planfile"},
    {"optimize", "apply", "compare", "inspect"},
    {"cli"},
    {"__init__", "__main__"},
)
TIER = {f"rewriter.{room}": index for index, rooms in enumerate(TIERS) for room in rooms}

PASSES_KNOW = {
    "rewriter.conv",
    "rewriter.factor",
    "rewriter.grid",
    "rewriter.joined",
    "rewriter.linalg",
    "rewriter.metric",
    "rewriter.rewrite",
    "rewriter.transposed",
    "rewriter.winograd",
    "passes.base",
    "passes.separable",
    "passes.stages",
    "passes.support",
}
KNOW_PASSES = {"rewriter.optimize", "rewriter.prepare", "rewriter.inspect"}
ONLY_ROOM = {
    "onnx": "rewriter.graph",
    "onnx_graphsurgeon": "rewriter.graph",
    "onnxruntime": "rewriter.runtime",
}
ROOMS = {
    "PIL": {"rewriter.pictures", "rewriter.sources"},
    "click": {"rewriter.cli"},
    "jinja2": {"rewriter.report"},
    "pygal": {"rewriter.report"},
    "rich": {"rewriter.cli", "rewriter.report"},
}

EXPORTED = [
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


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def room(module: str) -> str:
    """`rewriter.graph` for `rewriter.graph.sites`; a package's own file is its `__init__` room."""
    return ".".join([*module.split("."), "__init__"][:2])


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All below a node, except what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from statements(child)


def imported(path: Path) -> set[str]:
    """The modules that a file imports, wherever in it."""
    found = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if is_module(whole) else node.module)
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_one_way(path):
    module = module_name(path)
    own = room(module)
    for name in imported(path):
        top = name.split(".")[0]
        if top in ONLY_ROOM:
            assert own == ONLY_ROOM[top], f"{module} imports {name}"
        if top in ROOMS:
            assert own in ROOMS[top], f"{module} imports {name}"
        if own.startswith("rewriter.") and top == "passes":
            assert own in KNOW_PASSES, f"{module} imports {name}"
        if own.startswith("rewriter.") and top == "rewriter":
            assert own in TIER, f"{own} has no tier yet"
            assert TIER[room(name)] <= TIER[own], f"{module} imports {name}"
        if own.startswith("passes.") and own != "passes.__init__" and top in ("passes", "rewriter"):
            assert room(name) in PASSES_KNOW, f"{module} imports {name}"


def test_no_circles():
    knows: dict[str, set[str]] = {}
    for path in FILES:
        own = room(module_name(path))
        ours = {room(name) for name in imported(path) if name.startswith("rewriter.")}
        knows.setdefault(own, set()).update(ours)
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for other in knows.get(module, set()) - {module}:
                visit(other, (*above, module))
            done.add(module)

    for module in knows:
        visit(module, ())


def test_every_module_can_be_imported_first():
    # The libraries stay loaded, which no order among our own modules depends on; ours start anew for each.
    script = """
import importlib, sys
import click, numpy, onnx, onnx_graphsurgeon, onnxruntime, rich, scipy.linalg
for name in sys.argv[1:]:
    for loaded in [m for m in sys.modules if m.split(".")[0] in ("rewriter", "passes")]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except Exception as error:
        sys.exit(f"import {name}: {type(error).__name__}: {error}")
"""
    names = [module_name(path).removesuffix(".__init__") for path in FILES]
    done = subprocess.run(
        [sys.executable, "-c", script, *names], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_exported_names():
    assert sorted(rewriter.__all__) == EXPORTED
    assert all(getattr(rewriter, name).__module__.startswith("rewriter.") for name in EXPORTED)
    assert isinstance(passes.PASSES, tuple)


@pytest.mark.parametrize("name", ["optimize", "apply"])
def test_a_command_is_the_function(name):
    # the package's function and its module share a name, and importing a module puts it there
    script = f"import rewriter.{name}; from rewriter.{name} import {name}; assert callable(rewriter.{name})"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
