"""A serialised model that one file cannot hold: its own file, and data files beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Parts:
    """The files of a model.

    Attributes:
        model: The model's own.
        data: What makes the pieces of each data file, by the name that the model knows it by.
    """

    model: bytes
    data: Mapping[str, Callable[[], Iterator[bytes]]]

    def extended(self, more: bytes) -> Parts:
        """With more of the serialised model behind it."""
        return replace(self, model=self.model + more)


Serialized = bytes | Parts
"""A serialised model: in one piece, or in parts where that would be too large."""


def write_model(model: Serialized, path: Path) -> None:
    """Writes a serialised model into a folder of its own, its data beside it."""
    if isinstance(model, Parts):
        for name, pieces in model.data.items():
            with (path.parent / name).open("wb") as file:
                file.writelines(pieces())
    path.write_bytes(model.model if isinstance(model, Parts) else model)
