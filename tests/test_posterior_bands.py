"""What works on a posterior over a pyramid works over cells in bands, which are sheared and of which there are many."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from jzi.locate.answer.location import LocateOptions, to_locations
from jzi.locate.points.discs import most_probable_discs
from jzi.locate.posterior import Posterior, credible_radius, most_probable_cells
from jzi.store.geometry.bands import RADIUS, BandGrid, haversine

STATE = BandGrid.covering(-73.55, 41.2, -69.9, 42.9, 30.0)
GRIDS = {
    "a town": BandGrid.covering(-71.17, 42.31, -71.04, 42.40, 30.0),
    "across the antimeridian": BandGrid.covering(179.98, 65.0, 180.02, 65.02, 30.0),
    "around the earth": BandGrid.covering(-180.0, 60.0, 180.0, 60.5, 5000.0),
}


def scattered(grid: BandGrid, photos: int = 1, rows: int = 20, cols: int = 40, reached: float = 0.97) -> Posterior:
    """Some of the cells of a corner of a grid, and of all around it where columns are few."""
    rng = np.random.default_rng(photos)
    row, col = np.divmod(rng.permutation(min(rows, grid.rows) * cols)[:600], cols)
    kept = col < grid.count[row]
    if grid.east > 180 or grid.east - grid.west > 180:  # both sides of the seam
        col = (grid.count[row] // 2 + col - cols // 2) if grid.east > 180 else (col - cols // 2) % grid.count[row]
    row, col = row[kept], col[kept]
    return Posterior.from_cells(grid, row, col, rng.dirichlet(np.full(len(row), 0.3), photos) * reached)


def samples(posterior: Posterior, side: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(cell, sample) latitude, longitude and probability of the first photo, by points spread evenly over the cells."""
    grid = posterior.area
    assert isinstance(grid, BandGrid)
    row, col = posterior.row[0], posterior.col[0]
    latitude, longitude = (values[:, None] for values in grid.positions(row, col))
    within = (np.arange(side) + 0.5) / side - 0.5
    up, right = (each.ravel() for each in np.meshgrid(within, within))
    latitude = latitude + np.degrees(up * grid.cell_m / RADIUS)
    longitude = longitude + np.degrees(right * grid.step[row][:, None])
    return latitude, longitude, np.repeat(posterior.probability[0][:, None] / side**2, side**2, 1)


@pytest.mark.parametrize("cells", [1.7, 4.0, 40.0])
@pytest.mark.parametrize("name", GRIDS)
def test_a_disc_holds_the_probability_that_it_reports(name: str, cells: float) -> None:
    grid = GRIDS[name]
    posterior, radius = scattered(grid), cells * grid.cell_m
    points = most_probable_discs(posterior, radius, 3)
    latitude, longitude, density = samples(posterior)
    for rank in range(3):
        center = grid.unproject(points.x[0, rank], points.y[0, rank])
        inside = haversine(*center, latitude, longitude) <= radius
        assert points.probability[0, rank] == pytest.approx(density[inside].sum(), abs=0.002)
        density[inside] = 0
    assert points.probability[0, 0] > 0.03


def test_no_other_point_of_a_cell_has_more_probability_within_the_radius() -> None:
    posterior = scattered(GRIDS["a town"])
    best = most_probable_discs(posterior, 50.0).probability[0, 0]
    latitude, longitude, density = samples(posterior, 6)
    rng = np.random.default_rng(1)
    for cell, sample in zip(rng.integers(0, 128, 300), rng.integers(0, 36, 300), strict=True):
        here = latitude[cell, sample], longitude[cell, sample]
        near = abs(latitude - here[0]) < 0.001
        assert density[near][haversine(*here, latitude[near], longitude[near]) <= 50].sum() < best + 0.006


def test_points_lie_in_their_cells_and_are_the_radius_apart() -> None:
    for grid in GRIDS.values():
        posterior = scattered(grid, 2)
        points = most_probable_discs(posterior, 2 * grid.cell_m, 5)
        for photo in range(2):
            latitude, longitude = grid.unproject(points.x[photo], points.y[photo])
            row, col = grid.cells_at(latitude, longitude)
            cell = points.cell[photo]
            assert (row == posterior.row[photo, cell]).all() and (col == posterior.col[photo, cell]).all()
            apart = haversine(latitude[:, None], longitude[:, None], latitude, longitude)
            assert (apart[~np.eye(5, dtype=bool)] > 2 * grid.cell_m * 0.998).all()


def test_a_disc_as_large_as_the_grid_holds_all_that_was_reached() -> None:
    posterior = scattered(GRIDS["a town"], 2)
    points = most_probable_discs(posterior, 10_000.0, 3)
    np.testing.assert_allclose(points.probability[:, 0], 0.97)
    assert (abs(points.probability[:, 1:]) < 1e-12).all()


def test_radii_hold_their_share_on_the_sphere() -> None:
    posterior = scattered(GRIDS["a town"], 1)
    best = most_probable_cells(posterior)
    radii = credible_radius(posterior, best.x[:, 0], best.y[:, 0], 0.5, 0.9, 0.98)
    latitude, longitude, density = samples(posterior)
    distance = haversine(*posterior.area.unproject(best.x[0, 0], best.y[0, 0]), latitude, longitude)
    for share, radius in zip((0.5, 0.9), radii[:2, 0], strict=True):
        assert density[distance <= radius].sum() == pytest.approx(share, abs=0.01)
    assert np.isinf(radii[2, 0])


def test_locations_in_a_state_need_no_array_of_its_cells() -> None:
    """6308 x 10 191 cells are 514 MB in float64."""
    rng = np.random.default_rng(0)
    STATE.positions(0, 0)
    row = rng.integers(0, STATE.rows, (3, 8000))
    col = rng.integers(0, STATE.count[row])
    posterior = Posterior.from_cells(STATE, row, col, rng.dirichlet(np.full(8000, 0.1), 3))
    tracemalloc.start()
    locations = to_locations(posterior, LocateOptions(top=3), ["a", "b", "c"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6
    for photo, location in enumerate(locations):
        assert location.best.cell in zip(row[photo].tolist(), col[photo].tolist(), strict=True)
        assert location.best.path == () and location.to_dict()["latitude"] == round(location.latitude, 7)
        assert location.radius_68 <= location.radius_95 < np.inf
