"""Claims about the encoder shared by photos and tiles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jzi.encode.encoders.encoder import Encoder
from jzi.encode.encoders.fingerprint import is_stored_encoder
from jzi.encode.photo.photos import open_photo, resize_photo
from jzi.errors import EncoderError
from jzi.store.info import EncoderInfo
from jzi.store.photos.photo_table import read_photo_table


@pytest.fixture
def load(encoder_folder: Path) -> Callable[..., Encoder]:
    """Load the tiny encoder again."""
    return lambda **options: Encoder.load(encoder_folder, **{"image_size": 28, "device": "cpu", **options})


@pytest.fixture(scope="module")
def squares() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)


def assert_refused(match: str, *args: object, **options: object) -> None:
    with pytest.raises(EncoderError, match=match) as error:
        Encoder.load(*args, **{"device": "cpu", **options})  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


# Fingerprint


def test_the_fingerprint_is_of_the_weights_not_of_where_they_lie(
    load: Callable, encoder: Encoder, tmp_path: Path
) -> None:
    encoder.save(tmp_path / "copy")
    copy = Encoder.load(tmp_path / "copy", image_size=28, device="cpu")
    assert load().fingerprint == copy.fingerprint == encoder.fingerprint
    assert copy.info.name == str(tmp_path / "copy")
    assert not copy.info.from_hub


def test_half_precision_on_disk_is_another_encoder_only_where_it_rounds(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "whole")
    half = Encoder.load(tmp_path / "whole", image_size=28, device="cpu")
    half.model.half().float().save_pretrained(tmp_path / "rounded")
    half.model.half().save_pretrained(tmp_path / "half")
    loaded = [Encoder.load(tmp_path / name, image_size=28, device="cpu") for name in ("rounded", "half")]
    assert loaded[0].fingerprint == loaded[1].fingerprint != encoder.fingerprint
    assert next(loaded[1].model.parameters()).dtype == torch.float32


def test_the_fingerprint_changes_with_everything_that_changes_an_embedding(load: Callable) -> None:
    changed = load()
    with torch.no_grad():
        next(changed.model.parameters()).view(-1)[0] += 1e-3
    deeper = load()
    deeper.model.config = replace(deeper.model.config, layer_norm_eps=2e-6)  # type: ignore[assignment, type-var]
    options = [{}, {"image_size": 42}, {"layout": "whole"}, {"resampling": "reference"}]
    prints = [load(**each).fingerprint for each in options] + [changed.fingerprint, deeper.fingerprint]
    assert len(set(prints)) == len(prints)


# Embeddings


def test_a_tile_is_embedded_as_the_cls_token_after_the_last_norm(encoder: Encoder, squares: np.ndarray) -> None:
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # ImageNet
    pixels = torch.tensor((squares / 255 - mean) / std).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = encoder.model(pixels)[:, 0]
    embedding = encoder.encode_tiles(squares)
    assert embedding.shape == (5, 32)
    torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=1e-5)


def test_a_photo_in_halves_is_the_mean_of_its_left_and_right_square(encoder: Encoder, squares: np.ndarray) -> None:
    photo = np.concatenate([squares[0], squares[1]], axis=1)[None]
    left, right = encoder.encode_tiles(squares[:2])
    assert encoder.photo_shape == (28, 56)
    torch.testing.assert_close(encoder.encode_photos(photo)[0], (left + right) / 2)


def test_a_whole_photo_is_embedded_as_a_tile_is(load: Callable, squares: np.ndarray) -> None:
    whole = load(layout="whole")
    assert whole.photo_shape == (28, 28)
    torch.testing.assert_close(whole.encode_photos(squares), whole.encode_tiles(squares))


def test_an_embedding_does_not_depend_on_its_batch(encoder: Encoder, squares: np.ndarray) -> None:
    alone = torch.cat([encoder.encode_tiles(square[None]) for square in squares])
    torch.testing.assert_close(encoder.encode_tiles(squares), alone)


@pytest.mark.parametrize("image_size", [14, 33, 56, 60])
def test_any_image_size_of_a_patch_or_more_will_do(load: Callable, image_size: int) -> None:
    tiles = np.full((2, image_size, image_size, 3), 90, np.uint8)
    assert torch.isfinite(load(image_size=image_size).encode_tiles(tiles)).all()


def test_what_does_not_fill_a_patch_is_not_seen(load: Callable) -> None:
    tile = np.random.default_rng(0).integers(0, 256, (1, 33, 33, 3), dtype=np.uint8)
    cut = tile.copy()
    cut[:, 28:] = cut[:, :, 28:] = 0
    encoder = load(image_size=33)
    torch.testing.assert_close(encoder.encode_tiles(tile), encoder.encode_tiles(cut))


def test_embeddings_that_are_not_finite_are_never_stored(load: Callable) -> None:
    encoder = load()
    for value in (float("nan"), float("inf"), 1e6):  # the last is too large for float16
        with pytest.raises(EncoderError, match="not finite"):
            encoder.to_storage(torch.full((1, 32), value))


def test_loading_leaves_no_gradient_and_no_dropout(load: Callable, squares: np.ndarray) -> None:
    encoder = load()
    assert not encoder.model.training
    assert not encoder.encode_tiles(squares).requires_grad


# Errors


def test_options_that_cannot_be_used_are_refused(encoder_folder: Path) -> None:
    assert_refused("must be one of halves, whole, not 'thirds'", encoder_folder, layout="thirds")
    assert_refused("must be one of antialias, bilinear, reference, not 'nearest'", encoder_folder, resampling="nearest")
    assert_refused("less than one patch of 14 pixels", encoder_folder, image_size=13)


def test_a_folder_that_is_no_encoder_is_refused(tmp_path: Path, encoder_folder: Path) -> None:
    assert_refused("it has no config.json", tmp_path)
    shutil.copy(encoder_folder / "config.json", tmp_path)
    assert_refused("cannot be loaded", tmp_path)
    (tmp_path / "model.safetensors").write_bytes((encoder_folder / "model.safetensors").read_bytes()[:5000])
    assert_refused("more than there are", tmp_path)
    (tmp_path / "config.json").write_text('{"model')
    assert_refused("cannot be loaded", tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path: Path, encoder_folder: Path) -> None:
    shutil.copytree(encoder_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    assert_refused("cannot be loaded", tmp_path)


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path, encoder_folder: Path) -> None:
    shutil.copytree(encoder_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert_refused(r"lacks \d+ weights \(encoder\.layer\.2", tmp_path)


@pytest.mark.parametrize("model_type", ["bert", "nonsense"])
def test_a_model_of_another_type_is_refused_by_name(tmp_path: Path, model_type: str) -> None:
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=8, **size)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    assert_refused(model_type, tmp_path)


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no/such/folder", "no such name"])
def test_a_name_that_neither_the_disk_nor_the_hub_knows_is_refused(name: str) -> None:
    assert_refused(rf"'{name}' is not a local folder and cannot be downloaded", name)


# A real encoder


@pytest.fixture(scope="module")
def pretrained(shared: Path) -> Encoder:
    return Encoder.load(shared / "dinov2-small-reg", image_size=140, layout="whole", device="cpu")


def test_a_published_encoder_with_registers_loads(pretrained: Encoder) -> None:
    assert pretrained.width == 384
    assert pretrained.model.config.model_type == "dinov2_with_registers"


def test_two_views_of_one_street_are_closer_than_two_streets(pretrained: Encoder, shared: Path) -> None:
    crops = []
    for path in read_photo_table(shared / "helsinki-pairs" / "queries.csv").frame["photo"]:
        photo = open_photo(path)
        width, height = photo.size
        side = min(height, int(width * 0.7))
        for left in (int(0.05 * width), int(0.2 * width)):
            crops.append(resize_photo(photo.crop((left, 0, left + side, side)), *pretrained.photo_shape))
    embedding = torch.nn.functional.normalize(pretrained.encode_photos(np.stack(crops)), dim=-1)
    similarity = (embedding[0::2] @ embedding[1::2].T).numpy()
    assert (similarity.argmax(axis=1) == np.arange(10)).all(), "every photo is nearest to itself"
    others = similarity[~np.eye(10, dtype=bool)]
    assert similarity.diagonal().mean() > others.mean() + 0.1


# Folders from strangers


def edited(encoder_folder: Path, folder: Path, file: str = "config.json", **entries: object) -> Path:
    shutil.copytree(encoder_folder, folder)
    path = folder / file
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**values, **entries}))
    return folder


CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nPath({ran!r}).touch()\nclass Config: ...\n"


@pytest.mark.parametrize("model_type", ["of-mine", "dinov2", None])
def test_code_in_a_folder_is_not_run_nor_asked_about(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str | None
) -> None:
    def ask(*_: object) -> str:
        asked.append(True)
        return "y"

    asked: list[bool] = []
    monkeypatch.setattr("builtins.input", ask)
    auto_map = dict.fromkeys(("AutoConfig", "AutoModel", "AutoImageProcessor"), "code.Config")
    folder = edited(encoder_folder, tmp_path / "encoder", model_type=model_type, auto_map=auto_map)
    (folder / "code.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    if model_type == "dinov2":  # has code of its own in transformers, which is used
        Encoder.load(folder, image_size=28, device="cpu")
    else:
        assert_refused("which jzi does not run", folder)
    info = EncoderInfo(str(folder), False, "e" * 64, 32, 28, "halves")
    assert not is_stored_encoder(info, folder, 28, "halves")
    assert not asked and not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize(
    "entries",
    [
        {"patch_size": 0},
        {"patch_size": 10**6},
        {"num_attention_heads": 0},
        {"num_attention_heads": 3},
        {"hidden_size": 10**6},
        {"hidden_size": -32},
        {"hidden_size": 4096},  # more weights than the file holds
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 100},
        {"num_labels": 10**9},
        {"vision_config": {"num_hidden_layers": 10**9}},
        {"initializer_range": float("nan")},
        {"num_channels": 1},
        {"image_size": 10**20},
        {"mlp_ratio": 10**6},
        {"mlp_ratio": "x"},
        {"layer_norm_eps": "\x00"},
        {"hidden_act": "no such function"},
        {"dtype": "nothing"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"_attn_implementation": "someone/kernels"},
        {"attn_implementation": "someone/kernels"},
    ],
    ids=str,
)
def test_an_unusable_entry_of_its_config_is_one_sentence(
    encoder_folder: Path, tmp_path: Path, entries: dict[str, object]
) -> None:
    assert_refused(r"config\.json|cannot be loaded", edited(encoder_folder, tmp_path / "encoder", **entries))


@pytest.mark.parametrize(
    "entries",
    [{"image_mean": [0.5]}, {"image_std": [0, 1, 1]}, {"image_mean": "abc"}, {"image_mean": [1e300, 0, float("nan")]}],
    ids=str,
)
def test_an_unusable_normalisation_is_one_sentence(encoder_folder: Path, tmp_path: Path, entries: dict) -> None:
    folder = edited(encoder_folder, tmp_path / "encoder", "preprocessor_config.json", **entries)
    assert_refused("three finite numbers", folder)
    (folder / "preprocessor_config.json").write_text("[1]")
    assert_refused("is not a JSON object", folder)
    (folder / "preprocessor_config.json").write_bytes(b"\xff\xfe")
    assert_refused("cannot be loaded", folder)


def test_weights_that_are_not_finite_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "encoder")
    weights = load_file(tmp_path / "encoder" / "model.safetensors")
    weights["layernorm.weight"][3] = float("nan")
    save_file(weights, tmp_path / "encoder" / "model.safetensors", metadata={"format": "pt"})
    assert_refused("weights that are not finite", tmp_path / "encoder")
