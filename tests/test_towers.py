"""Towers of photos and cells, with tiny random encoders: what they compute, their folders, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    ConvNextConfig,
    ConvNextModel,
    ConvNextV2Config,
    ConvNextV2Model,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
)

from jzi.encode.encode_queries import encode_queries
from jzi.encode.encoders.hf_model import LoadedModel
from jzi.encode.encoders.towers import MAP, PHOTO, POOLING, Towers, TowersConfig
from jzi.encode.encoders.towers_config import CONFIG
from jzi.encode.photo.photo_reader import PhotoReader
from jzi.errors import ConfigError, EncoderError, JziError, ModelError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.photos.photo_table import read_photo_table

TINY = {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 64, 128], "layer_scale_init_value": 0.5}
SMALL = TowersConfig(width=64, heads=8, photo_size=(96, 64), image_size=64, lods_m=(0.2, 0.4, 0.8))
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]


def saved(folder: Path, model: torch.nn.Module) -> Path:
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


def convnext(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    return saved(folder, ConvNextModel(ConvNextConfig(**TINY)))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two ConvNeXts of 0.3 million random weights."""
    folder = tmp_path_factory.mktemp("encoders")
    return convnext(folder / "photo", 0), convnext(folder / "map", 1)


@pytest.fixture(scope="module")
def towers(encoders: tuple[Path, Path]) -> Towers:
    torch.manual_seed(2)
    return Towers.create(*encoders, config=SMALL, device="cpu")


@pytest.fixture
def folder(towers: Towers, tmp_path: Path) -> Path:
    towers.save(tmp_path / "towers")
    return tmp_path / "towers"


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


@torch.no_grad()
def expected(model: torch.nn.Module, pooling: torch.nn.Module, pixels: np.ndarray) -> torch.Tensor:
    """Embeddings of (n, image, rows, cols, 3), by transformers' own forward pass."""
    unit = (torch.from_numpy(pixels).movedim(-1, -3) / 255 - IMAGENET[0]) / IMAGENET[1]
    last = model(pixel_values=unit.flatten(0, 1)).last_hidden_state  # (n * image, feature, row, col), no layernorm
    pooled = pooling(last.permute(0, 2, 3, 1).unflatten(0, pixels.shape[:2]))
    return pooled / pooled.norm(dim=1, keepdim=True)


def test_embeddings_are_those_of_the_last_feature_map_pooled_and_of_unit_length(towers, encoders) -> None:
    photo, satellite = (ConvNextModel.from_pretrained(each).eval() for each in encoders)
    photos, cells = images(3, 64, 96), images(2, 3, 64, 64, seed=1)
    embedded = towers.encode_photos(photos)
    exact = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(embedded, expected(photo, towers.photo_tower.pooling, photos[:, None]), **exact)
    torch.testing.assert_close(
        towers.encode_cells(cells), expected(satellite, towers.map_tower.pooling, cells), **exact
    )
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3), atol=1e-4, rtol=0)
    assert embedded.dtype == torch.float32 and towers.to_storage(embedded).dtype == np.float16


def test_the_order_of_the_levels_of_detail_changes_nothing(towers) -> None:
    cells = images(2, 3, 64, 64)
    torch.testing.assert_close(towers.encode_cells(cells[:, [2, 0, 1]]), towers.encode_cells(cells), atol=1e-6, rtol=0)


def test_pixels_and_uint8_images_give_the_same(towers) -> None:
    photos = images(2, 64, 96)
    pixels = towers.normalise(torch.from_numpy(photos).movedim(-1, -3) / 255)
    cells = towers.normalise(torch.from_numpy(images(2, 3, 64, 64)).movedim(-1, -3) / 255)
    with torch.no_grad():
        photo, cell = towers(pixels, cells)
    assert torch.equal(photo, towers.encode_photos(photos))
    assert torch.equal(cell, towers.encode_cells(images(2, 3, 64, 64)))


def test_every_trained_weight_gets_a_gradient(encoders) -> None:
    towers = Towers.create(*encoders, config=SMALL, device="cpu").requires_grad_(True)
    photos, cells = towers(torch.randn(2, 3, 64, 96), torch.randn(2, 3, 3, 64, 64))
    (photos.sum() + cells.sum()).backward()
    assert [name for name, parameter in towers.named_parameters() if parameter.grad is None] == []


