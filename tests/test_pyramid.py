"""Claims about the geometry of the zoom."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jzi.errors import PyramidError
from jzi.store.geometry.pyramid import Pyramid, TileKey, geodesic_distance, levels_for, preset
from jzi.store.plain import plain

SHAPES = [(2, 1), (2, 5), (3, 1), (3, 4), (4, 1), (4, 4), (5, 2), (5, 5)]


@pytest.fixture
def cut(request: pytest.FixtureRequest) -> Pyramid:
    """700 m near Vienna, cut as the test's parameters (grid, levels) say."""
    grid, levels = request.param
    return Pyramid.around(48.2, 16.37, 700.0, grid=grid, levels=levels)


def each_shape(test):
    return pytest.mark.parametrize("cut", SHAPES, indirect=True, ids=lambda shape: "grid{}-levels{}".format(*shape))(
        test
    )


def random_positions(pyramid: Pyramid, n: int = 200) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(pyramid.grid * 10 + pyramid.levels)
    x, y = rng.uniform(pyramid.west, pyramid.west + pyramid.size, (2, n))
    return (x, y, *pyramid.unproject(x, y))


# The published benchmark


def test_the_preset_gives_every_published_zoom_sequence(shared: Path) -> None:
    with (shared / "just-zoom-in-rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    latitude, longitude = ([float(row[name]) for row in rows] for name in ("latitude", "longitude"))
    assert len(rows) >= 8
    assert preset("just-zoom-in-dc").paths(latitude, longitude).tolist() == [
        json.loads(row["sequence"]) for row in rows
    ]


def test_a_published_row_comes_out_without_the_data_set() -> None:
    assert preset("just-zoom-in-dc").paths(38.908513, -76.940898).tolist() == [[7, 6, 6, 5]]


def test_the_preset_has_the_published_footprints_and_number_of_tiles() -> None:
    pyramid = preset("just-zoom-in-dc")
    assert [pyramid.footprint(level) for level in range(5)] == [10_000, 2500, 625, 156.25, 39.0625]
    assert (pyramid.tile_count, pyramid.actions, pyramid.cell_size) == (4369, 16, 39.0625)
    assert pyramid.bounds == (-3000, -5000, 7000, 5000)


def test_the_sphere_of_the_benchmark_and_the_ellipsoid_disagree_about_some_cells() -> None:
    sphere = preset("just-zoom-in-dc")
    ellipsoid = replace(sphere, crs=sphere.crs.replace("+R=6378137", "+datum=WGS84"))
    positions = random_positions(sphere, 500)[2:]
    differ = (sphere.paths(*positions) != ellipsoid.paths(*positions)).any(axis=1).mean()
    assert 0 < differ < 0.5


def test_an_unknown_preset_is_refused_with_the_ones_there_are() -> None:
    with pytest.raises(PyramidError, match="just-zoom-in-dc"):
        preset("just-zoom-in-nyc")


# Paths, keys, children and bounds say the same


@each_shape
def test_every_tile_on_a_path_holds_the_position(cut: Pyramid) -> None:
    x, y, latitude, longitude = random_positions(cut)
    for path, px, py in zip(cut.paths(latitude, longitude), x, y, strict=True):
        keys = cut.keys(path)
        assert [key.level for key in keys] == list(range(cut.levels + 1))
        for key in keys:
            west, south, east, north = cut.tile_bounds(key)
            assert west - 1e-6 <= px <= east + 1e-6
            assert south - 1e-6 <= py <= north + 1e-6


@each_shape
def test_an_action_names_the_child_that_the_path_enters(cut: Pyramid) -> None:
    for path in cut.paths(*random_positions(cut)[2:]):
        keys = cut.keys(path)
        assert [cut.children(key)[action] for key, action in zip(keys, path, strict=False)] == keys[1:]


@each_shape
def test_cells_become_paths_and_paths_become_cells(cut: Pyramid) -> None:
    side = cut.tiles_per_side(cut.levels)
    row, col = np.random.default_rng(0).integers(0, side, (2, 300))
    paths = cut.cell_to_path(row, col)
    assert paths.shape == (300, cut.levels)
    assert paths.min() >= 0
    assert paths.max() < cut.actions
    back = cut.path_to_tile(paths)
    assert np.array_equal(back, (row, col))
    assert np.array_equal(cut.paths(*cut.tile_positions(cut.levels, row, col)), paths), "a cell's centre lies in it"


@each_shape
def test_a_zoom_sees_the_tiles_before_each_action(cut: Pyramid) -> None:
    paths = cut.paths(*random_positions(cut)[2:])
    rows, cols = cut.input_tiles(paths)
    assert rows.shape == cols.shape == paths.shape
    for index, path in enumerate(paths):
        seen = [TileKey(level, *place) for level, place in enumerate(zip(rows[index], cols[index], strict=True))]
        assert seen == cut.keys(path)[:-1]


@each_shape
def test_children_fill_their_parent_row_by_row_from_the_north_west(cut: Pyramid) -> None:
    parent = TileKey(cut.levels - 1, *[cut.tiles_per_side(cut.levels - 1) - 1] * 2)
    west, south, east, north = cut.tile_bounds(parent)
    bounds = np.array([cut.tile_bounds(child) for child in cut.children(parent)])
    g, side = cut.grid, cut.footprint(cut.levels)
    expected_west = np.tile(west + np.arange(g) * side, g)
    expected_north = np.repeat(north - np.arange(g) * side, g)
    expected = np.stack([expected_west, expected_north - side, expected_west + side, expected_north], 1)
    np.testing.assert_allclose(bounds, expected, atol=1e-6)
    np.testing.assert_allclose((bounds[-1][1], bounds[-1][2]), (south, east), atol=1e-6)


def test_the_first_action_is_north_west_and_the_last_south_east(pyramid: Pyramid) -> None:
    latitude, longitude = pyramid.unproject([-399, 399], [399, -399])
    assert pyramid.paths(latitude, longitude).tolist() == [[0, 0, 0], [15, 15, 15]]
    assert latitude[0] > latitude[1], "row 0 is north"


# Edges


@pytest.mark.parametrize(
    ("west", "north", "path"),
    [(0.0, 0.0, [0, 0, 0]), (-1024.0, 0.0, [-1] * 3), (0.0, 1024.0, [-1] * 3), (-512.0, 512.0, [3, 0, 0])],
    ids=["north-west corner", "east edge", "south edge", "middle"],
)
def test_a_point_on_an_edge_belongs_to_the_square_south_and_east_of_it(west: float, north: float, path: list) -> None:
    crs = "+proj=aeqd +lat_0=0 +lon_0=0 +datum=WGS84 +units=m"  # projects 0, 0 to 0, 0 to the last bit
    assert Pyramid(crs, west, north, size=1024.0, grid=2, levels=3).paths(0.0, 0.0).tolist() == [path]


def test_positions_outside_of_the_area_have_no_path(pyramid: Pyramid) -> None:
    latitude, longitude = pyramid.unproject([0, -401, 401, 0, 0], [0, 0, 0, 401, -401])
    latitude, longitude = np.append(latitude, [np.nan, 91, -48.2]), np.append(longitude, [16.37, 16.37, -163.63])
    inside = pyramid.paths(latitude, longitude)[:, 0] >= 0
    assert inside.tolist() == [True] + [False] * 7
    assert (pyramid.paths(latitude, longitude)[1:] == -1).all()


# What is refused


@pytest.mark.parametrize(
    "crs", ["EPSG:4326", "EPSG:2992", "EPSG:4978", "not a crs", ""], ids=["degrees", "feet", "geocentric", "junk", "-"]
)
def test_a_crs_that_is_not_projected_in_metres_is_refused(crs: str) -> None:
    with pytest.raises(PyramidError, match=r"pyramid\.crs") as error:
        Pyramid(crs, 0.0, 0.0, 1000.0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0.0},
        {"size": -1.0},
        {"size": np.nan},
        {"west": np.inf},
        {"grid": 1},
        {"grid": 17},
        {"levels": 0},
        {"levels": 13, "grid": 2},
        {"levels": 11, "grid": 4},
    ],
    ids=str,
)
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(PyramidError):
        Pyramid(**{"crs": "EPSG:32633", "west": 0.0, "north": 0.0, "size": 1000.0, **wrong})  # type: ignore[arg-type]


