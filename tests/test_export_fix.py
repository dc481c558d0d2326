"""Answers to metres in every output: ellipse and heading where they belong, and no probability lost."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import rasterio
from click.testing import CliRunner
from PIL import Image
from pyproj import Geod
from rasterio.warp import transform

from jzi.cli import main
from jzi.commands.shared.outputs import Outputs
from jzi.commands.shared.tables import location_text
from jzi.encode.rasters.imagery import Imagery
from jzi.export.files import FIX_COLUMNS, to_features, write_csv
from jzi.export.fine_grid import MAX_PIXELS, refined_name, write_fine_heatmap
from jzi.export.page import write_page
from jzi.export.picture import draw_zoom
from jzi.locate.answer.fix import FineGrid, Fix, HeadingPeak, Mode
from jzi.locate.answer.fix_shapes import ellipse, wedge, wedge_length
from jzi.locate.answer.location import Candidate, LocateOptions, Location, to_locations
from jzi.locate.posterior import Posterior
from jzi.store.geometry.pyramid import Pyramid, geodesic_distance
from jzi.store.photos.exif import ExifPosition, read_position, write_position


def refined(pyramid, x: float, y: float, mass: float, name: str = "photo.jpg", **changes) -> Location:
    """A location with a fix at x, y, whose window of 40 m has `mass`, half of it in its middle."""
    grid = np.full((80, 80), mass / 2 / 6400, np.float32)
    grid[38:42, 38:42] += mass / 2 / 16
    latitude, longitude = (float(each) for each in pyramid.unproject(x, y))
    row, col = (int(each[0]) for each in pyramid.cells_at(latitude, longitude))
    fix = Fix(
        latitude, longitude, x, y, (row, col), 3.0, 1.5, 30.0, 0.6, 2.5, 9.75, 75.0, 12.0, mass, 2,
        modes=(Mode(latitude + 2e-4, longitude, 0.1),), grids=(FineGrid(x - 20, y + 20, 0.5, grid),),
    )  # fmt: skip
    fix = replace(fix, **changes)
    path = tuple(pyramid.cell_to_path(row, col).tolist())
    candidate = Candidate(latitude, longitude, x, y, (row, col), path, 0.55, (0.9,) * 3, "refine", 5.0, fix)
    posterior = Posterior.from_cells(pyramid, np.array([row, 3]), np.array([col, 5]), np.array([mass, 0.1]))
    (location,) = to_locations(posterior, LocateOptions(), [name])
    return location.with_candidates([candidate, *location.candidates[1:]])


@pytest.fixture
def location(pyramid: Pyramid) -> Location:
    return refined(pyramid, 101.0, -57.0, 0.8)


def azimuths(fix: Fix, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions from a fix, degrees, and distances, metres."""
    ones = np.ones(len(corners))
    azimuth, _, metres = Geod(ellps="WGS84").inv(
        fix.longitude * ones, fix.latitude * ones, corners[:, 1], corners[:, 0]
    )
    return azimuth % 360, metres


def test_the_ellipse_and_the_wedge_are_where_they_belong(location) -> None:
    fix = location.fix
    azimuth, metres = azimuths(fix, ellipse(fix, 0.95))
    assert metres.max() == pytest.approx(3.0 * math.sqrt(5.991), rel=1e-3)
    assert metres.min() == pytest.approx(1.5 * math.sqrt(5.991), rel=1e-3)
    assert azimuth[metres.argmax()] % 180 == pytest.approx(30, abs=0.1)
    corners = wedge(fix, fix.directions[0])
    assert corners[0] == pytest.approx((fix.latitude, fix.longitude))
    azimuth, metres = azimuths(fix, corners[1:])
    assert (azimuth.min(), azimuth.max()) == pytest.approx((63, 87), abs=1e-3)
    assert metres == pytest.approx(wedge_length(fix)) and metres[0] > 3.0 * math.sqrt(5.991)


