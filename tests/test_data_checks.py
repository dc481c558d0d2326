"""Warnings about data that cannot lead to a good model, and intervals of few photos."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from jzi.encode.rasters.imagery import Imagery
from jzi.encode.rasters.raster import RasterOptions
from jzi.evaluate.intervals import median_interval, share_interval
from jzi.store.geometry.pyramid import Pyramid
from jzi.workspace.area import square_around
from jzi.workspace.setup.data_checks import map_warnings, photo_warnings


@pytest.fixture
def raster(tmp_path: Path) -> str:
    """A raster of 320 x 320 pixels of 2 m."""
    path = tmp_path / "map.tif"
    with rasterio.open(path, "w", driver="GTiff", width=320, height=320, count=3, dtype="uint8", crs="EPSG:32633",
                       transform=from_origin(500_000, 5_000_000, 2, 2)) as file:  # fmt: skip
        file.write(np.full((3, 320, 320), 99, np.uint8))
    return str(path)


def test_coarse_imagery_is_warned_about_where_the_encoder_needs_finer(raster: str) -> None:
    pyramid = square_around([raster], RasterOptions(), levels=2)
    with Imagery([raster], pyramid) as imagery:  # tiles of 160 m, 80 pixels
        assert map_warnings(imagery, pyramid, 84) == ()
        (warning,) = map_warnings(imagery, pyramid, 168)
    assert "a tile of 160 m has 80 pixels, which are enlarged to 168" in warning and "0.95 m per pixel" in warning


def test_an_area_with_little_imagery_is_warned_about(raster: str) -> None:
    whole = square_around([raster], RasterOptions(), levels=2)
    latitude, longitude = whole.unproject(whole.west + whole.size / 2, whole.north - whole.size / 2)
    large = Pyramid.around(float(latitude), float(longitude), 4 * whole.size, levels=3)
    with Imagery([raster], large) as imagery:
        (warning,) = map_warnings(imagery, large, 84)
    assert warning.startswith("only 6.2 % of the area has imagery") or warning.startswith("only 6.3 %")


def test_few_photos_are_warned_about() -> None:
    assert photo_warnings(1)[0].startswith("1 photo: too few") and photo_warnings(8)[0].startswith("8 photos: too few")
    assert photo_warnings(200) == ()


def test_the_interval_of_a_single_photo_is_wide() -> None:
    one = share_interval(np.array([False]))
    assert one.value == 0 and one.low == 0 and one.high == pytest.approx(0.793, abs=1e-3)
    many = share_interval(np.arange(1000) < 500)  # as the normal approximation
    assert (many.low, many.high) == pytest.approx((0.469, 0.531), abs=1e-3)


def test_the_median_of_few_photos_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    few = median_interval(np.array([3.0, 4.0, 9.0]), 100, rng)
    assert (few.value, few.low, few.high) == (4.0, 0.0, math.inf)
    some = median_interval(np.arange(100.0), 100, rng)
    assert 30 < some.low < some.value < some.high < 70
