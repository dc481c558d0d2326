"""Claims about encoding a map into a cache."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_bounds

from jzi.encode import encode_map as module
from jzi.encode.encode_map import MapReport, encode_map
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.rasters.imagery import Imagery
from jzi.encode.rasters.tiles import TileRenderer
from jzi.errors import CacheCorruptError, EncoderError, ImageryError
from jzi.store.cache import chunk_writer
from jzi.store.cache.feature_cache import ENCODED, MISSING, NODATA, FeatureCache
from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.tests.children import run_python

# from rasterio itself
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")

#: 820 tiles; the nine subtrees below level 1 have separate chunks.
GRID, LEVELS = 3, 4


@dataclass
class Town:
    """An area, its imagery and an encoder; `run` fills its cache."""

    folder: Path
    pyramid: Pyramid
    imagery: Imagery
    encoder: Encoder

    @property
    def path(self) -> Path:
        return self.folder / "town.zarr"

    def cache(self) -> FeatureCache:
        return FeatureCache.open_or_create(self.path, self.pyramid, self.encoder.info, self.imagery.info())

    def run(self, **options: int) -> MapReport:
        return encode_map(self.cache(), self.encoder, self.imagery, **options)


@pytest.fixture(scope="module")
def raster(tmp_path_factory: pytest.TempPathFactory, pattern: Callable) -> Path:
    """800 x 800 m of squares of random colours, which every area here is part of."""
    path = tmp_path_factory.mktemp("raster") / "map.tif"
    profile = {"driver": "GTiff", "count": 3, "height": 800, "width": 800, "dtype": "uint8"}
    area = Pyramid.around(48.2, 16.37, 800.0)
    with rasterio.open(path, "w", crs=area.crs, transform=from_bounds(*area.bounds, 800, 800), **profile) as file:
        file.write(pattern(800, 800))
    return path


@pytest.fixture(scope="module")
def make(raster: Path, encoder_folder: Path) -> Callable[..., Town]:
    encoder = Encoder.load(encoder_folder, image_size=14, device="cpu")
    # In float32 the last bit of an embedding may depend on which tiles share its batch
    encoder.model.double()

    def make(folder: Path, grid: int = GRID, levels: int = LEVELS, raster: Path = raster) -> Town:
        pyramid = Pyramid.around(48.2, 16.37, 800.0, grid=grid, levels=levels)
        return Town(folder, pyramid, Imagery([raster], pyramid), encoder)

    return make


@pytest.fixture(scope="module")
def undisturbed(make: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of an uninterrupted run. Do not modify."""
    folder = tmp_path_factory.mktemp("undisturbed")
    make(folder).run()
    return folder / "town.zarr"


@pytest.fixture
def whole(undisturbed: Path, files_of: Callable) -> dict[str, bytes]:
    """Contents of all files."""
    return files_of(undisturbed)


@pytest.fixture
def town(make: Callable, tmp_path: Path) -> Town:
    """Not encoded yet."""
    return make(tmp_path)


@pytest.fixture
def encoded_town(town: Town, undisturbed: Path) -> Town:
    shutil.copytree(undisturbed, town.path)
    return town


def fail_after(owner: object, name: str, calls: int, error: BaseException, patch: pytest.MonkeyPatch) -> None:
    """Make a method raise after a number of successful calls."""
    method, count = getattr(owner, name), iter(range(calls))

    def wrapped(*args, **kwargs):
        if next(count, None) is None:
            raise error
        return method(*args, **kwargs)

    patch.setattr(owner, name, wrapped)


