"""An interrupt at a stage of a command, where its progress is drawn."""

import contextlib
import sys


def interrupt_at(monkeypatch, command, stage):
    """Interrupts `rewriter COMMAND` when it comes to a stage; returns the stages that it reaches."""
    reached = []

    @contextlib.contextmanager
    def interrupting(quiet):
        def progress(at, done, total):
            reached.append(at)
            if at == stage:
                raise KeyboardInterrupt

        yield progress

    monkeypatch.setattr(sys.modules[f"rewriter.cli.{command}"], "drawn_progress", interrupting)
    return reached