def test_the_published_model_has_the_published_number_of_weights() -> None:
    shape = ConvNextConfig(depths=[3, 3, 27, 3], hidden_sizes=[128, 256, 512, 1024])
    with torch.device("meta"):
        models = [ConvNextModel(shape) for _ in range(2)]
        for model in models:
            model.layernorm = torch.nn.Identity()
        mean_std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        towers = Towers(*(LoadedModel(model, True, *mean_std) for model in models), TowersConfig(), device="meta")
    counts = [sum(each.numel() for each in part.parameters()) for part in (models[0], towers.map_tower.pooling)]
    assert counts[1] == 1_117_184 and round(counts[0] / 1e6, 2) == 87.56
    assert sum(each.numel() for each in towers.parameters()) == 2 * sum(counts)


@torch.no_grad()
def test_patch_tokens_of_dinov2_are_pooled_by_the_same_code(tmp_path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    model = Dinov2Model(Dinov2Config(**shape, image_size=56, patch_size=14)).eval()
    towers = Towers.create(saved(tmp_path / "dinov2", model), config=SMALL, device="cpu")
    photos = images(2, 64, 96)
    unit = (torch.from_numpy(photos).movedim(-1, -3) / 255 - IMAGENET[0]) / IMAGENET[1]
    tokens = model(unit).last_hidden_state[:, 1:].unflatten(1, (1, 4, 6))  # 64 x 96 in patches of 14
    pooled = towers.photo_tower.pooling(tokens)
    torch.testing.assert_close(
        towers.encode_photos(photos), pooled / pooled.norm(dim=1, keepdim=True), atol=1e-4, rtol=0
    )
    assert towers.encode_cells(images(2, 3, 64, 64)).shape == (2, 64)


@torch.no_grad()
def test_transgeo_averages_the_class_and_the_distillation_token_of_a_vit(tmp_path, encoders) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = DeiTModel(DeiTConfig(**shape, image_size=64, patch_size=16), add_pooling_layer=False).eval()
    config = replace(SMALL, pooling="class", lods_m=(1.0,))
    towers = Towers.create(saved(tmp_path / "deit", model), config=config, device="cpu")
    cells = images(2, 1, 64, 64)
    unit = (torch.from_numpy(cells[:, 0]).movedim(-1, -3) / 255 - IMAGENET[0]) / IMAGENET[1]
    pooled = towers.map_tower.pooling(model(unit).last_hidden_state)
    torch.testing.assert_close(towers.encode_cells(cells), pooled / pooled.norm(dim=1, keepdim=True), atol=1e-4, rtol=0)
    assert towers.encode_photos(images(2, 64, 96)).shape == (2, 64)
    with pytest.raises(EncoderError, match="'convnext' model, which has no class and distillation token"):
        Towers.create(encoders[0], config=config, device="cpu")
    with pytest.raises(EncoderError, match="one image"):
        Towers.create(tmp_path / "deit", config=replace(config, lods_m=(1.0, 2.0)), device="cpu")


@pytest.mark.parametrize(("pooling", "width"), [("mean", 64), ("sample4geo", 128), ("safa", 64), ("smd", 64)])
def test_towers_of_every_pooling_are_the_same_after_saving(encoders, tmp_path, pooling: str, width: int) -> None:
    config = replace(SMALL, pooling=pooling, width=width, lods_m=(1.0,), photo_size=(128, 128), image_size=128)
    towers = Towers.create(*encoders, config=config, device="cpu")
    towers.save(tmp_path / "towers")
    again = Towers.load(tmp_path / "towers", "cpu")
    cells = images(1, 1, 128, 128)
    assert torch.equal(again.encode_cells(cells), towers.encode_cells(cells))
    assert again.fingerprint == towers.fingerprint


def test_saved_towers_are_the_same_to_the_bit(towers, folder) -> None:
    again = Towers.load(folder, "cpu")
    photos, cells = images(2, 64, 96), images(2, 3, 64, 64)
    assert torch.equal(again.encode_photos(photos), towers.encode_photos(photos))
    assert torch.equal(again.encode_cells(cells), towers.encode_cells(cells))
    assert again.config == towers.config and again.fingerprint == towers.fingerprint
    assert again.info == replace(towers.info, name=str(folder))
    assert (again.info.layout, again.info.resampling, again.info.width) == ("fit", "bilinear", 64)


def test_a_shared_encoder_is_saved_once(encoders, towers, folder) -> None:
    shared = Towers.create(encoders[0], config=replace(SMALL, shared=True), device="cpu")
    assert shared.photo_tower.encoder is shared.map_tower.encoder
    shared.save(folder)  # over towers with two
    assert not (folder / MAP).exists()
    again = Towers.load(folder, "cpu")
    assert again.photo_tower.encoder is again.map_tower.encoder and again.fingerprint == shared.fingerprint
    with pytest.raises(EncoderError, match="share one encoder"):
        Towers.create(*encoders, config=replace(SMALL, shared=True), device="cpu")


def test_the_fingerprint_is_of_what_embeddings_depend_on(towers, encoders, folder, tmp_path) -> None:
    photo, satellite = encoders
    poolings = towers._poolings().state_dict()

    def fingerprint(first: Path, second: Path, **entries: Any) -> str:
        other = Towers.create(first, second, replace(SMALL, **entries), device="cpu")
        other._poolings().load_state_dict(poolings)
        return other.fingerprint

    copy = shutil.copytree(photo, tmp_path / "copy")
    assert fingerprint(copy, satellite, scale=20.0) == towers.fingerprint
    others = {
        fingerprint(satellite, photo),
        fingerprint(photo, photo),
        fingerprint(photo, satellite, lods_m=(0.2, 0.4, 1.6)),
        fingerprint(photo, satellite, background=(255, 255, 255)),
        fingerprint(photo, satellite, photo_size=(64, 96)),
    }
    assert len(others) == 5 and towers.fingerprint not in others
    trained = Towers.load(folder, "cpu").requires_grad_(True)
    before = trained.fingerprint
    with torch.no_grad():
        trained.map_tower.pooling.score.weight += 1
    assert before == towers.fingerprint != trained.fingerprint


def test_an_encoder_with_another_normalisation_sees_pixels_as_it_was_trained(encoders, tmp_path) -> None:
    other = Path(shutil.copytree(encoders[1], tmp_path / "other"))
    own = {"image_mean": [0.43, 0.41, 0.3], "image_std": [0.2, 0.16, 0.14]}
    (other / "preprocessor_config.json").write_text(json.dumps(own))
    towers = Towers.create(encoders[0], other, SMALL, device="cpu")
    cells = images(1, 3, 64, 64)
    mean, std = (torch.tensor(values)[:, None, None] for values in own.values())
    pixels = (torch.from_numpy(cells).movedim(-1, -3) / 255 - mean) / std
    with torch.no_grad():
        last = towers.map_tower.encoder(pixels[0]).last_hidden_state
        pooled = towers.map_tower.pooling(last.permute(0, 2, 3, 1)[None])
    torch.testing.assert_close(towers.encode_cells(cells), pooled / pooled.norm(dim=1), atol=1e-4, rtol=0)
    towers.save(tmp_path / "towers")
    assert torch.equal(Towers.load(tmp_path / "towers", "cpu").encode_cells(cells), towers.encode_cells(cells))


def test_photos_are_read_and_cached_at_the_towers_size(towers, pyramid, town_folder, tmp_path) -> None:
    photo = town_folder / "photos" / "day0" / "000.jpg"  # 96 x 48
    reader = PhotoReader(towers.photo_shape, towers.resampling, fit=towers.fit)
    pixels = reader.read_one(photo).pixels
    assert pixels is not None and pixels.shape == (64, 96, 3) and not pixels[:8].any() and not pixels[56:].any()
    assert (pixels[8:56] == np.asarray(Image.open(photo))).all()
    table = read_photo_table(town_folder / "photos")
    cache = FeatureCache.create(tmp_path / "cache.zarr", pyramid, towers.info)
    assert encode_queries(cache, towers, table).encoded == len(table.frame)
    frame = cache.queries.encoded()
    stored = dict(zip(frame["id"], cache.queries.embedding(frame.index)[:, 0], strict=True))
    embedded = towers.to_storage(towers.encode_photos(pixels[None]))[0]
    np.testing.assert_allclose(stored["day0/000.jpg"], embedded, atol=1e-3)
    with pytest.raises(ConfigError, match=r"queries\.views"):
        encode_queries(cache, towers, table, views=1)


# What is refused


def refused(run: Callable[[], Any], *parts: str, error: type[JziError] = EncoderError) -> None:
    with pytest.raises(error) as caught:
        run()
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("entries", "part"),
    [
        ({"width": 0}, "statewide.width"),
        ({"pooling": "max"}, "statewide.pooling"),
        ({"lods_m": ()}, "statewide.lods_m"),
        ({"lods_m": (0.2, float("nan"))}, "statewide.lods_m"),
        ({"photo_size": (640, 0)}, "statewide.photo_size"),
        ({"image_size": 10**6}, "statewide.image_size"),
        ({"background": (0, 0, 256)}, "statewide.background"),
        ({"scale": -1.0}, "statewide.scale"),
    ],
)
def test_settings_out_of_range_are_refused(entries: dict[str, Any], part: str) -> None:
    refused(lambda: TowersConfig(**entries), part, error=ConfigError)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (replace(SMALL, image_size=31), "31 x 31 pixels are less than one patch"),
        (replace(SMALL, photo_size=(640, 16)), "640 x 16"),
    ],
)
def test_images_smaller_than_a_patch_are_refused(encoders, config: TowersConfig, part: str) -> None:
    refused(lambda: Towers.create(*encoders, config=config, device="cpu"), part)