def count_encoded(town: Town, patch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the encoder is called with."""
    sizes: list[int] = []
    encode = town.encoder.encode_tiles
    patch.setattr(town.encoder, "encode_tiles", lambda tiles: (sizes.append(len(tiles)), encode(tiles))[1])
    return sizes


def assert_sound(cache: FeatureCache) -> int:
    """Assert that encoded tiles have finite embeddings and marked cells; return how many are encoded."""
    encoded, g = 0, cache.pyramid.grid
    for level in range(cache.pyramid.levels):
        status = cache.tiles.status(level)
        assert (np.isnan(cache.tiles.level(level)).any(-1) <= (status != ENCODED)).all()
        encoded += int((status == ENCODED).sum())
    cells = cache.tiles.status(cache.pyramid.levels)
    n = len(cells) // g
    assert ((cells.reshape(n, g, n, g) != MISSING).all(axis=(1, 3)) >= (status == ENCODED)).all()
    return encoded


# Filling


@pytest.mark.parametrize(("grid", "levels"), [(4, 1), (4, 2), (4, 3), (3, 4), (2, 3)])
def test_every_tile_is_encoded_once_from_its_own_picture(
    make: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: int, levels: int
) -> None:
    town = make(tmp_path, grid, levels)
    sizes = count_encoded(town, monkeypatch)
    assert town.run() == MapReport(town.pyramid.tile_count, 0, 0, 0)
    assert sum(sizes) == town.pyramid.tile_count
    assert_sound(town.cache())
    features = town.cache().read_map()
    assert (features.status[levels] == ENCODED).all()
    for tile in list(TileRenderer(town.imagery, 14).render([TileKey(0, 0, 0)]))[:: max(1, sum(sizes) // 30)]:
        expected = town.encoder.to_storage(town.encoder.encode_tiles(np.stack([tile.image])))[0]
        level, row, col = tile.key
        np.testing.assert_allclose(features.embedding[level][row, col], expected, atol=2e-3)


def test_a_second_run_touches_neither_imagery_nor_encoder_nor_cache(
    encoded_town: Town, whole: dict, monkeypatch: pytest.MonkeyPatch, files_of: Callable
) -> None:
    for owner, name in ((encoded_town.encoder, "encode_tiles"), (encoded_town.imagery, "render")):
        fail_after(owner, name, 0, AssertionError(f"{name} was called"), monkeypatch)
    assert encoded_town.run() == MapReport(0, 820, 0, 0)
    assert files_of(encoded_town.path) == whole


def test_tiles_and_cells_without_imagery_are_marked_and_not_encoded(
    make: Callable, write_raster: Callable, pattern: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raster = write_raster(pattern(800, 270), (-400, -400, -130, 400), make(tmp_path).pyramid.crs)
    town = make(tmp_path, raster=raster)  # a third of the area and 3.3 m more, which is a cell
    sizes = count_encoded(town, monkeypatch)
    report = town.run()
    features = town.cache().read_map()
    columns = [[0], [0, 1], [0, 1, 2, 3], list(range(10)), list(range(28))]
    for level, status in enumerate(features.status):
        expected = np.full_like(status, NODATA)
        expected[:, columns[level]] = ENCODED
        np.testing.assert_array_equal(status, expected)
        if level < LEVELS:
            assert (np.isnan(features.embedding[level]).any(-1) == (status == NODATA)).all()
    assert report == MapReport(1 + 6 + 36 + 270, 0, 3 + 45 + 459, 0)
    assert sum(sizes) == report.encoded
    assert town.run() == MapReport(0, report.encoded, report.nodata, 0)


# Interrupted


def interruptions() -> list:
    def of(where: str, calls: int, error: BaseException) -> object:
        return pytest.param(where, calls, error, id=f"{type(error).__name__} in {where}")

    return [
        of("encode_tiles", 20, KeyboardInterrupt()),
        of("encode_tiles", 20, RuntimeError("out of memory")),
        of("to_storage", 20, EncoderError("not finite")),
        of("render", 40, ImageryError("a disk that died")),
    ]


@pytest.mark.parametrize(("where", "calls", "error"), interruptions())
def test_an_interrupted_encode_keeps_its_tiles_and_resumes_to_the_same_cache(
    town: Town, whole: dict, files_of: Callable, where: str, calls: int, error: BaseException
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(type(error)):
        fail_after(town.imagery if where == "render" else town.encoder, where, calls, error, patch)
        town.run(batch_size=16)
    kept = assert_sound(town.cache())
    assert 0 < kept < 820
    if where != "render":
        assert kept >= calls * 16 - 16, "all but the batch in flight"
    assert town.run() == MapReport(820 - kept, kept, 0, 0)
    assert files_of(town.path) == whole


@pytest.mark.parametrize(("every_s", "writes"), [(0.0, 0), (0.0, 1), (0.0, 2), (1e9, 1)])
def test_an_encode_killed_between_two_writes_of_a_chunk_resumes_to_the_same_cache(
    town: Town, whole: dict, files_of: Callable, monkeypatch: pytest.MonkeyPatch, every_s: float, writes: int
) -> None:
    array, count = FeatureCache.array, iter(range(writes))

    def killed(cache: FeatureCache, name: str):
        caller = sys._getframe(1).f_code.co_name
        if caller == "write_chunk" and name.startswith("map/3/") and next(count, None) is None:
            raise KeyboardInterrupt
        return array(cache, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FeatureCache, "array", killed)
        patch.setattr(chunk_writer, "WRITE_EVERY_S", every_s)
        town.run(batch_size=8)
    assert_sound(town.cache())
    town.run()
    assert files_of(town.path) == whole


KILLED = """
import os, signal, sys
from jzi.encode import encode_map as module
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.rasters.imagery import Imagery
from jzi.store.cache import chunk_writer
from jzi.store.cache.feature_cache import FeatureCache
chunk_writer.WRITE_EVERY_S = 0.0
cache = FeatureCache.open(sys.argv[1], "r+")
encoder = Encoder.load(sys.argv[2], image_size=14, device="cpu")
encoder.model.double()
encode, batches = encoder.encode_tiles, iter(range(30))
def killed(tiles):
    if next(batches, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(tiles)
encoder.encode_tiles = killed
module.encode_map(cache, encoder, Imagery([sys.argv[3]], cache.pyramid), batch_size=8)
"""


@pytest.mark.slow
def test_killed_encode_resumes_to_the_same_cache(
    town: Town, whole: dict, files_of: Callable, encoder_folder: Path, raster: Path
) -> None:
    town.cache()
    run_python(KILLED, town.path, encoder_folder, raster, code=-signal.SIGKILL)
    kept = assert_sound(town.cache())
    assert 0 < kept <= 30 * 8
    assert town.run() == MapReport(820 - kept, kept, 0, 0)
    assert files_of(town.path) == whole


# Damaged


def flip(chunk: Path) -> None:
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["garbled", "gone"])
@pytest.mark.parametrize(
    ("chunk", "tiles"),
    [
        ("map/3/embedding/c/1/2/0", 81),
        ("map/3/status/c/1/2", 81),
        ("map/0/embedding/c/0/0/0", 1),
        ("map/4/status/c/0/1", 0),
    ],
)
def test_a_damaged_chunk_is_encoded_again_and_no_other(
    encoded_town: Town, whole: dict, files_of: Callable, monkeypatch: pytest.MonkeyPatch, damage: Callable, chunk: str,
    tiles: int,
) -> None:  # fmt: skip
    damage(encoded_town.path / chunk)
    if damage is flip:
        with pytest.raises(CacheCorruptError):
            encoded_town.cache().read_map()
    sizes = count_encoded(encoded_town, monkeypatch)
    report = encoded_town.run()
    assert (report.encoded, report.reused) == (tiles, 820 - tiles)
    assert sum(sizes) == tiles
    assert report.damaged == (0 if damage is Path.unlink and "status" in chunk else tiles)
    assert files_of(encoded_town.path) == whole


# Several processes


@pytest.mark.parametrize("lost", [None, "map/0/status/c", "map/1/embedding/c/1/1", "map/3/status/c/2"], ids=str)
def test_two_processes_fill_one_cache_to_the_same_content(
    town: Town, undisturbed: Path, whole: dict, files_of: Callable, in_two_processes: Callable,
    monkeypatch: pytest.MonkeyPatch, lost: str | None,
) -> None:  # fmt: skip
    town.cache()
    if lost:
        shutil.copytree(undisturbed, town.path, dirs_exist_ok=True)
        shutil.rmtree(town.path / lost)
    sizes = count_encoded(town, monkeypatch)
    reports = in_two_processes(module, town.run)
    assert reports[0] == reports[1]
    assert sum(sizes) == reports[0].encoded, "no tile is encoded by both"
    assert reports[0].encoded + reports[0].reused == 820
    assert files_of(town.path) == whole
