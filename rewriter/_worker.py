"""A child process that holds one model and times it when told to; both ends of the pipe are in this file.

`multiprocessing` is not used: spawning re-imports the caller's `__main__`, which breaks scripts without a
guard, and forking a process that already runs ONNX Runtime's threads can deadlock.
"""

import contextlib
import ctypes
import gc
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from rewriter import errors
from rewriter.errors import ModelError, RewriterError
from rewriter.runtime import Clock, Session, Target

# The child needs three modules of this package. Importing all of it would slow the start several times and
# count in the peak memory, so the package's own __init__ is not run there.
_BOOT: Final = """\
import sys, types
sys.path[:] = {path!r}
package = types.ModuleType("rewriter")
package.__path__ = [{folder!r}]
sys.modules["rewriter"] = package
from rewriter._worker import serve
serve()
"""


_PR_SET_PDEATHSIG: Final = 1  # from <sys/prctl.h>

# Where a process cannot be stopped: for how long threads spin, with a margin (measured: 60 to 80 ms).
_SPIN_OUT_S: Final = 0.12


class Worker:
    """A child process with one loaded model; a context manager that never leaves the process behind.

    ONNX Runtime's idle threads spin for some 60 ms after a run and take cores from whoever runs next. So a
    worker with a pool is stopped (SIGSTOP) between its bursts and finds its threads still spinning when it
    goes on: each model runs as if it were alone and never paused, which is how it is deployed.

    Args:
        path: The model's file.
        feeds: Arrays by input name.
        target: How the model is deployed.

    Raises:
        ModelError: The model cannot be loaded, or the process died over it.

    Attributes:
        load_ms: Time to create the session.
        baseline_bytes: Peak memory before that: the interpreter, numpy and ONNX Runtime.
        peak_bytes: Peak memory after the first run, the baseline included; 0 where the system does not tell.
    """

    def __init__(self, path: Path, feeds: Mapping[str, NDArray[Any]], target: Target) -> None:
        self._path = path
        self._stops = target.parallel and target.spinning
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        boot = _BOOT.format(path=sys.path, folder=str(Path(__file__).parent))
        self._process = subprocess.Popen(
            [sys.executable, "-c", boot],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        try:
            self.baseline_bytes: Final[int] = self._ask("peak")
            self.load_ms: Final[float] = self._ask("load", path, target)
            self._ask("feed", dict(feeds))
            self._ask("burst", 1)
            self.peak_bytes: Final[int] = self._ask("peak")
            self._pause()
        except BaseException:
            self.close()
            raise

    def burst(self, runs: int) -> NDArray[np.float64]:
        """Returns the times of so many consecutive runs by the target's clock, in milliseconds."""
        self._go_on()
        times: NDArray[np.float64] = self._ask("burst", runs)
        self._pause()
        return times

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not yet written to a dead process
                if pipe is not None:
                    pipe.close()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _go_on(self) -> None:
        if self._stops and sys.platform != "win32":
            self._process.send_signal(signal.SIGCONT)

    def _pause(self) -> None:
        if not self._stops:
            return
        if sys.platform == "win32":
            time.sleep(_SPIN_OUT_S)
        else:
            self._process.send_signal(signal.SIGSTOP)

    def _ask(self, command: str, *arguments: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            pickle.dump((command, arguments), stdin, protocol=5)
            stdin.flush()
            kind, value = pickle.load(stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise ModelError(self._obituary()) from error
        if kind == "value":
            return value
        raise getattr(errors, kind)(value)

    def _obituary(self) -> str:
        """Returns how the process died, with the last line that it wrote."""
        self._process.kill()  # a no-op where it is already dead, as it nearly always is here
        code = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        why = f": {lines[-1].strip()}" if lines else ""
        return (
            f"the process that times '{self._path.name}' died ({how}){why}; "
            "it may have run out of memory, try a smaller --batch"
        )


def serve() -> None:
    """Answers the parent's commands until its end of the pipe is closed; the child's whole life."""
    # Ctrl-C goes to every process of the terminal; the parent decides, and kills this one or closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # A parent that is killed closes the pipe, but a stopped child would not notice: let the kernel end
        # it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not land between the answers
    gc.disable()
    server = _Server()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            command, arguments = pickle.load(sys.stdin.buffer)
            try:
                answer = ("value", getattr(server, command)(*arguments))
            except RewriterError as error:
                answer = (type(error).__name__, str(error))
            pickle.dump(answer, answers, protocol=5)
            answers.flush()


class _Server:
    """The commands of the child."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._run: Callable[[], object] | None = None

    def load(self, path: Path, target: Target) -> float:
        start = time.perf_counter_ns()
        self._session = Session(path, target)
        return (time.perf_counter_ns() - start) / 1e6

    def feed(self, feeds: dict[str, NDArray[Any]]) -> None:
        assert self._session is not None
        self._run = self._session.bound(feeds)

    def burst(self, runs: int) -> NDArray[np.float64]:
        assert self._session is not None
        assert self._run is not None
        return time_runs(self._run, self._session.target.clock, runs)

    def peak(self) -> int:
        # ru_maxrss is not asked on Linux: it survives exec, so the child would report its parent's memory.
        if sys.platform == "linux":
            status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
            found = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
            return int(found[1]) * 1024 if found else 0
        if sys.platform == "darwin":
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return 0


def time_runs(run: Callable[[], object], clock: Clock, runs: int) -> NDArray[np.float64]:
    """Returns the times of so many consecutive runs by that clock, in milliseconds."""
    now = time.thread_time_ns if clock == "processor" else time.perf_counter_ns
    marks = np.empty(runs + 1, dtype=np.int64)
    marks[0] = now()
    for index in range(1, runs + 1):
        run()
        marks[index] = now()
    return np.diff(marks) / 1e6
