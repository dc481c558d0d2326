"""Tokens of tiles at a high resolution: encoded once, resumable to the same bytes, read at the right metres."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from jzi.encode import detail as module
from jzi.encode.detail import DetailReport, encode_detail, estimate_detail
from jzi.encode.encode_map import encode_map
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.rasters.detail_tiles import DetailTiles, EncoderTokens, detail_pixels
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import CacheCorruptError, CacheError, CacheMismatchError, ConfigError
from jzi.refine.config import TrunkConfig
from jzi.refine.networks.trunks import AerialTrunk
from jzi.refine.windows.tokens import WindowTokens, tokens_fingerprint
from jzi.refine.windows.window import Windows
from jzi.store.cache.documents import Documents
from jzi.store.cache.feature_cache import ENCODED, FeatureCache
from jzi.store.cache.verify import verify_cache
from jzi.store.features.detail_features import DetailFeatures
from jzi.store.features.map_embeddings import MISSING, NODATA
from jzi.store.features.projection import ABSENT, Projection
from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.store.info import EncoderInfo
from jzi.tests.children import run_python
from jzi.tests.conftest import write_geotiff

# from rasterio itself
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")

#: 8 x 8 tiles of 25 m on the last level, in units of 4 x 4, of 28 x 28 pixels for 4 tokens of 7 pixels.
GRID, LEVELS, SIZE, PATCH, PIXELS = 2, 4, 200.0, 7, 28


class MeanColour:
    """A `TokenProducer` whose tokens are the mean colours of their pixels."""

    kind = "encoder"
    fingerprint = "c" * 64
    patch, width, margin = PATCH, 3, 0
    device = torch.device("cpu")

    def tokens(self, images: np.ndarray) -> Tensor:
        n, side = len(images), images.shape[1] // PATCH
        return torch.from_numpy(images).double().reshape(n, side, PATCH, side, PATCH, 3).mean((2, 4)).float()


class TrunkTokens:
    """A `TokenProducer` that sees its surroundings."""

    kind = "refiner"
    fingerprint = "d" * 64
    device = torch.device("cpu")

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = TrunkConfig(widths=(4, 8), depths=(1, 1), kernel=3, features=6)
        self.trunk = AerialTrunk(config).eval()
        self.patch, self.width, self.margin = config.stride, config.features, config.margin

    def tokens(self, images: np.ndarray, margin: int | None = None) -> Tensor:
        with torch.inference_mode():
            pixels = torch.from_numpy(images).float().permute(0, 3, 1, 2) / 255 - 0.5
            return self.trunk(pixels, self.margin if margin is None else margin)


@pytest.fixture(scope="module")
def pyramid() -> Pyramid:
    return Pyramid.around(48.2, 16.37, SIZE, grid=GRID, levels=LEVELS)


@pytest.fixture(scope="module")
def raster() -> np.ndarray:
    """(row, col, 3) at 0.5 m a pixel: every place has a colour of its own, linear in x and y."""
    y, x = np.mgrid[0:400, 0:400] / 400
    return np.stack([40 + 170 * x, 40 + 170 * y, 200 - 80 * x - 80 * y], -1).round().astype(np.uint8)


@pytest.fixture(scope="module")
def imagery(tmp_path_factory: pytest.TempPathFactory, pyramid: Pyramid, raster: np.ndarray) -> Imagery:
    """The south-eastern 50 m have none: four tiles, and a strip of others."""
    alpha = np.full((1, 400, 400), 255, np.uint8)
    alpha[0, 290:, 290:] = 0
    data = np.concatenate([np.moveaxis(raster, -1, 0), alpha])
    path = tmp_path_factory.mktemp("imagery") / "map.tif"
    return Imagery([write_geotiff(path, data, pyramid.bounds, pyramid.crs, photometric="RGB", alpha="YES")], pyramid)


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> Encoder:
    return Encoder.load(encoder_folder, image_size=28, device="cpu")


@pytest.fixture(scope="module")
def fill(imagery: Imagery, encoder: Encoder) -> Callable[..., DetailReport]:
    """Encode the tokens of the map into a cache, without the map's embeddings."""

    def fill(path: Path, producer=None, **options) -> DetailReport:
        cache = FeatureCache.open_or_create(path, imagery.pyramid, encoder.info, imagery.info())
        producer = producer or MeanColour()
        return encode_detail(cache, producer, imagery, PIXELS // producer.patch * producer.patch, **options)

    return fill


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, fill: Callable) -> Path:
    """A cache with tokens. Do not modify."""
    path = tmp_path_factory.mktemp("template") / "features.zarr"
    fill(path)
    return path