def test_other_networks_are_refused(tmp_path) -> None:
    model = ConvNextV2Model(ConvNextV2Config(depths=[1, 1], hidden_sizes=[8, 8], num_stages=2))
    refused(lambda: Towers.create(saved(tmp_path / "v2", model), config=SMALL), "convnextv2", "convnext, deit, dinov2")
    refused(lambda: Towers.create(tmp_path), "config.json")


@pytest.mark.parametrize(
    ("entries", "part"),
    [
        ({"hidden_sizes": [16, 32, 64]}, "3 hidden_sizes"),
        ({"hidden_sizes": [16, 32, 64, 10**7]}, "hidden_sizes"),
        ({"hidden_sizes": [4096] * 4, "depths": [120] * 4}, "more than there are"),
        ({"depths": [1, 1, 2, 2]}, "lacks"),
        ({"depths": "1, 1, 2, 1"}, "depths"),
        ({"patch_size": 0}, "patch_size"),
        ({"layer_scale_init_value": 1e30}, "layer_scale_init_value"),
        ({"hidden_act": "no_such_function"}, "no_such_function"),
        ({"num_channels": 4}, "num_channels"),
        ({"quantization_config": {"quant_method": "awq"}}, "load other code"),
        ({"auto_map": {"AutoModel": "evil.Model"}, "model_type": "evil"}, "code of its own"),
    ],
)
def test_damaged_configs_of_encoders_are_refused(folder, entries: dict[str, Any], part: str) -> None:
    path = folder / PHOTO / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    refused(lambda: Towers.load(folder, "cpu"), part)


