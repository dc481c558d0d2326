"""Claims about rasters of many kinds, and about imagery of one or several rasters."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from PIL import Image
from pyproj import Transformer
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp

from jzi.encode.rasters.imagery import BACKGROUND, Imagery
from jzi.encode.rasters.raster import Raster, RasterOptions, close_rasters
from jzi.encode.rasters.raster_sources import REMOTE
from jzi.errors import ImageryError
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.store.info import MAX_ATTRIBUTION
from jzi.workspace.area import square_around
from tests import hostile

# Affine prefers @ since 3.0, which older ones do not have
pytestmark = pytest.mark.filterwarnings(
    "ignore::rasterio.errors.NotGeoreferencedWarning", "ignore::PendingDeprecationWarning"
)


@pytest.fixture(autouse=True)
def _no_handle_outlives_a_test():
    yield
    close_rasters()


@pytest.fixture
def place(write_raster: Callable, pyramid: Pyramid) -> Callable[..., Path]:
    """Writes a raster that fills the pyramid, in its own CRS."""
    return lambda data, **profile: write_raster(data, pyramid.bounds, pyramid.crs, **profile)


def flat(*values: float, dtype: str = "uint8", side: int = 80) -> np.ndarray:
    """(band, side, side), each band of one value."""
    return np.broadcast_to(np.array(values, dtype)[:, None, None], (len(values), side, side)).copy()


def look(path: Path, pyramid: Pyramid, pixels: int = 80, **options) -> tuple[np.ndarray, np.ndarray]:
    return Imagery([path], pyramid, RasterOptions(**options)).render(pyramid.bounds, pixels)


def assert_color(image: np.ndarray, color: tuple[float, ...], within: int = 1) -> None:
    assert np.abs(image.reshape(-1, 3).astype(int) - color).max() <= within


# Bands and values


@pytest.mark.parametrize(
    ("values", "color"),
    [((90,), (90, 90, 90)), ((90, 50), (90, 90, 90)), ((10, 20, 30), (10, 20, 30)), ((10, 20, 30, 99), (10, 20, 30))],
    ids=["gray", "gray and another", "RGB", "RGB and infrared"],
)
def test_bytes_are_colours_as_they_stand(place: Callable, pyramid: Pyramid, values: tuple, color: tuple) -> None:
    path = place(flat(*values))
    with rasterio.open(path, "r+") as file:
        if len(values) == 4:
            file.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined]
    image, covered = look(path, pyramid)
    assert_color(image, color)
    assert covered.all()


def test_bands_are_taken_by_their_marks_not_by_their_order(place: Callable, pyramid: Pyramid) -> None:
    path = place(flat(200, 30, 20, 10))  # infrared, blue, green, red
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp.undefined, ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    assert_color(look(path, pyramid)[0], (10, 20, 30))


def test_a_palette_becomes_its_colours(place: Callable, pyramid: Pyramid) -> None:
    data = flat(7)
    data[:, :40] = 8
    path = place(data)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {7: (200, 100, 50, 255), 8: (0, 0, 255, 255)})
    image, _ = look(path, pyramid)
    assert_color(image[44:], (200, 100, 50))
    assert_color(image[:36], (0, 0, 255))
    assert "colour table" in Imagery([path], pyramid).description


def test_deep_values_are_stretched_alike_in_all_bands_and_the_description_says_how(
    place: Callable, pyramid: Pyramid
) -> None:
    ramp = np.linspace(1000, 3000, 80).astype(np.uint16)
    path = place(np.stack([np.tile(ramp, (80, 1))] * 2 + [np.full((80, 80), 2000, np.uint16)]))
    imagery = Imagery([path], pyramid)
    image, _ = imagery.render(pyramid.bounds, 80)
    assert image[:, :2, 0].max() <= 3
    assert image[:, -2:, 0].min() >= 252
    assert_color(image[:, :, 2:].repeat(3, axis=2), (127, 127, 127), within=2)  # one stretch, so colours keep balance
    low, high = imagery.rasters[0].stretch
    assert 1000 <= low < 1100
    assert 2900 < high <= 3000
    assert f"uint16 {low:g}..{high:g} to 0..255 (percentiles 2 and 98)" in imagery.description


def test_a_stretch_that_is_set_is_used_and_said(place: Callable, pyramid: Pyramid) -> None:
    path = place(flat(1000, dtype="uint16"))
    assert_color(look(path, pyramid, stretch=(0.0, 2000.0))[0], (128, 128, 128))
    imagery = Imagery([path], pyramid, RasterOptions(stretch=(0.0, 2000.0)))
    assert "uint16 0..2000 to 0..255 (as set)" in imagery.description


def test_a_deep_raster_of_one_value_is_no_division_by_zero(place: Callable, pyramid: Pyramid) -> None:
    image, covered = look(place(flat(1000, dtype="uint16")), pyramid)
    assert covered.all()
    assert image.min() == image.max()


# Pixels without imagery


def half_valid(pyramid: Pyramid, image: np.ndarray, covered: np.ndarray, color: tuple = (90, 90, 90)) -> None:
    """Imagery in the south only; the values stored in the north do not appear."""
    assert not covered[:38].any()
    assert covered[42:].all()
    assert_color(image[:38], BACKGROUND, within=0)
    assert_color(image[42:], color)


@pytest.mark.parametrize("kind", ["nan", "nodata", "nodata option", "alpha", "mask", "deep alpha", "nan nodata"])
def test_what_has_no_data_is_background(place: Callable, pyramid: Pyramid, kind: str) -> None:
    data, options, profile = flat(90, 90, 90), {}, {}
    data[:, :40] = 255
    if "nan" in kind:
        data = data.astype("float32")
        data[:, :40] = np.nan
        options["stretch"] = (0.0, 255.0)
        profile = {"nodata": np.nan} if kind == "nan nodata" else {}
    elif kind == "nodata":
        profile["nodata"] = 255
    elif kind == "nodata option":
        options["nodata"] = 255
    elif kind == "alpha":
        data = np.concatenate([data, np.where(data[:1] == 255, 0, 255).astype("uint8")])
    elif kind == "deep alpha":
        data = np.concatenate([data, np.where(data[:1] == 255, 0, 255)]).astype("uint16")
        data[3] *= 257
        options["stretch"] = (0.0, 255.0)
    path = place(data, **profile)
    if "alpha" in kind:
        with rasterio.open(path, "r+") as file:
            file.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    if kind == "mask":
        with rasterio.open(path, "r+") as file:
            file.write_mask(data[0] != 255)
    for pixels in (80, 20):  # at full resolution and downsampled
        image, covered = look(path, pyramid, pixels, **options)
        if pixels == 80:
            half_valid(pyramid, image, covered)
        else:
            assert not covered[:9].any()
            assert_color(image[11:], (90, 90, 90))


def test_a_palette_with_nodata_has_no_imagery_there(place: Callable, pyramid: Pyramid) -> None:
    data = flat(7)
    data[:, :40] = 0
    path = place(data, nodata=0)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (255, 255, 255, 255), 7: (90, 90, 90, 255)})
    half_valid(pyramid, *look(path, pyramid))


def test_what_lies_beside_the_raster_is_background(write_raster: Callable, pyramid: Pyramid) -> None:
    west, south, east, _ = pyramid.bounds
    half_valid(pyramid, *look(write_raster(flat(90), (west, south, east, 0.0), pyramid.crs), pyramid))


def test_valid_black_is_imagery(place: Callable, pyramid: Pyramid) -> None:
    image, covered = look(place(flat(0, 0, 0)), pyramid)
    assert covered.all()
    assert_color(image, (0, 0, 0))


# Georeference


def square_of_light(
    transform: Affine, crs: str, x: float, y: float, reach: float, shape: tuple[int, int]
) -> np.ndarray:
    """(3, rows, cols) black with a white square of 2 * reach (CRS units) about a point of the CRS."""
    rows, cols = np.mgrid[: shape[0], : shape[1]] + 0.5
    px, py = transform * (cols, rows)
    return np.repeat(((abs(px - x) < reach) & (abs(py - y) < reach))[None] * np.uint8(255), 3, axis=0)


def center_of_light(image: np.ndarray) -> tuple[float, float]:
    """Column and row of the centre of brightness, in pixels."""
    weight = image.astype(float).mean(-1)
    rows, cols = np.mgrid[: len(image), : len(image)] + 0.5
    return (cols * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()


@pytest.mark.parametrize(
    ("crs", "resolution"),
    [("EPSG:32633", 1.0), ("EPSG:4326", 1e-5), ("EPSG:3857", 1.0), ("EPSG:31256", 1.0)],
    ids=["UTM", "degrees", "web mercator", "Gauss-Krueger"],
)
@pytest.mark.parametrize("turned", [False, True], ids=["north up", "rotated"])
@pytest.mark.parametrize("pixels", [800, 200])
def test_a_landmark_is_where_it_is_on_the_ground(
    tmp_path: Path, pyramid: Pyramid, crs: str, resolution: float, turned: bool, pixels: int
) -> None:
    to_crs = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    latitude, longitude = pyramid.unproject(130.0, -70.0)
    x, y = to_crs.transform(longitude, latitude)
    transform = Affine.translation(x, y) * Affine.rotation(30 if turned else 0) * Affine.scale(resolution, -resolution)
    transform *= Affine.translation(-700, -500)
    data = square_of_light(transform, crs, x, y, 20.2 * resolution, (1000, 1200))
    with rasterio.open(
        tmp_path / "map.tif", "w", driver="GTiff", count=3, height=1000, width=1200, dtype="uint8", crs=crs,
        transform=transform,
    ) as file:  # fmt: skip
        file.write(data)
    image, covered = look(tmp_path / "map.tif", pyramid, pixels)
    image = image * covered[..., None]  # the background is not light
    col, row = center_of_light(image)
    metre = pixels / pyramid.size
    assert col == pytest.approx((130 + 400) * metre, abs=0.6)
    assert row == pytest.approx((400 + 70) * metre, abs=0.6)


def test_feet_are_not_taken_for_metres(write_raster: Callable) -> None:
    foot = 0.3048
    path = write_raster(flat(90), (635_000, 848_000, 636_000, 849_000), "EPSG:2992")
    turn = 1.04  # the grid's north is not quite north there
    assert 1000 * foot < square_around([str(path)], RasterOptions()).size < 1000 * foot * turn


def test_a_real_orthophoto_in_feet_with_a_side_car_fills_its_area(shared: Path) -> None:
    path = shared / "autzen" / "autzen.jpg"
    whole = square_around([str(path)], RasterOptions())
    assert 1360 < whole.size < 1400, "4385 feet-pixels and a little for the turn of the grid"
    latitude, longitude = whole.unproject(0, 0)
    assert (float(latitude), float(longitude)) == pytest.approx((44.06, -123.07), abs=0.02)  # Eugene, Oregon
    middle = Pyramid.around(float(latitude), float(longitude), 200.0)
    image, covered = Imagery([path], middle).render(middle.bounds, 100)
    assert covered.all()
    assert image.std() > 10


@pytest.fixture
def world_file(tmp_path: Path, pyramid: Pyramid) -> Path:
    """A PNG with a world file, which has no CRS."""
    Image.fromarray(flat(90)[0]).save(tmp_path / "map.png")
    (tmp_path / "map.pgw").write_text(f"10\n0\n0\n-10\n{pyramid.west + 5}\n{pyramid.north - 5}\n")
    return tmp_path / "map.png"


@pytest.mark.parametrize("turned", [False, True])
def test_pixels_too_narrow_to_be_resampled_are_refused(tmp_path: Path, pyramid: Pyramid, turned: bool) -> None:
    """GDAL's kernel would be billions of pixels wide, which takes minutes, gigabytes or the process."""
    bounds, (narrow, wide) = pyramid.bounds, (1e-9, 1e6)
    width, height = (wide, narrow) if turned else (narrow, wide)
    transform = Affine(width, 0, bounds.west + 1, 0, -height, bounds.north - 1)
    profile = {"driver": "GTiff", "width": 64, "height": 64, "count": 3, "dtype": "uint8"}
    with rasterio.open(tmp_path / "a.tif", "w", crs=pyramid.crs, transform=transform, **profile) as file:
        file.write(np.full((3, 64, 64), 99, np.uint8))
    with pytest.raises(ImageryError, match=r"a\.tif has too narrow pixels: one tile takes .*; resample it"):
        look(tmp_path / "a.tif", pyramid, pixels=16)