@pytest.fixture
def cache(template: Path, tmp_path: Path) -> FeatureCache:
    return FeatureCache.open(shutil.copytree(template, tmp_path / "features.zarr"))


# Encoding


def test_every_tile_with_imagery_has_tokens_and_nothing_else_does(cache) -> None:
    status = cache.detail.status()
    assert status.shape == (8, 8) and (status != MISSING).all()
    expected = np.full((8, 8), ENCODED)
    expected[6:, 6:] = NODATA
    np.testing.assert_array_equal(status, expected)
    tokens = cache.detail.read(5, 5)  # its last pixels have no imagery
    assert tokens.shape == (4, 4, 3) and (tokens[:3, :3] != ABSENT).all()
    with pytest.raises(CacheCorruptError, match="encode-map --detail"):
        cache.detail.read(7, 7)


def test_the_encoders_own_tokens_are_those_of_its_patches(tmp_path, imagery, encoder, fill) -> None:
    producer = EncoderTokens(encoder)
    pixels = detail_pixels(producer, encoder.image_size)
    assert pixels == 56
    cache = FeatureCache.open_or_create(tmp_path / "own.zarr", imagery.pyramid, encoder.info, imagery.info())
    encode_detail(cache, producer, imagery, pixels)
    bounds = imagery.pyramid.tile_bounds(TileKey(LEVELS - 1, 2, 3))
    expected = encoder.encode_tiles_and_patches(imagery.render(bounds, 56)[0][None])[1]
    detail = cache.detail
    assert (detail.side, detail.width, detail.info.fingerprint) == (4, 32, encoder.fingerprint)
    restored = detail.projection.restore(detail.projection.to_float(detail.read(2, 3)))
    np.testing.assert_allclose(restored, expected.reshape(4, 4, 32), atol=0.05)


def test_a_second_run_reads_no_image_and_writes_nothing(cache, tmp_path, fill, files_of, monkeypatch) -> None:
    before = files_of(tmp_path / "features.zarr")
    monkeypatch.setattr(DetailTiles, "render", None)
    report = fill(tmp_path / "features.zarr")
    assert (report.encoded, report.reused, report.nodata) == (0, 60, 4) and report.bytes > 0
    assert files_of(tmp_path / "features.zarr") == before


@pytest.mark.parametrize("writes", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [3, 32])
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, fill, files_of, monkeypatch, writes, batch_size) -> None:
    fill(tmp_path / "whole.zarr", batch_size=batch_size)
    path, count, write = tmp_path / "killed.zarr", iter(range(writes)), DetailFeatures.write

    def killed(self, tiles, tokens) -> None:
        if next(count, None) is None:
            write(self, tiles[:1], tokens[:1])
            raise KeyboardInterrupt
        write(self, tiles, tokens)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DetailFeatures, "write", killed)
        fill(path, batch_size=batch_size)
    half = FeatureCache.open(path)
    assert (half.detail.status() == MISSING).any()
    report = fill(path, batch_size=batch_size)
    assert report.encoded + report.reused == 60 and (report.damaged == 0)
    assert files_of(path) == files_of(tmp_path / "whole.zarr")


KILLED = """
import os, signal, sys
from jzi.encode.detail import encode_detail
from jzi.encode.rasters.detail_tiles import EncoderTokens
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.rasters.imagery import Imagery
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.features.detail_features import DetailFeatures
cache = FeatureCache.open(sys.argv[1], "r+")
encoder = Encoder.load(sys.argv[2], image_size=28, device="cpu")
write, writes = DetailFeatures.write, iter(range(2))
def killed(self, tiles, tokens):
    if next(writes, None) is None:
        write(self, tiles[:1], tokens[:1])
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, tiles, tokens)
DetailFeatures.write = killed
encode_detail(cache, EncoderTokens(encoder), Imagery([sys.argv[3]], cache.pyramid), 56, batch_size=4)
"""


