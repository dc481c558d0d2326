"""The cells near the probable tiles of a coarse posterior, so that search reads these only.

A zoom, or any other posterior over larger cells, bounds where the vectors have to be compared: the chunks of some
square kilometres are read instead of those of a state, and no index is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jzi.locate.posterior import Posterior
from jzi.locate.ranges import DISTANCE, RANKS, SHARE
from jzi.store.geometry.cell_grid import CellGrid

#: Share of the probability whose tiles are kept, their greatest number, and by how much they are dilated, metres.
KEPT, TILES, MARGIN_M = 0.99, 64, 50.0


@dataclass(frozen=True)
class District:
    """The cells in which a photo is searched.

    Attributes:
        row: (cell,) rows of distinct cells, in ascending order of row and column.
        col: (cell,) columns.
        probability: total probability of the tiles that were kept.
        tiles: number of them.
    """

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    probability: float
    tiles: int


def districts(
    coarse: Posterior, area: CellGrid, *, kept: float = KEPT, tiles: int = TILES, margin_m: float = MARGIN_M
) -> list[District]:
    """The cells of each photo: those with their centre in the most probable tiles, or close to them.

    Args:
        coarse: posterior over larger cells (tiles), on any grid.
        area: the grid of the cells.
        kept: share of the probability: the most probable tiles are kept until they have it.
        tiles: greatest number of tiles.
        margin_m: by how much the tiles are dilated, metres, so that a photo at an edge keeps its neighbours.

    Returns:
        (photo,) districts.

    Raises:
        ConfigError: a number is out of range.
    """
    SHARE.check("the share of the probability to keep", kept)
    RANKS.check("the number of tiles", tiles)
    if margin_m:
        DISTANCE.check("the margin of tiles", margin_m)
    half = coarse.area.cell_size / 2 + margin_m
    # Distances in one projection differ from those on the sphere by less than 1 % where cells are of use
    radius = 1.01 * (half * math.sqrt(2) + area.cell_size)
    cols = area.shape[1]
    result = []
    for photo in range(len(coarse)):
        probability = coarse.probability[photo]
        order = np.argsort(-probability, kind="stable")[:tiles]
        order = order[probability[order] > 0]
        below = np.cumsum(probability[order]) < kept
        order = order[: int(below.sum()) + 1]
        x, y = (each[photo, order] for each in coarse.centers)
        tile, row, col = area.within(*coarse.area.unproject(x, y), radius) if len(order) else (order, order, order)
        to_x, to_y = coarse.area.project(*area.unproject(*area.cell_centers(row, col)))
        inside = np.maximum(abs(to_x - x[tile]), abs(to_y - y[tile])) <= half
        row, col = np.divmod(np.unique(row[inside] * cols + col[inside]), cols)
        result.append(District(row, col, float(probability[order].sum()), len(order)))
    return result