def test_a_world_file_and_a_crs_place_a_picture(world_file: Path, pyramid: Pyramid) -> None:
    with pytest.raises(ImageryError, match=r"no CRS; set it with `jzi init --map-crs"):
        Raster(world_file)
    image, covered = look(world_file, pyramid, crs=pyramid.crs)
    assert covered.all()
    assert_color(image, (90, 90, 90))


def test_a_picture_without_a_place_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (50, 50)).save(tmp_path / "map.png")
    for options in (RasterOptions(), RasterOptions(crs="EPSG:32633"), RasterOptions(nodata=0)):
        with pytest.raises(ImageryError, match="not georeferenced") as error:
            Raster(tmp_path / "map.png", options)
        assert "\n" not in str(error.value)


def test_ground_control_points_place_a_picture(tmp_path: Path, pyramid: Pyramid) -> None:
    data = square_of_light(Affine.identity(), "", 60.0, 20.0, 8, (80, 80))
    west, _, _, north = pyramid.bounds
    corners = [(0, 0), (0, 80), (80, 0), (80, 80)]
    points = [GroundControlPoint(row, col, west + col * 10, north - row * 10) for row, col in corners]
    with rasterio.open(tmp_path / "map.tif", "w", driver="GTiff", count=3, height=80, width=80, dtype="uint8") as file:
        file.write(data)
        file.gcps = points, CRS.from_user_input(pyramid.crs)
    image, covered = look(tmp_path / "map.tif", pyramid)
    assert center_of_light(image * covered[..., None]) == pytest.approx((60, 20), abs=0.6)


