"""Claims about encoding the cells of a region: what is encoded, resumed, and shared among processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pyproj import Transformer
from torch import Tensor

from jzi.encode import encode_bands
from jzi.encode.encode_bands import encode_unit, index_bands
from jzi.encode.estimate import estimate
from jzi.encode.rasters import cell_crops
from jzi.encode.rasters.cell_crops import CellCrops
from jzi.encode.rasters.imagery import Imagery
from jzi.encode.rasters.raster import Raster, close_rasters
from jzi.errors import CacheError
from jzi.store.cache import layout
from jzi.store.cache.feature_cache import ENCODED, NODATA, FeatureCache
from jzi.store.features.cell_features import OUTSIDE, CellFeatures
from jzi.store.geometry.bands import BandGrid
from jzi.store.geometry.region import CellRuns, Region, RegionCells
from jzi.store.info import EncoderInfo
from jzi.tests.conftest import checkerboard, write_geotiff

SIZE, LODS = 16, (1.0, 4.0)

TOWERS = EncoderInfo("towers", False, "0" * 64, 6, 64, "fit")


@dataclass
class MeanColors:
    """Embeds a cell by the mean colours of its two images; fails after a number of batches."""

    fails_after: int = -1
    delay: float = 0.0
    width: int = 6
    batches: int = 0
    cells: int = 0
    device = torch.device("cpu")

    def encode_cells(self, images: Tensor) -> Tensor:
        if self.batches == self.fails_after:
            raise KeyboardInterrupt
        self.batches += 1
        self.cells += len(images)
        time.sleep(self.delay * len(images))
        assert images.shape[1:3] in ((2, SIZE), (2, 64)) and 1 <= len(images) <= 8
        return images.float().mean((2, 3)).flatten(1) / 255

    def to_storage(self, embedding: Tensor) -> np.ndarray:
        return embedding.numpy().astype(np.float16)


@pytest.fixture(autouse=True)
def _small_units(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shards of 2 x 2 chunks of 4 x 4 cells."""
    monkeypatch.setattr(layout, "MAX_UNSHARDED", 100)
    monkeypatch.setattr(layout, "MAX_CELL_CHUNK", 4)
    monkeypatch.setattr(layout, "SHARD_CHUNKS", 2)
    yield
    close_rasters()


@dataclass
class Place:
    """A lozenge of 600 m, whose east has no imagery."""

    region: Region
    grid: BandGrid
    crops: CellCrops
    runs: CellRuns
    folder: Path

    def cache(self, name: str) -> FeatureCache:
        cells = RegionCells(self.region, self.grid, "touch", self.runs)
        return FeatureCache.open_or_create(self.folder / name, cells.info, TOWERS)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    corners = [(10.004, 50.0), (10.008, 50.003), (10.004, 50.006), (10.0, 50.003), (10.004, 50.0)]
    region = Region.of([{"type": "Polygon", "coordinates": [corners]}], "lozenge.geojson")
    grid = region.grid(20.0)
    to_utm = Transformer.from_crs("EPSG:4326", "EPSG:32632", always_xy=True)
    (west, east), (south, north) = to_utm.transform([9.999, 10.006], [49.999, 50.007])
    path = write_geotiff(
        tmp_path / "map.tif", checkerboard(900, 500), (west, south, east, north), "EPSG:32632", photometric="RGB"
    )
    crops = CellCrops(Imagery([path], grid), grid, LODS, SIZE)
    return Place(region, grid, crops, region.cells(grid), tmp_path)


def stored(cache: FeatureCache) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    cells = FeatureCache.open(cache.path).cells
    return cells.status(), *cells.read()


def test_cells_of_the_region_are_encoded_from_their_images(place: Place) -> None:
    with closing(place.cache("a.zarr")) as cache:
        report = index_bands(cache, MeanColors(), place.crops, place.runs, batch_size=8)
    status, row, col, embedding = stored(cache)
    mask = place.runs.mask(*(slice(0, size) for size in place.grid.shape))
    assert len(cache.cells.units) > 9 and (status[mask] != 0).all() and np.isin(status[~mask], (0, OUTSIDE)).all()
    assert report.encoded == len(row) == (status == ENCODED).sum() > 300
    assert report.nodata == (status == NODATA).sum() > 50
    assert (report.reused, report.bytes) == (0, 2 * 6 * len(row))
    some = np.random.default_rng(0).choice(len(row), 40, replace=False)
    images = place.crops.at(*place.grid.positions(row[some], col[some]))
    np.testing.assert_allclose(embedding[some], images.mean((2, 3)).reshape(40, 6) / 255, atol=0.02)
    longitude = place.grid.positions(*np.nonzero(status == NODATA))[1]
    assert longitude.min() > 10.0058, "only the east has no imagery"
    assert 0.01 < report.empty < 0.2


def test_units_encoded_one_by_one_make_the_same_cache(place: Place, files_of: Callable) -> None:
    with closing(place.cache("whole.zarr")) as whole:
        total = index_bands(whole, MeanColors(), place.crops, place.runs, batch_size=8)
    counted: list[int] = []
    bar = SimpleNamespace(update=counted.append)
    with closing(place.cache("single.zarr")) as cache:
        encode = partial(encode_unit, cache, MeanColors(), place.crops, place.runs, progress=bar, batch_size=8)
        report = index_bands(
            cache,
            MeanColors(),
            place.crops,
            place.runs,
            run_units=lambda tasks, _: [encode(task=task) for task in tasks],
        )
    assert report == total and sum(counted) == report.encoded + report.nodata
    assert files_of(Path(cache.path)) == files_of(Path(whole.path))