def test_a_centre_that_is_no_place_on_earth_is_refused() -> None:
    with pytest.raises(PyramidError, match=r"is no position on earth; 39\.9 116\.4 is one: give the latitude first"):
        Pyramid.around(116.4, 39.9, 1000.0)


# Odds


@pytest.mark.parametrize(
    ("size", "grid", "levels"), [(10_000, 4, 4), (1300, 4, 3), (40, 4, 1), (161, 4, 2), (160, 4, 1), (1280, 2, 5)]
)
def test_levels_for_is_the_fewest_with_cells_of_40_m(size: float, grid: int, levels: int) -> None:
    assert levels_for(size, grid) == levels
    assert Pyramid.around(0.0, 0.0, size, grid=grid).levels == levels


@each_shape
def test_a_pyramid_survives_json(cut: Pyramid) -> None:
    again = Pyramid(**json.loads(json.dumps(plain(cut))))
    assert again == cut
    assert hash(again) == hash(cut)


def test_metres_of_the_pyramid_are_metres_on_the_ground(pyramid: Pyramid) -> None:
    west, east = pyramid.unproject(-400, 0), pyramid.unproject(400, 0)
    assert geodesic_distance(*west, *east) == pytest.approx(800, abs=0.01)
    north, south = pyramid.unproject(0, 400), pyramid.unproject(0, -400)
    assert geodesic_distance(*north, *south) == pytest.approx(800, abs=0.01)