@pytest.mark.slow
def test_a_killed_process_leaves_what_resumes_to_the_same_bytes(
    tmp_path, imagery, encoder, encoder_folder, files_of
) -> None:
    """With an encoder, whose last bits may depend on which tiles share a batch."""

    def run(path: Path) -> DetailReport:
        with contextlib.closing(FeatureCache.open(path, "r+")) as cache:
            return encode_detail(cache, EncoderTokens(encoder), imagery, 56, batch_size=4)

    for name in ("whole", "killed"):
        FeatureCache.create(tmp_path / name, imagery.pyramid, encoder.info, imagery.info()).close()
    run(tmp_path / "whole")
    arguments = tmp_path / "killed", encoder_folder, imagery.paths[0]
    run_python(KILLED, *arguments, code=-signal.SIGKILL)
    left = run(tmp_path / "killed")
    assert 0 < left.reused < 60 and left.encoded + left.reused == 60
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_a_run_killed_before_the_header_fits_the_same_projection_again(tmp_path, fill, files_of, monkeypatch) -> None:
    fill(tmp_path / "whole.zarr")
    path, write_header = tmp_path / "killed.zarr", FeatureCache._write_header

    def killed(self, header) -> None:
        if header.detail is not None:
            raise KeyboardInterrupt
        write_header(self, header)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FeatureCache, "_write_header", killed)
        fill(path)
    assert not FeatureCache.open(path).has_detail
    fill(path)
    assert files_of(path) == files_of(tmp_path / "whole.zarr")


def test_two_processes_fill_one_cache_to_the_same_content(
    cache, tmp_path, imagery, encoder, files_of, in_two_processes, monkeypatch
) -> None:
    path = tmp_path / "two.zarr"
    other = FeatureCache.open_or_create(path, imagery.pyramid, encoder.info, imagery.info())
    encode_map(other, encoder, imagery)  # tiles that are known to have no imagery are not rendered
    monkeypatch.setattr(module, "gather_object", None, raising=False)
    reports = in_two_processes(module, lambda: encode_detail(other, MeanColour(), imagery, PIXELS))
    assert reports[0] == reports[1] and reports[0].encoded == 60
    assert (other.detail.status() == FeatureCache.open(cache.path).detail.status()).all()
    detail = {name: data for name, data in files_of(path).items() if name.startswith("detail/")}
    assert detail == {name: data for name, data in files_of(Path(cache.path)).items() if name.startswith("detail/")}


def flip(chunk: Path) -> None:
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["garbled", "gone"])
@pytest.mark.parametrize("chunk", ["tokens/c/1/3/0/0/0", "status/c/0/1"])
def test_damaged_chunks_are_found_and_made_again(cache, tmp_path, fill, files_of, damage, chunk) -> None:
    path = tmp_path / "features.zarr"
    whole = files_of(path)
    damage(path / "detail" / chunk)
    assert not verify_cache(FeatureCache.open(path)).sound
    report = fill(path)
    assert report.encoded == (1 if "tokens" in chunk else 16) and files_of(path) == whole
    assert not verify_cache(FeatureCache.open(path)).lost


def test_a_projection_that_is_not_the_headers_is_refused(cache, tmp_path) -> None:
    writable = FeatureCache.open(cache.path, "r+")
    writable.array("detail/basis")[:] = 2 * np.asarray(writable.array("detail/basis")[:])
    with pytest.raises(CacheCorruptError, match="not the one that the header records"):
        WindowTokens(FeatureCache.open(cache.path))


@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["garbled", "gone"])
@pytest.mark.parametrize("chunk", ["mean/c/0", "basis/c/0/0", "scale/c/0"])
def test_a_damaged_projection_is_fitted_again(cache, fill, tmp_path, files_of, damage, chunk) -> None:
    path = tmp_path / "features.zarr"
    whole = files_of(path)
    damage(path / "detail" / chunk)
    with pytest.raises(CacheCorruptError, match="encode-map --detail"):
        _ = FeatureCache.open(path).detail.projection
    assert "detail (its projection)" in verify_cache(FeatureCache.open(path)).damaged
    assert fill(path).encoded == 0 and files_of(path) == whole


def test_a_damaged_projection_that_would_be_another_is_refused(cache, fill, tmp_path, files_of, monkeypatch) -> None:
    path = tmp_path / "features.zarr"
    flip(path / "detail/scale/c/0")
    damaged = files_of(path)
    monkeypatch.setattr(module, "SAMPLE_TILES", 2)  # as where the encoder computes other last bits
    with pytest.raises(CacheError, match=r"projection of the tokens in .* is damaged"):
        fill(path)
    assert files_of(path) == damaged


def test_tokens_of_another_network_or_resolution_are_refused(cache, tmp_path, imagery, fill) -> None:
    other = MeanColour()
    other.fingerprint = "e" * 64
    writable = FeatureCache.open(cache.path, "r+")
    with pytest.raises(CacheMismatchError, match="holds other tokens for a refiner"):
        encode_detail(writable, other, imagery, PIXELS)
    with pytest.raises(CacheMismatchError, match=r"encode-map --detail --replace`, or give another cache\.path"):
        encode_detail(writable, MeanColour(), imagery, 2 * PIXELS)


