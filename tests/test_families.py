"""Preprocessing and global embedding of every family, on tiny random models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import (
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    Siglip2Config,
    Siglip2VisionConfig,
    SiglipConfig,
    SiglipVisionConfig,
)

from jzi.encode.encoders.encoder import Encoder
from jzi.encode.encoders.families import FAMILIES

COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**COMMON, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 100}
SIGLIP = {**COMMON, "intermediate_size": 64, "image_size": 64, "patch_size": 16}
SIGLIP2 = {**COMMON, "intermediate_size": 64, "num_patches": 16, "patch_size": 16}
DINOV3 = {**COMMON, "intermediate_size": 64, "image_size": 64, "patch_size": 16, "num_register_tokens": 4}

CONVNEXT = {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 8, 16, 32], "layer_scale_init_value": 0.5}

MODELS = {
    "convnext": ("ConvNextModel", ConvNextConfig(**CONVNEXT)),
    "deit": ("DeiTModel", DeiTConfig(**COMMON, intermediate_size=64, image_size=64, patch_size=16)),
    "dinov2": ("Dinov2Model", Dinov2Config(**COMMON, image_size=56)),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", Dinov2WithRegistersConfig(**COMMON, image_size=56)),
    "dinov3_vit": ("DINOv3ViTModel", DINOv3ViTConfig(**DINOV3)),
    "siglip": ("SiglipModel", SiglipConfig(text_config=TEXT, vision_config=SIGLIP)),
    "siglip_vision_model": ("SiglipVisionModel", SiglipVisionConfig(**SIGLIP)),
    "siglip2": ("Siglip2Model", Siglip2Config(text_config=TEXT, vision_config=SIGLIP2)),
    "siglip2_vision_model": ("Siglip2VisionModel", Siglip2VisionConfig(**SIGLIP2)),
}


@pytest.fixture(params=MODELS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, torch.nn.Module, Path]:
    class_name, config = MODELS[request.param]
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(config, **FAMILIES[request.param].options).eval()
    model.save_pretrained(tmp_path / "encoder")
    return request.param, model, tmp_path / "encoder"


def test_every_family_is_tested() -> None:
    assert set(MODELS) == set(FAMILIES)


@torch.no_grad()
def output_of(kind: str, model: torch.nn.Module, pixels: torch.Tensor):
    """Output of transformers' own forward pass for (n, 3, 64, 64)."""
    model = getattr(model, "vision_model", model)
    if not kind.startswith("siglip2"):
        return model(pixel_values=pixels)
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    patches = torch.stack([torch.from_numpy(convert_image_to_patches(image.numpy(), 16)) for image in pixels])
    shapes = torch.tensor([[4, 4]] * len(pixels))
    return model(pixel_values=patches, pixel_attention_mask=torch.ones(len(pixels), 16), spatial_shapes=shapes)


@torch.no_grad()
def test_the_embedding_is_the_one_of_transformers(saved) -> None:
    kind, model, folder = saved
    encoder = Encoder.load(folder, image_size=64, device="cpu")
    tiles = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    family = FAMILIES[kind]
    pixels = (tiles.permute(0, 3, 1, 2) / 255 - torch.tensor(family.mean)[:, None, None]) / torch.tensor(family.std)[
        :, None, None
    ]
    output = output_of(kind, model, pixels)
    pooled = kind.startswith(("siglip", "convnext"))
    expected = output.pooler_output if pooled else output.last_hidden_state[:, 0]
    torch.testing.assert_close(encoder.encode_tiles(tiles.numpy()), expected, atol=1e-4, rtol=1e-4)
    assert encoder.width == expected.shape[1] == 32


@torch.no_grad()
def test_patch_tokens_are_those_of_transformers_without_cls_and_registers(saved) -> None:
    kind, model, folder = saved
    encoder = Encoder.load(folder, image_size=64, device="cpu")
    tiles = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    embedding, patches = encoder.encode_tiles_and_patches(tiles.numpy())
    torch.testing.assert_close(embedding, encoder.encode_tiles(tiles.numpy()))
    pixels = encoder.normalise(encoder.to_unit(tiles))
    expected = output_of(kind, model, pixels).last_hidden_state
    expected = expected.flatten(2).mT if kind == "convnext" else expected[:, -16:]  # [CLS] and registers come first
    count = 4 if kind == "convnext" else 16  # of 32 and of 16 pixels
    assert encoder.patches == count and patches.shape == (3, count, 32)
    torch.testing.assert_close(patches, expected, atol=1e-4, rtol=1e-4)


def test_mean_and_std_are_those_of_the_family_unless_the_folder_says_others(saved) -> None:
    kind, _, folder = saved
    default = Encoder.load(folder, image_size=64)
    assert default.mean == ((0.5, 0.5, 0.5) if kind.startswith("siglip") else (0.485, 0.456, 0.406))
    satellite = {"image_mean": [0.43, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}  # DINOv3's satellite models
    (folder / "preprocessor_config.json").write_text(json.dumps(satellite))
    other = Encoder.load(folder, image_size=64)
    assert other.mean == (0.43, 0.411, 0.296) and other.std == (0.213, 0.156, 0.143)
    assert other.fingerprint != default.fingerprint


@torch.no_grad()
def test_sizes_other_than_the_one_it_was_trained_at_work(saved) -> None:
    _, _, folder = saved
    for size in (48, 72):
        encoder = Encoder.load(folder, image_size=size)
        photos = torch.randint(0, 256, (2, *encoder.photo_shape, 3), dtype=torch.uint8).numpy()
        embedding = encoder.encode_photos(photos)
        assert embedding.shape == (2, 32) and embedding.isfinite().all()


def test_a_saved_encoder_is_the_same_encoder(saved, tmp_path) -> None:
    encoder = Encoder.load(saved[2], image_size=64)
    encoder.save(tmp_path / "again")
    assert Encoder.load(tmp_path / "again", image_size=64).fingerprint == encoder.fingerprint
