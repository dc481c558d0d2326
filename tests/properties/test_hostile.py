"""Readers of files from strangers return a result or raise an error of the project, whatever is in the file."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given

from jzi.decode.import_checkpoint import import_checkpoint
from jzi.encode.photo.photo_reader import PhotoReader
from jzi.encode.rasters.imagery import Imagery
from jzi.encode.rasters.raster import RasterOptions, close_rasters
from jzi.errors import JziError
from jzi.store.geometry.geojson import read_polygons
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.exif import read_position, read_time, write_position
from jzi.store.photos.photo_table import read_photo_table
from jzi.workspace.area import square_around
from jzi.workspace.setup.settings_file import load_settings
from tests import hostile

pytestmark = pytest.mark.filterwarnings("ignore")  # of Pillow and GDAL about damaged files

#: 60 m on the pixels of `hostile.geotiff` and `hostile.vrt`.
AREA = Pyramid.around(48.20432, 16.34620, 60.0, levels=1)


def _read_photo(path: Path) -> None:
    for photo in (path, path.read_bytes()):
        read = PhotoReader((14, 28), stamps=isinstance(photo, Path)).read_one(photo)
        assert (read.pixels is None) == bool(read.error)
        assert "\n" not in read.error
    for read_exif in (read_position, read_time):
        with contextlib.suppress(JziError):
            read_exif(path)
    write_position(path, path.with_name("copy" + path.suffix), 48.2, 16.3, 3.0)


def _read_raster(path: Path) -> None:
    with contextlib.suppress(JziError):
        square_around([str(path)], RasterOptions())
    with Imagery([path], AREA) as imagery:
        imagery.render(AREA.bounds, 56)
        imagery.info()


def check(example: hostile.Hostile, read: Callable[[Path], object]) -> None:
    """Read an example: errors other than the project's, and errors of several lines, are raised."""
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(example.write(Path(folder)))
        except JziError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 1000
        finally:
            close_rasters()


@given(hostile.photos())
def test_a_hostile_photo_costs_only_itself(example: hostile.Hostile) -> None:
    check(example, _read_photo)


@given(hostile.tables())
def test_a_hostile_table_is_read_or_refused_in_a_sentence(example: hostile.Hostile) -> None:
    check(example, lambda path: read_photo_table(path).inside(Pyramid.around(48.2, 16.3, 1000.0, levels=2)))


@given(hostile.rasters())
def test_a_hostile_raster_is_drawn_or_refused_in_a_sentence(example: hostile.Hostile) -> None:
    check(example, _read_raster)


@given(hostile.files("settings"))
def test_hostile_settings_are_read_or_refused_in_a_sentence(example: hostile.Hostile) -> None:
    check(example, load_settings)


@given(hostile.files("region"))
def test_a_hostile_region_is_read_or_refused_in_a_sentence(example: hostile.Hostile) -> None:
    check(example, read_polygons)


@given(hostile.files("checkpoint"))
def test_a_hostile_checkpoint_is_refused_in_a_sentence(example: hostile.Hostile) -> None:
    def read(path: Path) -> None:
        with pytest.raises(JziError) as refusal:
            import_checkpoint(path, path.parent / "model", AREA, encoder=str(path.parent / "encoder"))
        assert not (path.parent / "model").exists()
        raise refusal.value

    check(example, read)