def test_geojson_has_the_ellipse_the_heading_and_the_modes(location) -> None:
    features = to_features(location)
    by_kind = {kind: [each for each in features if each["properties"]["kind"] == kind]
               for kind in ("ellipse", "wedge", "heading", "mode", "circle", "answer")}  # fmt: skip
    assert {kind: len(each) for kind, each in by_kind.items()} == {
        "ellipse": 2, "wedge": 1, "heading": 1, "mode": 1, "circle": 2, "answer": 1
    }  # fmt: skip
    assert [each["properties"]["share"] for each in by_kind["ellipse"]] == [0.95, 0.68]
    assert [each["properties"]["radius_m"] for each in by_kind["circle"]] == [9.75, 2.5]  # of the fix
    (line,), properties = by_kind["heading"], by_kind["heading"][0]["properties"]
    assert line["geometry"]["type"] == "LineString" and len(line["geometry"]["coordinates"]) == 2
    assert (properties["heading_deg"], properties["sd_deg"]) == (75.0, 12.0)
    for each in (*by_kind["ellipse"], *by_kind["wedge"]):
        x, y = np.array(each["geometry"]["coordinates"][0]).T
        assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0  # counter-clockwise
    json.dumps(features, allow_nan=False)


def test_an_unknown_heading_is_not_drawn_and_two_are(pyramid) -> None:
    unknown = refined(pyramid, 0.0, 0.0, 0.8, heading_deg=75.0, heading_sd_deg=110.0)
    assert not [each for each in to_features(unknown) if each["properties"]["kind"] in ("wedge", "heading")]
    assert "heading unknown" in location_text(unknown)
    two = (HeadingPeak(20.0, 9.0, 0.7), HeadingPeak(200.0, 8.0, 0.3))
    both = refined(pyramid, 0.0, 0.0, 0.8, heading_sd_deg=90.0, headings=two)
    assert len([each for each in to_features(both) if each["properties"]["kind"] == "wedge"]) == 2
    none = refined(pyramid, 0.0, 0.0, 0.8, heading_deg=None, heading_sd_deg=None)
    assert none.fix.directions == () and "heading" not in location_text(none)


def test_text_and_json_have_the_fix(location) -> None:
    lines = location_text(location).splitlines()
    assert "(confidence 55.0 % within 5 m of this point, 68 % within 2.5 m, 95 % within 9.8 m)" in lines[0]
    assert "    standard deviation 3.0 m along 30°, 1.5 m across; 60.0 % within 10 m; heading 75° ± 12°" in lines
    values = json.loads(json.dumps(location.to_dict(), allow_nan=False))
    assert values["fix"]["sd_major_m"] == 3.0 and values["fix"]["candidate_rank"] == 2
    assert values["candidates"][0]["fix"] == values["fix"] and "grids" not in values["fix"]
    assert values["candidates"][1]["fix"] is None and values["estimate"] == "refine"
    assert (values["radius_68_m"], values["radius_95_m"]) == (2.5, 9.75)
    open_ended = replace(location.fix, radius_95_m=math.inf).to_dict()
    assert open_ended["radius_95_m"] is None


def test_a_location_without_a_stage_has_no_fix(pyramid) -> None:
    posterior = Posterior.from_cells(pyramid, np.array([3]), np.array([5]), np.array([0.9]))
    (location,) = to_locations(posterior, LocateOptions(), ["photo.jpg"])
    assert location.fix is None and location.to_dict()["fix"] is None
    assert location.with_candidates([]) is location
    assert "standard deviation" not in location_text(location)


def test_the_heat_map_of_metres_keeps_the_probability_and_the_place(pyramid, tmp_path) -> None:
    locations = [refined(pyramid, 101.0, -57.0, 0.8, "a.jpg"), refined(pyramid, -300.0, 200.0, 0.5, "b.jpg")]
    plain, *_ = to_locations(locations[0].posterior, LocateOptions(), ["c.jpg"])
    write_fine_heatmap(tmp_path / "a.refined.tif", [*locations, plain])
    with rasterio.open(tmp_path / "a.refined.tif") as raster:
        assert raster.res == (0.5, 0.5) and raster.descriptions == ("a.jpg", "b.jpg", "c.jpg")
        values = raster.read()
        assert values.sum((1, 2)) == pytest.approx([0.8, 0.5, 0.0], rel=1e-4)
        for band, location in enumerate(locations, 1):
            x, y = transform("EPSG:4326", raster.crs, [location.longitude], [location.latitude])
            (value,) = next(raster.sample([(x[0] + 0.1, y[0] - 0.1)], band))
            assert value == pytest.approx(values[band - 1].max())
    assert (tmp_path / "a.refined.tif").stat().st_size < 100_000  # blocks without probability are not written
    assert refined_name(tmp_path / "heat.tif").name == "heat.refined.tif"


