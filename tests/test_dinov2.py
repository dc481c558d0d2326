"""Our DINOv2 against that of transformers, on tiny random models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from jzi.encode.encoders.dinov2 import Dinov2
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.encoders.families import blocks_of
from jzi.encode.encoders.fingerprint import config_entries, is_stored_encoder
from jzi.encode.encoders.hf_model import load_model
from jzi.errors import EncoderError

SHAPE: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 70}
CONFIGS = {
    "plain": Dinov2Config(**SHAPE),
    "without biases": Dinov2Config(**SHAPE, qkv_bias=False, mlp_ratio=2, layer_norm_eps=1e-5, patch_size=7),
    "SwiGLU": Dinov2Config(**SHAPE, use_swiglu_ffn=True),
    "without mask token": Dinov2Config(**SHAPE, use_mask_token=False),
    "registers": Dinov2WithRegistersConfig(**SHAPE, patch_size=14),
    "registers, SwiGLU": Dinov2WithRegistersConfig(**SHAPE, use_swiglu_ffn=True, num_register_tokens=2),
}


def random_model(config: Dinov2Config | Dinov2WithRegistersConfig) -> nn.Module:
    """A model in which no weight is zero or one, as many are at first."""
    torch.manual_seed(0)
    model: nn.Module = Dinov2Model(config) if isinstance(config, Dinov2Config) else Dinov2WithRegistersModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(params=CONFIGS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[nn.Module, Dinov2, Path]:
    """A model of transformers, and ours, loaded from its folder."""
    theirs = random_model(CONFIGS[request.param])
    theirs.save_pretrained(tmp_path / "encoder")  # type: ignore[operator]
    ours = load_model(tmp_path / "encoder").model
    assert isinstance(ours, Dinov2)
    return theirs, ours.eval(), tmp_path / "encoder"


@pytest.mark.parametrize(("height", "width"), [(70, 70), (42, 42), (112, 112), (70, 98), (75, 61)])
def test_tokens_are_those_of_transformers_at_any_size(both, height: int, width: int) -> None:
    theirs, ours, _ = both
    pixels = torch.randn(2, 3, height, width)
    with torch.inference_mode():
        torch.testing.assert_close(ours(pixels), theirs(pixels).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_transformers(both) -> None:
    theirs, ours, _ = both
    pixels, of = torch.randn(2, 3, 56, 56), torch.randn(48)
    (theirs(pixels).last_hidden_state[:, 0] @ of).sum().backward()
    (ours(pixels)[:, 0] @ of).sum().backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if not name.endswith("mask_token"):
            torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-4, rtol=1e-4)


def test_parameters_have_the_names_and_the_order_of_transformers(both) -> None:
    theirs, ours, _ = both
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert len(blocks_of(ours)) == 2


def test_the_config_is_hashed_as_that_of_transformers(both) -> None:
    theirs, ours, _ = both
    assert config_entries(ours.config) == config_entries(theirs.config)


def test_fingerprints_do_not_depend_on_who_runs_the_model(both) -> None:
    theirs, _, folder = both
    ours = Encoder.load(folder, image_size=56, device="cpu")
    assert ours.fingerprint == Encoder(theirs, name="theirs", image_size=56, device="cpu").fingerprint
    if not theirs.config.use_swiglu_ffn:  # whose weights are split when they are loaded
        assert is_stored_encoder(ours.info, folder, 56, "halves")


def test_a_saved_model_has_the_files_of_transformers(both, tmp_path: Path) -> None:
    _, ours, folder = both
    ours.save_pretrained(tmp_path / "saved")
    weights, expected = (load_file(each / "model.safetensors") for each in (tmp_path / "saved", folder))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    config, expected_config = (json.loads((each / "config.json").read_text()) for each in (tmp_path / "saved", folder))
    assert config == {name: value for name, value in expected_config.items() if name != "transformers_version"}


def test_weights_in_half_precision_become_float32(tmp_path: Path) -> None:
    random_model(CONFIGS["plain"]).half().save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = load_model(tmp_path).model
    assert isinstance(loaded, Dinov2)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "change",
    [{"hidden_act": "relu"}, {"hidden_dropout_prob": 0.1}, {"drop_path_rate": 0.1}, {"output_hidden_states": True}],
    ids=str,
)
def test_what_is_unusual_is_left_to_transformers(tmp_path: Path, change: dict[str, Any]) -> None:
    random_model(CONFIGS["plain"]).save_pretrained(tmp_path)  # type: ignore[operator]
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    assert isinstance(load_model(tmp_path).model, Dinov2Model)


def test_weights_that_are_named_otherwise_are_left_to_transformers(tmp_path: Path) -> None:
    theirs = random_model(CONFIGS["plain"])
    theirs.save_pretrained(tmp_path)  # type: ignore[operator]
    weights = load_file(tmp_path / "model.safetensors")
    named = {f"dinov2.{name}": tensor for name, tensor in weights.items()}  # of a model with a head
    save_file(named, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert isinstance(load_model(tmp_path).model, Dinov2Model)


def test_files_without_mask_token_get_one(tmp_path: Path) -> None:
    random_model(CONFIGS["plain"]).save_pretrained(tmp_path)  # type: ignore[operator]
    weights = load_file(tmp_path / "model.safetensors")
    del weights["embeddings.mask_token"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load_model(tmp_path).model
    assert isinstance(model, Dinov2)
    assert not model.embeddings.mask_token.any()


def test_a_file_with_fewer_weights_than_the_config_describes_is_refused(tmp_path: Path) -> None:
    random_model(CONFIGS["plain"]).save_pretrained(tmp_path)  # type: ignore[operator]
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.norm1.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="lacks 1 weights"):
        load_model(tmp_path)
