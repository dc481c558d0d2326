"""Weights of cells from a circle, a region or a raster."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jzi.errors import ConfigError
from jzi.locate.priors.prior_weights import Prior, near, raster, region
from jzi.store.geometry.geojson import MAX_MB, parse_polygons
from jzi.store.geometry.pyramid import Pyramid
from jzi.tests.prior_map import AREA, position, rectangle


def test_a_circle_weights_cells_by_the_share_of_them_that_it_covers() -> None:
    weight = near(AREA, *position(10, 10), 28.0)  # around the centre of cell (7, 8)
    assert weight[7, 8] == 1 and weight.sum() * 20**2 == pytest.approx(np.pi * 28**2, rel=0.02)
    assert set(zip(*np.nonzero(weight), strict=True)) == {(row, col) for row in (6, 7, 8) for col in (7, 8, 9)}
    assert weight[6, 8] == pytest.approx(weight[8, 8], abs=0.02) and 0.8 < weight[6, 8] < 1
    assert near(AREA, *position(0, 0), 1e4).all() and near(AREA, *position(0, 0), 1e7).all()
    assert [*zip(*np.nonzero(near(AREA, *position(13, 3), 0.01)), strict=True)] == [(7, 8)]
    outside = near(AREA, *position(200, 10), 60.0)  # the map ends 160 m east of its centre
    assert outside.any() and not outside[:, :15].any()


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:3857"])
def test_a_circle_is_measured_on_the_ground_in_any_crs(crs: str) -> None:
    x, y = Pyramid(crs, 0.0, 0.0, 1.0).project(48.2, 16.37)
    area = Pyramid(crs, float(x) - 500, float(y) + 500, 1000.0, grid=4, levels=3)
    weight = near(area, 48.2, 16.37, 100.0)
    scale = np.cos(np.radians(48.2)) if crs == "EPSG:3857" else 1.0  # metres on the ground per metre of Web Mercator
    assert weight.sum() * (area.cell_size * scale) ** 2 == pytest.approx(np.pi * 100**2, rel=0.02)


def test_a_region_weights_cells_by_the_share_of_them_that_it_covers() -> None:
    weight = region(AREA, [rectangle(-35, 5, -5, 35)])
    expected = np.zeros(AREA.shape)
    expected[6:8, 6:8] = 0.75**2
    np.testing.assert_allclose(weight, expected)
    assert set(zip(*np.nonzero(weight), strict=True)) == {(6, 6), (6, 7), (7, 6), (7, 7)}
    tiny = region(AREA, [rectangle(25.0, 5.0, 25.1, 5.1)])
    assert [*zip(*np.nonzero(tiny), strict=True)] == [(7, 9)]
    ring = rectangle(-60, -60, 60, 60)
    ring["coordinates"] += rectangle(-20, -20, 20, 20)["coordinates"]  # a hole
    hollow = region(AREA, [ring])
    assert hollow[6, 6] == 1 and hollow[5:11, 5:11].sum() == pytest.approx(32, abs=0.7) and hollow[7, 7] < 0.05
    two = region(AREA, [rectangle(2, 2, 18, 18), rectangle(2, 2, 18, 18), rectangle(-158, 142, -142, 158)])
    assert [*zip(*np.nonzero(two), strict=True)] == [(0, 0), (7, 8)]  # overlapping polygons count once
    assert two[7, 8] == two[0, 0] <= 1


def test_every_kind_of_geojson_gives_its_polygons() -> None:
    one, other = rectangle(2, 2, 18, 18), rectangle(-18, 2, -2, 18)
    several = {"type": "MultiPolygon", "coordinates": [one["coordinates"], other["coordinates"]]}
    point = {"type": "Point", "coordinates": [16.37, 48.2]}
    collection = {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "properties": {}, "geometry": None},
            {"type": "Feature", "geometry": {"type": "GeometryCollection", "geometries": [point, one, other]}},
        ],
    }
    weights = [region(AREA, parse_polygons(json.dumps(each), "r")) for each in (several, collection)]
    np.testing.assert_array_equal(*weights)
    assert weights[0].any(0).sum() == 2


def nested(depth: int) -> str:
    return '{"type":"GeometryCollection","geometries":[' * depth + json.dumps(rectangle(0, 0, 9, 9)) + "]}" * depth


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "cannot be read as GeoJSON"),
        ("[1, 2]", "no GeoJSON object"),
        ('"Polygon"', "no GeoJSON object"),
        ('{"type": "Polygon"}', "lacks 'coordinates'"),
        ('{"type": "Point", "coordinates": [16.37, 48.2]}', "contains no Polygon"),
        ('{"type": "FeatureCollection", "features": 3}', "cannot be read as GeoJSON"),
        ('{"type": "Polygon", "coordinates": []}', "contains no Polygon"),
        ('{"type": "Polygon", "coordinates": [[[16, 48], [17, 48], [16, 48]]]}', "fewer than four"),
        ('{"type": "Polygon", "coordinates": [[["a", "b"], [1, 2], [3, 4], [5, 6]]]}', "cannot be read as GeoJSON"),
        ('{"type": "Polygon", "coordinates": [[[NaN, 48], [17, 48], [17, 49], [16, 48]]]}', "not longitude, latitude"),
        ('{"type": "Polygon", "coordinates": [[[1e999, 48], [17, 48], [17, 49], [16, 48]]]}', "not longitude"),
        ('{"type": "Polygon", "coordinates": [[[1822000, 48], [17, 48], [17, 49], [16, 48]]]}', "not longitude"),
        (json.dumps({"type": "Polygon", "coordinates": [[[10**400, 1], [1, 2], [3, 4], [5, 6]]]}), "GeoJSON"),
        (nested(9), "nested more than 8 deep"),
        (nested(20_000), "nested too deep"),
        (b"\xff\xfe\x00", "cannot be read as GeoJSON"),
        (b" " * (MAX_MB * 10**6 + 1), f"more than {MAX_MB} MB"),
    ],
)  # fmt: skip
def test_what_is_no_region_is_refused_in_a_sentence(content: str | bytes, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^r.json .*{reason}") as error:
        parse_polygons(content, "r.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_a_raster_is_averaged_over_each_cell(write_raster: Callable[..., Path]) -> None:
    fine = np.zeros((1, 64, 64), np.float32)  # 5 m: four pixels to the side of a cell
    fine[0, 28:32, 32:36] = 3.0  # cell (7, 8)
    fine[0, 28:30, 36:40] = 3.0  # half of cell (7, 9)
    fine[0, 0:4, 0:4], fine[0, 0, 0] = -9999, 6.0  # cell (0, 0) has one pixel with data
    fine[0, 60:, 60:] = np.nan
    weight = raster(AREA, write_raster(fine, AREA.bounds, AREA.crs, nodata=-9999))
    expected = np.zeros(AREA.shape)
    expected[7, 8], expected[7, 9], expected[0, 0] = 0.5, 0.25, 1.0
    np.testing.assert_allclose(weight, expected, atol=1e-6)
    for value in (-9999, 5):  # of no pixel of this cell
        fine[0, 8:12, 8:12], fine[0, 0:4, 0:4], fine[0, 0, 0] = value, value, 6.0
        weight = raster(AREA, write_raster(fine, AREA.bounds, AREA.crs, "without.tif", nodata=value))
        np.testing.assert_allclose(weight, expected, atol=1e-6)
    coarse = np.array([[[1, 2], [0, 4]]], np.uint8)  # 160 m: eight cells to the side of a pixel
    weight = raster(AREA, write_raster(coarse, AREA.bounds, AREA.crs, "coarse.tif"))
    np.testing.assert_allclose(weight, np.kron([[0.25, 0.5], [0, 1]], np.ones((8, 8))))


def test_a_raster_is_read_by_its_overviews(write_raster: Callable[..., Path]) -> None:
    import rasterio
    from rasterio.enums import Resampling

    fine = np.random.default_rng(0).random((1, 1024, 1024)).astype(np.float32)
    path = write_raster(fine, AREA.bounds, AREA.crs, tiled=True)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4, 8, 16, 32, 64], Resampling.nearest)
    mean = fine[0, ::32, ::32].reshape(16, 2, 16, 2).mean((1, 3))  # the overview with two pixels to the side of a cell
    assert np.corrcoef(raster(AREA, path).ravel(), mean.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("value", "crs", "reason"),
    [
        (-1.0, AREA.crs, "negative or infinite"),
        (np.inf, AREA.crs, "negative or infinite"),
        (0.0, AREA.crs, "no weight above 0 on the map"),
        (np.nan, AREA.crs, "no weight above 0 on the map"),
        (1.0, None, "no CRS"),
        (1.0, "EPSG:32633", "no weight above 0 on the map"),  # the same numbers, elsewhere
    ],
)
def test_a_raster_without_usable_weights_is_refused(write_raster, value: float, crs: str | None, reason: str) -> None:
    data = np.zeros((1, 64, 64), np.float32)
    data[0, 10, 10] = value  # one pixel is enough
    with pytest.raises(ConfigError, match=reason) as error:
        raster(AREA, write_raster(data, AREA.bounds, crs))
    assert "map.tif" in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_no_raster_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.tif").write_text("no raster")
    for name in ("w.tif", "gone.tif"):
        with pytest.raises(ConfigError, match=f"{name} cannot be read as a raster of weights"):
            raster(AREA, tmp_path / name)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"near": (48.2, 16.37)}, "belong together"),
        ({"within": 100.0}, "belong together"),
        ({"near": (95.0, 16.37), "within": 100.0}, "near 95 16.37 is no position on earth"),
        ({"near": (48.2, float("nan")), "within": 100.0}, "no position on earth"),
        ({"near": (48.2, 16.37), "within": 0.0}, "within must be"),
        ({"near": (48.2, 16.37), "within": -3.0}, "within must be"),
        ({"near": (48.2, 16.37), "within": float("inf")}, "within must be"),
        ({"near": (48.2, 16.37), "within": float("nan")}, "within must be"),
    ],
)
def test_a_circle_that_makes_no_sense_is_refused(values: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Prior(**values)


def test_a_prior_outside_of_the_map_is_refused() -> None:
    with pytest.raises(ConfigError, match="no cell of the map is within 100 m"):
        near(AREA, 48.3, 16.37, 100.0)
    with pytest.raises(ConfigError, match="my region does not touch the map"):
        region(AREA, [rectangle(1000, 1000, 1100, 1100)], "my region")


def test_parts_of_a_prior_are_multiplied(write_raster: Callable[..., Path]) -> None:
    weights = write_raster(np.array([[[1, 2]]], np.uint8), AREA.bounds, AREA.crs)  # west, east
    prior = Prior(position(0, 0), 300.0, (rectangle(-18, 2, 18, 18),), "r.json", weights)
    expected = region(AREA, prior.region) * np.repeat([0.5, 1.0], 8)
    np.testing.assert_allclose(prior.weight(AREA), expected)
    assert prior and not Prior()
    assert prior.to_dict() == {
        "near": [*position(0, 0)],
        "within_m": 300.0,
        "region": "r.json",
        "raster": str(weights),
    }
    assert Prior(region=prior.region).to_dict() == {"region": "region"}
