"""What the images of a folder show: class numbers from `labels.csv`, or from the names of subfolders."""

import csv
from collections.abc import Sequence
from pathlib import Path

from rewriter.errors import SampleError

Label = int

_FILE = "labels.csv"


def read_labels(folder: Path, files: Sequence[Path], where: str) -> tuple[tuple[Label, ...] | None, str]:
    """The label of every file, None where nothing tells; and what was taken for granted.

    `labels.csv` in the folder has lines `file,label`. Without it, images in two subfolders or more are of
    the classes that these are named after, numbered from 0 in the order of their names.

    Raises:
        SampleError: The labels are not those of the files; `where` begins the message.
    """
    names = [path.relative_to(folder).as_posix() for path in files]
    if (folder / _FILE).is_file():
        given = _read(folder / _FILE, f"{where}, {_FILE}")
        for name in given:
            if name not in names:
                raise SampleError(f"{where}, {_FILE}: there is no image '{name}'; check its name")
        for name in names:
            if name not in given:
                raise SampleError(f"{where}, {_FILE}: there is no label of '{name}'; give every image one")
        return tuple(given[name] for name in names), ""
    tops = [name.partition("/")[0] if "/" in name else None for name in names]
    classes = sorted(
        {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    )
    if len({top for top in tops if top is not None}) < 2:
        return None, ""
    if None in tops:
        raise SampleError(
            f"{where}: '{names[tops.index(None)]}' is in no subfolder but others are; put every image "
            f"into the folder of its class, or give {_FILE} with lines file,label"
        )
    for index, name in enumerate(classes):
        if name.isdecimal() and int(name) != index:
            raise SampleError(
                f"{where}: the folder '{name}' comes as class {index} in the order of names; say what is "
                f"meant in {_FILE}, with lines file,label"
            )
    told = f"labels by the names of its folders: 0 is '{classes[0]}', {len(classes) - 1} is '{classes[-1]}'"
    return tuple(classes.index(top) for top in tops if top is not None), told


def _read(path: Path, place: str) -> dict[str, Label]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [(line, row) for line, row in enumerate(csv.reader(file), 1) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise SampleError(f"{place}: cannot be read ({error}); give lines file,label") from error
    if rows and [cell.strip().lower() for cell in rows[0][1]] == ["file", "label"]:
        rows = rows[1:]
    found: dict[str, Label] = {}
    for line, row in rows:
        if len(row) != 2 or not row[1].strip().isdecimal():
            raise SampleError(
                f"{place}, line {line}: found '{','.join(row)}'; give file,label with a class number from 0"
            )
        name = row[0].strip().replace("\\", "/").removeprefix("./")
        if name in found:
            raise SampleError(f"{place}, line {line}: '{name}' has a label already; give it once")
        found[name] = int(row[1])
    return found
