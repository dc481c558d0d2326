"""Training on photos and maps that do not fit into memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from jzi.decode.config import DecoderConfig
from jzi.decode.dataset import ZoomDataset
from jzi.decode.tile_table import TileTable
from jzi.errors import ConfigError, ModelError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.features.map_embeddings import ENCODED, NODATA
from jzi.store.features.map_pages import PagedMap
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo
from jzi.train.config.training import TrainConfig
from jzi.train.data import DataInfo, TrainingData
from jzi.train.decoder import train_decoder
from jzi.train.experts import fitting_experts
from jzi.train.photo_shards import PhotoShards
from jzi.train.run import TrainingRun

WIDTH, PHOTOS, ROWS = 8, 600, 64
PYRAMID = Pyramid.around(48.2, 16.37, 640.0, levels=3)
ENCODER = EncoderInfo("facebook/made", True, "1" * 64, WIDTH, 14, "whole")
CONFIG = TrainConfig(batch_size=32, epochs=2, save_every_s=1e6, precision="no")
DECODER = DecoderConfig(width=WIDTH, layers=1, heads=2, actions=PYRAMID.actions, dropout=0.1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """A random map with a corner without imagery, and photos, of which some have two augmented views."""
    rng = np.random.default_rng(0)
    cache = FeatureCache.create(tmp_path_factory.mktemp("cache") / "features.zarr", PYRAMID, ENCODER)
    for level in range(PYRAMID.levels + 1):
        n, side = PYRAMID.tiles_per_side(level), cache.tiles.chunk_side(level)
        status = np.full((n, n), ENCODED, np.uint8)
        if level >= 2:
            status[: n // 4, : n // 4] = NODATA
        values = rng.normal(size=(n, n, WIDTH)).astype(np.float16)
        values[status == NODATA] = np.nan
        for row in range(0, n, side):
            for col in range(0, n, side):
                window = slice(row, row + side), slice(col, col + side)
                cache.tiles.write_chunk(
                    level, row, col, status[window], values[window] if level < PYRAMID.levels else None
                )
    x, y = rng.uniform(-320, 320, PHOTOS), rng.uniform(-320, 320, PHOTOS)
    latitude, longitude = PYRAMID.unproject(x, y)
    frame = pd.DataFrame({"id": [f"photo {number}" for number in range(PHOTOS)], "latitude": latitude})
    frame["longitude"], frame["path"] = longitude, frame["id"]
    frame["split"] = np.where(np.arange(PHOTOS) % 6 == 5, "val", "train")
    rows = cache.queries.list_photos(frame)
    cache.queries.require_views(2, {"seed": 0, "version": 1})
    views = np.where(rng.random(PHOTOS) < 0.5, 2, 0)
    embedding = rng.normal(size=(PHOTOS, 3, WIDTH)).astype(np.float16)
    embedding[views == 0, 1:] = np.nan
    for start in range(0, PHOTOS, 256):
        part = rows[start : start + 256]
        values = {
            "photo_sha256": frame["id"][part].to_numpy(object),
            "views": views[part],
            "status": np.ones(len(part)),
        }
        cache.queries.write(part, values, embedding[part])
    cache.queries.write(rows[:7], {"status": np.zeros(7)})  # not encoded
    cache.close()
    return FeatureCache.open(cache.path)


@pytest.fixture(scope="module")
def table(cache: FeatureCache) -> TileTable:
    """The map in memory."""
    return TileTable(cache.read_map())


def shards(cache: FeatureCache, table: TileTable, together: int, views: int = 2) -> PhotoShards:
    return replace(PhotoShards.open(cache, table, views, 10**6, ROWS), together=together)


def rows_of(parts: list) -> list[tuple[float, ...]]:
    """What identifies each photo of batches, in their order."""
    return [tuple(row) for part in parts for row in torch.cat([part.tiles, part.actions, part.query], 1).tolist()]


@pytest.mark.parametrize("together", [1, 3, 100])
def test_an_epoch_has_every_photo_once(cache: FeatureCache, table: TileTable, together: int) -> None:
    whole = ZoomDataset.load(cache, table, "train")
    photos = shards(cache, table, together, views=0)
    batches = list(photos.batches(5, 32))
    assert [len(each) for each in batches[:-1]] == [32] * (len(batches) - 1)
    everything = torch.cat([whole.tiles, whole.actions, whole.query[:, 0]], 1).tolist()
    assert sorted(rows_of(batches)) == sorted(map(tuple, everything))
    assert (len(photos), photos.unreachable) == (len(whole), whole.unreachable)
    assert whole.unreachable > 0


def test_another_epoch_has_another_order(cache: FeatureCache, table: TileTable) -> None:
    photos = shards(cache, table, 3)
    one, same, other = (rows_of(list(photos.batches(seed, 32))) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_photos_of_a_buffer_are_of_shards_that_are_far_apart(cache: FeatureCache, table: TileTable) -> None:
    photos = shards(cache, table, 3)
    buffers = photos.buffers(0)
    assert sorted(np.concatenate(buffers).tolist()) == list(range(10))
    assert any(np.diff(each).max(initial=0) > 1 for each in buffers)


@pytest.mark.parametrize("first", [1, 7, 13])
def test_an_epoch_goes_on_where_it_was_left(cache: FeatureCache, table: TileTable, first: int) -> None:
    photos = shards(cache, table, 2)
    assert rows_of(list(photos.batches(3, 32, first))) == rows_of(list(photos.batches(3, 32))[first:])


def test_processes_get_as_many_photos_each(cache: FeatureCache, table: TileTable) -> None:
    photos = shards(cache, table, 4)
    assert sum(map(len, photos.batches(3, 32, processes=8))) == -(-len(photos) // 8) * 8


def losses(folder: Path) -> list[float]:
    lines = (folder / "train" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_training_is_the_same_as_in_memory_if_everything_fits_into_a_buffer(
    cache: FeatureCache, tmp_path: Path
) -> None:
    for name, memory in (("memory", None), ("shards", (10_000, 300_000))):
        sizes = {} if memory is None else {"map_memory": memory[0], "photo_memory": memory[1]}
        data = TrainingData.load(cache, views=2, **sizes)
        assert isinstance(data.train, PhotoShards) == isinstance(data.map_embeddings, PagedMap) == (memory is not None)
        train_decoder(cache, tmp_path / name, DECODER, CONFIG, data=data, progress=False)
    assert losses(tmp_path / "memory") == losses(tmp_path / "shards")
    one, other = (tmp_path / name / "decoder.safetensors" for name in ("memory", "shards"))
    assert one.read_bytes() == other.read_bytes()


def test_an_interrupted_run_on_shards_ends_as_one_that_was_not(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TrainingData.load(cache, views=2, map_memory=10_000, photo_memory=300_000)
    sharded = replace(data, train=shards(cache, data.table, 2))
    train_decoder(cache, tmp_path / "whole", DECODER, CONFIG, data=sharded, progress=False)

    from jzi.train.loop import TrainingLoop

    steps, step = [], TrainingLoop.step

    def interrupted(self: TrainingLoop, batch: object) -> torch.Tensor:
        steps.append(batch)
        if len(steps) == 9:
            self.interrupts.append(2)
        return step(self, batch)

    monkeypatch.setattr(TrainingLoop, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_decoder(cache, tmp_path / "parts", DECODER, CONFIG, data=sharded, progress=False)
    monkeypatch.setattr(TrainingLoop, "step", step)
    other = replace(data, train=shards(cache, data.table, 5))  # there is other memory now
    train_decoder(cache, tmp_path / "parts", DECODER, CONFIG, data=other, progress=False)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_run_that_began_in_memory_does_not_go_on_in_another_order(cache: FeatureCache, tmp_path: Path) -> None:
    data = TrainingData.load(cache, views=2, photo_memory=300_000)
    run = TrainingRun(tmp_path, {})
    from jzi.train.decoder import DecoderTask, ShardedDecoderTask

    for kind, state in ((ShardedDecoderTask, {"random": {}}), (DecoderTask, {"shards_together": 3})):
        task = kind.__new__(kind)
        task.run, task.train = run, data.train
        with pytest.raises(ModelError, match=r"train\.memory"):
            task.load_extra_state(state)


def test_the_digest_of_the_photos_is_that_of_the_table_in_memory(cache: FeatureCache) -> None:
    assert DataInfo.from_cache(cache) == DataInfo.from_cache(cache, cache.queries.encoded())


def test_experts_that_need_everything_in_memory_are_left_out(cache: FeatureCache) -> None:
    data = TrainingData.load(cache, views=0, photo_memory=300_000)
    names, sentence = fitting_experts(data, ("zoom", "vpr"), named=False)
    assert names == ("zoom",)
    assert "raise train.memory" in sentence
    with pytest.raises(ConfigError, match=r"leave them out of --experts, or raise train\.memory"):
        fitting_experts(data, ("zoom", "vpr"), named=True)
