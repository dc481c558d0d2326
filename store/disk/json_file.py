"""Read small JSON files, which may come from strangers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jzi.errors import JziError, first_line

#: Most bytes of a file that are read, where nothing else is said: configs have some kilobytes.
MAX_BYTES = 2**20


def read_json(path: Path, error: type[JziError], hint: str, *, most: int = MAX_BYTES) -> Any:
    """Parse a JSON file that is bounded in size.

    Args:
        path: the file.
        error: class of the error to raise.
        hint: what to do about a file that cannot be used.
        most: greatest size, bytes; no more are read.

    Raises:
        FileNotFoundError: there is none; NotADirectoryError, where a folder of its path is a file.
        JziError: of class `error`: it is larger, cannot be read, or is no JSON.
    """
    try:
        with path.open("rb") as file:
            text = file.read(most + 1)
        if len(text) <= most:
            return json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, RecursionError) as reason:  # ValueError: no UTF-8, no JSON, a null byte in the path
        raise error(f"{path} cannot be read ({first_line(reason)}): {hint}") from reason
    raise error(f"{path} has more than {most} bytes, it was edited or damaged: {hint}")