def test_a_crs_that_nobody_knows_is_refused(world_file: Path) -> None:
    with pytest.raises(ImageryError, match="EPSG:999999") as error:
        Raster(world_file, RasterOptions(crs="EPSG:999999"))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_raster_is_refused(tmp_path: Path) -> None:
    (tmp_path / "map.tif").write_text("hello")
    for path in (tmp_path / "map.tif", tmp_path / "nothing.tif", tmp_path):
        with pytest.raises(ImageryError, match="cannot be read as a raster") as error:
            Raster(path)
        assert "\n" not in str(error.value)


def test_a_raster_elsewhere_is_refused_with_its_place(write_raster: Callable, pyramid: Pyramid) -> None:
    elsewhere = Pyramid.around(60.17, 24.94, 800.0)
    path = write_raster(flat(90), elsewhere.bounds, elsewhere.crs)
    with pytest.raises(ImageryError, match=r"does not overlap.*latitude 60\.17000, longitude 24\.94000"):
        Imagery([path], pyramid)
    with pytest.raises(ImageryError, match="no raster is given"):
        Imagery([], pyramid)


def test_a_truncated_raster_is_refused_where_it_is_read(place: Callable, pyramid: Pyramid, pattern: Callable) -> None:
    path = place(pattern(800, 800, 3), compress="deflate")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(ImageryError) as error:
        look(path, pyramid)
    assert "\n" not in str(error.value)


