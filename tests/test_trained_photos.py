"""A model is not evaluated on photos that it, or its encoder, was trained on, whatever their split is now."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jzi.errors import ModelError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.trained_photos import RECORD, TrainedPhotos, check_held_out, photo_keys

SMALL = "--set decoder.layers=1 --set decoder.heads=2"
TINY = f"--set train.epochs=1 {SMALL}"
FINETUNE = "--set finetune.blocks=all --set finetune.epochs=1 --set finetune.batch_size=8"


def photos(*names: str) -> pd.DataFrame:
    return pd.DataFrame({"id": names, "latitude": 48.2, "longitude": 16.37 + 1e-5 * np.arange(len(names))})


def moved(folder: Path, split: str) -> int:
    """Number of photos of a split of the cache that the model was trained on."""
    frame = FeatureCache.open(folder / "features.zarr").queries.encoded()
    return TrainedPhotos.read(folder / "model").among(photo_keys(frame[frame["split"] == split]))[0]


def test_photos_are_known_by_their_name_and_position() -> None:
    keys = photo_keys(photos("a", "b"))
    assert len(np.unique(keys)) == 2
    elsewhere = photos("a", "b").assign(latitude=48.3)
    assert not np.isin(photo_keys(elsewhere), keys).any()
    assert np.isin(photo_keys(photos("a", "b", "c")), keys).tolist() == [True, True, False]


def test_records_are_joined_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    first, second = (photo_keys(photos(*"abcd").iloc[part]) for part in (slice(2), slice(1, 4)))
    TrainedPhotos(first, first).plus([TrainedPhotos(model=second)]).write(tmp_path)
    read = TrainedPhotos.read(tmp_path)
    assert (len(read.encoder), len(read.model)) == (2, 4)
    assert len(TrainedPhotos.of_encoder(tmp_path / "encoder").encoder) == 2
    assert not len(TrainedPhotos.of_encoder(tmp_path / "encoder").model)
    (tmp_path / RECORD).write_bytes(b"damaged")
    with pytest.raises(ModelError, match="cannot be read"):
        TrainedPhotos.read(tmp_path)


def test_a_photo_that_was_trained_on_is_not_evaluated(tmp_path: Path) -> None:
    keys = photo_keys(photos("a", "b"))
    TrainedPhotos(model=keys).write(tmp_path)
    check_held_out(tmp_path, "train", photo_keys(photos("a", "b")))
    check_held_out(tmp_path, "test", photo_keys(photos("x", "y")))
    with pytest.raises(ModelError, match=r"was trained on 2 of the 3 photos of the test split.*in another folder"):
        check_held_out(tmp_path, "test", photo_keys(photos("a", "b", "c")))
    TrainedPhotos(encoder=keys[:1]).write(tmp_path)
    with pytest.raises(ModelError, match=r"the encoder of .* was trained on 1 of the 3 photos of the val split"):
        check_held_out(tmp_path, "val", photo_keys(photos("a", "b", "c")))
    check_held_out(tmp_path / "absent", "test", photo_keys(photos("a")))


@pytest.mark.slow
def test_another_split_needs_another_training(jzi: Callable, trained_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(trained_folder, tmp_path, dirs_exist_ok=True)
    assert moved(tmp_path, "train") and not moved(tmp_path, "val") + moved(tmp_path, "test")
    jzi("evaluate --json")
    for split_by in ("photo", "block"):
        jzi(f"encode-queries --split-by {split_by}")
        if moved(tmp_path, "test"):
            break
    assert "photos of the test split" in jzi("evaluate --json", 2).stderr
    jzi("evaluate --json --split train")
    jzi(f"train-decoder --set model.path=again {TINY}")
    jzi("evaluate --json --set model.path=again")


@pytest.mark.slow
def test_held_out_photos_are_held_out_from_the_encoder(jzi: Callable, encoded_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(encoded_folder, tmp_path, dirs_exist_ok=True)
    jzi(f"finetune -o tuned {FINETUNE} {SMALL}")
    use = "--set encoder.name=tuned/encoder --set cache.path=tuned.zarr --set model.path=tuned-model"
    jzi(f"encode-map {use}")
    jzi(f"encode-queries {use}")
    jzi(f"train-decoder {use} {TINY}")
    jzi(f"evaluate --json {use}")
    cache = FeatureCache.open(tmp_path / "tuned.zarr", "r+")
    frame, anew = cache.queries.frame(), use.replace("tuned-model", "anew")
    cache.queries.list_photos(frame.assign(split=frame["split"].replace({"train": "test", "test": "train"})))
    jzi(f"train-decoder {anew} {TINY}")
    assert "the encoder of anew was trained on" in jzi(f"evaluate --json {anew}", 2).stderr
    cache.queries.list_photos(frame.assign(split=frame["split"].replace({"train": "val", "val": "train"})))
    refused = jzi(f"train-decoder {use.replace('tuned-model', 'another')} {TINY}", 2).stderr
    assert "the encoder of tuned was trained on" in refused and "photos of the val split" in refused
    assert not (tmp_path / "another" / "config.json").exists()
