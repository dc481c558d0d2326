"""Claims about imagery with and without overviews: what is read, what is advised, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from rasterio.rio.main import main_group

from jzi.encode.rasters import overviews
from jzi.encode.rasters.cell_crops import CellCrops
from jzi.encode.rasters.imagery import Imagery
from jzi.encode.rasters.overviews import check_training_reads, reading_cost
from jzi.encode.rasters.raster import close_rasters
from jzi.errors import ImageryError
from jzi.store.geometry.pyramid import Pyramid

LODS = (0.5, 2.0, 8.0)

#: As that of the tests' pyramid, which the map fills.
SIZE = 32


@pytest.fixture(autouse=True)
def _no_handle_outlives_a_test() -> Iterator[None]:
    yield
    close_rasters()


@pytest.fixture
def fine(write_raster: Callable, pyramid: Pyramid) -> Path:
    """A map of 0.5 m."""
    data = np.full((3, 1600, 1600), 200, np.uint8)
    return write_raster(data, pyramid.bounds, pyramid.crs, photometric="RGB", tiled=True)


def crops_of(path: Path, pyramid: Pyramid) -> CellCrops:
    close_rasters()
    return CellCrops(Imagery([path], pyramid), pyramid, LODS, SIZE)


def test_missing_overviews_are_reported_until_they_are_made(fine: Path, pyramid: Pyramid) -> None:
    cost = reading_cost(crops_of(fine, pyramid))
    assert cost.per_pixel == pytest.approx((1, 16, 256), rel=0.01)
    assert cost.commands == [f"gdaladdo -ro -r average {fine} 2 4 8"]
    assert cost.warning is not None and "read from 256 of the raster" in cost.warning
    command = cost.warning.rsplit("`", 2)[1]
    assert command == f"rio overview --build 2,4,8 --resampling average {fine}"
    done = CliRunner().invoke(main_group, command.split()[1:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    after = reading_cost(crops_of(fine, pyramid))
    assert after.warning is None and after.commands == [] and max(after.per_pixel) <= 16
    assert after.per_sample < cost.per_sample / 8


def test_coarse_levels_are_read_from_overviews(fine: Path, pyramid: Pyramid) -> None:
    with rasterio.open(fine, "r+") as file:
        file.build_overviews([2, 4, 8], rasterio.enums.Resampling.average)
    with rasterio.open(fine, "r+") as file:
        file.write(np.zeros((3, 1600, 1600), np.uint8))  # and leave the overviews as they are
    latitude, longitude = pyramid.unproject(0.0, 0.0)
    images = crops_of(fine, pyramid).at(latitude, longitude)[0]
    assert (images[0] == 0).all() and (images[2] == 200).all()


def test_a_mosaic_has_the_overviews_of_its_files(write_raster: Callable, pyramid: Pyramid, tmp_path: Path) -> None:
    west, south, east, north = pyramid.bounds
    halves = {"west.tif": (west, 0.0), "east.tif": (0.0, east)}
    for name, (left, right) in halves.items():
        data = np.full((3, 1600, 800), 200, np.uint8)
        write_raster(data, (left, south, right, north), pyramid.crs, name, photometric="RGB", tiled=True)
    sources = "".join(
        f'<SimpleSource><SourceFilename relativeToVRT="1">{name}</SourceFilename><SourceBand>{{0}}</SourceBand>'
        f'<SrcRect xOff="0" yOff="0" xSize="800" ySize="1600"/>'
        f'<DstRect xOff="{800 * index}" yOff="0" xSize="800" ySize="1600"/></SimpleSource>'
        for index, name in enumerate(halves)
    )
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}">{sources.format(band)}</VRTRasterBand>' for band in (1, 2, 3)
    )
    with rasterio.open(tmp_path / "west.tif") as file:
        srs = f"<SRS>{file.crs.to_wkt()}</SRS>"
    transform = f"<GeoTransform>{west}, 0.5, 0, {north}, 0, -0.5</GeoTransform>"
    mosaic = tmp_path / "mosaic.vrt"
    mosaic.write_text(f'<VRTDataset rasterXSize="1600" rasterYSize="1600">{srs}{transform}{bands}</VRTDataset>')
    assert reading_cost(crops_of(mosaic, pyramid)).rasters == (str(mosaic),)
    for name in halves:
        with rasterio.open(tmp_path / name, "r+") as file:
            file.build_overviews([2, 4, 8], rasterio.enums.Resampling.average)
        with rasterio.open(tmp_path / name, "r+") as file:
            file.write(np.zeros((3, 1600, 800), np.uint8))  # and leave the overviews as they are
    crops = crops_of(mosaic, pyramid)
    assert reading_cost(crops).warning is None
    images = crops.at(*pyramid.unproject(0.0, 0.0))[0]
    assert (images[0] == 0).all() and (images[2] == 200).all(), "GDAL reads the overviews of the files"


def test_training_is_refused_only_where_reading_is_hopeless(
    fine: Path, pyramid: Pyramid, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = reading_cost(crops_of(fine, pyramid))
    expected = (1 + 16 + 256) * SIZE**2 * (1 + 2 / np.pi)
    assert cost.per_sample == pytest.approx(expected, rel=0.01)
    assert check_training_reads(cost) == cost.warning
    monkeypatch.setattr(overviews, "HOPELESS", cost.per_sample - 1)
    with pytest.raises(ImageryError, match=r"each training sample would read 0 million pixels.*run `gdaladdo"):
        check_training_reads(cost)


def test_imagery_as_coarse_as_the_images_needs_no_overviews(town_raster: Path, pyramid: Pyramid) -> None:
    cost = reading_cost(crops_of(town_raster, pyramid))
    assert cost.warning is None and cost.per_pixel == pytest.approx((0.25, 4, 64), rel=0.01)


def test_names_with_spaces_can_be_pasted_into_a_shell(fine: Path, pyramid: Pyramid) -> None:
    spaced = Path(shutil.move(fine, fine.with_name("my map.tif")))
    assert f"'{spaced}' 2 4 8" in reading_cost(crops_of(spaced, pyramid)).commands[0]
