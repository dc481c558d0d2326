"""`train-decoder` trains all experts from the cache, resumes exactly, uses training photos alone; `evaluate` rows."""

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
from PIL import Image
from safetensors.torch import load_file

from jzi.retrieve.vpr import VprExpert
from jzi.store.cache.feature_cache import ENCODED, FeatureCache
from jzi.store.disk.files import file_sha256
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo
from jzi.store.model_config import read_config
from jzi.store.model_folder import EXPERT_FILES, NOVELTY
from jzi.train.cache_task import CacheTask
from jzi.train.heads import HeadsTask
from jzi.workspace.setup.settings import EncoderSettings, Settings

WIDTH = 16
SETTINGS = {
    "decoder.layers": 1, "decoder.heads": 2, "train.epochs": 2, "train.batch_size": 32, "train.save_every_s": 1e-9,
    "heads.epochs": 3, "heads.batch_size": 32, "heads.hidden": 16, "heads.features": 8, "heads.save_every_s": 1e-9,
}  # fmt: skip
TRAIN = "train-decoder " + " ".join(f"--set {name}={value}" for name, value in SETTINGS.items())
ZOOM_ONLY = "train-decoder " + " ".join(
    f"--set {name}={value}" for name, value in SETTINGS.items() if not name.startswith("heads.")
)