# Antialiasing and seams


@pytest.mark.parametrize("pixels", [10, 33, 80, 100])
def test_what_is_too_fine_to_be_seen_becomes_its_mean(place: Callable, pyramid: Pyramid, pixels: int) -> None:
    fine = (np.indices((800, 800)).sum(0) % 2 * 255).astype(np.uint8)  # a checkerboard of single pixels
    image, covered = look(place(fine[None]), pyramid, pixels)
    assert covered.all()
    assert_color(image, (127.5, 127.5, 127.5), within=8)


@pytest.mark.parametrize("pixels", [450, 550])
def test_what_is_shrunk_by_less_than_two_is_smoothed_too(place: Callable, pyramid: Pyramid, pixels: int) -> None:
    fine = (np.indices((800, 800)).sum(0) % 2 * 255).astype(np.uint8)
    assert look(place(fine[None]), pyramid, pixels)[0].std() < 255 / 4, "half as much as pixels picked one by one"


def test_a_mosaic_looks_as_the_one_raster_would(write_raster: Callable, pyramid: Pyramid, pattern: Callable) -> None:
    west, south, east, north = pyramid.bounds
    smooth = np.linspace(20, 230, 800).astype(np.uint8)
    data = np.stack([np.tile(smooth, (800, 1)), np.tile(smooth[:, None], (1, 800)), pattern(800, 800, 100)[0]])
    whole = write_raster(data, pyramid.bounds, pyramid.crs, "whole.tif")
    left = write_raster(data[:, :, :333], (west, south, west + 333, north), pyramid.crs, "left.tif")
    right = write_raster(data[:, :, 333:], (west + 333, south, east, north), pyramid.crs, "right.tif")
    for pixels in (800, 300, 96):
        expected, _ = Imagery([whole], pyramid).render(pyramid.bounds, pixels)
        for order in ([left, right], [right, left]):
            image, covered = Imagery(order, pyramid).render(pyramid.bounds, pixels)
            difference = np.abs(image.astype(int) - expected)
            assert covered.all()
            assert difference[..., :2].max() <= 3, "no seam where the ground is smooth"
            assert np.median(difference) == 0


