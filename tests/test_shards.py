"""Shards of a map with many tiles: the same embeddings, one writer each, torn ones found and made anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jzi.encode.detail import encode_detail
from jzi.encode.encode_cells import index_cells
from jzi.encode.encode_map import MapReport, encode_map
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.rasters.detail_tiles import EncoderTokens
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import CacheError
from jzi.store.cache import chunk_writer, layout
from jzi.store.cache.cache_header import entries_of
from jzi.store.cache.chunk_writer import TileWriter
from jzi.store.cache.feature_cache import ENCODED, FeatureCache
from jzi.store.cache.maintenance import merge_caches
from jzi.store.cache.verify import verify_cache
from jzi.store.features.tile_features import TileFeatures
from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.tests.conftest import checkerboard, write_geotiff

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")

#: 341 tiles: 16 x 16 on the last level, in four shards of 8 x 8, of chunks of 4 x 4.
AREA = Pyramid.around(48.2, 16.37, 800.0, grid=2, levels=5)
TILES, SHARD = 341, 8


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 16 x 16 tiles were many."""
    for name, value in {"MAX_UNSHARDED": 100, "MIN_SHARD": 2 * 32 * SHARD**2, "MAX_CHUNK": 4}.items():
        monkeypatch.setattr(layout, name, value)


@pytest.fixture(scope="module")
def imagery(tmp_path_factory: pytest.TempPathFactory) -> Imagery:
    path = tmp_path_factory.mktemp("raster") / "map.tif"
    return Imagery([write_geotiff(path, checkerboard(200, 200), AREA.bounds, AREA.crs)], AREA)


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> Encoder:
    encoder = Encoder.load(encoder_folder, image_size=14, device="cpu")
    encoder.model.double()  # an embedding is to be the same in any batch
    return encoder


@pytest.fixture
def open_cache(encoder: Encoder, imagery: Imagery, tmp_path: Path) -> Callable[..., FeatureCache]:
    return lambda name="map.zarr": FeatureCache.open_or_create(tmp_path / name, AREA, encoder.info, imagery.info())


@pytest.fixture
def cache(small_shards: None, open_cache: Callable, encoder: Encoder, imagery: Imagery) -> FeatureCache:
    cache = open_cache()
    assert encode_map(cache, encoder, imagery) == MapReport(TILES, 0, 0, 0)
    return cache


def shard_files(cache: FeatureCache, name: str = "map/4/embedding") -> list[Path]:
    return sorted(path for path in Path(cache.path, name, "c").rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("grid", "levels", "width", "side"),
    [(4, 5, 768, None), (4, 6, 768, None), (4, 7, 768, 256), (4, 8, 768, 256), (2, 12, 1024, 256), (3, 9, 768, 243),
     (4, 9, 384, 256), (8, 5, 768, 512), (2, 12, 8192, 64)],
)  # fmt: skip
def test_shards_are_chosen_by_the_number_of_tiles_and_their_size(grid, levels, width, side) -> None:
    # Some are larger than `Pyramid` allows today
    pyramid: Any = SimpleNamespace(grid=grid, levels=levels, tiles_per_side=lambda level: grid**level)
    assert layout.shard_side(pyramid, width) == side
    if side:
        top = layout.block_level(pyramid, side)
        assert 40e6 < layout.shard_bytes(side, width) <= 1e9
        assert [layout.chunk_side(pyramid, level, side) for level in (top, top + 1)] == [1, grid]
        assert layout.chunk_side(pyramid, levels - 1, side) == side


def test_a_small_map_has_no_shards_and_the_header_that_it_had(open_cache: Callable) -> None:
    cache = open_cache()
    assert cache.header.shard is None and "shard" not in entries_of(cache.header)
    assert cache.array("map/4/embedding").shards is None


def test_a_map_in_shards_has_the_embeddings_of_one_in_chunks(
    open_cache: Callable, encoder: Encoder, imagery: Imagery, request: pytest.FixtureRequest
) -> None:
    plain = open_cache("plain.zarr")
    encode_map(plain, encoder, imagery)
    cache: FeatureCache = request.getfixturevalue("cache")
    array = cache.array("map/4/embedding")
    assert array.shards == (SHARD, SHARD, 32) and array.chunks == (4, 4, 32)
    assert len(shard_files(cache)) == 4 and cache.tiles.block_level == 1
    one, other = plain.read_map(), cache.read_map()
    for level in range(AREA.levels):
        np.testing.assert_array_equal(one.embedding[level], other.embedding[level])
    for one_status, other_status in zip(one.status, other.status, strict=True):
        np.testing.assert_array_equal(one_status, other_status)
    np.testing.assert_array_equal(cache.tiles.embedding(TileKey(4, 9, 3)), plain.tiles.embedding(TileKey(4, 9, 3)))
    np.testing.assert_array_equal(cache.tiles.children(TileKey(3, 2, 7)), plain.tiles.children(TileKey(3, 2, 7)))
    assert verify_cache(cache).sound and cache.to_xarray()["map/4/embedding"].shape == (16, 16, 32)


