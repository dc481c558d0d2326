"""Retrievers on the Hugging Face hub, against a hub on 127.0.0.1: published without photos, and loaded by name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from transformers import ConvNextConfig, ConvNextModel

import jzi as package
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.encoders.towers import Towers
from jzi.encode.encoders.towers_config import TowersConfig
from jzi.errors import ModelError
from jzi.publish.hub.hub import RepoName
from jzi.publish.hub.hub_upload import HubTarget
from jzi.retrieve.retriever import Retriever, save_retriever
from jzi.retrieve.statewide import StatewideRetriever
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.features.map_embeddings import ENCODED
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import ImageryInfo
from jzi.store.model_config import CONFIG, config_text
from jzi.store.model_folder import INDEX, copy_encoder
from jzi.tests.conftest import write_photo
from jzi.tests.mock_hub import Hub
from jzi.workspace.models.evaluated import open_retriever
from jzi.workspace.models.hub import local_folder
from jzi.workspace.push import PushRequest, prepare, push

pytest.importorskip("faiss")


@pytest.fixture
def retriever(encoder: Encoder, pyramid: Pyramid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A flat retriever with random weights and an index of 256 cells, in the current directory."""
    monkeypatch.chdir(tmp_path)
    small, folder = replace(pyramid, levels=2), tmp_path / "retriever"
    encoder.save(tmp_path / "source")
    folder.mkdir()
    copy_encoder(tmp_path / "source", folder / "encoder")
    imagery = ImageryInfo("a" * 64, (("ortho.tif", 1, 1, "b" * 64),), "bands as RGB")
    made = save_retriever(folder, small, encoder.info, imagery, context=2.0, temperature=0.05, method="sample4geo")
    cells = FeatureCache.create(made.cache_path, small, encoder.info, imagery).require_cells(2 * small.cell_size)
    embedding = np.random.default_rng(0).normal(size=(16, 16, 32)).astype(np.float16)
    cells.write((slice(0, 16), slice(0, 16)), np.full((16, 16), ENCODED, np.uint8), embedding)
    return folder


def card_of(path: Path, name: str, **options: Any) -> str:
    return prepare(PushRequest(path, HubTarget(RepoName.of(name)), "cc-by-4.0", **options)).card.decode()


def publish(path: Path, name: str) -> None:
    request = PushRequest(path, HubTarget(RepoName.of(name)), "cc-by-4.0")
    push(request, prepare(request))


def test_a_pushed_retriever_locates_as_the_one_it_was(hub: Hub, retriever: Path, tmp_path: Path, jzi: Any) -> None:
    photo = write_photo(tmp_path / "photo.jpg")
    before = package.load(retriever).locate(photo)
    pushed = jzi("push retriever anna/flat --license cc-by-4.0")
    assert "next: jzi locate photo.jpg --retriever anna/flat" in pushed.stdout
    assert set(hub.files("anna/flat")) == {
        ".gitattributes", "README.md", "card/area.png", CONFIG, INDEX, "encoder/config.json",
        "encoder/model.safetensors", "encoder/preprocessor_config.json",
    }  # fmt: skip
    locator = package.load("anna/flat")
    assert locator.name == "anna/flat" and locator.locate(photo).to_dict() == before.to_dict()
    located = json.loads(jzi("locate photo.jpg --retriever anna/flat --json").stdout)
    assert (located["latitude"], located["longitude"]) == pytest.approx((before.latitude, before.longitude), abs=1e-6)


def test_what_is_pushed_changes_nothing_of_the_retriever_and_can_be_pushed_again(
    hub: Hub, retriever: Path, tmp_path: Path
) -> None:
    before = (retriever / CONFIG).read_bytes()
    publish(retriever, "anna/flat")
    assert (retriever / CONFIG).read_bytes() == before and not (retriever / INDEX).exists()
    publish(local_folder("anna/flat"), "anna/copy")
    assert hub.files("anna/copy")[INDEX] == hub.files("anna/flat")[INDEX]


