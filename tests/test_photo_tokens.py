"""Tokens of photos: from the forward pass of the embedding, in even columns, kept up to date in the cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from jzi.encode.encode_queries import encode_queries
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.photo.photo_tokens import column_weights, encode_photos_and_tokens
from jzi.errors import CacheCorruptError, CacheError, ConfigError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.cache.maintenance import merge_caches
from jzi.store.cache.verify import verify_cache
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.photo_table import read_photo_table


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> Encoder:
    encoder = Encoder.load(encoder_folder, image_size=28, device="cpu")
    encoder.model.double()  # in float32 the last bit may depend on which photos share a batch
    return encoder


@pytest.fixture
def fill(encoder: Encoder, pyramid: Pyramid, photo_folder: Path) -> Callable:
    """Encode the photos of a folder into a cache."""

    def fill(path: Path, folder: Path = photo_folder, **options):
        cache = FeatureCache.open_or_create(path, pyramid, encoder.info)
        return encode_queries(cache, encoder, read_photo_table(folder), **{"tokens": True, **options})

    return fill


@pytest.fixture
def cache(tmp_path: Path, fill: Callable) -> FeatureCache:
    fill(tmp_path / "features.zarr")
    return FeatureCache.open(tmp_path / "features.zarr")


# The forward pass


def test_tokens_of_the_squares_lie_side_by_side(encoder) -> None:
    photos = np.random.default_rng(0).integers(0, 255, (2, 28, 56, 3), dtype=np.uint8)
    embedding, tokens = encode_photos_and_tokens(encoder, photos)
    assert tokens.shape == (2, 2, 4, 32)
    torch.testing.assert_close(embedding, encoder.encode_photos(photos))
    left, right = (encoder.encode_tiles_and_patches(np.ascontiguousarray(half))[1] for half in np.split(photos, 2, 2))
    torch.testing.assert_close(tokens[:, :, :2], left.unflatten(1, (2, 2)))
    torch.testing.assert_close(tokens[:, :, 2:], right.unflatten(1, (2, 2)))


@pytest.mark.parametrize(("size", "patch", "squares"), [(384, 14, 2), (31, 14, 2), (384, 14, 1), (28, 14, 2)])
def test_columns_are_equally_wide_over_the_gap_between_squares(size: int, patch: int, squares: int) -> None:
    side = size // patch
    weights = column_weights(size, patch, squares)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    centres = (np.arange(squares)[:, None] * size + (np.arange(side) + 0.5) * patch).ravel()
    even = (np.arange(side * squares) + 0.5) / (side * squares) * squares * size
    inside = (even >= centres[0]) & (even <= centres[-1])
    np.testing.assert_allclose((weights @ centres)[inside], even[inside], atol=1e-3)  # of a ramp
    if size % patch == 0:
        np.testing.assert_allclose(weights, np.eye(side * squares), atol=1e-6)


def test_the_whole_layout_has_the_tokens_of_one_square(encoder_folder) -> None:
    encoder = Encoder.load(encoder_folder, image_size=31, layout="whole", device="cpu")
    photos = np.random.default_rng(0).integers(0, 255, (1, 31, 31, 3), dtype=np.uint8)
    assert encode_photos_and_tokens(encoder, photos)[1].shape == (1, 2, 2, 32)


# The cache


def test_every_photo_has_tokens_and_the_columns_of_its_view(cache, encoder, photo_folder) -> None:
    frame, tokens = cache.queries.encoded(), cache.queries.tokens
    assert len(frame) == 30 and (tokens.status()[frame.index] == 1).all()
    assert (tokens.info.rows, tokens.info.cols, tokens.info.width) == (2, 4, 32)
    values = tokens.read(frame.index)
    assert values.shape == (30, 2, 4, 32) and values.dtype == np.int8 and np.abs(values.astype(int)).max() == 127
    np.testing.assert_allclose(frame["heading_deg"], frame["heading"], atol=1e-6)
    assert frame["hfov_deg"].isna().all() and (frame["panorama"] == 0).all()


def test_tokens_that_are_asked_for_later_leave_embeddings_and_views_alone(tmp_path, fill, files_of, cache) -> None:
    path = tmp_path / "later.zarr"
    fill(path, tokens=False, views=1)
    assert not FeatureCache.open(path).queries.has_tokens
    before = FeatureCache.open(path).queries.embedding(np.arange(30), 1)
    report = fill(path, views=0)
    assert (report.encoded, report.reused, report.tokens) == (0, 30, 30)
    queries = FeatureCache.open(path).queries
    np.testing.assert_array_equal(queries.embedding(np.arange(30), 1), before)
    np.testing.assert_array_equal(queries.tokens.read(np.arange(30)), cache.queries.tokens.read(np.arange(30)))


def test_a_second_run_encodes_nothing(cache, fill, files_of, monkeypatch, tmp_path) -> None:
    before = files_of(tmp_path / "features.zarr")
    monkeypatch.setattr("jzi.encode.encode_queries.encode_photos_and_tokens", None)
    report = fill(tmp_path / "features.zarr")
    assert (report.encoded, report.tokens) == (0, 0) and report.tokens_bytes > 0
    assert files_of(tmp_path / "features.zarr") == before


def test_tokens_of_a_photo_that_changed_are_not_kept(cache, fill, tmp_path, photo_folder, take_photo) -> None:
    path, row = tmp_path / "features.zarr", 3
    frame = cache.queries.frame()
    name = frame["path"][row]
    old = cache.queries.tokens.read([row])
    take_photo(photo_folder / name, frame["latitude"][row], frame["longitude"][row], 5.0, seed=99)
    fill(path, tokens=False)
    tokens = FeatureCache.open(path).queries.tokens
    assert tokens.status()[row] == 0 and tokens.status().sum() == 29
    with pytest.raises(CacheError, match="lacks the tokens of 1 photos: run `jzi encode-queries --tokens`"):
        tokens.read([row])
    assert fill(path).tokens == 1
    assert (FeatureCache.open(path).queries.tokens.read([row]) != old).any()


def test_new_photos_get_tokens_of_the_same_projection(cache, fill, tmp_path, photo_folder, take_photo) -> None:
    path = tmp_path / "features.zarr"
    digest = cache.queries.tokens.info.projection
    take_photo(photo_folder / "new.jpg", *map(float, cache.queries.frame()[["latitude", "longitude"]].iloc[0]), seed=50)
    assert fill(path).tokens == 1
    tokens = FeatureCache.open(path).queries.tokens
    assert tokens.info.projection == digest and tokens.status().tolist() == [1] * 31


def flip(chunk: Path) -> None:
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["garbled", "gone"])
def test_damaged_tokens_are_found_and_made_again(cache, fill, tmp_path, files_of, damage) -> None:
    path = tmp_path / "features.zarr"
    whole = files_of(path)
    damage(path / "queries/tokens/c/4/0/0/0")
    with pytest.raises(CacheCorruptError, match="encode-queries --tokens"):
        cache.queries.tokens.read([4])
    assert verify_cache(FeatureCache.open(path)).lost == ("tokens of 1 photos",)
    report = fill(path)
    assert (report.encoded, report.tokens, report.tokens_damaged) == (0, 1, 1) and files_of(path) == whole


@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["garbled", "gone"])
@pytest.mark.parametrize("chunk", ["mean/c/0", "basis/c/0/0", "scale/c/0"])
def test_a_damaged_projection_is_fitted_again(cache, fill, tmp_path, files_of, damage, chunk) -> None:
    path = tmp_path / "features.zarr"
    whole = files_of(path)
    damage(path / f"queries/tokens_{chunk}")
    with pytest.raises(CacheCorruptError, match="encode-queries --tokens"):
        _ = FeatureCache.open(path).queries.tokens.projection
    assert "queries/tokens (its projection)" in verify_cache(FeatureCache.open(path)).damaged
    report = fill(path)
    assert (report.encoded, report.tokens, report.tokens_damaged) == (0, 0, 0) and files_of(path) == whole


def test_tokens_are_made_anew_where_a_damaged_projection_cannot_be(cache, fill, tmp_path, photo_folder) -> None:
    path, before = tmp_path / "features.zarr", cache.queries.tokens.info.projection
    flip(path / "queries/tokens_basis/c/0/0")
    (photo_folder / "day0" / "000.jpg").unlink()  # of those that it was fitted to
    report = fill(path)
    assert (report.encoded, report.tokens, report.tokens_damaged) == (0, 29, 30)
    tokens = FeatureCache.open(path).queries.tokens
    assert tokens.info.projection == tokens.projection.digest != before
    assert not verify_cache(FeatureCache.open(path)).damaged


def test_a_killed_run_resumes_to_the_same_bytes(cache, fill, tmp_path, files_of, monkeypatch) -> None:
    from jzi.store.features.photo_tokens import PhotoTokens

    path, write = tmp_path / "killed.zarr", PhotoTokens.write

    def killed(self, rows, tokens) -> None:
        write(self, rows[:2], tokens[:2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PhotoTokens, "write", killed)
        fill(path, batch_size=4)
    assert FeatureCache.open(path).queries.tokens.status().sum() == 0
    fill(path, batch_size=4)
    assert files_of(path) == files_of(tmp_path / "features.zarr")


def test_columns_of_a_table_do_not_take_the_place_of_tokens(tmp_path, fill, photo_folder) -> None:
    source = read_photo_table(photo_folder).frame[["path", "latitude", "longitude"]].assign(tokens="many", hfov=90)
    source.to_csv(photo_folder / "table.csv", index=False)
    path = tmp_path / "table.zarr"
    fill(path, photo_folder / "table.csv", tokens=False)
    assert "tokens" not in FeatureCache.open(path).queries.frame()
    assert fill(path, photo_folder / "table.csv").tokens == 30
    assert (FeatureCache.open(path).queries.frame()["hfov_deg"] == 90).all()


def test_tokens_are_merged_with_the_photos(cache, fill, tmp_path, photo_folder) -> None:
    half = tmp_path / "half.zarr"
    shutil.copytree(cache.path, half)
    target = FeatureCache.open(half, "r+")
    for row in (1, 7):
        target.queries.tokens.mark(np.array([row]), 0)
    report = merge_caches(FeatureCache.open(cache.path), target)
    assert (report.photos, report.tokens) == (0, 2)
    np.testing.assert_array_equal(target.queries.tokens.read(np.arange(30)), cache.queries.tokens.read(np.arange(30)))
    other = tmp_path / "other.zarr"
    fill(other, tokens=False)
    assert merge_caches(FeatureCache.open(cache.path), FeatureCache.open(other, "r+")).tokens == 30
    assert verify_cache(FeatureCache.open(other)).lost == ()


def test_an_encoder_of_photos_alone_has_none(tmp_path, encoder, pyramid, photo_folder) -> None:
    class Tower:
        info = encoder.info

    cache = FeatureCache.create(tmp_path / "tower.zarr", pyramid, encoder.info)
    with pytest.raises(ConfigError, match="leave --tokens out"):
        encode_queries(cache, Tower(), read_photo_table(photo_folder), tokens=True)


# The commands


@pytest.mark.slow
def test_from_the_commands_to_listing_verifying_and_merging(area, tmp_path) -> None:
    estimate = json.loads(area("encode-map --detail --dry-run --json").stdout)
    assert estimate["tiles"] == 256 and estimate["bytes"] == 256 * 64 * 32
    assert "go with --detail" in area("encode-map --dry-run", 2).stderr
    report = json.loads(area("encode-map --detail --json").stdout)["detail"]
    assert (report["encoded"], report["tokens"], report["width"]) == (256, 8, 32)
    assert "tokens of 30 photos written" in area("encode-queries --tokens").stdout
    facts = json.loads(area("info features.zarr --json").stdout)
    assert facts["detail"]["encoded"] == 256 and facts["photo_tokens"] == "4 x 8 tokens of 32 features"
    (listed,) = map(json.loads, area("cache ls --json").stdout.splitlines())
    assert listed["detail"] == 256 and listed["missing_detail"] == 0 and listed["complete"]
    assert "sound" in area("cache verify features.zarr").stdout
    shutil.rmtree("features.zarr/detail/tokens/c/3")
    assert "`jzi encode-map --detail`" in area("cache verify features.zarr", 1).stdout
    assert json.loads(area("encode-map --detail --json").stdout)["detail"]["encoded"] == 16
    area("encode-map --set cache.path=plain.zarr")
    merged = json.loads(area("cache merge features.zarr plain.zarr --json").stdout)
    assert (merged["detail"], merged["tokens"]) == (256, 30)
    assert "map.detail_px" in area("encode-map --detail --set map.detail_px=27", 2).stderr
