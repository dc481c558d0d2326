"""Answers as files: what other tools open is where and what it should be."""

from __future__ import annotations

import json
import re
import urllib.parse

import numpy as np
import pytest
import rasterio
from PIL import Image
from pyproj import Geod
from rasterio.warp import transform

from jzi.encode.rasters.imagery import Imagery
from jzi.errors import ExportError, PhotoError
from jzi.export.files import circle, to_features, write_geojson
from jzi.export.heatmap import write_heatmap
from jzi.export.page import write_page
from jzi.locate.answer.location import LocateOptions, to_locations
from jzi.locate.posterior import Posterior
from jzi.store.photos.exif import ExifPosition, read_position, write_position


@pytest.fixture
def location(pyramid):
    """An answer on a map of 64 x 64 cells of 12.5 m, most of it in the south-east."""
    grid = np.full((64, 64), 1e-5)
    grid[40:44, 50:54] = 0.05
    grid[10, 10] = 0.1
    grid /= grid.sum()
    row, col = (values.ravel() for values in np.indices(grid.shape))
    found = Posterior.from_cells(pyramid, row, col, grid.ravel())
    return to_locations(found, LocateOptions(), ["a </script> photo.jpg"])[0]


TRUTH = ExifPosition(48.2, 16.37, None)


def test_geojson_is_as_rfc_7946_has_it(location, tmp_path) -> None:
    write_geojson(tmp_path / "a.geojson", [location, location], [TRUTH, None])
    collection = json.loads((tmp_path / "a.geojson").read_text())
    assert collection["type"] == "FeatureCollection" and "crs" not in collection
    kinds = [feature["properties"]["kind"] for feature in collection["features"]]
    assert kinds.count("truth") == 1 and kinds.count("answer") == 2 and kinds.count("circle") == 4
    assert kinds.count("tile") == 2 * 4 and kinds.count("candidate") == 2 * (len(location.candidates) - 1)
    for feature in collection["features"]:
        assert set(feature) == {"type", "geometry", "properties"} and feature["properties"]["photo"] == location.photo
        coordinates = feature["geometry"]["coordinates"]
        if feature["geometry"]["type"] == "Point":
            assert -180 <= coordinates[0] <= 180 and -90 <= coordinates[1] <= 90 and coordinates[0] < coordinates[1]
            continue
        ring = np.array(coordinates[0])
        assert (ring[0] == ring[-1]).all() and len(ring) >= 4
        x, y = ring.T
        assert (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() > 0  # counter-clockwise


def test_circles_and_tiles_are_where_they_belong(location) -> None:
    features = to_features(location)
    corners = circle(location.latitude, location.longitude, 100.0)
    _, _, metres = Geod(ellps="WGS84").inv(
        corners[:, 1], corners[:, 0], np.full(64, location.longitude), np.full(64, location.latitude)
    )
    np.testing.assert_allclose(metres, 100, rtol=1e-6)
    tiles = [each["geometry"]["coordinates"][0] for each in features if each["properties"]["kind"] == "tile"]
    for ring in tiles:  # every tile of the zoom holds the answer
        (west, south), (east, north) = np.min(ring, 0), np.max(ring, 0)
        assert west <= location.longitude <= east and south <= location.latitude <= north
    assert np.ptp(np.array(tiles[0])[:, 1]) == pytest.approx(4**3 * np.ptp(np.array(tiles[3])[:, 1]), rel=0.01)


def test_the_heat_map_is_the_posterior_at_its_place(location, tmp_path) -> None:
    write_heatmap(tmp_path / "a.tif", [location, location])
    with rasterio.open(tmp_path / "a.tif") as raster:
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        values = raster.read()
        np.testing.assert_allclose(values[1], location.posterior.grid(), rtol=1e-6)
        assert values[0].sum() == pytest.approx(1)
        x, y = transform("EPSG:4326", raster.crs, [location.longitude], [location.latitude])
        (value,) = next(raster.sample([(x[0], y[0])]))[:1]
        assert value == pytest.approx(location.posterior.grid()[location.best.cell])


def test_a_page_needs_nothing_but_itself(location, tmp_path, town_raster, pyramid, take_photo) -> None:
    photo = take_photo(tmp_path / "photo.jpg", 48.2, 16.37)
    with Imagery([town_raster], pyramid) as imagery:
        write_page(tmp_path / "a.html", [(photo, location, TRUTH), (photo, location, None)], imagery)
    text = (tmp_path / "a.html").read_text()
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=(?!.data:)", text)
    assert "default-src 'none'" in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])
    assert [photo["name"] for photo in data["photos"]] == [location.photo] * 2
    assert data["photos"][0]["error"].endswith("m from its EXIF position")
    south, west = data["imagery"]["bounds"][0]
    corner = pyramid.unproject(pyramid.bounds.west, pyramid.bounds.south)
    assert (south, west) == pytest.approx((float(corner[0]), float(corner[1])), abs=2e-4)
    image = urllib.parse.unquote(data["photos"][0]["heat"]["image"])
    assert image.startswith("data:image/webp;base64,")


