"""Regions: which cells of a band grid belong to them."""

import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from jzi.errors import BandsError, ConfigError
from jzi.store.geometry.bands import RADIUS, BandGrid
from jzi.store.geometry.region import RULES, CellRuns, Region

#: The test area of 100 km2 that the authors publish.
BOSTON = [
    (-71.04000336823621, 42.401163393715386),
    (-71.04009025286781, 42.311331897448916),
    (-71.16156661945209, 42.311331897448916),
    (-71.16165350408369, 42.401163393715386),
]


def polygon(*rings: list[tuple[float, float]]) -> dict[str, object]:
    return {"type": "Polygon", "coordinates": [[*ring, ring[0]] for ring in rings]}


def box(west: float, south: float, east: float, north: float) -> list[tuple[float, float]]:
    return [(west, south), (east, south), (east, north), (west, north)]


def test_the_authors_test_area_has_as_many_cells_as_theirs() -> None:
    region = Region.of([polygon(BOSTON)])
    grid = region.grid(30.0)
    counts = {rule: region.cells(grid, rule) for rule in RULES}
    assert {rule: (cells.count, cells.bands) for rule, cells in counts.items()} == {
        "touch": (111_671, 334),
        "corners": (111_671, 334),
        "centre": (110_999, 333),
    }
    bands = grid.bands[counts["touch"].row]
    assert (bands.min(), bands.max()) == (157_003, 157_336)
    assert counts["touch"].count * 900 == pytest.approx(100.07e6, rel=0.01)


def test_a_state_has_as_many_centres_as_its_bounds_contain() -> None:
    region = Region.of([polygon(box(-73.55, 41.2, -69.9, 42.9))])
    cells = region.cells(region.grid(30.0), "centre")
    assert (cells.count, cells.bands) == (63_438_206, 6_308)


def rectangles(grid: BandGrid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column, and the rectangle of latitude and longitude of each cell."""
    row = np.repeat(np.arange(grid.rows), grid.count)
    col = np.concatenate([np.arange(count) for count in grid.count])
    latitude = grid.bands[row] * grid.cell_m / RADIUS
    longitude, half, width = grid.cell_numbers(row, col) * grid.step[row], grid.cell_m / RADIUS / 2, grid.step[row] / 2
    edges = longitude - width, latitude - half, longitude + width, latitude + half
    return row, col, shapely.box(*(np.degrees(edge) for edge in edges))


@pytest.mark.parametrize("seed", range(12))
def test_cells_are_those_that_brute_force_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    latitude, longitude = rng.uniform(-80, 80), rng.uniform(-179, 179)
    width = 0.01 / np.cos(np.radians(latitude))
    angle = np.sort(rng.uniform(0, 2 * np.pi, 9))
    star = [(longitude + width * r * np.cos(a), latitude + 0.01 * r * np.sin(a))
            for a, r in zip(angle, rng.uniform(0.3, 1.0, 9), strict=True)]  # fmt: skip
    geometry = shapely.Polygon(star).buffer(0)
    hole = shapely.Point(longitude, latitude).buffer(0.0013, quad_segs=2)
    lake = shapely.box(longitude + width, latitude, longitude + width * 1.04, latitude + 0.0004)  # smaller than a cell
    geometry = geometry.difference(hole).union(lake)
    region = Region.of([shapely.geometry.mapping(geometry)])
    grid = region.grid(40.0)
    row, col, cells = rectangles(grid)
    corners = shapely.points(shapely.get_coordinates(cells).reshape(-1, 5, 2)[:, :4])
    expected = {
        "touch": shapely.intersects(cells, geometry),
        "corners": shapely.intersects(corners, geometry).any(1),
        "centre": shapely.intersects(shapely.centroid(cells), geometry),
    }
    for rule in RULES:
        runs = region.cells(grid, rule)
        mask = runs.mask(slice(0, grid.rows), slice(0, grid.shape[1]))
        assert np.array_equal(mask[row, col], expected[rule]), rule
        assert runs.count == expected[rule].sum()
        assert np.array_equal(runs.contains(row, col), expected[rule])
        assert np.array_equal(runs.mask(slice(3, 9), slice(5, 11)), mask[3:9, 5:11])


def test_a_region_across_the_antimeridian_is_one_piece() -> None:
    fiji = [polygon(box(179.9, -17.0, 180.0, -16.9)), polygon(box(-180.0, -17.0, -179.9, -16.9))]
    region = Region.of(fiji)
    grid = region.grid(100.0)
    assert grid.west == pytest.approx(179.9)
    assert grid.east == pytest.approx(180.1)
    cells = region.cells(grid, "centre")
    assert cells.count * 1e4 == pytest.approx(
        0.2 * np.cos(np.radians(16.95)) * 0.1 * np.radians(1) ** 2 * RADIUS**2, rel=0.02
    )
    assert len(cells.row) == cells.bands  # no row is split at the antimeridian
    latitude, longitude = grid.positions(cells.row, cells.start)
    assert np.allclose(longitude, 179.9, atol=0.002)
    assert np.allclose(grid.positions(cells.row, cells.stop - 1)[1], -179.9, atol=0.002)
    assert np.allclose(latitude.min(), -17.0, atol=0.002)


def test_runs_are_merged() -> None:
    runs = CellRuns.merged(*np.array([[1, 0, 0, 0, 1, 0], [4, 8, 0, 2, 5, 3], [5, 9, 3, 2, 9, 4]]))
    assert (runs.row.tolist(), runs.start.tolist(), runs.stop.tolist()) == ([0, 0, 1], [0, 8, 4], [4, 9, 9])
    assert runs.count == 10
    assert runs.fingerprint != CellRuns(runs.row, runs.start, runs.stop + 1).fingerprint


@pytest.mark.parametrize(
    ("content", "error", "reason"),
    [
        (polygon([(0, 0), (1, 1), (1, 0), (0, 1)]), BandsError, "Self-intersection"),
        ({"type": "Point", "coordinates": [0, 0]}, ConfigError, "no Polygon"),
        (polygon([(0, 0), (1, 1), (2, 2)]), BandsError, "not valid|no area"),
        (polygon(box(0, 84, 1, 86)), BandsError, "85.06"),
        ({"type": "Nonsense"}, ConfigError, "GeoJSON"),
        (polygon(box(-179.9, -17, 179.9, -16)), BandsError, "split a region that crosses the antimeridian"),
        (polygon(box(179.9, -17, 180.1, -16)), ConfigError, "longitude 180.1.*split a region that crosses the anti"),
    ],
)
def test_regions_that_cannot_be_used_are_refused(
    tmp_path: Path, content: dict[str, object], error: type[Exception], reason: str
) -> None:
    file = tmp_path / "region.geojson"
    file.write_text(json.dumps(content))
    with pytest.raises(error, match=reason):
        Region.read(file).grid(30.0)


def test_a_region_that_contains_no_centre_is_refused() -> None:
    region = Region.of([polygon(box(0.00001, 0.00001, 0.00002, 0.00002))])
    assert region.cells(region.grid(30.0), "touch").count == 1
    with pytest.raises(BandsError, match="no cell of 30 m"):
        region.cells(region.grid(30.0), "corners")
