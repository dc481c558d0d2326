"""Patch tokens: computed by the encoder, stored one tile per chunk, the k most similar read by the decoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from zarr.storage import LocalStore

from jzi.decode.config import DecoderConfig
from jzi.decode.dataset import ZoomDataset
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.patch_tokens import PatchTokens
from jzi.decode.search import zoom
from jzi.decode.temperature import fit_temperature
from jzi.decode.tile_table import TileTable
from jzi.encode import encode_map as module
from jzi.encode.encode_map import MapReport, encode_map
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.rasters.imagery import Imagery
from jzi.encode.rasters.tiles import TileRenderer
from jzi.errors import CacheCorruptError, CacheError, ConfigError
from jzi.store.cache import chunk_writer
from jzi.store.cache.feature_cache import NODATA, FeatureCache
from jzi.store.features.tile_features import TileFeatures
from jzi.store.geometry.pyramid import Pyramid, TileKey
from jzi.tests.conftest import decided_decoder, write_geotiff

# from rasterio itself
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")

#: 21 tiles, of which the last level's are in chunks of 4 x 4; 4 patches to a tile.
GRID, LEVELS, PATCHES, WIDTH = 2, 3, 4, 32
SMALL = DecoderConfig(width=WIDTH, actions=GRID**2, layers=2, heads=2)


@pytest.fixture(scope="module")
def encoder(encoder_folder: Path) -> Encoder:
    encoder = Encoder.load(encoder_folder, image_size=28, device="cpu")
    encoder.model.double()  # in float32 the last bit may depend on which tiles share a batch
    return encoder


@pytest.fixture(scope="module")
def imagery(tmp_path_factory: pytest.TempPathFactory, pattern: Callable) -> Imagery:
    """The north-eastern cell of the area has none."""
    pyramid = Pyramid.around(48.2, 16.37, 200.0, grid=GRID, levels=LEVELS)
    data = np.concatenate([pattern(200, 200), np.full((1, 200, 200), 255, np.uint8)])
    data[3, :50, 150:] = 0
    path = tmp_path_factory.mktemp("imagery") / "map.tif"
    return Imagery([write_geotiff(path, data, pyramid.bounds, pyramid.crs, photometric="RGB", alpha="YES")], pyramid)


@pytest.fixture(scope="module")
def fill(imagery: Imagery, encoder: Encoder) -> Callable[..., MapReport]:
    """Encode the map into a cache."""

    def fill(path: Path, **options) -> MapReport:
        cache = FeatureCache.open_or_create(path, imagery.pyramid, encoder.info, imagery.info())
        return encode_map(cache, encoder, imagery, **options)

    return fill


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, fill: Callable) -> Path:
    """A cache with tokens. Do not modify."""
    path = tmp_path_factory.mktemp("template") / "features.zarr"
    fill(path, tokens=True)
    return path


@pytest.fixture
def cache(template: Path, tmp_path: Path) -> FeatureCache:
    return FeatureCache.open(shutil.copytree(template, tmp_path / "features.zarr"))


@pytest.fixture
def query() -> torch.Tensor:
    return torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def decoder() -> ZoomDecoder:
    return decided_decoder(replace(SMALL, patch_tokens=3))


def table_of(cache: FeatureCache, **options) -> TileTable:
    return TileTable(cache.read_map(), "cpu", PatchTokens(cache, "cpu", **options))


# Storage


def test_tokens_are_the_patches_of_the_models_last_hidden_state(cache, imagery, encoder) -> None:
    for tile in TileRenderer(imagery, 28).render([TileKey(0, 0, 0)]):
        if not tile.has_imagery:
            assert np.isnan(cache.patch_tokens.read(tile.key)).all()
            continue
        pixels = encoder.normalise(encoder.to_unit(torch.tensor(tile.image)[None]))
        with torch.no_grad():
            expected = encoder.model(pixels)[0, 1:]
        np.testing.assert_allclose(cache.patch_tokens.read(tile.key), expected, atol=2e-3)
    assert cache.patch_tokens.read(TileKey(2, 0, 0)).shape == (PATCHES, WIDTH)
    with pytest.raises(CacheError, match="has no tile"):
        cache.patch_tokens.read(TileKey(LEVELS, 0, 0))


def test_a_look_up_reads_one_chunk(cache, monkeypatch) -> None:
    read = []
    get = LocalStore.get
    monkeypatch.setattr(LocalStore, "get", lambda self, key, *a, **b: read.append(key) or get(self, key, *a, **b))
    cache.patch_tokens.read(TileKey(2, 1, 3))
    assert [key for key in read if "/c/" in key] == ["map/2/tokens/c/1/3/0/0"]


def test_xarray_knows_them_by_name(cache) -> None:
    tokens = cache.to_xarray()["map/2"]["tokens"]
    assert tokens.dims == ("row", "col", "token", "feature") and tokens.shape == (4, 4, PATCHES, WIDTH)
    import xarray

    assert "tokens" in xarray.open_datatree(cache.path, engine="zarr")["map/2"]  # by the gathered metadata


def test_tokens_that_are_asked_for_later_leave_the_embeddings_alone(
    cache, tmp_path, fill, files_of, monkeypatch
) -> None:
    path = tmp_path / "later.zarr"
    encoded = fill(path).encoded
    assert not FeatureCache.open(path).has_tokens
    before = files_of(path)
    write = TileFeatures.write_chunk

    def without_embeddings(self, level, *args) -> None:
        assert level == LEVELS, "no more than the cells are marked again"
        write(self, level, *args)

    monkeypatch.setattr(TileFeatures, "write_chunk", without_embeddings)
    report = fill(path, tokens=True)
    assert (report.encoded, report.reused, report.tokens) == (0, encoded, encoded) and report.nodata > 0
    after = files_of(path)
    header = {"zarr.json", "map/zarr.json"}
    assert {name: after[name] for name in before.keys() - header} == {n: before[n] for n in before.keys() - header}
    assert {n: d for n, d in after.items() if "/tokens/" in n} == {
        n: d for n, d in files_of(Path(cache.path)).items() if "/tokens/" in n
    }
    assert report.tokens_bytes >= sum(len(data) for name, data in after.items() if "/tokens/c" in name) > 0


def test_a_second_run_encodes_nothing(cache, tmp_path, fill, encoder, monkeypatch) -> None:
    monkeypatch.setattr(encoder, "encode_tiles_and_patches", None)
    report = fill(tmp_path / "features.zarr", tokens=True)
    assert (report.encoded, report.tokens) == (0, 0) and report.tokens_bytes > 0


@pytest.mark.parametrize("begun", [False, True], ids=["new", "tokens alone"])
@pytest.mark.parametrize("writes", [0, 5, 13])
def test_an_encode_killed_while_it_writes_tokens_resumes_to_the_same_cache(
    cache, tmp_path, fill, files_of, monkeypatch, begun: bool, writes: int
) -> None:
    path = tmp_path / "killed.zarr"
    if begun:
        fill(path)
    count, write = iter(range(writes)), module.TokenFeatures.write

    def killed(self, keys, tokens) -> None:
        for index, key in enumerate(keys):
            if next(count, None) is None:
                raise KeyboardInterrupt
            write(self, [key], tokens[index : index + 1])

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.TokenFeatures, "write", killed)
        patch.setattr(chunk_writer, "WRITE_EVERY_S", 0.0)
        fill(path, tokens=True, batch_size=2)
    half = FeatureCache.open(path)
    encoded = sum(int((half.tiles.status(level) == 1).sum()) for level in range(LEVELS))
    if not begun:  # a status never speaks of a tile whose tokens are not there
        assert not any(half.patch_tokens.lacking(level, half.tiles.status(level))[0].any() for level in range(LEVELS))
    report = fill(path, tokens=True)
    assert report.reused == encoded
    assert files_of(path) == files_of(Path(cache.path))


def flip(chunk: Path) -> None:
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, Path.unlink], ids=["garbled", "gone"])
def test_damaged_tokens_are_found_and_made_again_and_no_others(cache, tmp_path, fill, files_of, damage) -> None:
    whole = files_of(Path(cache.path))
    damage(Path(cache.path) / "map/2/tokens/c/1/3/0/0")
    table = table_of(cache)
    with pytest.raises(CacheError, match="run `jzi encode-map --tokens`") as error:
        table.require_patches(1).load()
    assert isinstance(error.value, CacheCorruptError) == (damage is flip)
    report = fill(tmp_path / "features.zarr", tokens=True)
    assert (report.encoded, report.tokens, report.tokens_damaged) == (0, 1, int(damage is flip))
    assert files_of(Path(cache.path)) == whole


def test_two_processes_fill_one_cache_to_the_same_content(cache, tmp_path, fill, files_of, in_two_processes) -> None:
    path = tmp_path / "shared.zarr"
    fill(path)
    reports = in_two_processes(module, lambda: fill(path, tokens=True))
    assert reports[0] == reports[1] and reports[0].tokens == reports[0].reused
    assert files_of(path) == files_of(Path(cache.path))


# Selection


@pytest.mark.parametrize("capacity", [None, 64, 3], ids=["all", "as many as are compared at once", "fewer"])
def test_the_tokens_looked_at_are_the_most_similar_ones_in_order(cache, query, monkeypatch, capacity) -> None:
    monkeypatch.setattr("jzi.decode.patch_tokens.MAX_PAIRS", 3)
    table = table_of(cache, capacity=capacity)
    tile = torch.tensor([[0, 5, 20], [1, 6, 19], [20, 20, 2], [0, 1, 2], [7, 9, 11]])
    for k in (1, 3, PATCHES):
        seen = table.tokens(tile, query, k)
        assert seen.shape == (5, 3, 1 + k, WIDTH)
        for (photo, step), index in np.ndenumerate(tile.numpy()):
            tokens = torch.from_numpy(np.nan_to_num(cache.patch_tokens.read(table.patches.key(index)))).float()
            order = F.cosine_similarity(tokens, query[photo], dim=-1).argsort(descending=True)[:k]
            torch.testing.assert_close(seen[photo, step, 0], table.embedding[index].float())
            torch.testing.assert_close(seen[photo, step, 1:], tokens[order])
    torch.testing.assert_close(table.tokens(tile, query, 0), table.embedding[tile].float())


def test_similarity_is_the_cosine_whatever_the_length(cache, query) -> None:
    away = torch.tensor([1.0, 0.1, 0.5, 0.0])[:, None] * query[0].flip(0)
    tokens = (query[0] + away) * torch.tensor([9.0, 1.0, 3.0, 0.1])[:, None]  # the least similar are the longest
    FeatureCache.open(cache.path, "r+").patch_tokens.write([TileKey(0, 0, 0)], tokens[None].half().numpy())
    seen = table_of(cache).tokens(torch.tensor([[0]]), query[:1], PATCHES)
    torch.testing.assert_close(seen[0, 0, 1:], tokens[[3, 1, 2, 0]].half().float())


def test_tiles_that_were_not_looked_at_for_longest_make_place(cache, query, monkeypatch) -> None:
    monkeypatch.setattr("jzi.decode.patch_tokens.MAX_PAIRS", 2)
    table = table_of(cache, capacity=3)
    read = []
    found = table.patches.features.read_many
    monkeypatch.setattr(table.patches.features, "read_many", lambda keys: read.extend(keys) or found(keys))
    for index in (0, 1, 2, 0, 3, 0, 1):  # 3 replaces 1, and 1 replaces 2
        table.tokens(torch.tensor([[index]]), query[:1], 1)
    assert read == [table.patches.key(index) for index in (0, 1, 2, 3, 1)]


def test_more_than_there_are_and_a_map_without_are_refused(cache, query) -> None:
    with pytest.raises(ConfigError, match=r"decoder\.patch_tokens is 5, but a tile of .* has 4"):
        table_of(cache).tokens(torch.tensor([[0]]), query[:1], 5)
    with pytest.raises(CacheError, match="jzi encode-map --tokens"):
        TileTable(cache.read_map()).tokens(torch.tensor([[0]]), query[:1], 1)


# The decoder


def step_by_step(decoder: ZoomDecoder, query: torch.Tensor, tiles: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    logits, past = decoder.prefill(query, tiles[:, 0])
    steps = [logits]
    for step in range(1, tiles.shape[1]):
        logits, past = decoder.step(actions[:, step - 1], tiles[:, step], past)
        steps.append(logits)
    return torch.stack(steps, 1)


def test_stepping_equals_one_pass_with_four_patch_tokens(decoder, query) -> None:
    generator = torch.Generator().manual_seed(2)
    tiles, actions = torch.randn(5, 4, 5, WIDTH, generator=generator), torch.randint(4, (5, 4), generator=generator)
    whole = decoder(query, tiles, actions)
    torch.testing.assert_close(step_by_step(decoder, query, tiles, actions), whole, atol=1e-5, rtol=1e-4)
    tiles[:, 2, -1] += 1  # affects the step of its tile and none before it
    changed = decoder(query, tiles, actions)
    torch.testing.assert_close(changed[:, :2], whole[:, :2])
    assert not torch.allclose(changed[:, 2], whole[:, 2])


def test_without_patch_tokens_it_is_the_decoder_that_it_was(decoder, query) -> None:
    torch.manual_seed(0)
    without = ZoomDecoder(SMALL)
    torch.manual_seed(0)
    with_tokens = ZoomDecoder(replace(SMALL, patch_tokens=8))
    assert all(map(torch.equal, without.state_dict().values(), with_tokens.state_dict().values()))
    assert SMALL.to_dict() == {"width": WIDTH, "actions": 4, "layers": 2, "heads": 2, "dropout": 0.1}
    assert DecoderConfig(**SMALL.to_dict()) == SMALL
    tiles, actions = torch.randn(5, 3, WIDTH), torch.randint(4, (5, 3))
    assert torch.equal(decoder(query, tiles[:, :, None], actions), decoder(query, tiles, actions))


def test_a_full_beam_holds_every_cell_with_its_probability(cache, decoder, query) -> None:
    table = table_of(cache)
    zooms = zoom(decoder, table, query, beams=64)
    found = zooms.log_probability.sum(-1).exp()
    torch.testing.assert_close(found.sum(1), torch.ones(5), atol=1e-5, rtol=0)
    paths = zooms.paths[:, 7]
    tiles = table.tiles_along(paths.numpy())
    with torch.no_grad():
        logits = decoder(query, table.tokens(tiles, query, 3), paths)
    steps = logits.masked_fill(~table.child_mask[tiles], -torch.inf).log_softmax(-1)
    expected = steps.gather(-1, paths[..., None]).sum((1, 2)).exp()
    torch.testing.assert_close(found[:, 7], expected, atol=1e-6, rtol=1e-4)
    row, col = table.pyramid.path_to_tile(zooms.paths.numpy())
    assert (cache.tiles.status(LEVELS)[row, col][found.numpy() > 0] != NODATA).all()


def test_a_search_in_parts_finds_the_same(cache, decoder, query, monkeypatch) -> None:
    table = table_of(cache)
    whole = zoom(decoder, table, query, beams=4, cells=8)
    monkeypatch.setattr("jzi.decode.search.HYPOTHESES", 20)  # two photos at once
    parts = zoom(decoder, table, query, beams=4, cells=8)
    assert torch.equal(whole.paths, parts.paths)
    torch.testing.assert_close(whole.log_probability, parts.log_probability)


def test_temperatures_are_fitted_to_what_the_decoder_says_with_its_patch_tokens(cache, decoder, query) -> None:
    table = table_of(cache)
    paths = zoom(decoder, table, query).paths[:, 0].clone()
    where = np.zeros(5)
    samples = ZoomDataset(query[:, None], table.tiles_along(paths.numpy()), paths, where, where, 0)
    with torch.no_grad():
        decoder.output_head.weight *= 0.1  # correct, but underconfident
    assert max(fit_temperature(decoder, table, samples)) < 1


# The commands

TINY = "--set train.epochs=2 --set decoder.layers=1 --set decoder.heads=2"


@pytest.mark.slow
def test_from_encode_map_with_tokens_to_evaluation_and_a_located_photo(area, tmp_path) -> None:
    four = f"{TINY} --set decoder.patch_tokens=4 --set model.path=four"
    area("encode-map")
    area("encode-queries")
    assert "encode-map --tokens" in area(f"train-decoder {four}", 2).stderr
    assert not (tmp_path / "four").exists()
    report = json.loads(area("encode-map --tokens --json").stdout)
    assert (report["encoded"], report["reused"], report["tokens"]) == (0, 273, 273)
    assert report["tokens_bytes"] > 273 * 16 * WIDTH
    assert "MB in all" in area("encode-map --set map.tokens=true").stdout
    assert "a tile of" in area(f"train-decoder {four} --set decoder.patch_tokens=17", 2).stderr

    (tmp_path / "features.zarr/map/2/tokens/c/0/0/0/0").unlink()
    assert "level 2, row 0, col 0: run `jzi encode-map --tokens`" in area(f"train-decoder {four}", 2).stderr
    assert not (tmp_path / "four").exists()  # checked before anything is written
    assert json.loads(area("encode-map --tokens --json").stdout)["tokens"] == 1

    output = json.loads(area(f"train-decoder {four} --json").stdout)
    plain = json.loads(area(f"train-decoder {TINY} --json").stdout)
    assert output["best"]["val_loss"] != plain["best"]["val_loss"]
    assert json.loads((tmp_path / "four" / "config.json").read_text())["decoder"]["patch_tokens"] == 4
    assert "patch_tokens" not in json.loads((tmp_path / "model" / "config.json").read_text())["decoder"]
    assert "decoder.patch_tokens 4 not None" in area(f"train-decoder {TINY} --set model.path=four", 2).stderr

    found = json.loads(area("evaluate --set model.path=four --estimates --json").stdout)
    assert 0 <= found["recall@40m"]["value"] <= 1 and found["posterior"]["residual"] < 1e-5
    assert "--cache features.zarr" in area("locate photos/day0/000.jpg --model four", 2).stderr
    answer = json.loads(area("locate photos/day0/000.jpg --model four --cache features.zarr --json").stdout)
    assert 0 < answer["confidence"] <= 1
    of_cache, of_model, _ = map(json.loads, area("info features.zarr four --json").stdout.splitlines())
    assert of_cache["patch_tokens"] == 16 and of_model["patch_tokens"] == 4
    assert "decoder.patch_tokens is 4" in area("finetune --set decoder.patch_tokens=4", 2).stderr
