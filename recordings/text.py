"""Read text files and tables of numbers of bounded size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jzi.errors import DatasetError, first_line
from jzi.store.photos.photo_file import open_regular_file


def read_text(file: Path, limit: int, what: str) -> str:
    """The text of a file.

    Args:
        file: the file.
        limit: most bytes.
        what: what the file should hold, for messages.

    Raises:
        DatasetError: it does not exist, is larger, or is no text.
    """
    try:
        with open_regular_file(file) as opened:
            content = opened.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"it has more than {limit} bytes")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise DatasetError(f"there is no {file}, {what}") from None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} is not {what}: {first_line(error)}") from error


def read_numbers(file: Path, limit: int, what: str) -> list[NDArray[np.float64]]:
    """The numbers of each line, without comments (`#`) and empty lines.

    Args:
        file: the file.
        limit: most bytes.
        what: what the file should hold, for messages.

    Raises:
        DatasetError: it does not exist, is larger, or has something else than numbers.
    """
    rows = []
    for index, line in enumerate(read_text(file, limit, what).splitlines(), 1):
        words = line.partition("#")[0].replace(",", " ").split()
        try:
            if words:
                rows.append(np.array([float(word) for word in words]))
        except ValueError as error:
            raise DatasetError(f"{file} is not {what}: line {index} is {line!r:.100}") from error
    return rows
