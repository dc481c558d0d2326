"""Claims about the feature cache on disk."""

from __future__ import annotations

import errno
import functools
import http.server
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray
import zarr
from pyproj import CRS

from jzi.errors import CacheCorruptError, CacheError, CacheMismatchError
from jzi.store.cache.feature_cache import ENCODED, MISSING, NODATA, FeatureCache
from jzi.store.disk import object_store
from jzi.store.features.map_embeddings import MapEmbeddings
from jzi.store.features.photo_features import PhotoFeatures
from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.store.info import EncoderInfo, ImageryInfo

IMAGERY = ImageryInfo("f" * 64, (("map.tif", 10, 20, "a" * 64),), "bands [1, 2, 3] as RGB")
HOLE = TileKey(2, 5, 6)  # the one tile without imagery


def write_everything(cache: FeatureCache) -> list[np.ndarray]:
    """Random embeddings in every chunk and nodata at HOLE; returns what each level now holds."""
    rng = np.random.default_rng(0)
    levels = []
    for level in range(cache.pyramid.levels + 1):
        n, side = cache.pyramid.tiles_per_side(level), cache.tiles.chunk_side(level)
        status = np.full((n, n), ENCODED, np.uint8)
        embedding = rng.normal(size=(n, n, cache.encoder.width)).astype(np.float16)
        if level == HOLE.level and n > HOLE.col:
            status[HOLE[1:]], embedding[HOLE[1:]] = NODATA, np.nan
        for row in range(0, n, side):
            for col in range(0, n, side):
                window = slice(row, row + side), slice(col, col + side)
                features = embedding[window] if level < cache.pyramid.levels else None
                cache.tiles.write_chunk(level, row, col, status[window], features)
        levels.append(embedding)
    return levels[:-1]


def write_photos(cache: FeatureCache, n: int = 3) -> np.ndarray:
    columns = {"latitude": 48.2, "longitude": 16.37, "split": "train", "photo": "", "path": "a.jpg", "weather": "dry"}
    rows = cache.queries.list_photos(pd.DataFrame({"id": [f"photo{i}" for i in range(n)], **columns}))
    embedding = np.random.default_rng(1).normal(size=(n, cache.encoder.width)).astype(np.float16)
    cache.queries.write(rows, {"status": np.ones(n), "photo_sha256": np.full(n, "0" * 64, object)}, embedding)
    return embedding


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "town.zarr"


@pytest.fixture
def cache(path: Path, pyramid: Pyramid, info: EncoderInfo) -> FeatureCache:
    return FeatureCache.create(path, pyramid, info, IMAGERY)


@pytest.fixture
def levels(cache: FeatureCache) -> list[np.ndarray]:
    return write_everything(cache)


# Open, resume, reuse, refuse


def test_an_opened_cache_says_what_it_was_created_for(cache: FeatureCache, path: Path, info: EncoderInfo) -> None:
    again = FeatureCache.open(path)
    assert (again.pyramid, again.encoder, again.imagery) == (cache.pyramid, info, IMAGERY)


def test_a_cache_that_matches_is_reused_with_every_byte(
    path: Path, levels: list[np.ndarray], pyramid: Pyramid, info: EncoderInfo, files_of: Callable
) -> None:
    before = files_of(path)
    renamed = replace(info, name="elsewhere/tiny")  # the fingerprint counts, not where the encoder lies
    again = FeatureCache.open_or_create(path, pyramid, renamed, IMAGERY)
    np.testing.assert_array_equal(again.tiles.level(2), levels[2])
    assert files_of(path) == before


@pytest.mark.parametrize("other", ["encoder", "pyramid", "imagery"])
def test_a_cache_of_another_kind_is_refused_in_one_sentence_and_left_alone(
    cache: FeatureCache, path: Path, pyramid: Pyramid, info: EncoderInfo, files_of: Callable, other: str
) -> None:
    given = {"pyramid": pyramid, "encoder": info, "imagery": IMAGERY}  # in the order of the arguments
    given[other] = {
        "encoder": replace(info, fingerprint="0" * 64),
        "pyramid": replace(pyramid, north=401.0),
        "imagery": replace(IMAGERY, fingerprint="0" * 64),
    }[other]
    before = files_of(path)
    with pytest.raises(CacheMismatchError, match=other) as error:
        FeatureCache.open_or_create(path, *given.values())
    assert "\n" not in str(error.value)
    assert "cache.path" in str(error.value), "it says how to mend it"
    assert files_of(path) == before


