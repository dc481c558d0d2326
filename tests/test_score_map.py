"""Heat maps and score maps of cells in bands: each cell is drawn where it is, and nothing where there is none."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.warp import transform

from jzi.errors import ExportError
from jzi.export.files import to_features
from jzi.export.heatmap import Frame, write_heatmap, write_score_map
from jzi.export.overlay import draw_cells
from jzi.export.page import write_page
from jzi.export.picture import draw_zoom
from jzi.locate.answer.location import LocateOptions, to_locations
from jzi.locate.posterior import Posterior
from jzi.store.geometry.bands import BandGrid, haversine
from jzi.store.photos.exif import ExifPosition

GRIDS = {
    "a town": BandGrid.covering(-71.17, 42.31, -71.04, 42.40, 30.0),
    "the south": BandGrid.covering(18.4, -33.95, 18.45, -33.9, 30.0),
    "across the antimeridian": BandGrid.covering(179.98, 65.0, 180.02, 65.02, 30.0),
    "across the equator": BandGrid.covering(10.0, -0.02, 10.03, 0.03, 30.0),
}


def cells_of(grid: BandGrid) -> tuple[np.ndarray, np.ndarray]:
    return (
        np.repeat(np.arange(grid.rows), grid.count),
        np.concatenate([np.arange(count) for count in grid.count]),
    )


def pixels(raster: rasterio.DatasetReader, row: np.ndarray, col: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude of the centres of pixels."""
    x, y = raster.xy(row, col)
    longitude, latitude = transform(raster.crs, "EPSG:4326", np.atleast_1d(x), np.atleast_1d(y))
    return np.array(latitude), np.array(longitude)


@pytest.mark.parametrize("name", GRIDS)
def test_the_greatest_pixel_of_a_score_map_lies_on_the_best_cell(name: str, tmp_path: Path) -> None:
    grid = GRIDS[name]
    row, col = cells_of(grid)
    rng = np.random.default_rng(0)
    kept = rng.random(len(row)) < 0.8
    row, col = row[kept], col[kept]
    for trial in range(3):
        logit = rng.normal(size=len(row)) * 3
        order = rng.permutation(len(row))
        chunks = ((row[part], col[part], logit[part]) for part in np.array_split(order, 5))
        write_score_map(tmp_path / "a.tif", grid, chunks, "photo")
        with rasterio.open(tmp_path / "a.tif") as raster:
            values = raster.read(1)
            assert raster.res == (30.0, 30.0) and raster.descriptions == ("photo",)
            best = np.unravel_index(np.nanargmax(values), values.shape)
            latitude, longitude = pixels(raster, *best)
            assert np.isnan(raster.nodata)
            assert values[best] == pytest.approx(1.0)
            center = grid.positions(row[logit.argmax()], col[logit.argmax()])
            assert haversine(latitude[0], longitude[0], *center) <= 15.0
            if trial == 0:  # every pixel is its cell's; every cell has one, unless the antimeridian cuts it
                each = np.indices(values.shape).reshape(2, -1)
                at_row, at_col = grid.cells_at(*pixels(raster, *each))
                expected = np.full(grid.shape, np.nan, np.float32)
                expected[row, col] = np.exp(logit - logit.max())
                found = np.where(at_row >= 0, expected[at_row, at_col], np.nan)
                assert (np.isclose(values.ravel(), found, equal_nan=True, rtol=1e-4)).mean() > 0.999
                drawn = np.zeros(grid.shape, bool)
                drawn[at_row[at_row >= 0], at_col[at_row >= 0]] = True
                assert drawn[row, col].mean() > (0.98 if grid.east > 180 else 0.999)


def test_a_heat_map_of_bands_has_nodata_outside_of_the_region(tmp_path: Path) -> None:
    grid = GRIDS["a town"]
    mask = np.zeros(grid.shape, bool)
    mask[100:200, 50:300] = True
    posterior = Posterior.from_cells(grid, np.array([150, 151]), np.array([200, 80]), np.array([0.5, 0.3]))
    location = to_locations(posterior, LocateOptions("map"), ["a.jpg"])[0]
    write_heatmap(tmp_path / "a.tif", [location, location], mask)
    with rasterio.open(tmp_path / "a.tif") as raster:
        assert raster.count == 2 and raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        values = raster.read(2)
    assert np.isfinite(values).sum() == pytest.approx(mask.sum(), rel=0.005)
    assert sorted(np.unique(values[np.isfinite(values) & (values > 0)]).tolist()) == pytest.approx([0.3, 0.5])
    write_heatmap(tmp_path / "b.tif", [location])
    with rasterio.open(tmp_path / "b.tif") as raster:
        assert np.isfinite(raster.read(1)).sum() == pytest.approx(grid.count.sum(), rel=0.005)


