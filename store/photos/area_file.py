"""area.json: the area that a data set in the just-zoom-in layout was cut for, beside its other files."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

from jzi.errors import PyramidError, first_line
from jzi.store.disk.files import write_whole
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.photo_file import open_regular_file

AREA = "area.json"

#: Largest file, bytes.
MAX_BYTES = 2**16


def write_area(file: Path, area: Pyramid) -> None:
    """Write an area: crs, west, north, size, grid and levels.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps(asdict(area), indent=2) + "\n"
    write_whole(file, lambda path: path.write_text(text, encoding="utf-8"))


def read_area(file: Path) -> Pyramid:
    """Read an area that `write_area` wrote.

    Raises:
        PyramidError: there is none, or it is damaged.
    """
    try:
        with open_regular_file(file) as opened:
            values = json.loads(opened.read(MAX_BYTES))
        if not isinstance(values, dict) or set(values) != {each.name for each in fields(Pyramid)}:
            raise ValueError(f"it needs exactly {', '.join(each.name for each in fields(Pyramid))}")
        if not isinstance(values["crs"], str) or not all(type(values[name]) is int for name in ("grid", "levels")):
            raise ValueError("crs is text, grid and levels are whole numbers")
        return Pyramid(**{**values, **{name: float(values[name]) for name in ("west", "north", "size")}})
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise PyramidError(f"{file} describes no area: {reason}") from error