def test_the_first_raster_lies_on_top_and_the_second_fills_its_holes(write_raster: Callable, pyramid: Pyramid) -> None:
    top = flat(200)
    top[:, :40] = 0
    upper = write_raster(top, pyramid.bounds, pyramid.crs, "upper.tif", nodata=0)
    lower = write_raster(flat(50), pyramid.bounds, pyramid.crs, "lower.tif")
    image, covered = Imagery([upper, lower], pyramid).render(pyramid.bounds, 80)
    assert covered.all()
    assert_color(image[:38], (50, 50, 50))
    assert_color(image[42:], (200, 200, 200))


def test_a_square_far_from_the_raster_is_background(town_raster: Path, pyramid: Pyramid) -> None:
    image, covered = Imagery([town_raster], pyramid).render(Bounds(5000, 5000, 5100, 5100), 28)
    assert not covered.any()
    assert_color(image, BACKGROUND, within=0)


# Rectangles, other CRSs and the background


def test_a_rectangle_is_cut_from_the_square_around_it(place: Callable, pyramid: Pyramid, pattern: Callable) -> None:
    imagery = Imagery([place(pattern(800, 800))], pyramid)
    west, south, east, north = Bounds(-200.0, -200.0, 200.0, 200.0)
    square, _ = imagery.render(Bounds(west, south, east, north), 400)
    image, covered = imagery.render(Bounds(west, north - 100, east, north), (100, 400))
    assert image.shape == (100, 400, 3) and covered.shape == (100, 400) and covered.all()
    np.testing.assert_array_equal(image, square[:100])
    image, _ = imagery.render(Bounds(east - 80, south, east, north), (400, 80))
    np.testing.assert_array_equal(image, square[:, 320:])


def test_a_rectangle_in_another_crs_shows_the_same_ground(place: Callable, pyramid: Pyramid) -> None:
    data = flat(0, 0, 0, side=800)
    data[:, 300:320, 500:520] = 255  # a square of 20 m, 110 m east and 90 m north of the centre
    imagery = Imagery([place(data)], pyramid)
    latitude, longitude = pyramid.unproject(110.0, 90.0)
    crs = f"+proj=eqc +lat_ts={latitude} +lat_0={latitude} +lon_0={longitude} +R=6378137 +units=m +no_defs"
    image, covered = imagery.render(Bounds(-30, -20, 30, 20), (40, 60), crs)
    assert covered.all() and image[18:22, 28:32].min() > 250
    assert image[:8].max() < 5 and image[-8:].max() < 5 and image[:, :18].max() < 5 and image[:, -18:].max() < 5


def test_the_background_is_a_choice_and_part_of_the_fingerprint(place: Callable, pyramid: Pyramid) -> None:
    path = place(flat(90))
    outside = Bounds(5000, 5000, 5100, 5100)
    white = Imagery([path], pyramid, background=(255, 255, 255))
    assert_color(white.render(outside, 28)[0], (255, 255, 255), within=0)
    fingerprints = {each.info().fingerprint for each in (white, Imagery([path], pyramid))}
    assert len(fingerprints) == 2
    assert Imagery([path], pyramid, background=BACKGROUND).info().fingerprint in fingerprints
    with pytest.raises(ImageryError, match=r"the background \(0, 0, 256\) is not a colour"):
        Imagery([path], pyramid, background=(0, 0, 256))