def test_a_retriever_without_an_index_is_not_pushed(hub: Hub, retriever: Path, jzi: Any) -> None:
    (retriever / "index.zarr").rename("elsewhere.zarr")
    assert (
        "has no index yet: run `jzi index --retriever retriever`" in jzi("push retriever a/b --license mit", 2).stderr
    )


def test_what_a_published_retriever_lacks_is_said(hub: Hub, retriever: Path, jzi: Any, tmp_path: Path) -> None:
    publish(retriever, "anna/flat")
    write_photo(tmp_path / "photo.jpg")
    text = jzi("locate photo.jpg --retriever anna/flat --approximate", 2).stderr
    assert "was published, without a graph: leave --approximate out" in text
    with pytest.raises(ModelError, match="has no photos yet: run `jzi encode-queries"):
        open_retriever(local_folder("anna/flat"), approximate=False)


@pytest.mark.parametrize("damage", ["outside", "twice", "nan", "width", "empty", "other"])
def test_an_index_that_was_made_to_deceive_is_refused(hub: Hub, retriever: Path, damage: str) -> None:
    publish(retriever, "anna/flat")
    files = dict(hub.files("anna/flat"))
    arrays = {name: each.copy() for name, each in load(files[INDEX]).items()}
    if damage == "outside":
        arrays["row"][0] = 99
    elif damage == "twice":
        arrays["row"][1], arrays["col"][1] = arrays["row"][0], arrays["col"][0]
    elif damage == "nan":
        arrays["embedding"][3] = np.nan
    elif damage == "width":
        arrays["embedding"] = arrays["embedding"][:, :5].copy()
    elif damage == "empty":
        arrays = {name: each[:0] for name, each in arrays.items()}
    else:
        arrays["code"] = arrays["row"]
    files[INDEX] = save(arrays)
    config = Retriever.load(local_folder("anna/flat")).config
    digests = {**config.files, INDEX: hashlib.sha256(files[INDEX]).hexdigest()}
    hub.add("eve/flat", {**files, CONFIG: config_text(replace(config, files=digests)).encode()})
    with pytest.raises(ModelError, match=INDEX):
        package.load("eve/flat")


def test_the_card_of_a_flat_retriever_says_how_it_is_used_and_what_it_discloses(hub: Hub, retriever: Path) -> None:
    text = card_of(retriever, "anna/flat")
    for part in ("--retriever anna/flat", "flat retrieval", "deuser2023sample4geo", "embedding of every cell",
                 "card/area.png", "Not evaluated"):  # fmt: skip
        assert part in text, part


def test_a_state_wide_retriever_is_pushed_and_found_by_name(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    ConvNextModel(ConvNextConfig(depths=[1, 1], hidden_sizes=[8, 16], num_stages=2)).save_pretrained("convnext")
    small = TowersConfig(width=16, heads=4, photo_size=(64, 48), image_size=32, lods_m=(0.2, 0.4))
    towers = Towers.create(Path("convnext"), config=small, device="cpu")
    StatewideRetriever.save("state", towers, method="statewide", temperature=0.05, area="two towns")
    Path("e.json").write_text(json.dumps({"photos": 9, "cells": 5000, "split": "test",
                                          "recall@1<50m": {"value": 0.25, "low": 0.1, "high": 0.4}}))  # fmt: skip
    text = card_of(Path("state"), "anna/state", evaluation=Path("e.json"))
    for part in ("jzi index --retriever anna/state", "in two towns", "fervers2024statewide", "recall within 50 m",
                 "25.0 %", "the most similar of 5,000 cells"):  # fmt: skip
        assert part in text, part
    publish(Path("state"), "anna/state")
    again = StatewideRetriever.load(local_folder("anna/state")).load_encoder("cpu")
    assert again.info.fingerprint == towers.info.fingerprint


@pytest.mark.parametrize("command", ["index", "evaluate"])
def test_a_retriever_that_is_nowhere_is_named(hub: Hub, jzi: Callable[..., Any], command: str) -> None:
    assert "the hub has no repository anna/nothing" in jzi(f"{command} --retriever anna/nothing", 2).stderr