def test_an_interrupted_run_is_resumed_and_gives_the_same(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(place.cache("whole.zarr")) as whole:
        total = index_bands(whole, MeanColors(), place.crops, place.runs, batch_size=8)
    with closing(place.cache("cut.zarr")) as cut, pytest.raises(KeyboardInterrupt):
        index_bands(cut, MeanColors(fails_after=30), place.crops, place.runs, batch_size=8)
    with pytest.raises(CacheError, match="lacks"):
        FeatureCache.open(cut.path).cells.read()
    with closing(place.cache("cut.zarr")) as cut:
        report = index_bands(cut, MeanColors(), place.crops, place.runs, batch_size=8)
    assert report.reused > 0 and report.encoded + report.reused == total.encoded
    for one, other in zip(stored(cut), stored(whole), strict=True):
        np.testing.assert_array_equal(one, other)
    monkeypatch.setattr(Imagery, "render", None)
    with closing(place.cache("cut.zarr")) as cut:
        again = index_bands(cut, MeanColors(fails_after=0), place.crops, place.runs)
    assert (again.encoded, again.reused, again.nodata) == (0, total.encoded, total.nodata)


def test_a_killed_run_loses_what_it_has_not_saved_and_nothing_else(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_bands, "SAVE_S", -1.0)
    monkeypatch.setattr(cell_crops, "BLOCK", 4)
    with closing(place.cache("whole.zarr")) as whole:
        total = index_bands(whole, MeanColors(), place.crops, place.runs, batch_size=8)
    encoder = MeanColors(fails_after=27)
    with closing(place.cache("cut.zarr")) as cut, pytest.raises(KeyboardInterrupt):
        index_bands(cut, encoder, place.crops, place.runs, batch_size=8)
    status = FeatureCache.open(cut.path).cells.status()
    known, done = int((status == ENCODED).sum()), int(np.isin(status, (ENCODED, NODATA)).sum())
    assert known == encoder.cells  # saved after every batch
    with closing(place.cache("cut.zarr")) as cut:
        left = estimate(cut.cells, MeanColors(), place.crops, place.runs, batch_size=8)
        report = index_bands(cut, MeanColors(), place.crops, place.runs, batch_size=8)
    assert 0 <= left.cells - (place.runs.count - done) <= 16  # of a whole block
    assert report.reused == known and report.encoded + report.reused == total.encoded
    for one, other in zip(stored(cut), stored(whole), strict=True):
        np.testing.assert_array_equal(one, other)


def test_processes_share_the_units(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(place.cache("whole.zarr")) as whole:
        index_bands(whole, MeanColors(), place.crops, place.runs, batch_size=8)
    listed: list = []

    def process(index: int) -> Callable[[], SimpleNamespace]:
        return lambda: SimpleNamespace(
            process_index=index, num_processes=2, is_main_process=index == 0, wait_for_everyone=lambda: None
        )

    monkeypatch.setattr(encode_bands, "gather_object", lambda each: each)
    units = encode_bands.missing_units

    def list_once(cells: CellFeatures, runs: CellRuns, **_: bool) -> list:
        listed.extend([] if listed else units(cells, runs))
        return listed

    monkeypatch.setattr(encode_bands, "missing_units", list_once)
    encoders = [MeanColors(), MeanColors()]
    with closing(place.cache("shared.zarr")) as shared:
        for index, encoder in enumerate(encoders):  # both have listed the same units before either writes
            monkeypatch.setattr(encode_bands, "processes", process(index))
            index_bands(shared, encoder, place.crops, place.runs, batch_size=8)
    assert all(encoder.batches > 10 for encoder in encoders)
    for one, other in zip(stored(shared), stored(whole), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_estimate_is_of_the_cells_that_are_missing(place: Place) -> None:
    with closing(place.cache("a.zarr")) as cache:
        encoder = MeanColors(delay=0.002)
        before = estimate(cache.cells, encoder, place.crops, place.runs, batch_size=8)
        assert before.cells == place.runs.count and before.images == 2 * before.cells
        assert before.bytes == 2 * 6 * before.cells and 0 < before.measured <= before.blocks
        assert 0.5 < before.with_imagery < 0.95
        report = index_bands(cache, MeanColors(), place.crops, place.runs, batch_size=8)
        assert before.seconds > 0.002 * 0.8 * report.encoded
        shared = estimate(cache.cells, encoder, place.crops, place.runs, batch_size=8, processes=2)
        assert (shared.cells, shared.bytes, shared.source_pixels, shared.seconds) == (0, 0, 0, 0.0)


def test_as_many_pixels_are_read_as_estimated(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = CellCrops(place.crops.imagery, place.grid, (1.0, 4.0), 64)
    monkeypatch.setattr("jzi.encode.rasters.cell_crops.BLOCK", 8)
    runs = CellRuns.merged(*(np.array([*each]) for each in zip(*[(row, 3, 19) for row in range(8, 24)], strict=True)))
    with closing(place.cache("a.zarr")) as cache:
        expected = estimate(cache.cells, MeanColors(), crops, runs, batch_size=8, sample=1).source_pixels
    read, warp = 0, Raster.read

    def count(self: Raster, window, shape) -> np.ndarray:
        nonlocal read
        read += int(window.width * window.height)
        return warp(self, window, shape)

    monkeypatch.setattr(Raster, "read", count)
    for key in crops.keys(slice(8, 24), slice(3, 19), runs.mask(slice(8, 24), slice(3, 19))):
        crops.block(*key)
    assert 0.5 * expected < read < 1.5 * expected
