"""Files that a run writes: each whole or not at all, and several of them together or none."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rewriter.errors import OutputError

PathLike = str | os.PathLike[str]
Content = bytes | Iterable[bytes]
"""What a file holds: in one piece, or piece by piece."""


def check_output(path: PathLike, source: PathLike | None = None, what: str = "output") -> None:
    """Checks, before any work is done, that a file can be written and is not an input.

    Args:
        path: Where it is to go.
        source: A file that is read, which need not be there.
        what: The word for it in messages.

    Raises:
        OutputError: It cannot, or it is.
    """
    target = Path(path)
    folder = target.parent
    if not folder.is_dir():
        raise OutputError(f"cannot write '{target}': the folder '{folder}' does not exist; make it first")
    if target.is_dir():
        raise OutputError(f"cannot write '{target}': it is a folder; name a file in it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write '{target}': no permission to write into '{folder}'")
    if source is not None and Path(source).exists() and same_file(target, source):
        raise OutputError(f"the {what} '{target}' is the input; choose another name")


def same_file(one: PathLike, other: PathLike) -> bool:
    """Whether two paths, with a file there or not, name the same place."""
    first, second = Path(one), Path(other)
    if first.exists() and second.exists():
        return first.samefile(second)
    return first.resolve() == second.resolve()


def write(contents: Mapping[PathLike, Content]) -> None:
    """Writes files: all to temporary ones beside them first, which take their names once all are there.

    They take them in the order in which they are given. A link stays a link, what it points to is replaced; a
    file that is there keeps its permissions.

    Raises:
        OutputError: There is no room for one, or no permission; then none is written.
    """
    staged: list[tuple[Path, Path]] = []
    try:
        for path, data in contents.items():
            target = Path(os.path.realpath(path))
            temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.tmp")
            staged.append((temporary, target))
            with _told(path):
                _stage(temporary, target, data)
        for (temporary, target), path in zip(staged, contents, strict=True):
            with _told(path):
                temporary.replace(target)
    finally:
        for temporary, _ in staged:
            temporary.unlink(missing_ok=True)


def _stage(temporary: Path, target: Path, data: Content) -> None:
    with temporary.open("xb") as file:
        file.writelines([data] if isinstance(data, bytes) else data)
        file.flush()
        os.fsync(file.fileno())
    if target.exists():
        temporary.chmod(target.stat().st_mode & 0o777)


@contextlib.contextmanager
def _told(path: PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write '{os.fspath(path)}': {error.strerror or error}") from error
