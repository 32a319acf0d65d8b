"""Looks at models that nobody should trust, in processes that may die, hang or eat memory.

Run as a script it takes pickled cases `(what, source)` on its standard input, and answers a line of text for
each: "done", "refused: MESSAGE", or what should never be.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

# The final word takes 10 s, and four times as long where that leaves it open: more than a case may take.
SECONDS = 30
TIMING_SECONDS = 1.0
MEMORY_BYTES = 6 << 30
ROOT = Path(__file__).parent.parent

Case = tuple[str, bytes | Path]


class Server:
    """A process that has imported all and forks for each lot of cases."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        )

    def outcomes(self, cases: Sequence[Case]) -> list[str]:
        """What became of each case, in their order."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump(list(cases), self._process.stdin)
        self._process.stdin.flush()
        found: list[str] = pickle.load(self._process.stdout)
        return found

    def close(self) -> None:
        self._process.communicate()


def _serve() -> None:
    import rewriter.inspect
    import rewriter.optimize  # noqa: F401  imported once, for all children
    from rewriter import latency

    with mock.patch.object(latency, "SECONDS", TIMING_SECONDS), contextlib.suppress(EOFError):
        while True:
            pickle.dump(_answers(pickle.load(sys.stdin.buffer)), sys.stdout.buffer)
            sys.stdout.buffer.flush()


def _answers(cases: list[Case]) -> list[str]:
    found: list[str] = []
    while len(found) < len(cases):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            with os.fdopen(writing, "w", encoding="utf-8") as answers:
                _work(cases[len(found) :], answers)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8") as answers:
            found += [line.rstrip("\n") for line in answers]
        _, status = os.waitpid(child, 0)
        if status:
            number = os.WTERMSIG(status)
            found.append("took too long" if number == signal.SIGALRM else f"died of signal {number}")
    return found


def _work(cases: Sequence[Case], answers) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(2, 1)
    for what, source in cases:
        signal.alarm(SECONDS)
        print(_outcome(what, source), file=answers, flush=True)
        signal.alarm(0)


def _outcome(what: str, source: bytes | Path) -> str:
    import rewriter
    from rewriter import graph

    try:
        if what == "exact":
            rewriter.optimize(source, exact=True, threads=1, cache=False)
        else:
            graph.find_sites(graph.load(source))
            rewriter.inspect(source, threads=1)
    except rewriter.RewriterError as error:
        lines = str(error).splitlines()
        return f"refused: {lines[0]}" if len(lines) == 1 else f"refused in {len(lines)} lines: {lines}"
    except BaseException:
        return "raised " + " | ".join(traceback.format_exc().splitlines()[-6:])
    return "done"


if __name__ == "__main__":
    _serve()
