"""Cells in bands along parallels: keys, positions, neighbours, the antimeridian."""

import numpy as np
import pytest

from jzi.errors import BandsError
from jzi.store.geometry.bands import MAX_LATITUDE, RADIUS, BandGrid, band_at, haversine, last_of, move, step_of


@pytest.fixture(scope="module")
def boston() -> BandGrid:
    return BandGrid.covering(-71.1616657, 42.311331897448916, -71.040003, 42.401163393715386)


def random_positions(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-85, 85, count), rng.uniform(-180, 180, count)


def test_every_position_lies_in_the_cell_that_contains_it() -> None:
    latitude, longitude = random_positions(100_000)
    for cell_m in (30.0, 40.0, 7.5):
        bands = band_at(latitude, cell_m)
        step = step_of(bands, cell_m)
        cell = np.floor(np.radians(longitude) / step + 0.5)
        north = np.radians(latitude) * RADIUS - bands * cell_m
        east = (np.radians(longitude) - cell * step) / step * cell_m
        assert abs(north).max() <= cell_m / 2 + 1e-6
        assert abs(east).max() <= cell_m / 2 + 1e-6


def test_a_centre_is_in_its_own_cell_and_keys_are_reversible(boston: BandGrid) -> None:
    rows, cols = boston.shape
    row, col = (each.ravel() for each in np.indices((rows, cols)))
    exists = col < boston.count[row]
    row, col = row[exists], col[exists]
    again = boston.cells_at(*boston.positions(row, col))
    assert np.array_equal(again[0], row)
    assert np.array_equal(again[1], col)
    ids = boston.ids(row, col)
    assert len(np.unique(ids)) == len(ids)
    assert np.array_equal(ids.astype(np.float64).astype(np.int64), ids)
    assert all(np.array_equal(*pair) for pair in zip(boston.rows_of(ids), (row, col), strict=True))
    x, y = boston.cell_centers(row, col)
    assert np.allclose(np.stack(boston.unproject(x, y)), np.stack(boston.positions(row, col)), atol=1e-9)


def test_keys_do_not_depend_on_the_grid(boston: BandGrid) -> None:
    larger = BandGrid.covering(-72.0, 42.0, -70.0, 43.0)
    ids = boston.ids(np.array([0, 100]), np.array([5, 0]))
    assert np.array_equal(larger.ids(*larger.rows_of(ids)), ids)
    assert np.array_equal(boston.rows_of(larger.ids([0], [0])), [[-1], [-1]])


def test_a_band_is_almost_as_long_on_both_parallels() -> None:
    latitude = np.array([0.0, 42.4, 70.0, MAX_LATITUDE])
    step, half = step_of(band_at(latitude, 30.0), 30.0), 15 / RADIUS
    phi = band_at(latitude, 30.0) * 30.0 / RADIUS
    lengths = step[:, None] * RADIUS * np.cos(phi[:, None] + [-half, half])
    deviation = np.ptp(lengths, axis=1)
    assert deviation.max() < 0.019
    assert deviation[-1] == pytest.approx(0.00163, abs=1e-4)


def test_the_antimeridian_is_in_exactly_one_cell_and_has_neighbours_on_both_sides() -> None:
    whole, across = BandGrid.covering(-180, 50.0, 180, 50.02), BandGrid.covering(179.98, 50.0, 180.02, 50.02)
    longitude = np.array([-180 + 1e-9, 180 - 1e-9, -180.0, 180.0])
    row, col = whole.cells_at(np.full(4, 50.01), longitude)
    assert (col[[0, 2, 3]] == 0).all()
    assert (col[1] == whole.count[row[1]] - 1) or (col[1] == 0)
    row, col = across.cells_at(np.full(4, 50.01), longitude)
    assert (col >= 0).all()
    assert abs(np.diff(col)).max() <= 1
    found_row, found_col = across.within([50.01], [180.0], 50.0)[1:]
    longitude = across.positions(found_row, found_col)[1]
    assert (longitude > 0).any()
    assert (longitude < 0).any()
    assert np.array_equal(
        np.sort(across.ids(found_row, found_col)), np.sort(whole.ids(*whole.within([50.01], [180.0], 50.0)[1:]))
    )
    assert np.array_equal(across.cells_at(*across.positions(found_row, found_col)), (found_row, found_col))


def test_a_grid_has_every_cell_once_across_the_antimeridian_and_around_the_earth() -> None:
    for grid in (BandGrid.covering(170, 10, 190, 10.001, 5000.0), BandGrid.covering(10, -5, 370, -4.9, 5000.0)):
        row = np.repeat(np.arange(grid.rows), grid.count)
        col = np.concatenate([np.arange(count) for count in grid.count])
        ids = grid.ids(row, col)
        assert len(np.unique(ids)) == len(ids)
        assert all(np.array_equal(*pair) for pair in zip(grid.rows_of(ids), (row, col), strict=True))
    assert grid.count.max() == 2 * last_of(grid.step).max() + 1


