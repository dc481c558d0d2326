"""Claims about cells in Web Mercator."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pyproj import Transformer

from jzi.errors import BandsError
from jzi.store.geometry.bands import haversine
from jzi.store.geometry.mercator import MercatorGrid

GRID = MercatorGrid.covering(-71.2, 42.3, -71.0, 42.4)


def test_positions_are_those_of_proj_and_lie_in_their_own_cells() -> None:
    rng = np.random.default_rng(0)
    row, col = rng.integers(0, GRID.rows, 1000), rng.integers(0, GRID.cols, 1000)
    latitude, longitude = GRID.positions(row, col)
    x, y = Transformer.from_crs("EPSG:4326", GRID.crs, always_xy=True).transform(longitude, latitude)
    np.testing.assert_allclose(np.stack([x, y]), GRID.cell_centers(row, col), atol=1e-6)
    np.testing.assert_array_equal(GRID.cells_at(latitude, longitude), (row, col))
    south, west = GRID.unproject(GRID.west, GRID.south)
    assert (float(south), float(west)) == pytest.approx((42.3, -71.2))
    assert GRID.cells_at([42.35, 42.29, np.nan, 42.35], [-71.3, -71.1, -71.1, 288.9])[1].tolist()[:3] == [-1, -1, -1]


def test_cells_shrink_on_the_ground_with_the_cosine_of_the_latitude() -> None:
    latitude, longitude = GRID.positions([5, 5, 6], [5, 6, 5])
    width, height = haversine(latitude[0], longitude[0], latitude[1:], longitude[1:])
    expected = 30 * math.cos(math.radians(latitude[0]))
    assert (width, height) == (pytest.approx(expected, rel=1e-4), pytest.approx(expected, rel=1e-4))


@pytest.mark.parametrize("west", [-71.2, 179.95, -180.0], ids=["amid", "across", "east of the antimeridian"])
def test_cells_within_a_distance_are_those_of_brute_force(west: float) -> None:
    grid = MercatorGrid.covering(west, 42.3, west + 0.1, 42.33)
    row, col = (each.ravel() for each in np.indices(grid.shape))
    centers = grid.positions(row, col)
    latitude, longitude = np.array([42.31, 42.2999, 42.32]), np.array([west + 0.05, west - 0.0002, west + 0.1001])
    position, near_row, near_col = grid.within(latitude, longitude, 70.0)
    for index in range(3):
        near = haversine(latitude[index], longitude[index], *centers) <= 70
        assert near.any()
        found = set(zip(near_row[position == index].tolist(), near_col[position == index].tolist(), strict=True))
        assert found == set(zip(row[near].tolist(), col[near].tolist(), strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MercatorGrid.covering(1, 50, 0, 51), "give a rectangle"),
        (lambda: MercatorGrid.covering(0, 80, 1, 86), "give a rectangle"),
        (lambda: MercatorGrid.covering(-180, -80, 180, 80, 1), "smaller region or larger cells"),
        (lambda: MercatorGrid(0.5, 0, 0, 1, 1), "at least one cell of 1 to"),
    ],
)
def test_regions_that_cannot_be_are_refused(make, message: str) -> None:
    with pytest.raises(BandsError, match=message):
        make()
