"""The folder of a state-wide retriever can be copied and replaced, and nothing in it that changed is used."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ConvNextConfig, ConvNextModel

import jzi
from jzi.encode.encoders.towers import Towers, TowersConfig
from jzi.errors import ConfigError, JziError, ModelError
from jzi.retrieve import statewide as module
from jzi.retrieve.retriever import Retriever
from jzi.retrieve.statewide import StatewideRetriever
from jzi.store.model_config import CONFIG, read_config
from jzi.store.model_folder import ENCODER
from jzi.workspace.caches import scan_folder
from jzi.workspace.describe import describe

SMALL = TowersConfig(width=16, heads=4, photo_size=(64, 48), image_size=32, lods_m=(0.2, 0.4))


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Towers:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    ConvNextModel(ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 16], num_stages=2)).save_pretrained(folder)
    return Towers.create(folder, config=SMALL, device="cpu")


@pytest.fixture
def retriever(towers: Towers, tmp_path: Path) -> StatewideRetriever:
    return StatewideRetriever.save(
        tmp_path / "retriever", towers, method="statewide", temperature=0.05, area="a 1 km square in Vienna"
    )


def cells() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 2, 32, 32, 3), np.uint8)


def rewrite(folder: Path, **entries: Any) -> None:
    """Edit config.json, with the digest that belongs to the edit."""
    values = {**json.loads((folder / CONFIG).read_text()), **entries}
    values = {name: value for name, value in values.items() if name != "digest" and value is not ...}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    (folder / CONFIG).write_text(json.dumps({**values, "digest": digest}))


def test_a_copied_folder_has_the_same_towers(retriever, towers, tmp_path) -> None:
    shutil.copytree(retriever.folder, tmp_path / "elsewhere")
    shutil.rmtree(retriever.folder)
    again = StatewideRetriever.load(tmp_path / "elsewhere")
    loaded = again.load_encoder("cpu")
    assert torch.equal(loaded.encode_cells(cells()), towers.encode_cells(cells()))
    assert loaded.fingerprint == towers.fingerprint == again.encoder.fingerprint
    assert again.encoder.layout == "fit" and (again.temperature, again.method, again.cell_m) == (0.05, "statewide", 30)
    assert loaded.config == towers.config


def test_every_file_of_the_towers_has_a_digest(retriever) -> None:
    files = {path.relative_to(retriever.folder).as_posix() for path in retriever.folder.rglob("*") if path.is_file()}
    assert set(read_config(retriever.folder).files) == files - {CONFIG} and len(files) == 9


def test_the_temperature_is_the_reciprocal_of_the_scale_before_it_is_fitted(towers, tmp_path) -> None:
    saved = StatewideRetriever.save(tmp_path / "retriever", towers, method="statewide")
    assert saved.temperature == StatewideRetriever.load(tmp_path / "retriever").temperature == 1 / 36


def test_better_towers_replace_those_of_before(retriever, towers, tmp_path) -> None:
    torch.manual_seed(1)
    shared = Towers.create(towers.config.photo_model, config=replace(SMALL, shared=True, lods_m=(0.2,)), device="cpu")
    StatewideRetriever.save(retriever.folder, shared, method="sample4geo")
    again = StatewideRetriever.load(retriever.folder)
    assert again.method == "sample4geo" and again.load_encoder("cpu").fingerprint == shared.fingerprint
    assert {path.name for path in retriever.folder.iterdir()} == {CONFIG, ENCODER}


def test_towers_that_cannot_be_written_leave_the_retriever_of_before(retriever, towers, monkeypatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    before = retriever.load_encoder("cpu").fingerprint
    with monkeypatch.context() as patch:
        patch.setattr("jzi.encode.encoders.towers.save_model", fail)
        with pytest.raises(ModelError, match="No space left"):
            StatewideRetriever.save(retriever.folder, towers, method="statewide")
    assert StatewideRetriever.load(retriever.folder).load_encoder("cpu").fingerprint == before
    StatewideRetriever.save(retriever.folder, towers, method="statewide")  # over what the failed one left
    assert not (retriever.folder / module._PARTIAL).exists()


@pytest.mark.parametrize(
    "name", ["config.json", "pooling.safetensors", "map/model.safetensors", "map/config.json", "photo/config.json"]
)
def test_files_that_changed_or_are_missing_are_refused(retriever, name: str) -> None:
    path = retriever.folder / ENCODER / name
    content = path.read_bytes()
    path.write_bytes(content[:-3] + b"\n\n\n")
    with pytest.raises(ModelError, match=r"does not match its SHA-256"):
        retriever.load_encoder("cpu")
    path.unlink()
    with pytest.raises(ModelError, match="missing"):
        retriever.load_encoder("cpu")


def test_weights_that_are_not_recorded_are_refused(retriever) -> None:
    shutil.copy(
        retriever.folder / ENCODER / "map" / "model.safetensors", retriever.folder / ENCODER / "photo" / "x.safetensors"
    )
    with pytest.raises(ModelError, match="not among the files"):
        retriever.load_encoder("cpu")
    shutil.rmtree(retriever.folder / ENCODER)
    with pytest.raises(ModelError, match="lacks its encoder"):
        retriever.load_encoder("cpu")


@pytest.mark.parametrize(
    ("entries", "part"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"cell_m": -30.0}, "cell_m"),
        ({"area": 5}, "area"),
        ({"method": ...}, "method"),
        ({"pyramid": {}}, "pyramid"),
    ],
)
def test_entries_out_of_range_are_refused(retriever, entries: dict[str, Any], part: str) -> None:
    rewrite(retriever.folder, **entries)
    with pytest.raises(ModelError, match=part):
        StatewideRetriever.load(retriever.folder)


def test_towers_of_another_width_than_recorded_are_refused(retriever) -> None:
    encoder = {**json.loads((retriever.folder / CONFIG).read_text())["encoder"], "width": 32}
    rewrite(retriever.folder, encoder=encoder)
    with pytest.raises(ModelError, match="other towers"):
        StatewideRetriever.load(retriever.folder).load_encoder("cpu")


@pytest.mark.parametrize("entries", [{"temperature": 0.0}, {"temperature": float("nan")}, {"cell_m": 0.0}])
def test_numbers_out_of_range_are_not_written(towers, tmp_path, entries: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        StatewideRetriever.save(tmp_path / "retriever", towers, method="statewide", **entries)
    assert not (tmp_path / "retriever").exists()


def test_it_is_no_model_of_an_area(retriever, tmp_path) -> None:
    for load, part in ((jzi.load, "give the index as the cache"), (Retriever.load, "no retriever")):
        with pytest.raises(JziError, match=part):
            load(retriever.folder)
    with pytest.raises(ModelError, match="holds no retriever"):
        StatewideRetriever.load(tmp_path)


def test_it_is_described_and_found(retriever, tmp_path) -> None:
    facts = describe(str(retriever.folder)).facts
    assert facts["trained_in"] == "a 1 km square in Vienna" and facts["photo_px"] == "64 x 48"
    assert facts["lods_m"] == "0.2, 0.4" and facts["pooling"] == "attention" and facts["temperature"] == 0.05
    _, models = scan_folder(tmp_path)
    assert [model.folder for model in models] == [retriever.folder]