# Fingerprint


def fingerprint(path: Path, pyramid: Pyramid, **options) -> str:
    close_rasters()
    return Imagery([path], pyramid, RasterOptions(**options)).info().fingerprint


def test_the_fingerprint_stays_where_the_pixels_stay(town_raster: Path, pyramid: Pyramid, tmp_path: Path) -> None:
    before = fingerprint(town_raster, pyramid)
    town_raster.touch()
    assert fingerprint(town_raster, pyramid) == before
    copy = tmp_path / "elsewhere" / "renamed.tif"
    copy.parent.mkdir()
    shutil.copy(town_raster, copy)
    assert fingerprint(copy, pyramid) == before
    with rasterio.open(town_raster) as file:
        file.stats()  # may write an .aux.xml file
    assert fingerprint(town_raster, pyramid) == before


def test_the_fingerprint_changes_with_a_pixel_and_with_every_option(
    place: Callable, pyramid: Pyramid, pattern: Callable
) -> None:
    path = place(pattern(80, 80))
    options = [{}, {"nodata": 0.0}, {"nodata": 1.0}, {"stretch": (0.0, 200.0)}]
    before = [fingerprint(path, pyramid, **each) for each in options]
    assert len(set(before)) == len(options)
    with rasterio.open(path, "r+") as file:
        band = file.read(1)
        band[5, 5] ^= 1
        file.write(band, 1)
    assert not set(before) & {fingerprint(path, pyramid, **each) for each in options}


def test_the_fingerprint_changes_with_what_a_side_car_says(world_file: Path, pyramid: Pyramid) -> None:
    before = fingerprint(world_file, pyramid, crs=pyramid.crs)
    text = world_file.with_suffix(".pgw").read_text()
    world_file.with_suffix(".pgw").write_text(text.replace("10", "9"))
    moved = fingerprint(world_file, pyramid, crs=pyramid.crs)
    band = '<PAMRasterBand band="1"><NoDataValue>90</NoDataValue></PAMRasterBand>'
    Path(f"{world_file}.aux.xml").write_text(f"<PAMDataset>{band}</PAMDataset>")
    assert len({before, moved, fingerprint(world_file, pyramid, crs=pyramid.crs)}) == 3


@pytest.mark.parametrize("options", [{}, {"nodata": 0.0}], ids=str)
def test_the_fingerprint_changes_with_the_files_behind_a_virtual_raster(
    place: Callable, pyramid: Pyramid, tmp_path: Path, options: dict
) -> None:
    rasterio.shutil.copy(place(flat(90)), tmp_path / "map.vrt", driver="VRT")
    before = fingerprint(tmp_path / "map.vrt", pyramid, **options)
    place(flat(91))
    assert fingerprint(tmp_path / "map.vrt", pyramid, **options) != before


def test_an_unchanged_file_is_not_read_again_for_its_fingerprint(
    town_raster: Path, pyramid: Pyramid, monkeypatch: pytest.MonkeyPatch
) -> None:
    imagery = Imagery([town_raster], pyramid)
    info = imagery.info()

    def read(path: Path) -> str:
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr("jzi.encode.rasters.imagery.file_sha256", read)
    assert imagery.info(info) == info
    town_raster.touch()
    with pytest.raises(AssertionError, match="is read again"):
        imagery.info(info)


