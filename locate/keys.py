"""Distinct keys of cells, row by row."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def distinct(key: NDArray[np.int64], padding: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct keys of each row, ascending, and where each key is among them.

    Args:
        key: (row, key).
        padding: what fills rows with fewer distinct keys than the others.

    Returns:
        (row, distinct) keys, and (row, key) the column of each key in it.

    Example:
        >>> distinct(np.array([[5, 3, 5], [1, 2, 9]]), padding=-1)
        (array([[ 3,  5, -1],
               [ 1,  2,  9]]), array([[1, 0, 1],
               [0, 1, 2]]))
    """
    order = np.argsort(key, axis=1, kind="stable")
    ordered = np.take_along_axis(key, order, 1)
    is_first = np.ones_like(ordered, bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    rank = is_first.cumsum(1) - 1
    found = np.full((len(key), int(rank.max()) + 1), padding)
    np.put_along_axis(found, rank, ordered, 1)
    column = np.empty_like(rank)
    np.put_along_axis(column, order, rank, 1)
    return found, column