@pytest.mark.parametrize("killed", [False, True])
def test_tokens_of_another_network_are_replaced_on_demand(
    cache, tmp_path, imagery, fill, files_of, monkeypatch, killed: bool
) -> None:
    assert (
        estimate_detail(cache, TrunkTokens(), PIXELS // 8 * 8).tiles == 64
    )  # not those that the other network has encoded
    if killed:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Documents, "delete", raise_interrupt)
            fill(Path(cache.path), TrunkTokens(), replace=True)
        assert not FeatureCache.open(cache.path).has_detail
    report = fill(Path(cache.path), TrunkTokens(), replace=not killed)
    assert (report.encoded, report.reused, report.width) == (60, 0, 6)
    fill(tmp_path / "new.zarr", TrunkTokens())
    assert files_of(Path(cache.path)) == files_of(tmp_path / "new.zarr")
    again = fill(Path(cache.path), TrunkTokens(), replace=True)
    assert (again.encoded, again.reused) == (0, 60)


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_estimate_counts_tiles_and_bytes(tmp_path, imagery, encoder) -> None:
    cache = FeatureCache.open_or_create(tmp_path / "new.zarr", imagery.pyramid, encoder.info, imagery.info())
    estimate = estimate_detail(cache, MeanColour(), PIXELS)
    assert (estimate.tiles, estimate.bytes, estimate.token_m) == (64, 64 * 16 * 3, 25 / 4) and estimate.seconds > 0
    encode_detail(cache, MeanColour(), imagery, PIXELS)
    assert estimate_detail(cache, MeanColour(), PIXELS).tiles == 0


@pytest.mark.parametrize("wanted", [0, 6, 27, 10_003])
def test_a_resolution_that_is_no_whole_number_of_tokens_is_refused(wanted: int) -> None:
    with pytest.raises(ConfigError, match="multiple of 7"):
        detail_pixels(MeanColour(), 28, wanted)
    assert detail_pixels(MeanColour(), 30) == 56  # whole tokens of twice 30 pixels


# Positions


def at(cache: FeatureCache, x: float, y: float, side: int = 8, side_m: float = 30.0, memory: int = 2**20):
    """Restored colours of a window, and its mask, around metres from the area's north-west corner."""
    pyramid = cache.pyramid
    windows = Windows(pyramid, [pyramid.west + x], [pyramid.north - y], side_m, 8)
    tokens, mask = WindowTokens(cache, memory).read(windows, side)
    colours = tokens[0]
    if cache.has_detail:
        colours = cache.detail.projection.restore(colours)
    return colours, mask[0], windows[0]


def expected(window, pyramid: Pyramid, side: int) -> np.ndarray:
    """Colours of the raster at the points of a window."""
    west, south, east, north = window.bounds
    x = (west + (np.arange(side) + 0.5) / side * (east - west) - pyramid.west) / SIZE
    y = (pyramid.north - north + (np.arange(side) + 0.5) / side * (north - south)) / SIZE
    x, y = np.meshgrid(x, y)
    return np.stack([40 + 170 * x, 40 + 170 * y, 200 - 80 * x - 80 * y], -1)


@pytest.mark.parametrize("x", [50.0, 61.3, 75.0, 87.9])
@pytest.mark.parametrize("y", [40.0, 75.0, 93.7])
def test_tokens_of_a_window_are_the_rasters_values_at_its_metres(cache, x: float, y: float) -> None:
    colours, mask, window = at(cache, x, y)
    assert mask.all()
    np.testing.assert_allclose(colours, expected(window, cache.pyramid, 8), atol=1.5)  # a metre is 0.85


def test_a_window_reads_no_tile_but_its_own(cache, monkeypatch) -> None:
    read = []
    monkeypatch.setattr(
        DetailFeatures, "read", lambda self, row, col: read.append((row, col)) or np.zeros((4, 4, 3), np.int8)
    )
    at(cache, 62.0, 37.0, side_m=20.0)
    assert sorted(read) == [(1, 2)]
    read.clear()
    at(cache, 75.0, 75.0, side_m=20.0)
    assert sorted(read) == [(2, 2), (2, 3), (3, 2), (3, 3)]