def test_tiles_are_as_smooth_where_a_raster_covers_little_of_them(write_raster, pattern, pyramid: Pyramid) -> None:
    """A map of many sheets, or an area far larger than its raster, must not alias."""
    fine = pattern(1600, 1600, square=4)  # squares of 2 m
    whole = write_raster(fine, pyramid.bounds, pyramid.crs, "whole.tif")
    sheets = []
    for row in range(8):
        for col in range(8):
            west, north = pyramid.west + 100 * col, pyramid.north - 100 * row
            part = fine[:, row * 200 : (row + 1) * 200, col * 200 : (col + 1) * 200]
            bounds = (west, north - 100, west + 100, north)
            sheets.append(write_raster(part, bounds, pyramid.crs, f"sheet{row}{col}.tif"))
    larger = Pyramid(pyramid.crs, pyramid.west * 4, pyramid.north * 4, pyramid.size * 4, levels=3)
    expected = Imagery([whole], pyramid).render(pyramid.bounds, 50)[0].astype(float)
    of_sheets = Imagery(sheets, pyramid).render(pyramid.bounds, 50)[0].astype(float)
    of_larger = Imagery([whole], larger).render(larger.bounds, 200)[0][75:125, 75:125].astype(float)
    mean = np.moveaxis(fine, 0, -1).reshape(50, 32, 50, 32, 3).mean((1, 3))
    for made in (expected, of_sheets, of_larger):
        assert np.abs(made - mean).mean() < 6
        assert made.std() < 1.1 * mean.std()  # aliasing would make it as rough as the squares themselves
    np.testing.assert_array_equal(of_larger, expected)


# The fast path for squares inside the imagery