@pytest.fixture
def cache(jzi: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureCache:
    """A cache with cells, in which photos and cells encode their positions; neither imagery nor photos exist."""
    pyramid = Pyramid.around(48.2, 16.37, 640.0, levels=2)
    encoder = EncoderInfo("somewhere/encoder", True, "f" * 64, WIDTH, 56, "halves")
    cache = FeatureCache.create(tmp_path / "features.zarr", pyramid, encoder)
    rng = np.random.default_rng(0)

    def embed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        waves = [wave(each / 320 * k) for each in (x, y) for k in (1, 2, 4) for wave in (np.sin, np.cos)]
        values = np.concatenate([np.stack(waves, -1), np.zeros((*x.shape, WIDTH - 12))], -1)
        return 2 * values + rng.normal(0, 0.1, values.shape)

    for level in range(3):
        n = pyramid.tiles_per_side(level)
        centers = (np.arange(n) + 0.5) * 640 / n - 320
        embedding = embed(*np.meshgrid(centers, -centers))
        cache.tiles.write_chunk(level, 0, 0, np.full((n, n), ENCODED, np.uint8), embedding if level < 2 else None)
    cells = cache.require_cells(160.0)
    cells.write((slice(0, 16), slice(0, 16)), np.full((16, 16), ENCODED, np.uint8), embedding.astype(np.float16))
    x, y = rng.uniform(-320, 320, (2, 200))
    latitude, longitude = pyramid.unproject(x, y)
    frame = pd.DataFrame({"id": [f"p{i}" for i in range(200)], "photo": "", "path": ""})
    frame["latitude"], frame["longitude"] = latitude, longitude
    frame["split"] = np.where(np.arange(200) < 120, "train", np.where(np.arange(200) < 170, "val", "test"))
    columns = {"status": np.full(200, ENCODED), "photo_sha256": frame["id"].to_numpy(object)}
    cache.queries.write(cache.queries.list_photos(frame), columns, embed(x, y))
    monkeypatch.setattr("jzi.encode.encoders.fingerprint.is_stored_encoder", lambda *_: True)  # it does not exist
    settings = Settings(pyramid, encoder=EncoderSettings("somewhere/encoder", image_size=56))
    (tmp_path / "jzi.toml").write_text(settings.to_toml())
    return cache


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def evaluation(jzi: Callable, options: str = "") -> dict:
    return json.loads(jzi(f"evaluate --json {options}").stdout)


@pytest.mark.slow
def test_all_experts_are_trained_once_and_recorded_with_digests(jzi, cache, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was opened"))
    report = json.loads(jzi(f"{TRAIN} --json").stdout.splitlines()[-1])
    assert report["experts"] == ["zoom", "cells", "levels", "vpr"]
    config = read_config(tmp_path / "model")
    assert config.experts.keys() == EXPERT_FILES.keys()
    assert config.novelty is not None and config.novelty.photos == 50
    for file in (NOVELTY, *EXPERT_FILES.values()):
        assert config.files[file] == file_sha256(tmp_path / "model" / file)
    assert len(config.fusion.weights) == 15 and config.fusion.photos == 50
    assert config.fusion.weights["cells+levels+vpr+zoom"] == report["weights"]
    assert any(weight > 0 for weight in report["weights"].values())
    before = contents(tmp_path / "model")
    monkeypatch.setattr(CacheTask, "batches", lambda *_: pytest.fail("trained again"))
    with monkeypatch.context() as patch:
        patch.setattr(VprExpert, "fit", lambda *_: pytest.fail("fitted again"))
        again = json.loads(jzi(f"{TRAIN} --json").stdout.splitlines()[-1])
    assert contents(tmp_path / "model") == before
    assert (again["weights"], again["gains"]) == (report["weights"], report["gains"])

    # Rows of evaluation
    values = evaluation(jzi)["experts"]
    assert list(values) == ["zoom", "cells", "levels", "vpr", "fused_cross_view", "fused"]
    for row in values.values():
        for name in ("recall@40m", "recall@50m", "recall@100m", "median_error_m"):
            assert row[name].keys() == {"value", "low", "high"}
            assert row[name]["low"] <= row[name]["value"] <= row[name]["high"]
        assert np.isfinite(row["nll"]) and 0 <= row["calibration_error"] <= 1
    for name in ("cells", "vpr"):
        alone = evaluation(jzi, f"--experts {name}")["experts"]
        assert alone[name] == values[name] == alone["fused"]
        assert alone.keys() == {name, "fused"} | ({"fused_cross_view"} if name != "vpr" else set())
    assert "no expert 'retrieval'" in jzi("evaluate --experts retrieval", code=2).stderr

    # Training photos alone are the references
    positions = load_file(tmp_path / "model" / "vpr.safetensors")["position"].numpy()
    frame = cache.queries.encoded()
    train = frame[frame["split"] == "train"]
    np.testing.assert_allclose(
        positions, np.stack(cache.pyramid.project(train["latitude"].to_numpy(), train["longitude"].to_numpy()), 1)
    )

    # Experts can be dropped and added again
    jzi(f"{ZOOM_ONLY} --experts zoom")
    config = read_config(tmp_path / "model")
    assert not config.experts and list(config.fusion.weights) == ["zoom"]
    assert not any((tmp_path / "model" / file).exists() or file in config.files for file in EXPERT_FILES.values())
    assert list(evaluation(jzi)["experts"]) == ["zoom", "fused_cross_view", "fused"]
    jzi(TRAIN)
    after = contents(tmp_path / "model")
    assert {name: after[name] for name in EXPERT_FILES.values()} == {
        name: before[name] for name in EXPERT_FILES.values()
    }
    assert evaluation(jzi)["experts"] == values


class Killed(BaseException):
    """Stands for a kill signal: the code under test must not catch it."""


@pytest.mark.slow
def test_a_killed_call_is_resumed_to_the_same_files(jzi, cache, tmp_path, monkeypatch) -> None:
    jzi(f"{TRAIN} --set model.path=whole")
    batches = HeadsTask.batches

    def killed(self, number: int, first: int):
        if number == 2:
            raise Killed
        return batches(self, number, first)

    def killed_in_save(self, path: Path):
        raise Killed

    for kind, name, replacement in ((HeadsTask, "batches", killed), (VprExpert, "save", killed_in_save)):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(kind, name, replacement)
            jzi(TRAIN)
    jzi(TRAIN)
    whole, parts = contents(tmp_path / "whole"), contents(tmp_path / "model")
    for name in ["decoder.safetensors", NOVELTY, *EXPERT_FILES.values(), "train/cells/heads.safetensors"]:
        assert whole[name] == parts[name], name
    assert read_config(tmp_path / "whole").fusion.weights == read_config(tmp_path / "model").fusion.weights


def test_heads_are_trained_on_training_photos_alone(jzi, cache, tmp_path, monkeypatch) -> None:
    used: list[torch.Tensor] = []
    query = HeadsTask.query
    monkeypatch.setattr(HeadsTask, "query", lambda self, part: spy(query(self, part), used))
    jzi(f"{TRAIN} --experts zoom,cells,levels --set heads.epochs=1")
    frame = cache.queries.encoded()
    train = cache.queries.embedding(frame.index[frame["split"] == "train"].to_numpy(np.int64))[:, 0]
    seen = {row.tobytes() for batch in used for row in batch.numpy()}
    assert seen == {row.tobytes() for row in train.astype(np.float32)}


def spy(values: torch.Tensor, used: list) -> torch.Tensor:
    used.append(values.detach().clone())
    return values


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ("cells,vpr", "lacks zoom"),
        ("zoom,zooom", "there is no expert 'zooom': the experts are zoom, cells, levels, vpr"),
        ("zoom,", "distinct names"),
        ("zoom,zoom", "distinct names"),
        ("", "distinct names"),
    ],
)
def test_experts_that_cannot_be_trained_are_refused(jzi, cache, tmp_path, experts: str, message: str) -> None:
    assert message in jzi(f"train-decoder --experts={experts}", code=2).stderr
    assert not (tmp_path / "model").exists()