def test_a_page_without_imagery_has_a_plain_map(location, tmp_path, take_photo) -> None:
    write_page(tmp_path / "a.html", [(take_photo(tmp_path / "photo.jpg"), location, None)], None)
    assert '"imagery": null' in (tmp_path / "a.html").read_text()


def test_what_cannot_be_written_is_one_sentence(location, tmp_path) -> None:
    with pytest.raises(ExportError, match="cannot be written"):
        write_geojson(tmp_path / "gone" / "a.geojson", [location])
    with pytest.raises(ExportError, match="cannot be written"):
        write_heatmap(tmp_path / "gone" / "a.tif", [location])
    assert not list(tmp_path.rglob(".a*"))


# EXIF


def test_a_copy_has_the_position_and_the_very_pixels(tmp_path, take_photo) -> None:
    photo = take_photo(tmp_path / "photo.jpg", 10.0, 20.0, heading=77.0)
    before = photo.read_bytes()
    write_position(photo, tmp_path / "copy.jpg", -33.868, 151.209, radius=12.34, overwrite=True)
    assert photo.read_bytes() == before
    position = read_position(tmp_path / "copy.jpg")
    assert (position.latitude, position.longitude) == pytest.approx((-33.868, 151.209), abs=1e-8)
    assert position.heading == 77.0  # what else it held is kept
    copy = (tmp_path / "copy.jpg").read_bytes()
    assert copy[copy.index(b"\xff\xdb") :] == before[before.index(b"\xff\xdb") :]  # from the first table on
    with Image.open(tmp_path / "copy.jpg") as image:
        assert image.getexif().get_ifd(0x8825)[31] == pytest.approx(12.34)


def test_a_copy_of_a_jpeg_with_more_pictures_keeps_all_of_them(tmp_path) -> None:
    first, second = Image.effect_noise((64, 32), 90).convert("RGB"), Image.effect_noise((16, 8), 90).convert("RGB")
    first.save(tmp_path / "photo.jpg", format="MPO", save_all=True, append_images=[second])
    write_position(tmp_path / "photo.jpg", tmp_path / "copy.jpg", 48.2, -16.37)
    assert read_position(tmp_path / "copy.jpg").latitude == pytest.approx(48.2, abs=1e-8)
    with Image.open(tmp_path / "photo.jpg") as photo, Image.open(tmp_path / "copy.jpg") as copy:
        for frame in (0, 1):
            photo.seek(frame)
            copy.seek(frame)
            assert copy.tobytes() == photo.tobytes()


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
def test_other_formats_carry_a_position_too(tmp_path, suffix) -> None:
    photo = tmp_path / f"photo.{suffix}"
    Image.effect_noise((60, 30), 90).convert("RGB").save(photo)
    write_position(photo, tmp_path / f"copy.{suffix}", 48.2, -16.37)
    with Image.open(photo) as before, Image.open(tmp_path / f"copy.{suffix}") as after:
        assert after.convert("RGB").tobytes() == before.convert("RGB").tobytes()
    position = read_position(tmp_path / f"copy.{suffix}")
    assert (position.latitude, position.longitude) == pytest.approx((48.2, -16.37), abs=1e-8)


def test_a_photo_is_never_overwritten(tmp_path, take_photo) -> None:
    photo = take_photo(tmp_path / "photo.jpg")
    with pytest.raises(PhotoError, match="is the photo itself"):
        write_position(photo, tmp_path / "." / "photo.jpg", 1.0, 2.0)
