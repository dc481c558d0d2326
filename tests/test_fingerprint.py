"""Fingerprints of encoders, and how often weights are hashed and models are built."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Model

import jzi.encode.encoders.encoder as encoding
import jzi.encode.encoders.fingerprint as module
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.encoders.fingerprint import is_stored_encoder
from jzi.store.cache.feature_cache import FeatureCache

FAST = "--set train.epochs=1 --set decoder.layers=1 --set decoder.heads=2"


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """Counts of hashed weights and of built models."""
    counter: Counter = Counter()

    def counted(function: Callable, name: str) -> Callable:
        def call(*args: Any, **options: Any) -> Any:
            counter[name] += 1
            return function(*args, **options)

        return call

    for place in (encoding, module):
        monkeypatch.setattr(place, "encoder_fingerprint", counted(module.encoder_fingerprint, "hashed"))
    monkeypatch.setattr(Encoder, "__init__", counted(Encoder.__init__, "built"))
    return counter


def test_weights_are_hashed_once_and_models_built_only_to_encode(area, tmp_path, count) -> None:
    area("encode-map")
    assert (count["built"], count["hashed"]) == (1, 1)
    area("encode-queries")
    count.clear()
    area(f"train-decoder {FAST}")
    assert (count["built"], count["hashed"]) == (0, 1)  # the file's, to compare it with the cache
    count.clear()
    photo = next((tmp_path / "photos").rglob("*.jpg"))
    area(f"locate {photo}")
    assert (count["built"], count["hashed"]) == (1, 0)  # the folder's files match their digests
    shutil.copytree(tmp_path / "encoder", tmp_path / "changed")
    weights = load_file(tmp_path / "changed" / "model.safetensors")
    save_file({**weights, "layernorm.bias": weights["layernorm.bias"] + 1}, tmp_path / "changed" / "model.safetensors")
    refused = area("train-decoder --set encoder.name=changed", code=2)
    assert "filled by another encoder" in refused.stderr


def test_the_fingerprint_follows_weights_that_are_trained(encoder_folder) -> None:
    encoder = Encoder.load(encoder_folder, image_size=28, device="cpu")
    before = encoder.fingerprint
    weight = next(encoder.model.parameters()).requires_grad_(True)
    with torch.no_grad():
        weight += 1
    assert encoder.fingerprint != before


def test_files_have_the_fingerprint_of_the_model_that_they_hold(encoder, encoder_folder, tmp_path, count) -> None:
    info = encoder.info
    assert is_stored_encoder(info, encoder_folder, 28, "halves")
    assert not is_stored_encoder(info, encoder_folder, 28, "whole")
    assert not is_stored_encoder(info, encoder_folder, 42, "halves")
    assert not is_stored_encoder(replace(info, fingerprint="0" * 64), encoder_folder, 28, "halves")
    assert not is_stored_encoder(info, tmp_path / "nowhere", 28, "halves")
    shutil.copytree(encoder_folder, tmp_path / "other")
    (tmp_path / "other" / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3]}))
    assert not is_stored_encoder(info, tmp_path / "other", 28, "halves")
    other = Encoder.load(tmp_path / "other", image_size=28, device="cpu").info
    assert is_stored_encoder(other, tmp_path / "other", 28, "halves")
    assert count["built"] == 1


def test_a_checkpoint_in_pieces_is_loaded_to_be_compared(area, encoded_folder, tmp_path, count) -> None:
    shutil.copytree(encoded_folder, tmp_path, dirs_exist_ok=True)
    Dinov2Model.from_pretrained(tmp_path / "encoder").save_pretrained(tmp_path / "pieces", max_shard_size="20KB")
    assert len(list((tmp_path / "pieces").glob("*.safetensors"))) > 1
    count.clear()
    area(f"train-decoder {FAST} --set encoder.name=pieces")
    assert count["built"] == 1
    model = json.loads((tmp_path / "model" / "config.json").read_text())
    assert model["encoder"]["fingerprint"] == FeatureCache.open(Path("features.zarr")).encoder.fingerprint
    assert "encoder/model.safetensors.index.json" in model["files"]
    count.clear()
    area(f"locate {next((tmp_path / 'photos').rglob('*.jpg'))}")
    assert (count["built"], count["hashed"]) == (1, 0)