@pytest.mark.parametrize("latitude", [0.0, 42.0, -70.0, 85.0])
def test_cells_within_a_distance_are_those_that_haversine_finds(latitude: float) -> None:
    grid = BandGrid.covering(10.0, latitude - 0.005, 10.04, latitude + 0.005)
    row = np.repeat(np.arange(grid.rows), grid.count)
    col = np.concatenate([np.arange(count) for count in grid.count])
    rng = np.random.default_rng(1)
    at = rng.uniform(latitude - 0.004, latitude + 0.004, 20), rng.uniform(10.0, 10.04, 20)
    position, found_row, found_col = grid.within(*at, 100.0)
    for number in range(20):
        near = haversine(at[0][number], at[1][number], *grid.positions(row, col)) <= 100.0
        expected = set(zip(row[near].tolist(), col[near].tolist(), strict=True))
        mine = position == number
        assert set(zip(found_row[mine].tolist(), found_col[mine].tolist(), strict=True)) == expected
    assert len(position) / 20 == pytest.approx(34.9, abs=4)  # pi r^2 / l^2


@pytest.mark.parametrize("latitude", [0.0, -23.4, 51.5, -84.7])
def test_cells_that_the_antimeridian_cuts_are_as_far_away_as_their_positions(latitude: float) -> None:
    grid = BandGrid.covering(179.99, latitude - 0.003, 180.01, latitude + 0.003)
    row = np.repeat(np.arange(grid.rows), grid.count)
    col = np.concatenate([np.arange(count) for count in grid.count])
    rng = np.random.default_rng(0)
    east = rng.uniform(-60, 60, 40) / (RADIUS * np.cos(np.radians(latitude)))
    at = rng.uniform(latitude - 0.002, latitude + 0.002, 40), 180 + np.degrees(east)
    found = grid.within(*at, 50.0)
    distance = haversine(at[0][:, None], at[1][:, None], *grid.positions(row, col))
    position, index = np.nonzero(distance <= 50.0)
    assert {*zip(*(each.tolist() for each in found), strict=True)} == {
        *zip(position.tolist(), row[index].tolist(), col[index].tolist(), strict=True)
    }


def test_moving_goes_the_distance_in_the_direction() -> None:
    latitude, longitude = random_positions(1000, 3)
    latitude *= 0.9
    to = move(latitude, longitude, 500.0, 37.0)
    assert np.allclose(haversine(latitude, longitude, *to), 500.0, atol=1e-5)
    north = move(latitude, longitude, 500.0, 0.0)
    assert np.allclose(north[0] - latitude, np.degrees(500 / RADIUS), atol=1e-9)
    east = move(0.0, 179.999, 500.0, 90.0)
    assert float(east[1]) == pytest.approx(179.999 + np.degrees(500 / RADIUS) - 360, abs=1e-9)


def test_x_and_y_are_metres(boston: BandGrid) -> None:
    x, y = boston.cell_centers([0, 0, 1], [0, 1, 0])
    assert np.hypot(x[1] - x[0], y[1] - y[0]) == pytest.approx(30.0, abs=0.01)
    assert np.hypot(x[2] - x[0], y[2] - y[0]) == pytest.approx(30.0, abs=30.0)
    bounds = boston.bounds
    assert bounds.east - bounds.west == pytest.approx(10_000, rel=0.02)
    assert bounds.west < x.min() < x.max() < bounds.east


@pytest.mark.parametrize(
    ("rectangle", "cell_m", "reason"),
    [
        ((0, 84, 1, 85.2), 30.0, "85.06"),
        ((0, 1, 1, 0), 30.0, "latitude 1 to 0"),
        ((0, 0, 0, 1), 30.0, "longitude 0 to 0"),
        ((181, 0, 182, 1), 30.0, "longitude 181"),
        ((0, 0, 361, 1), 30.0, "longitude 0 to 361"),
        ((0, 0, 1, 1), 0.5, "0.5 m"),
        ((0, 0, 1, 1), float("nan"), "nan m"),
        ((float("nan"), 0, 1, 1), 30.0, "nan"),
        ((-180, -80, 180, 80), 30.0, "smaller region"),
    ],
)
def test_grids_that_are_not_possible_are_refused(rectangle: tuple[float, ...], cell_m: float, reason: str) -> None:
    with pytest.raises(BandsError, match=reason):
        BandGrid.covering(*rectangle, cell_m=cell_m)