def test_a_cache_without_cells_trains_the_others_and_says_so(jzi, cache, tmp_path) -> None:
    shutil.rmtree(tmp_path / "features.zarr" / "cells")
    cache._write_header(replace(cache.header, cells_m=None))
    whole = FeatureCache.open(tmp_path / "features.zarr")
    assert not whole.has_cells
    assert "has no cells" in jzi(f"{TRAIN} --experts zoom,cells", code=2).stderr
    assert "heads.batch_size has no effect" in jzi(f"{TRAIN} --experts zoom,vpr", code=2).stderr
    result = jzi(ZOOM_ONLY)
    assert "cells and levels were left out" in result.stderr
    assert list(read_config(tmp_path / "model").experts) == ["vpr"]


def test_without_validation_photos_the_zoom_locates_and_the_experts_are_still_compared(jzi, cache, tmp_path) -> None:
    frame = cache.queries.encoded()
    cache.queries.list_photos(frame.assign(photo="", split=np.where(frame["split"] == "test", "test", "train")))
    assert "no fusion of the experts" in jzi(TRAIN).stdout
    config = read_config(tmp_path / "model")
    assert config.fusion is None
    assert config.experts["vpr"]["width_m"] == 0.5 * cache.pyramid.cell_size
    values = evaluation(jzi)["experts"]
    assert list(values) == ["zoom", "cells", "levels", "vpr", "fused_cross_view", "fused"]
    assert values["fused"] == values["zoom"]
    assert "no weights to fuse" in jzi("evaluate --experts zoom,vpr", code=2).stderr


@pytest.mark.slow
def test_heads_start_from_those_of_another_model(jzi, cache, tmp_path) -> None:
    jzi(f"{TRAIN} --set model.path=first --experts zoom,cells")
    still = "--set heads.init=first --set heads.learning_rate=0 --experts zoom,cells"
    jzi(f"{TRAIN} --set model.path=second {still}")
    first, second = (load_file(tmp_path / name / "cells.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    jzi(f"{TRAIN} --set model.path=third {still} --set heads.prototypes=true")  # of this map, from zero
    third = load_file(tmp_path / "third" / "cells.safetensors")
    assert all(torch.equal(first[name], third[name]) for name in first)
    assert "has no expert levels" in jzi(f"{TRAIN} --set heads.init=first", code=2).stderr
    wider = f"{TRAIN} --set model.path=fourth {still}".replace("heads.hidden=16", "heads.hidden=24")
    assert "heads.hidden" in jzi(wider, code=2).stderr
