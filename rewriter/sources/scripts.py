"""`script.py:function`: functions of the user's own, for samples and for measures of drift."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from rewriter.errors import SampleError, brief, listed


def is_reference(source: str | Path) -> bool:
    """Whether this names a function of a script."""
    return str(source).rpartition(":")[0].endswith(".py")


def load_function(reference: str, *, what: str = "samples") -> Callable[..., Any]:
    """The function that `path/script.py:function` names; the script's folder joins the import path, last.

    Raises:
        SampleError: there is no such script or function, or the script cannot be run.
    """
    where = f"{what} {reference}"
    file, _, name = reference.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise SampleError(f"{where}: there is no script {file}; check the path")
    module = ModuleType(f"rewriter_script_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise SampleError(
            f"{where}: the script raised {brief(error)}{line_of(error, __file__)}; mend it"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if isinstance(value, FunctionType)]
        found = f"it has {listed(own)}" if own else "define one that takes no arguments and yields feeds"
        raise SampleError(f"{where}: the script has no function '{name}'; {found}")
    return function  # type: ignore[no-any-return]


def line_of(error: BaseException, caller: str) -> str:
    """Where in the user's code, which the file `caller` called, an exception arose, as far as can be told."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != caller]
    lines = [f.lineno for f in frames if f.filename == frames[0].filename]
    return f" ({Path(frames[0].filename).name}, line {lines[-1]})" if lines else ""
