"""Experts that are trained in several areas locate photos in an area that they were not trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from jzi.benchmarks import unseen
from jzi.decode.config import DecoderConfig
from jzi.errors import CacheError, CacheMismatchError, ConfigError, ModelError, TrainingError
from jzi.evaluate.photos import LabelledPhotos
from jzi.evaluate.protocol import evaluate
from jzi.retrieve.transfer import transfer
from jzi.store.cache.feature_cache import ENCODED, FeatureCache
from jzi.store.features.map_embeddings import NODATA
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo
from jzi.store.model_config import TransferModelConfig, read_config
from jzi.train.config.training import HeadsTrainingConfig, TrainConfig
from jzi.train.data import TrainingData
from jzi.train.decoder import train_decoder
from jzi.train.experts import load_others, train_experts
from jzi.train.heads import HEADS_TASKS, CellsTask
from jzi.train.loop import make_accelerator
from jzi.train.run import TrainingRun
from jzi.workspace.models.experts import load_transferred
from jzi.workspace.models.locators import load

WIDTH = 16
INFO = EncoderInfo("somewhere/encoder", True, "f" * 64, WIDTH, 56, "halves")
HEADS = HeadsTrainingConfig(epochs=40, batch_size=32, precision="no", sigma=0.1)
NAMES = ("zoom", "cells", "levels")


def make_cache(
    path: Path, seed: int, photos: int = 200, info: EncoderInfo = INFO, cells: bool = True, levels: int = 2
) -> FeatureCache:
    """A map of random features, and photos whose embeddings resemble those of their cells."""
    rng = np.random.default_rng(seed)
    pyramid = Pyramid.around(48.2 + seed / 10, 16.37, 640.0, levels=levels, grid=4 if levels == 2 else 16)
    cache = FeatureCache.create(path, pyramid, info)
    cell = rng.normal(size=(16, 16, WIDTH))
    status = np.full((16, 16), ENCODED, np.uint8)
    status[:2, :3] = NODATA
    tile = 4 * cell.reshape(4, 4, 4, 4, WIDTH).mean((1, 3))
    tiles = [rng.normal(size=(1, 1, WIDTH)), tile][:levels]
    for level, embedding in enumerate([*tiles, None]):
        n = pyramid.tiles_per_side(level)
        cache.tiles.write_chunk(
            level, 0, 0, status if level == levels else np.full((n, n), ENCODED, np.uint8), embedding
        )
    if cells:
        features = cache.require_cells(160.0)
        for chunk in features.units:
            features.write(chunk, status[chunk], cell[chunk].astype(np.float16))
        cache.consolidate()
    if photos:
        add_photos(cache, cell, photos, rng)
    return cache


def add_photos(cache: FeatureCache, cell: np.ndarray, photos: int, rng: np.random.Generator) -> None:
    pyramid = cache.pyramid
    x, y = rng.uniform(-320, 320, (2, photos))
    frame = pd.DataFrame({"id": [f"p{i}" for i in range(photos)], "photo": "", "path": ""})
    frame["latitude"], frame["longitude"] = pyramid.unproject(x, y)
    share = np.arange(photos) / photos
    frame["split"] = np.select([share < 0.7, share < 0.85], ["train", "val"], "test")
    rows = cache.queries.list_photos(frame)
    row, col = pyramid.cells_at(frame["latitude"].to_numpy(), frame["longitude"].to_numpy())
    embedding = cell[row, col] + rng.normal(size=(photos, WIDTH)) / 4
    cache.queries.write(
        rows, {"status": np.full(photos, ENCODED), "photo_sha256": frame["id"].to_numpy(object)}, embedding
    )


@pytest.fixture
def caches(tmp_path: Path) -> list[FeatureCache]:
    return [make_cache(tmp_path / f"{seed}.zarr", seed) for seed in (1, 2, 3)]


def train(folder: Path, caches: list[FeatureCache], config: HeadsTrainingConfig = HEADS) -> Path:
    data = TrainingData.load(caches[0], cells=True)
    decoder = TrainConfig(epochs=1, batch_size=32, precision="no")
    train_decoder(caches[0], folder, DecoderConfig(layers=1, heads=2), decoder, data=data, experts_follow=True)
    others = load_others(caches[0], [cache.path for cache in caches[1:]], config, "cpu", 0)
    train_experts(data, folder, NAMES, config, others=others, progress=False)
    return folder


def make_task(name: str, folder: Path, caches: list[FeatureCache], config: HeadsTrainingConfig = HEADS):
    first, *others = (TrainingData.load(cache, cells=True) for cache in caches)
    torch.manual_seed(0)
    return HEADS_TASKS[name](make_accelerator(config, folder), first, config, TrainingRun(folder, {}), 0, others)


# Several areas


def test_photos_that_another_area_trains_on_are_not_validated_on(tmp_path) -> None:
    cache = make_cache(tmp_path / "area.zarr", 1)
    again = make_cache(tmp_path / "again.zarr", 1)
    frame = again.queries.frame()
    again.queries.list_photos(frame.assign(split=frame["split"].replace({"train": "val", "val": "train"})))
    with pytest.raises(TrainingError, match=r"validation photos of .*area\.zarr are training photos of .*again\.zarr"):
        train(tmp_path / "model", [cache, again])


@pytest.mark.slow
def test_experts_of_two_areas_locate_photos_of_a_third_that_no_training_saw(caches, tmp_path) -> None:
    source = train(tmp_path / "model", caches[:2])
    report = transfer(source, caches[2], tmp_path / "new", "cpu")
    config = read_config(tmp_path / "new")
    assert isinstance(config, TransferModelConfig)
    assert (report.cells, list(config.experts)) == (250, ["cells", "levels"])
    expert = load_transferred(tmp_path / "new", config, "cpu").fused()
    photos = LabelledPhotos.load(caches[2], expert)
    recall = evaluate(expert, photos, radii=(30.0,)).recall[30.0].value
    assert recall > 0.5  # chance is 0.01
    alone = transfer(train(tmp_path / "alone", caches[:1]), caches[2], tmp_path / "newer", "cpu").folder
    one = load_transferred(alone, read_config(alone), "cpu").fused()
    assert recall > evaluate(one, photos, radii=(30.0,)).recall[30.0].value


@pytest.mark.parametrize("name", list(HEADS_TASKS))
def test_an_epoch_has_each_photo_of_each_area_once_in_batches_of_one_area(caches, tmp_path, name) -> None:
    task = make_task(name, tmp_path, caches)
    batches = [part for batch in task.batches(0, 0) for part in batch.parts]
    assert len(batches) == task.steps_per_epoch() == 15  # 139 or 140 photos in each area
    assert [area for area, _ in batches] != sorted(area for area, _ in batches)
    for number, area in enumerate(task.areas):
        seen = torch.cat([index for other, index in batches if other == number])
        assert sorted(seen.tolist()) == list(range(area.photos))
    rest = [part for batch in task.batches(0, 7) for part in batch.parts]
    assert [(area, index.tolist()) for area, index in rest] == [(area, index.tolist()) for area, index in batches[7:]]


def test_the_softmax_of_a_photo_runs_over_the_cells_of_its_area(caches, tmp_path) -> None:
    task = make_task("cells", tmp_path, caches, replace(HEADS, dropout=0.0))
    index = torch.arange(20)
    other = task.areas[1]
    assert isinstance(other, CellsTask)
    other.begin_epoch(0)
    loss = task.loss(task.network, (1, index))
    codes = task.network.place_codes(other.scales.float())
    log = (task.network.photo_codes(other.train.query[index, 0].float())[:, 0] @ codes.T).log_softmax(-1)
    exact = "donot_use_mm_for_euclid_dist"
    square = torch.cdist(other.position[index], other.centers, compute_mode=exact).square()
    label = (-square / (2 * (0.1 * 40.0) ** 2)).softmax(-1)
    torch.testing.assert_close(loss, -(label * log).sum(-1).mean())


def test_training_on_other_areas_is_not_resumed_with_fewer(caches, tmp_path) -> None:
    quick = replace(HEADS, epochs=1)
    train(tmp_path / "model", caches[:2], quick)
    with pytest.raises(ModelError, match="area 1"):
        train(tmp_path / "model", caches[:1], quick)


def test_areas_that_do_not_fit_are_refused(caches, tmp_path) -> None:
    first = caches[0]
    with pytest.raises(ConfigError, match=r"heads\.prototypes"):
        load_others(first, [caches[1].path], replace(HEADS, prototypes=True), "cpu", 0)
    bare = make_cache(tmp_path / "bare.zarr", 4, cells=False)
    with pytest.raises(CacheError, match="no cells"):
        load_others(first, [bare.path], HEADS, "cpu", 0)
    other = make_cache(tmp_path / "other.zarr", 4, info=replace(INFO, fingerprint="e" * 64))
    with pytest.raises(CacheMismatchError, match="another encoder"):
        load_others(first, [other.path], HEADS, "cpu", 0)
    deep = FeatureCache.create(tmp_path / "deep.zarr", Pyramid.around(48.2, 16.37, 640.0, levels=3), INFO)
    with pytest.raises(CacheMismatchError, match=r"pyramid\.levels 4 and 3"):
        load_others(first, [deep.path], HEADS, "cpu", 0)


# Transfer


def test_a_transfer_needs_no_photo_and_gives_the_same_model_again(caches, tmp_path) -> None:
    source = train(tmp_path / "model", caches[:1], replace(HEADS, epochs=1))
    empty = make_cache(tmp_path / "empty.zarr", 5, photos=0)
    transfer(source, caches[1], tmp_path / "new", "cpu")
    transfer(source, empty, tmp_path / "new", "cpu")  # replaces it
    files = {file.name: file.read_bytes() for file in (tmp_path / "new").rglob("*") if file.is_file()}
    transfer(tmp_path / "new", empty, tmp_path / "again", "cpu")  # from a transferred model
    assert {file.name: file.read_bytes() for file in (tmp_path / "again").rglob("*") if file.is_file()} == files
    config = read_config(tmp_path / "new")
    assert list(config.fusion.weights) == ["cells", "levels", "cells+levels"]
    assert config.fusion.weights == {
        key: weights for key, weights in read_config(source).fusion.weights.items() if "zoom" not in key
    }


@pytest.mark.slow
def test_models_that_cannot_be_transferred_are_refused(caches, tmp_path) -> None:
    quick = replace(HEADS, epochs=1)
    source = train(tmp_path / "model", caches[:1], quick)
    with pytest.raises(ModelError, match="holds a model of kind zoom"):
        transfer(source, caches[1], source, "cpu")
    other = make_cache(tmp_path / "other.zarr", 4, info=replace(INFO, fingerprint="e" * 64))
    with pytest.raises(CacheMismatchError, match="another encoder"):
        transfer(source, other, tmp_path / "new", "cpu")
    with pytest.raises(ModelError, match="prototypes"):
        transfer(
            train(tmp_path / "own", caches[:1], replace(quick, prototypes=True)), caches[1], tmp_path / "new", "cpu"
        )
    deep = make_cache(tmp_path / "deep.zarr", 6, photos=0, levels=1)
    with pytest.raises(ConfigError, match=r"pyramid\.levels = 2, but this area has 1"):
        transfer(source, deep, tmp_path / "new", "cpu")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_transferred_model_is_evaluated_described_and_located_with(area: Callable, tmp_path: Path) -> None:
    heads = "--set heads.epochs=2 --set train.epochs=1 --set decoder.layers=1 --set decoder.heads=2"
    area("encode-map --cells")
    area("encode-queries")
    area(f"train-decoder {heads} --experts zoom,cells,levels --also features.zarr")
    (tmp_path / "new").mkdir()
    shutil.copy("jzi.toml", "new/jzi.toml")
    text = Path("new/jzi.toml").read_text().replace('"encoder"', '"../model/encoder"')
    Path("new/jzi.toml").write_text(text.replace('"map.tif"', '"../map.tif"').replace('"photos"', '"../photos"'))
    area("encode-map --cells --config new/jzi.toml")
    result = json.loads(area("transfer --model model --config new/jzi.toml --json").stdout)
    assert set(result["experts"]) == {"cells", "levels"} and result["cells"] == 4096
    assert "of another area" in area("info new/model").stdout
    area("encode-queries --config new/jzi.toml")
    figures = json.loads(area("evaluate --config new/jzi.toml --json").stdout.splitlines()[-1])["experts"]
    assert set(figures) == {"cells", "levels", "fused", "fused_cross_view"}
    photo = next(Path("photos").iterdir())
    located = json.loads(area(f"locate {photo} --model new/model --json").stdout.splitlines()[0])
    assert {"latitude", "longitude"} <= located.keys()
    with pytest.raises(ConfigError, match="no expert 'zoom'"):
        load("new/model", experts=("zoom",))
    refused = area(f"locate {photo} --model new/model --cache features.zarr", code=2)
    assert "contains its map" in refused.stderr
    refused = area("train-decoder --experts zoom --also features.zarr", code=2)
    assert "--also trains the experts cells and levels" in refused.stderr


def test_the_benchmark_of_unseen_towns_locates_photos_of_all_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(cache: object, expert: object, split: str) -> LabelledPhotos:
        if split == "val":
            raise TrainingError("there is none")
        ids = {"train": "012", "test": "345"}[split]
        rows = np.array(list(ids), int)
        degrees = rows.astype(float)
        return LabelledPhotos(split, torch.zeros(3, 2), degrees, degrees, rows, rows, 0, degrees, tuple(ids))

    monkeypatch.setattr(LabelledPhotos, "load", load)
    photos = unseen.photos_of(None, None, 3)  # type: ignore[arg-type]
    assert photos.row.tolist() == [int(photos.latitude[each]) for each in range(3)]
    assert list(photos.ids) == [str(row) for row in photos.row] and max(photos.row) > 2


def test_the_benchmark_of_unseen_towns_refuses_one_that_is_trained_on(tmp_path: Path) -> None:
    town, other = tmp_path / "town", tmp_path / "other"
    town.mkdir()
    other.mkdir()
    options = [str(town), str(other), "--test", str(other / ".." / "town"), "--encoder", str(tmp_path)]
    result = CliRunner().invoke(unseen.main, options)
    assert result.exit_code == 2 and "is trained on" in result.output