def test_tiles_are_kept_for_the_next_window_and_give_way_to_others(cache, monkeypatch) -> None:
    read, found = [], DetailFeatures.read
    monkeypatch.setattr(DetailFeatures, "read", lambda self, *tile: read.append(tile) or found(self, *tile))
    tokens, pyramid = WindowTokens(cache, memory=4 * 48), cache.pyramid

    def look(x: float, y: float) -> int:
        read.clear()
        tokens.read(Windows(pyramid, [pyramid.west + x], [pyramid.north - y], 20.0, 8), 8)
        return len(read)

    assert [look(75, 75), look(75, 75), look(25, 25), look(75, 75)] == [4, 0, 4, 4]


def test_many_windows_are_each_as_if_alone(cache) -> None:
    rng, pyramid = np.random.default_rng(1), cache.pyramid
    x, y = (
        rng.uniform(pyramid.west - 10, pyramid.west + 210, 70),
        rng.uniform(pyramid.north - 210, pyramid.north + 10, 70),
    )
    tokens, mask = WindowTokens(cache).read(Windows(pyramid, x, y, 40.0, 8), 6)
    for index in range(0, 70, 9):
        alone = WindowTokens(cache).read(Windows(pyramid, x[index : index + 1], y[index : index + 1], 40.0, 8), 6)
        np.testing.assert_array_equal(tokens[index], alone[0][0])
        np.testing.assert_array_equal(mask[index], alone[1][0])


def test_a_window_over_the_edge_is_masked_there(cache) -> None:
    colours, mask, window = at(cache, 3.0, 100.0)
    inside = 3.0 - 15 + (np.arange(8) + 0.5) / 8 * 30 > 0
    np.testing.assert_array_equal(mask, np.broadcast_to(inside, (8, 8)))
    assert not colours[~mask].any() or cache.has_detail
    np.testing.assert_allclose(colours[mask], expected(window, cache.pyramid, 8)[mask], atol=4)  # nearest at the edge
    _, mask, _ = at(cache, -100.0, 100.0)
    assert not mask.any()


def test_points_without_imagery_are_masked(cache) -> None:
    colours, mask, _ = at(cache, 143.0, 143.0, side=10, side_m=20.0)
    x = 143 - 10 + (np.arange(10) + 0.5) * 2
    # tokens of 6.25 m with any imagery reach to 150 m
    covered = (x[:, None] < 150) | (x < 150)
    assert (mask == covered).mean() > 0.9 and not mask[-1, -1] and mask[0].all()
    assert np.isfinite(colours).all()


def test_true_metres_in_a_projection_that_stretches(tmp_path, write_raster, encoder, raster) -> None:
    x, y = 2_782_987.0, 8_399_737.0  # 60 degrees north, where EPSG:3857 has two units to a metre
    pyramid = Pyramid("EPSG:3857", x - 100, y + 100, SIZE, grid=GRID, levels=LEVELS)
    imagery = Imagery([write_raster(np.moveaxis(raster, -1, 0), pyramid.bounds, pyramid.crs, "mercator.tif")], pyramid)
    cache = FeatureCache.open_or_create(tmp_path / "m.zarr", pyramid, encoder.info, imagery.info())
    encode_detail(cache, MeanColour(), imagery, PIXELS)
    colours, mask, window = at(cache, 100.0, 100.0, side_m=20.0)
    west, _, east, _ = window.bounds
    assert east - west == pytest.approx(40, rel=5e-3) and mask.all()
    np.testing.assert_allclose(colours, expected(window, pyramid, 8), atol=2)


def test_patch_tokens_that_leave_out_the_end_of_a_tile_lie_where_they_were_seen(tmp_path, pyramid) -> None:
    """Trap 13: of 31 pixels, patches of 14 see 28; the last tenth of each tile is in no token."""
    info = EncoderInfo("tiny", False, "f" * 64, width=2, image_size=31, layout="halves")
    cache = FeatureCache.create(tmp_path / "tokens.zarr", pyramid, info)
    cache.require_tokens(4)
    n, footprint = 8, 25.0
    inside = (np.arange(2) + 0.5) * 14 / 31 * footprint
    for row in range(n):
        for col in range(n):
            y, x = np.meshgrid(row * footprint + inside, col * footprint + inside, indexing="ij")
            cache.patch_tokens.write([TileKey(3, row, col)], np.stack([x, y], -1).reshape(1, 4, 2).astype(np.float16))
    cache.tiles.write_chunk(3, 0, 0, np.full((8, 8), ENCODED, np.uint8), np.zeros((8, 8, 2)))
    tokens, mask, _ = at(cache, 70.0, 90.0, side=6)
    x = 70 - 15 + (np.arange(6) + 0.5) / 6 * 30
    y = 90 - 15 + (np.arange(6) + 0.5) / 6 * 30
    assert mask.all()
    np.testing.assert_allclose(tokens[..., 0], np.broadcast_to(x, (6, 6)), atol=0.1)
    np.testing.assert_allclose(tokens[..., 1], np.broadcast_to(y[:, None], (6, 6)), atol=0.1)