def test_windows_that_are_far_apart_get_coarser_pixels(tmp_path) -> None:
    area = Pyramid.around(48.2, 16.37, 10_000.0)
    location = refined(area, 4000.0, 4000.0, 0.6)
    other = refined(area, -4000.0, -4000.0, 0.3)
    both = location.with_candidates([location.best, other.best])
    write_fine_heatmap(tmp_path / "a.tif", [both])
    with rasterio.open(tmp_path / "a.tif") as raster:
        assert max(raster.shape) <= MAX_PIXELS and raster.res[0] == pytest.approx(8040 / (MAX_PIXELS - 1), rel=0.01)
        assert sum(block.sum() for block in (raster.read(1, window=w) for _, w in raster.block_windows(1))) == (
            pytest.approx(0.9, rel=1e-4)
        )


def test_the_table_has_columns_for_fixes_if_there_are_any(location, tmp_path) -> None:
    write_csv(tmp_path / "a.csv", [location.to_dict(), {"photo": "b.jpg", "error": "b.jpg cannot be read"}])
    table = pd.read_csv(tmp_path / "a.csv")
    assert set(FIX_COLUMNS) <= set(table) and list(table)[-1] == "error"
    assert table["heading_deg"].tolist()[0] == 75.0 and np.isnan(table["heading_deg"][1])
    write_csv(tmp_path / "b.csv", [location.to_dict() | {"fix": None}])
    assert not set(FIX_COLUMNS) & set(pd.read_csv(tmp_path / "b.csv"))


def test_the_page_and_the_picture_show_the_fix(location, tmp_path, town_raster, pyramid, take_photo) -> None:
    photo = take_photo(tmp_path / "photo.jpg", 48.2, 16.37)
    truth = ExifPosition(location.latitude + 1e-5, location.longitude, 70.0)
    with Imagery([town_raster], pyramid) as imagery:
        write_page(tmp_path / "a.html", [(photo, location, truth)], imagery)
        draw_zoom(location, photo, imagery, tmp_path / "a.png", truth=(truth.latitude, truth.longitude))
        draw_zoom(location.with_candidates(location.candidates[1:]), photo, imagery, tmp_path / "b.png")
    write_page(tmp_path / "plain.html", [(photo, location, None)], None)
    with Image.open(tmp_path / "a.png") as one, Image.open(tmp_path / "b.png") as other:
        assert one.width > other.width * 1.1  # a panel more
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "a.html").read_text(), re.S)[1])
    (shown,) = data["photos"]
    assert shown["error"] == "1.1 m from its EXIF position" and shown["fix"]["heading_known"]
    assert shown["fix"]["directions"] == [{"deg": 75.0, "text": "75° ± 12°"}] and len(shown["fix"]["heat"]) == 1
    (south, west), (north, east) = shown["fix"]["view"]
    assert south < location.latitude < north and west < location.longitude < east
    height = float(geodesic_distance(south, west, north, west))
    assert 2 * math.sqrt(5.991) * 3 < height < 200  # the ellipse fits, and is not lost in the map
    (south, west), (north, east) = shown["fix"]["heat"][0]["bounds"]
    assert float(geodesic_distance(south, west, north, west)) == pytest.approx(40, abs=1.5)


def test_a_heading_is_written_into_copies_if_it_is_asked_for(location, tmp_path, take_photo) -> None:
    photo = take_photo(tmp_path / "photo.jpg", 48.0, 16.0, heading=200.0)
    for name, asked, expected in (("with", True, 75.0), ("without", False, 200.0)):
        (tmp_path / name).mkdir()
        outputs = Outputs(None, None, None, None, None, tmp_path / name, headings=asked, overwrite_gps=True)
        outputs.add(photo, location)
        assert outputs.errors == []
        copy = read_position(tmp_path / name / "photo.jpg")
        assert copy.heading == expected and copy.latitude == pytest.approx(location.latitude, abs=1e-8)
    write_position(photo, tmp_path / "north.jpg", 48.0, 16.0, heading=359.999, overwrite=True)
    with Image.open(tmp_path / "north.jpg") as image:
        gps = image.getexif().get_ifd(0x8825)
    assert gps[17] == 0 and gps[16] == "T"


def test_both_heat_maps_are_written(location, tmp_path, take_photo) -> None:
    outputs = Outputs(None, tmp_path / "heat.tif", None, None, None, None)
    outputs.add(take_photo(tmp_path / "photo.jpg"), location)
    outputs.write(None)
    assert outputs.errors == [] and (tmp_path / "heat.tif").exists() and (tmp_path / "heat.refined.tif").exists()


def test_a_heading_needs_copies_to_be_written_into() -> None:
    result = CliRunner().invoke(main, ["locate", "photo.jpg", "--exif-heading"])
    assert result.exit_code == 2 and "--write-exif" in result.stderr