def test_a_state_is_written_by_strips(tmp_path: Path) -> None:
    state = BandGrid.covering(-73.55, 41.2, -69.9, 42.9, 120.0)
    assert Frame(BandGrid.covering(-73.55, 41.2, -69.9, 42.9, 30.0)).width > 8192
    row, col = np.array([700, 1200]), np.array([1500, 90])
    location = to_locations(Posterior.from_cells(state, row, col, np.array([0.6, 0.2])), LocateOptions("map"), ["a"])[0]
    tracemalloc.start()
    write_heatmap(tmp_path / "a.tif", [location])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # 4 M cells
    with rasterio.open(tmp_path / "a.tif") as raster:
        values = raster.read(1)
        best = np.unravel_index(np.nanargmax(values), values.shape)
        latitude, longitude = pixels(raster, *best)
        assert haversine(latitude[0], longitude[0], location.latitude, location.longitude) <= 60


def test_a_score_map_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no cell with a score"):
        write_score_map(tmp_path / "a.tif", GRIDS["a town"], [])
    assert not list(tmp_path.iterdir())


def test_geojson_of_cells_in_bands_has_no_tiles() -> None:
    grid = GRIDS["a town"]
    posterior = Posterior.from_cells(grid, np.array([150, 151]), np.array([200, 80]), np.array([0.6, 0.4]))
    kinds = [each["properties"]["kind"] for each in to_features(to_locations(posterior, LocateOptions(), ["a"])[0])]
    assert kinds == ["circle", "circle", "answer", "candidate"]


def test_probable_cells_are_drawn_where_they_are() -> None:
    grid = GRIDS["a town"]
    row, col = np.array([150, 151, 160]), np.array([200, 80, 210])
    posterior = Posterior.from_cells(grid, row, col, np.array([0.6, 0.25, 1e-5]))
    for crs in (grid.crs, "EPSG:3857"):
        drawn = draw_cells(posterior, crs)
        down, right = np.nonzero(drawn.share)
        pixel = (drawn.east - drawn.west) / drawn.share.shape[1]
        x, y = drawn.west + (right + 0.5) * pixel, drawn.north - (down + 0.5) * pixel
        longitude, latitude = transform(crs, "EPSG:4326", x, y)
        at_row, at_col = grid.cells_at(latitude, longitude)
        assert set(zip(at_row.tolist(), at_col.tolist(), strict=True)) == {(150, 200), (151, 80)}
        assert np.unique(drawn.share).tolist() == pytest.approx([0, (0.25 / 0.6) ** 0.5, 1])
    state = BandGrid.covering(-73.55, 41.2, -69.9, 42.9, 30.0)
    far = Posterior.from_cells(state, np.array([100, 6000]), np.array([100, 9000]), np.array([0.6, 0.25]))
    assert (draw_cells(far, "EPSG:3857").share > 0).sum() == 2


def test_pictures_and_pages_of_cells_in_bands_have_no_zoom(tmp_path: Path, take_photo: Callable[..., Path]) -> None:
    state = BandGrid.covering(-73.55, 41.2, -69.9, 42.9, 30.0)
    row, col = state.cells_at([42.36, 42.361, 41.5], [-71.06, -71.06, -73.0])
    location = to_locations(Posterior.from_cells(state, row, col, np.array([0.6, 0.2, 0.1])), LocateOptions(), ["a"])[0]
    photo = take_photo(tmp_path / "photo.jpg")
    tracemalloc.start()
    write_page(tmp_path / "a.html", [(photo, location, ExifPosition(42.36, -71.06, None))], None)
    draw_zoom(location, photo, None, tmp_path / "a.png", truth=(42.36, -71.06))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6  # an array of the state has 514 MB
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "a.html").read_text(), re.S)[1])
    (south, west), (north, east) = data["bounds"]
    assert south < 41.5 and north > 42.36 and west < -73 and east > -71.06
    (found,) = data["photos"]
    assert found["zoom"] == [] and found["heat"]["image"].startswith("data:image/webp")
    assert found["error"].endswith("m from its EXIF position")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > image.height