def test_a_cache_without_tokens_and_one_that_lacks_some_are_refused(tmp_path, imagery, encoder, cache) -> None:
    empty = FeatureCache.create(tmp_path / "empty.zarr", imagery.pyramid, encoder.info)
    with pytest.raises(CacheError, match="run `jzi encode-map --detail`"):
        WindowTokens(empty)
    FeatureCache.open(cache.path, "r+").detail.write_status((slice(0, 4), slice(0, 4)), np.zeros((4, 4), np.uint8))
    with pytest.raises(CacheError, match="lacks the tokens of 4 tiles"):
        at(FeatureCache.open(cache.path), 50.0, 50.0)


# A trained network with a margin


def test_tokens_of_a_trained_network_have_no_seams(tmp_path, imagery, fill) -> None:
    producer = TrunkTokens()
    fill(tmp_path / "trunk.zarr", producer)
    cache = FeatureCache.open(tmp_path / "trunk.zarr")
    detail = cache.detail
    assert detail.info.producer == "refiner" and detail.info.margin == producer.margin > 0
    np.testing.assert_array_equal(detail.projection.basis, np.eye(6))
    bounds, margin = imagery.pyramid.bounds, producer.margin
    pixels = 8 * 24
    border = margin * SIZE / pixels
    around = type(bounds)(bounds.west - border, bounds.south - border, bounds.east + border, bounds.north + border)
    image = imagery.render(around, pixels + 2 * margin)[0]
    whole = producer.tokens(image[None])[0].numpy()
    side, errors, alone_errors = detail.side, [], []
    for row, col in ((0, 0), (3, 3), (3, 4), (4, 3), (2, 6)):
        part = whole[row * side : (row + 1) * side, col * side : (col + 1) * side]
        own = detail.projection.to_float(detail.read(row, col))
        tile = imagery.render(imagery.pyramid.tile_bounds(TileKey(LEVELS - 1, row, col)), 24)[0]
        alone = producer.tokens(tile[None], margin=0)[0].numpy()
        errors.append(np.abs(own - part).mean())
        alone_errors.append(np.abs(alone - part).mean())
    assert max(errors) < 0.25 * min(alone_errors)  # rendered pixels differ by 1 of 255


# Projection


def test_a_projection_is_the_same_for_the_same_tokens_and_keeps_what_varies() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 20)) + rng.normal(size=20)
    projection = Projection.fit(tokens, 4)
    assert projection.digest == Projection.fit(tokens.copy(), 4).digest != Projection.fit(tokens * 2, 4).digest
    restored = projection.restore(projection.to_float(projection.quantise(tokens)))
    assert np.abs(restored - tokens).max() < 0.03 * np.abs(tokens).max()
    np.testing.assert_allclose(projection.basis.T @ projection.basis, np.eye(4), atol=1e-6)


def test_a_feature_that_did_not_vary_is_not_amplified() -> None:
    tokens = np.random.default_rng(0).normal(size=(100, 3))
    tokens[:, 2] = 1.0
    projection = Projection.fit(tokens)
    tokens[:, 2] += 1e-4
    values = projection.quantise(tokens)
    assert np.abs(values[:, 2]).max() <= 10 and np.abs(values).max() == 127


@pytest.mark.parametrize("tokens", [np.empty((0, 3)), np.full((4, 3), np.nan)])
def test_tokens_that_are_none_are_refused(tokens: np.ndarray) -> None:
    with pytest.raises(CacheError, match="use another encoder"):
        Projection.fit(tokens)


def test_the_fingerprint_of_tokens_follows_what_made_them(cache, tmp_path, fill) -> None:
    before = tokens_fingerprint(cache)
    fill(tmp_path / "trunk.zarr", TrunkTokens())
    assert len({before, tokens_fingerprint(FeatureCache.open(tmp_path / "trunk.zarr"))}) == 2
    assert replace(cache.header.detail, pixels=2 * PIXELS).label.startswith("8 x 8 tokens")