@pytest.mark.parametrize("caught", [True, False], ids=["interrupted", "killed"])
@pytest.mark.parametrize(("writes", "before_status"), [(0, False), (1, True), (2, False), (3, True)])
def test_an_encode_that_ends_in_the_write_of_a_shard_resumes_to_the_same_bytes(
    cache: FeatureCache, open_cache: Callable, encoder: Encoder, imagery: Imagery, files_of: Callable,
    writes: int, before_status: bool, caught: bool,
) -> None:  # fmt: skip
    whole = files_of(Path(cache.path))
    write, count = TileFeatures.write_chunk, iter(range(writes))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def write_chunk(self: TileFeatures, level: int, *rest) -> None:
            if level == 4 and next(count, None) is None:
                if before_status:
                    status = self.status(level)
                    write(self, level, *rest)
                    self._array("map/4/status")[:] = status
                raise KeyboardInterrupt
            write(self, level, *rest)

        patch.setattr(TileFeatures, "write_chunk", write_chunk)
        if not caught:
            patch.setattr(chunk_writer.ChunkWriter, "__exit__", lambda *_: None)
        encode_map(open_cache("again.zarr"), encoder, imagery, batch_size=8)
    again = open_cache("again.zarr")
    kept = sum(int((again.tiles.readable_status(level)[0] == ENCODED).sum()) for level in range(AREA.levels))
    assert kept < TILES
    assert encode_map(again, encoder, imagery).encoded == TILES - kept
    assert files_of(Path(again.path)) == whole


@pytest.mark.parametrize("left", [0, 3, 100, -1], ids=["nothing", "3 bytes", "100 bytes", "all but a byte"])
def test_a_torn_shard_is_found_and_made_anew(
    cache: FeatureCache, encoder: Encoder, imagery: Imagery, files_of: Callable, left: int
) -> None:
    whole, torn = files_of(Path(cache.path)), shard_files(cache)[2]
    torn.write_bytes(torn.read_bytes()[:left])
    report = verify_cache(cache)
    assert report.damaged == (("map/4/embedding [8, 0, 0]",) if left else ())  # an empty file holds no tile
    assert report.lost == ("64 tiles of level 4",)
    assert encode_map(cache, encoder, imagery) == MapReport(64, TILES - 64, 0, 64)
    assert files_of(Path(cache.path)) == whole


def test_of_a_shard_with_a_damaged_chunk_only_its_tiles_are_encoded_again(
    cache: FeatureCache, encoder: Encoder, imagery: Imagery, files_of: Callable
) -> None:
    whole, damaged = files_of(Path(cache.path)), shard_files(cache)[1]
    data = bytearray(damaged.read_bytes())
    data[50] ^= 1
    damaged.write_bytes(data)
    assert verify_cache(cache).damaged == ("map/4/embedding [0, 8, 0]",)
    assert encode_map(cache, encoder, imagery) == MapReport(16, TILES - 16, 0, 16)
    assert files_of(Path(cache.path)) == whole


def test_hardly_more_than_one_shard_is_in_memory(
    small_shards: None, open_cache: Callable, encoder: Encoder, imagery: Imagery, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk, counts = TileWriter._chunk, []

    def count(self: TileWriter, key: TileKey):
        result = chunk(self, key)
        counts.append(sum(each.level == 4 for each in self.chunks))
        return result

    monkeypatch.setattr(TileWriter, "_chunk", count)
    monkeypatch.setattr(chunk_writer, "WRITE_EVERY_S", 1e9)
    encode_map(open_cache(), encoder, imagery, batch_size=8)
    assert max(counts) <= 2


def test_merging_fills_a_shard_with_what_the_other_cache_has(
    cache: FeatureCache, open_cache: Callable, encoder: Encoder, imagery: Imagery, files_of: Callable
) -> None:
    target = open_cache("target.zarr")
    status, embedding = cache.tiles.read_chunk(4, 0, 0)
    status[2:] = 0
    assert embedding is not None
    embedding[2:] = np.nan
    target.tiles.write_chunk(4, 0, 0, status, embedding)
    merge_caches(FeatureCache.open(cache.path), target)
    assert files_of(Path(target.path)) == files_of(Path(cache.path))


def test_cells_and_detail_are_in_shards_too(
    cache: FeatureCache, encoder: Encoder, imagery: Imagery, files_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "MAX_CELL_CHUNK", 4)
    index_cells(cache, encoder, imagery, 2.0)
    encode_detail(cache, EncoderTokens(encoder), imagery, 28)
    assert cache.array("cells/embedding").shards == (16, 16, 32)
    assert cache.array("detail/tokens").shards[:2] == (16, 16) and len(shard_files(cache, "detail/tokens")) == 1
    assert verify_cache(cache).sound
    whole = files_of(Path(cache.path))
    for name in ("cells/embedding", "detail/tokens"):
        torn = shard_files(cache, name)[0]
        torn.write_bytes(torn.read_bytes()[:-9])
    assert len(verify_cache(cache).damaged) == 2
    assert index_cells(cache, encoder, imagery, 2.0).encoded == 256
    assert encode_detail(cache, EncoderTokens(encoder), imagery, 28).damaged == 256
    assert files_of(Path(cache.path)) == whole


@pytest.mark.parametrize("shard", [3, 16 * 2, 1, 10**9])
def test_a_header_with_shards_that_do_not_fit_is_refused(open_cache: Callable, shard: int) -> None:
    header = open_cache().header
    with pytest.raises(CacheError, match="do not fit"):
        replace(header, shard=shard)


def test_a_copied_cache_keeps_its_shards_when_the_sizes_of_new_ones_change(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cache.path, tmp_path / "copy.zarr")
    monkeypatch.setattr(layout, "MIN_SHARD", 10**6)
    monkeypatch.setattr(layout, "MAX_UNSHARDED", 2**20)
    assert verify_cache(FeatureCache.open(tmp_path / "copy.zarr")).sound
