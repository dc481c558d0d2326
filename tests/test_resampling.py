"""Photos resized as the reference does: the pixels, who resizes so, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jzi.store.model_config as model_config
from jzi.decode.import_checkpoint import import_checkpoint
from jzi.decode.model import ZoomModel
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.photo.photos import open_photo, resize_photo
from jzi.errors import ConfigError
from jzi.locate.locator import Locator
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo
from jzi.store.model_config import read_config
from jzi.train.encoders.photos import PhotoReader as TrainingReader
from jzi.workspace.setup.settings_file import load_settings

REFERENCE = "--set encoder.resampling=reference"


@pytest.fixture
def without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)


# Pixels


def test_pixels_are_interpolated_between_their_four_neighbours() -> None:
    pytest.importorskip("cv2")
    photo = np.random.default_rng(0).integers(0, 256, (45, 101, 3), dtype=np.uint8)
    row, col = (np.clip((np.arange(to) + 0.5) * of / to - 0.5, 0, of - 1) for to, of in ((28, 45), (56, 101)))
    top, left = row.astype(int).clip(max=43), col.astype(int).clip(max=99)
    down, right = (row - top)[:, None, None], (col - left)[:, None]
    upper, lower = (photo[at][:, left] * (1 - right) + photo[at][:, left + 1] * right for at in (top, top + 1))
    resized = resize_photo(Image.fromarray(photo), 56, 28, "reference")
    assert resized.shape == (28, 56, 3) and resized.dtype == np.uint8
    assert np.abs(resized - (upper * (1 - down) + lower * down)).max() < 1.1  # in fixed point
    assert hashlib.sha256(resized.tobytes()).hexdigest()[:16] == "5849c366892875dd"  # on any machine


def test_fine_patterns_are_not_averaged() -> None:
    pytest.importorskip("cv2")
    fine = np.zeros((400, 600, 3), np.uint8)
    fine[::2, ::2] = fine[1::2, 1::2] = 255
    assert np.ptp(resize_photo(Image.fromarray(fine), 57, 29)) < 10
    assert np.ptp(resize_photo(Image.fromarray(fine), 57, 29, "reference")) > 100


# Who resizes so


@pytest.mark.parametrize("resampling", ["antialias", "reference"])
def test_a_cached_photo_is_resized_as_the_settings_say(area, tmp_path, resampling: str) -> None:
    pytest.importorskip("cv2")
    area(f"encode-queries --set encoder.resampling={resampling}")
    cache = FeatureCache.open(tmp_path / "features.zarr")
    assert cache.encoder.resampling == resampling
    row = cache.queries.frame().iloc[0]
    encoder = Encoder.load(tmp_path / "encoder", image_size=56, device="cpu", resampling=resampling)
    assert encoder.info.fingerprint == cache.encoder.fingerprint
    pixels = resize_photo(open_photo(tmp_path / "photos" / row["path"]), 112, 56, resampling)
    expected = encoder.to_storage(encoder.encode_photos(np.stack([pixels])))
    np.testing.assert_allclose(cache.queries.embedding([0])[0], expected, atol=2e-3)


def test_training_resizes_photos_as_its_encoder_says(tmp_path, take_photo) -> None:
    pytest.importorskip("cv2")
    path = take_photo(tmp_path / "a.jpg")
    (pixels,) = TrainingReader((28, 56), "reference").read([str(path)], 1)
    assert (pixels == resize_photo(open_photo(path), 56, 28, "reference")).all()


def test_an_imported_model_resizes_photos_as_the_reference_does(shared, tmp_path, pyramid: Pyramid, take_photo) -> None:
    pytest.importorskip("cv2")
    (tmp_path / "config").mkdir()
    shutil.copy(shared / "reference-model" / "backbone_config.json", tmp_path / "config" / "config.json")
    checkpoint = shared / "reference-model" / "checkpoint.pth"
    import_checkpoint(checkpoint, tmp_path / "model", pyramid, encoder=str(tmp_path / "config"), image_size=56)
    assert read_config(tmp_path / "model").encoder.resampling == "reference"
    encoder = ZoomModel.load(tmp_path / "model").load_encoder("cpu")
    photo = take_photo(tmp_path / "a.jpg")
    pixels = resize_photo(open_photo(photo), 112, 56, "reference")
    (_, embedding) = Locator(None, lambda: encoder).encode([photo])
    assert (embedding == encoder.encode_photos(np.stack([pixels]))).all()


# What is refused


def test_a_cache_of_the_other_resampling_is_refused_in_one_sentence(area, tmp_path, files_of) -> None:
    pytest.importorskip("cv2")
    area("encode-queries")
    before = files_of(tmp_path / "features.zarr")
    for command in ("encode-map", "encode-queries", "train-decoder"):
        refused = area(f"{command} {REFERENCE}", code=2)
        assert "filled by another encoder" in refused.stderr and "reference resampling" in refused.stderr
    assert files_of(tmp_path / "features.zarr") == before


def test_without_opencv_photos_are_refused_in_one_sentence_and_the_map_is_encoded(area, without_opencv) -> None:
    area(f"encode-map {REFERENCE}")
    refused = area(f"encode-queries {REFERENCE}", code=2).stderr.strip().splitlines()
    assert "pip install 'jzi[reference]'" in refused[-1]
    area("encode-queries --set cache.path=other.zarr")


def test_without_opencv_a_service_does_not_start(monkeypatch: pytest.MonkeyPatch, without_opencv, info) -> None:
    from jzi.workspace.models import locators as workspace

    class Expert:
        encoder = EncoderInfo("tiny", False, "e" * 64, 8, 28, "halves", "reference")

    monkeypatch.setattr(workspace, "load", lambda *_, **__: Locator(Expert(), None))
    with pytest.raises(ConfigError, match="OpenCV, which is not installed"):
        workspace.open_locator(Path("model"), Path("jzi.toml"), cache=None, retriever=None, approximate=False)


# Caches and settings from before there was a choice


def test_a_cache_that_records_no_resampling_is_antialiased(tmp_path, pyramid: Pyramid, info: EncoderInfo) -> None:
    FeatureCache.create(tmp_path / "features.zarr", pyramid, info)
    file = tmp_path / "features.zarr" / "zarr.json"
    metadata = json.loads(file.read_text())
    header = metadata["attributes"]["jzi"]
    older = {name: header[name] for name in ("version", "pyramid", "encoder", "imagery")}
    del older["encoder"]["resampling"]
    metadata["attributes"]["jzi"] = {"format": 1, **older}
    file.write_text(json.dumps(metadata))
    assert FeatureCache.open_or_create(tmp_path / "features.zarr", pyramid, info).encoder == info


def test_settings_and_models_that_name_no_resampling_are_antialiased(area: Callable, tmp_path: Path) -> None:
    import jzi

    assert "resampling" not in (tmp_path / "jzi.toml").read_text()
    assert load_settings(tmp_path / "jzi.toml").encoder.resampling == "antialias"
    shipped = Path(jzi.__file__).parent / "demo" / "finetuned"
    entries = json.loads((shipped / "config.json").read_text())
    del entries["encoder"]["resampling"], entries["digest"]
    (tmp_path / "older").mkdir()
    text = json.dumps({**entries, "digest": model_config._digest(entries)})
    (tmp_path / "older" / "config.json").write_text(text)
    assert read_config(tmp_path / "older").encoder.resampling == "antialias"