@pytest.mark.parametrize("side", [200, 800, 3000], ids=["enlarged", "as it is", "shrunk"])
def test_a_square_amid_the_imagery_looks_the_same_by_the_short_cut(
    place: Callable, pyramid: Pyramid, pattern: Callable, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    raster = Raster(place(pattern(side, side, square=7)))
    amid = pyramid.tile_bounds(TileKey(2, 6, 9))
    short = raster.warp(pyramid.crs, amid, 60)
    monkeypatch.setattr(Raster, "_surrounds", lambda *_: False)
    assert np.array_equal(short, raster.warp(pyramid.crs, amid, 60))
    assert short[3].min() == 255


def test_half_transparent_imagery_stays_so_amid_the_raster(place: Callable, pyramid: Pyramid) -> None:
    path = place(flat(10, 20, 30, 128, side=800))
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
    assert np.unique(Raster(path).warp(pyramid.crs, pyramid.tile_bounds(TileKey(2, 6, 9)), 60)[3]).tolist() == [128]


# Rasters from strangers


@pytest.fixture
def requests() -> Iterator[tuple[str, list[str]]]:
    """The URL of a server on this machine, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET  # noqa: N815
        log_message = lambda *_: None  # noqa: E731

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/x.tif", asked
        server.shutdown()


def refused(path: object, match: str, **options) -> None:
    close_rasters()  # of another file at this path
    with pytest.raises(ImageryError, match=match) as error:
        Raster(str(path), RasterOptions(**options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["{}", "/vsicurl/{}", "/vsigzip//vsicurl/{}"])
def test_the_network_is_asked_only_if_allowed(tmp_path: Path, requests, form: str) -> None:
    url, asked = requests
    (tmp_path / "map.vrt").write_bytes(hostile.vrt([form.format(url)], relative=0))
    refused(tmp_path / "map.vrt", "map.remote = true")
    refused(form.format(url), "is not a local file: set map.remote = true")
    assert asked == []
    with contextlib.suppress(ImageryError):
        Raster(form.format(url), RasterOptions(remote=True))
    assert asked


def test_a_server_that_accepts_and_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REMOTE, "GDAL_HTTP_LOW_SPEED_TIME", "1")
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(ImageryError):
        Raster(f"/vsicurl/http://127.0.0.1:{server.getsockname()[1]}/x.tif", RasterOptions(remote=True))


@pytest.mark.parametrize("kind", ["overviews", "side-car", "overview file", "inner tile"])
def test_a_raster_does_not_lead_to_the_network_by_its_overviews(place, pyramid, tmp_path, requests, kind: str) -> None:
    url, asked = requests
    path, link = place(flat(90)), f"/vsicurl/{url}"
    if kind == "side-car":
        metadata = f"<Metadata domain='OVERVIEWS'><MDI key='OVERVIEW_FILE'>{link}</MDI></Metadata>"
        (tmp_path / "map.tif.aux.xml").write_text(f"<PAMDataset>{metadata}</PAMDataset>")
    elif kind == "overview file":
        (tmp_path / "map.tif.ovr").write_bytes(hostile.vrt([link], relative=0))
    else:
        with rasterio.open(path, "r+") as file:
            file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=link)
    if kind == "inner tile":
        (tmp_path / "map.vrt").write_bytes(hostile.vrt(["map.tif"]))
        path = tmp_path / "map.vrt"
    refused(path, "map.remote = true")
    assert asked == []


def test_a_vrt_names_files_of_its_folder_only(tmp_path: Path, place: Callable) -> None:
    place(flat(90))
    folder = tmp_path / "vrt"
    folder.mkdir()
    shutil.copy(tmp_path / "map.tif", folder / "tile.tif")
    (folder / "link.tif").symlink_to(tmp_path / "map.tif")
    for source in ("tile.tif", "../vrt/tile.tif"):
        (folder / "map.vrt").write_bytes(hostile.vrt([source]))
        Raster(folder / "map.vrt")
    for source in ("link.tif", "../map.tif", str(tmp_path / "map.tif"), *hostile.ELSEWHERE):
        (folder / "map.vrt").write_bytes(hostile.vrt([source]))
        if source not in ("map.vrt", "sub"):
            refused(folder / "map.vrt", "map.remote = true")
    (folder / "map.vrt").write_bytes(hostile.vrt(["../map.tif"]))
    Raster(folder / "map.vrt", RasterOptions(remote=True))


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        ((b"band='1'", b"band='1' subClass='VRTRawRasterBand'"), "subClass"),
        ((b"<SimpleSource ", b"<SimpleSource SourceFilename='../map.tif' "), "SourceFilename"),
        ((b"SourceFilename", b"sourcefilename"), "sourcefilename"),
        ((b"<VRTDataset", b"<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><VRTDataset"), "document type"),
        ((b"<SRS>", b"<Metadata domain='Overviews'><MDI key='OVERVIEW_FILE'>x</MDI></Metadata><SRS>"), "overviews"),
    ],
)
def test_a_vrt_with_unknown_parts_is_refused(tmp_path: Path, place: Callable, edit: tuple, match: str) -> None:
    place(flat(90))
    (tmp_path / "map.vrt").write_bytes(hostile.vrt(["map.tif"]).replace(*edit))
    refused(tmp_path / "map.vrt", match)


def test_special_files_and_formats_that_name_others_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "map.tif")
    refused(tmp_path / "map.tif", "not a regular file")
    refused("/dev/zero", "not a regular file")
    header = 'DatasetHeader Begin\n Version = "6.0"\n DataFile = "/etc/passwd"\nDatasetHeader End\n'
    (tmp_path / "map.ers").write_text(header)
    refused(tmp_path / "map.ers", "other formats may name files elsewhere")


def test_values_and_geometries_that_cannot_be_drawn_are_refused(tmp_path: Path, pyramid: Pyramid, place) -> None:
    refused(place(flat(1, dtype="complex64")), "complex64: convert it")
    refused(place(flat(1, 2, 3, dtype="complex128")), "complex128: convert it")
    with rasterio.open(place(flat(90)), "r+") as file:
        file.transform = Affine(2, 1, 600_000, 2, 1, 5_340_000)
    refused(tmp_path / "map.tif", "degenerate")
    with rasterio.open(place(flat(90, side=4)), "r+") as file:
        file.transform = Affine(1, 0, pyramid.bounds.west, 0, -1, pyramid.bounds.north)
        file.crs = CRS.from_wkt('LOCAL_CS["x",UNIT["metre",1]]')
    close_rasters()
    with pytest.raises(ImageryError, match="cannot be transformed"):
        Imagery([tmp_path / "map.tif"], pyramid)


def test_the_credit_line_is_that_of_the_settings_else_what_the_rasters_record(town_raster, pyramid) -> None:
    assert Imagery([town_raster], pyramid).attribution == ""
    with rasterio.open(town_raster, "r+") as file:
        file.update_tags(TIFFTAG_COPYRIGHT="© Town\n2026 " + "x" * 400)
    close_rasters()
    recorded = Imagery([town_raster], pyramid)
    assert recorded.attribution.startswith("© Town\\n2026 x") and len(recorded.attribution) == MAX_ATTRIBUTION
    named = Imagery([town_raster], pyramid, attribution="© the town")
    assert named.attribution == "© the town" and named.info() == recorded.info()