def test_a_damaged_folder_is_refused(folder) -> None:
    def attempt(*parts: str, error: type[JziError] = EncoderError) -> None:
        refused(lambda: Towers.load(folder, "cpu"), *parts, error=error)

    weights = load_file(folder / POOLING)
    for change, part in (
        ({"map.score.weight": torch.full((8, 128), torch.nan)}, "not finite"),
        ({"map.score.weight": torch.zeros(9, 128)}, "map.score.weight"),
        ({"map.extra": torch.zeros(1)}, "map.extra"),
        ({"map.score.weight": torch.zeros(8, 128, dtype=torch.int32)}, "I32"),
    ):
        save_file({**weights, **change}, folder / POOLING)
        attempt(part, error=ModelError)
    save_file({name: weights[name] for name in weights if name != "photo.value.bias"}, folder / POOLING)
    attempt("photo.value.bias", error=ModelError)
    (folder / POOLING).write_bytes(b"\xff" * 100)
    attempt(POOLING, error=ModelError)
    (folder / POOLING).unlink()
    attempt(POOLING, error=ModelError)

    encoder = load_file(folder / MAP / "model.safetensors")
    encoder["embeddings.layernorm.bias"][0] = torch.inf
    save_file(encoder, folder / MAP / "model.safetensors", metadata={"format": "pt"})
    attempt("not finite")
    (folder / MAP / "model.safetensors").write_bytes(b"")
    attempt(str(folder / MAP))
    shutil.rmtree(folder / MAP)
    attempt("lacks the encoder")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda entries: {**entries, "jzi_towers": 2}, "format 1"),
        (lambda entries: {**entries, "width": "64"}, "width"),
        (lambda entries: {**entries, "width": 65}, "multiple"),
        (lambda entries: {**entries, "evil": 1}, "evil"),
        (lambda entries: {**entries, "lods_m": [0.2, -1]}, "lods_m"),
        (lambda entries: {**entries, "shared": 1}, "shared"),
        (lambda entries: [entries], "describes something else"),
        (lambda entries: {"model_type": "dinov2"}, "describes something else"),
    ],
)
def test_an_edited_config_is_refused(folder, change: Callable[[dict], Any], part: str) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    refused(lambda: Towers.load(folder, "cpu"), part, error=JziError)


def test_a_config_that_cannot_be_read_is_refused(folder) -> None:
    for content in (b"{", b"[" * 10**5, b"\xff\xfe", b""):
        (folder / CONFIG).write_bytes(content)
        refused(lambda: Towers.load(folder, "cpu"), CONFIG)
    (folder / CONFIG).unlink()
    refused(lambda: Towers.load(folder, "cpu"), "has no towers")


def test_towers_that_cannot_be_written_are_reported(towers, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    refused(lambda: towers.save(tmp_path / "file" / "towers"), "cannot be written")