def test_who_only_writes_photos_is_not_asked_for_imagery(cache: FeatureCache, path: Path) -> None:
    FeatureCache.open_or_create(path, cache.pyramid, cache.encoder)
    assert FeatureCache.open(path).imagery == IMAGERY


def test_the_first_who_writes_the_map_sets_the_imagery(path: Path, pyramid: Pyramid, info: EncoderInfo) -> None:
    FeatureCache.create(path, pyramid, info)
    assert FeatureCache.open_or_create(path, pyramid, info, IMAGERY).imagery == IMAGERY
    assert FeatureCache.open(path).imagery == IMAGERY


def test_nothing_is_created_over_what_is_there(cache: FeatureCache, path: Path, files_of: Callable) -> None:
    before = files_of(path)
    with pytest.raises(CacheError, match="exists already"):
        FeatureCache.create(path, cache.pyramid, cache.encoder)
    assert files_of(path) == before


def test_a_cache_of_another_format_is_refused(cache: FeatureCache, path: Path) -> None:
    meta = json.loads((path / "zarr.json").read_text())
    meta["attributes"]["jzi"]["format"] = 99
    (path / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(CacheError, match="cache format 99"):
        FeatureCache.open(path)


def make_nothing(path: Path) -> None: ...
def make_folder(path: Path) -> None: path.mkdir()  # fmt: skip


def make_file(path: Path) -> None: path.write_text("hello")  # fmt: skip


def make_junk(path: Path) -> None: make_folder(path), (path / "zarr.json").write_text('{"zarr')  # fmt: skip


def make_group(path: Path) -> None: zarr.create_group(path)  # fmt: skip


def make_array(path: Path) -> None: zarr.create_array(path, shape=(2,), dtype="uint8")  # fmt: skip


@pytest.mark.parametrize("make", [make_nothing, make_folder, make_file, make_junk, make_group, make_array])
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_what_is_no_cache_is_refused_in_one_sentence(path: Path, make: Callable, mode: str) -> None:
    make(path)
    with pytest.raises(CacheError) as error:
        FeatureCache.open(path, mode)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cache_whose_making_was_interrupted_becomes_whole(
    path: Path, pyramid: Pyramid, info: EncoderInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(queries: PhotoFeatures) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PhotoFeatures, "write_layout", killed)
        FeatureCache.create(path, pyramid, info, IMAGERY)
    cache = FeatureCache.open_or_create(path, pyramid, info, IMAGERY)
    write_everything(cache)
    write_photos(cache)
    assert FeatureCache.open(path).read_map().pyramid == pyramid


def test_a_cache_opened_for_reading_cannot_be_written(cache: FeatureCache, path: Path, files_of: Callable) -> None:
    before = files_of(path)
    with pytest.raises(CacheError):
        write_everything(FeatureCache.open(path))
    assert files_of(path) == before


# Looking up


def test_look_ups_by_key_give_what_was_written(cache: FeatureCache, levels: list[np.ndarray]) -> None:
    for level, expected in enumerate(levels):
        np.testing.assert_array_equal(cache.tiles.level(level), expected)
        row, col = expected.shape[0] - 1, expected.shape[0] // 2
        np.testing.assert_array_equal(cache.tiles.embedding(TileKey(level, row, col)), expected[row, col])


def test_children_come_in_the_order_of_the_actions(cache: FeatureCache, levels: list[np.ndarray]) -> None:
    for key in (TileKey(0, 0, 0), TileKey(1, 3, 1)):
        expected = [levels[child.level][child.row, child.col] for child in cache.pyramid.children(key)]
        np.testing.assert_array_equal(cache.tiles.children(key), expected)


def test_the_map_in_memory_survives_its_file(cache: FeatureCache, levels: list[np.ndarray], tmp_path: Path) -> None:
    features = cache.read_map()
    features.save(tmp_path / "map.safetensors")
    again = MapEmbeddings.load(tmp_path / "map.safetensors", cache.pyramid, cache.encoder.width)
    assert again.width == cache.encoder.width
    for level, expected in enumerate(levels):
        np.testing.assert_array_equal(again.embedding[level], expected)
    assert [int((status == NODATA).sum()) for status in again.status] == [0, 0, 1, 0]


def test_an_incomplete_map_is_not_read_whole(cache: FeatureCache, levels: list[np.ndarray]) -> None:
    status, embedding = cache.tiles.read_chunk(2, 0, 0)
    status[1, 2] = MISSING
    cache.tiles.write_chunk(2, 0, 0, status, embedding)
    with pytest.raises(CacheError, match=r"lacks 1 of 273 tiles: run `jzi encode-map`"):
        cache.read_map()


def test_only_whole_chunks_are_written(cache: FeatureCache) -> None:
    with pytest.raises(CacheError, match="whole chunks"):
        cache.tiles.write_chunk(2, 0, 0, np.ones((1, 1), np.uint8), np.ones((1, 1, 8), np.float16))
    with pytest.raises(CacheError, match="whole chunks"):
        cache.tiles.write_chunk(3, 1, 0, np.ones((64, 64), np.uint8), None)


# Damage


def flip(chunk: Path) -> None:
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 0x10
    chunk.write_bytes(data)


def flip_checksum(chunk: Path) -> None:
    data = chunk.read_bytes()
    chunk.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def cut_half(chunk: Path) -> None:
    chunk.write_bytes(chunk.read_bytes()[: chunk.stat().st_size // 2])


def cut_all(chunk: Path) -> None:
    chunk.write_bytes(b"")


DAMAGE = pytest.mark.parametrize("damage", [flip, cut_half, Path.unlink])
GARBLE = pytest.mark.parametrize("damage", [flip, flip_checksum, cut_half, cut_all])


@GARBLE
def test_a_garbled_chunk_is_refused_wherever_it_is_read(
    cache: FeatureCache, levels: list[np.ndarray], path: Path, damage: Callable
) -> None:
    damage(path / "map/1/embedding/c/0/0/0")
    for read in (
        lambda: cache.tiles.level(1),
        lambda: cache.tiles.embedding(TileKey(1, 0, 0)),
        lambda: cache.tiles.children(TileKey(0, 0, 0)),
        cache.read_map,
    ):
        with pytest.raises(CacheCorruptError, match="map/1/embedding") as error:
            read()
        assert "\n" not in str(error.value)
    np.testing.assert_array_equal(cache.tiles.level(2), levels[2])  # and only there


@GARBLE
def test_a_garbled_status_is_refused(cache: FeatureCache, levels: list, path: Path, damage: Callable) -> None:
    damage(path / "map/2/status/c/0/0")
    for read in (lambda: cache.tiles.status(2), cache.read_map):
        with pytest.raises(CacheCorruptError, match="map/2/status"):
            read()


def test_a_chunk_that_is_gone_is_not_read_as_a_map(cache: FeatureCache, levels: list, path: Path) -> None:
    (path / "map/1/embedding/c/0/0/0").unlink()
    with pytest.raises(CacheCorruptError, match=r"map/1/embedding \(a chunk is gone\)"):
        cache.read_map()
    assert np.isnan(cache.tiles.embedding(TileKey(1, 0, 0))).all(), "it never reads as zeros"


@DAMAGE
def test_damaged_tiles_count_as_missing_and_the_others_as_they_are(
    path: Path, info: EncoderInfo, damage: Callable
) -> None:
    cache = FeatureCache.create(path, Pyramid.around(0, 0, 800, grid=2, levels=6), info, IMAGERY)
    write_everything(cache)
    side = cache.tiles.chunk_side(5)
    assert side * 2 == cache.pyramid.tiles_per_side(5), "there are four chunks"
    damage(path / "map/5/embedding/c/0/1/0")
    status, lost = cache.tiles.readable_status(5)
    assert lost == side**2
    assert (status[:side, side:] == MISSING).all()
    assert (status == ENCODED).sum() == 3 * side**2
    assert (cache.tiles.read_chunk(5, 0, side)[0] == MISSING).all()
    assert (cache.tiles.read_chunk(5, side, side)[0] == ENCODED).all()


@DAMAGE
def test_tiles_whose_status_is_damaged_count_as_missing(
    cache: FeatureCache, levels: list, path: Path, damage: Callable
) -> None:
    damage(path / "map/2/status/c/0/0")
    assert (cache.tiles.readable_status(2)[0] == MISSING).all()


@DAMAGE
def test_damaged_photos_are_found_and_never_given(cache: FeatureCache, path: Path, damage: Callable) -> None:
    write_photos(cache)
    damage(path / "queries/embedding/c/0/0/0")
    assert cache.queries.damaged_rows().tolist() == [0, 1, 2]
    with pytest.raises(CacheCorruptError, match="queries/embedding"):
        cache.queries.embedding([1])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_is_damage(cache: FeatureCache, levels: list, path: Path, value: float) -> None:
    write_photos(cache)
    group = zarr.open_group(str(path), mode="r+", use_consolidated=False)
    for name, at in (("map/1/embedding", (0, 1, 3)), ("queries/embedding", (1, 0, 3))):
        group[name][at] = value
    assert cache.queries.damaged_rows().tolist() == [1]
    with pytest.raises(CacheCorruptError, match=r"queries/embedding \(an embedding is not finite\): run"):
        cache.queries.embedding([0, 1])
    assert np.isfinite(cache.queries.embedding([0, 2])).all()
    with pytest.raises(CacheCorruptError, match=r"map/1/embedding \(an embedding is not finite\)"):
        cache.read_map()
    assert cache.tiles.readable_status(1)[1] == 1


@pytest.mark.parametrize("array", ["map/1/embedding", "map/2/status", "queries/id"])
def test_garbled_metadata_is_one_sentence_and_rewritten_by_who_writes(
    cache: FeatureCache, levels: list, path: Path, array: str
) -> None:
    embedding = write_photos(cache)
    cut_half(path / array / "zarr.json")

    def use() -> FeatureCache:
        opened = FeatureCache.open(path)
        np.testing.assert_array_equal(opened.read_map().embedding[2], levels[2])
        assert opened.queries.frame()["id"].tolist() == ["photo0", "photo1", "photo2"]
        return opened

    with pytest.raises(CacheError, match=f"damaged metadata, {array}/zarr.json") as error:
        use()
    assert "\n" not in str(error.value)
    FeatureCache.open(path, "r+")
    np.testing.assert_array_equal(use().queries.embedding([0, 1, 2])[:, 0], embedding)


def test_a_full_disk_is_an_error_that_says_so_and_keeps_what_was_written(
    cache: FeatureCache, levels: list[np.ndarray], path: Path, monkeypatch: pytest.MonkeyPatch, info: EncoderInfo
) -> None:
    async def full(self: object, *args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(zarr.storage.LocalStore, "set", full)
        for write in (
            lambda: write_everything(cache),
            lambda: write_photos(cache),
            lambda: FeatureCache.create(path.with_name("other.zarr"), cache.pyramid, info),
        ):
            with pytest.raises(CacheError, match="disk is full") as error:
                write()
            assert "\n" not in str(error.value)
    np.testing.assert_array_equal(cache.read_map().embedding[2], levels[2])


# The layout that other tools see


def arrays_of(path: Path) -> Iterator[tuple[str, dict]]:
    for file in path.rglob("zarr.json"):
        meta = json.loads(file.read_text())
        if meta["node_type"] == "array":
            yield file.parent.relative_to(path).as_posix(), meta


def test_every_chunk_of_every_array_carries_a_checksum_over_its_bytes_on_disk(cache: FeatureCache, path: Path) -> None:
    write_photos(cache)
    arrays = dict(arrays_of(path))
    assert {"map/0/embedding", "map/3/status", "map/3/x", "queries/embedding", "queries/weather"} <= set(arrays)
    for name, meta in arrays.items():
        assert meta["codecs"][-1]["name"] == "crc32c", name


def test_arrays_name_their_dimensions(cache: FeatureCache, path: Path) -> None:
    names = {name: tuple(meta.get("dimension_names", ())) for name, meta in arrays_of(path)}
    assert names["map/1/embedding"] == ("row", "col", "feature")
    assert names["map/3/status"] == ("row", "col")
    assert "map/3/embedding" not in names, "terminal cells have no embedding"
    assert names["queries/embedding"] == ("query", "view", "feature")
    assert names["queries/latitude"] == ("query",)


@pytest.mark.parametrize(
    ("grid", "levels"), [(2, 1), (2, 5), (2, 7), (3, 3), (3, 5), (4, 1), (4, 2), (4, 5), (5, 3), (16, 3)]
)
def test_disjoint_subtrees_never_share_a_chunk(path: Path, info: EncoderInfo, grid: int, levels: int) -> None:
    cache = FeatureCache.create(path, Pyramid.around(0, 0, 1000, grid=grid, levels=levels), info)
    top = cache.tiles.block_level
    blocks = cache.pyramid.tiles_per_side(top)
    for level in range(levels + 1):
        n, side = cache.pyramid.tiles_per_side(level), cache.tiles.chunk_side(level)
        assert n % side == 0, "chunks fill the level"
        assert side <= 16 or level == levels
        if level >= top:  # every chunk lies in one block
            assert n // blocks == side


def test_chunks_of_embeddings_are_as_the_layout_says(cache: FeatureCache, path: Path) -> None:
    for name, meta in arrays_of(path):
        if name.endswith("embedding") and name.startswith("map"):
            level = int(name.split("/")[1])
            chunk = meta["chunk_grid"]["configuration"]["chunk_shape"]
            assert chunk == [cache.tiles.chunk_side(level)] * 2 + [8]
            assert max(chunk[:2]) <= 16


def test_xarray_opens_a_labelled_tree_without_a_warning(path: Path, pyramid: Pyramid, info: EncoderInfo) -> None:
    FeatureCache.create(path, pyramid, info)
    cache = FeatureCache.open_or_create(path, pyramid, info, IMAGERY)  # as photos first, then the map
    levels = write_everything(cache)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xarray.open_datatree(path, engine="zarr")
    level = tree["map/2"]
    assert level["embedding"].dims == ("row", "col", "feature")
    x, y = pyramid.tile_centers(2, np.arange(16), np.arange(16))
    np.testing.assert_array_equal(level.coords["x"], x)
    np.testing.assert_array_equal(level.coords["y"], y)
    assert (level.coords["x"].dims, level.coords["y"].dims) == (("col",), ("row",))
    assert CRS.from_cf(level.coords["spatial_ref"].attrs).equals(CRS(pyramid.crs))
    north_west = level["embedding"].isel(row=0, col=0)
    np.testing.assert_array_equal(north_west, levels[2][0, 0])
    assert (float(north_west.x), float(north_west.y)) == (-375.0, 375.0)


def test_a_cache_shows_itself_as_xarray(cache: FeatureCache, levels: list[np.ndarray]) -> None:
    embedding = write_photos(cache)
    tree = cache.to_xarray()
    np.testing.assert_array_equal(tree["map/1"]["embedding"], levels[1])
    photos = tree["queries"]
    np.testing.assert_array_equal(photos["embedding"][:, 0], embedding)
    assert photos["weather"].values.tolist() == ["dry"] * 3
    assert photos["latitude"].dims == ("query",)


# Elsewhere than on the disk


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """A URL under which the test's folder is served."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_cache_is_read_over_http(cache: FeatureCache, levels: list[np.ndarray], path: Path, served: str) -> None:
    pytest.importorskip("obstore")
    embedding = write_photos(cache)
    remote = FeatureCache.open(f"{served}/town.zarr")
    assert remote.encoder == cache.encoder
    np.testing.assert_array_equal(remote.tiles.embedding(TileKey(2, 3, 4)), levels[2][3, 4])
    np.testing.assert_array_equal(remote.read_map().embedding[1], levels[1])
    np.testing.assert_array_equal(remote.queries.embedding([1])[:, 0], embedding[[1]])
    with pytest.raises(CacheError, match="there is no feature cache"):
        FeatureCache.open(f"{served}/other.zarr")
    flip(path / "map/2/embedding/c/0/0/0")
    with pytest.raises(CacheCorruptError):
        remote.tiles.level(2)


def test_a_cache_on_a_web_server_cannot_be_written_and_says_so(cache: FeatureCache, served: str) -> None:
    pytest.importorskip("obstore")
    with pytest.raises(CacheError, match="on a web server, which can only be read"):
        write_everything(FeatureCache.open(f"{served}/town.zarr", "r+"))


def test_a_server_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    monkeypatch.setattr(object_store, "OPEN_RETRY_S", 0.2)
    with pytest.raises(CacheError, match=r"127\.0\.0\.1") as error:
        FeatureCache.open("http://127.0.0.1:9/town.zarr")
    assert "\n" not in str(error.value)


def test_a_url_without_the_package_for_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(CacheError, match=r"pip install 'jzi\[remote\]'"):
        FeatureCache.open("s3://bucket/town.zarr")


def test_opening_for_writing_removes_what_a_killed_writer_left(cache: FeatureCache, path: Path) -> None:
    cache.close()
    names = [f"map/1/embedding/c/0/0/0.{'0f' * 16}.partial", f"queries/zarr.{'ab' * 16}.partial"]
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"half")
    FeatureCache.open(path)
    assert all((path / name).exists() for name in names)
    FeatureCache.open(path, "r+").close()
    assert not any((path / name).exists() for name in names)
