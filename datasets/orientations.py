"""Published lists of headings that VIGOR's panoramas are rolled to, for tests with unknown orientation.

SliceMatch: a text file; a line is a panorama and degrees clockwise from north, or degrees alone.
CCVPE: a file of numpy; degrees counter-clockwise, in the order of the labels of all cities.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray

from jzi.datasets.pairs import MAX_BYTES, number, read_lines
from jzi.errors import PairsError, first_line
from jzi.store.photos.photo_file import open_regular_file


def read_orientations(file: Path, photos: Sequence[str], order: Sequence[str]) -> NDArray[np.float64]:
    """Headings of the middle columns of rolled panoramas, degrees clockwise from north.

    Args:
        file: a list of SliceMatch (.txt) or of CCVPE (.npy).
        photos: names of the panoramas' files.
        order: names in the order of a list without names (`jzi.datasets.vigor.label_order`).

    Returns:
        (photo,) 0..360.

    Raises:
        PairsError: the list cannot be read, or lacks a panorama.
    """
    if file.suffix == ".npy":
        heading = dict(zip(order, _checked(-_read_numpy(file), file, order), strict=True))
    else:
        named: dict[str, float] = {}
        plain: list[float] = []
        for line in read_lines(file, "a list of orientations"):
            *names, degrees = line.split()
            value = number(degrees, file, line)
            if names:
                named[Path(names[0].rstrip(",:")).name] = value
            else:
                plain.append(value)
        heading = named or dict(zip(order, _checked(np.array(plain), file, order), strict=True))
    missing = [photo for photo in photos if photo not in heading]
    if missing:
        raise PairsError(
            f"{file} lacks the orientation of {len(missing)} of {len(photos)} panoramas, first {missing[0]}: give the "
            "list of the same area and split"
        )
    return np.array([heading[photo] for photo in photos]) % 360


def _checked(degrees: NDArray[np.float64], file: Path, order: Sequence[str]) -> NDArray[np.float64]:
    if len(degrees) != len(order):
        raise PairsError(
            f"{file} has {len(degrees)} orientations for {len(order)} labelled panoramas: give the list of the same "
            "area and split"
        )
    return degrees


def _read_numpy(file: Path) -> NDArray[np.float64]:
    try:
        with open_regular_file(file) as opened:
            content = opened.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        degrees = np.load(io.BytesIO(content), allow_pickle=False)
        values = np.asarray(degrees, np.float64)
    except FileNotFoundError:
        raise PairsError(f"there is no {file}: give a list of orientations") from None
    except (OSError, ValueError, TypeError, EOFError, SyntaxError, MemoryError, RecursionError, TokenError) as error:
        raise PairsError(f"{file} is not a list of orientations: {first_line(error)}") from error
    if values.ndim != 1 or not np.isfinite(values).all():
        raise PairsError(f"{file} is not a list of orientations: it has the shape {values.shape}")
    return values
