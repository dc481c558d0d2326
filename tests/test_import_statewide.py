"""Weights in the naming of the authors' code give the embeddings of that code; others are refused by their entries.

The reference forward pass below follows geoloc/model of github.com/fferflo/statewide-visual-geolocalization: arrays
are (n, row, col, feature), kernels (row, col, input, output), and matrices (input, output), as in Flax.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from safetensors.torch import save_file
from torch import Tensor

from jzi.errors import EncoderError, JziError, ModelError
from jzi.retrieve.import_statewide import import_statewide
from jzi.retrieve.statewide import StatewideRetriever

DEPTHS, CHANNELS, WIDTH, HEADS = [1, 1, 2, 1], [16, 32, 64, 128], 48, 4
PHOTO, MAP = "params//pv_", "params//aerial_"
Weights = dict[str, Tensor]


def random_weights() -> Weights:
    """A file of a tiny model, with random values near those of training."""
    generator = torch.Generator().manual_seed(0)
    weights: Weights = {}

    def add(name: str, *shape: int, mean: float = 0.0) -> None:
        weights[name] = mean + torch.randn(shape, generator=generator) * 0.1

    def norm(name: str, channels: int) -> None:
        add(f"{name}//scale", channels, mean=1.0)
        add(f"{name}//bias", channels)

    def layer(name: str, kind: str, *shape: int) -> None:
        add(f"{name}//{kind}", *shape)
        add(f"{name}//bias", shape[-1])

    for tower in (PHOTO, MAP):
        encoder, pooling = f"{tower}encoder", f"{tower}decoder"
        layer(f"{encoder}//Stem_0//Conv_0", "kernel", 4, 4, 3, CHANNELS[0])
        norm(f"{encoder}//Stem_0//_Norm_0", CHANNELS[0])
        for stage, (depth, channels) in enumerate(zip(DEPTHS, CHANNELS, strict=True)):
            if stage:
                norm(f"{encoder}//Downsample_{stage - 1}//_Norm_0", CHANNELS[stage - 1])
                layer(f"{encoder}//Downsample_{stage - 1}//Conv_0", "kernel", 2, 2, CHANNELS[stage - 1], channels)
            for block in range(depth):
                name = f"{encoder}//Stage_{stage}//Block_{block}"
                layer(f"{name}//Conv_0", "kernel", 7, 7, 1, channels)
                norm(f"{name}//_Norm_0", channels)
                layer(f"{name}//_Linear_0", "weight", channels, 4 * channels)
                layer(f"{name}//_Linear_1", "weight", 4 * channels, channels)
                add(f"{name}//scale", channels, mean=1.0)
        norm(f"{pooling}//_Norm_0", CHANNELS[-1])
        add(f"{pooling}//_Linear_0//weight", CHANNELS[-1], HEADS)
        layer(f"{pooling}//_Linear_1", "weight", CHANNELS[-1], WIDTH)
    return weights


def normalised(weights: Weights, name: str, x: Tensor, epsilon: float) -> Tensor:
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + epsilon).sqrt()
    return x * weights[f"{name}//scale"] + weights[f"{name}//bias"]


def convolved(weights: Weights, name: str, x: Tensor, stride: int, padding: int = 0, groups: int = 1) -> Tensor:
    kernel = torch.einsum("hwio->oihw", weights[f"{name}//kernel"])
    x = F.conv2d(torch.einsum("nhwc->nchw", x), kernel, weights[f"{name}//bias"], stride, padding, groups=groups)
    return torch.einsum("nchw->nhwc", x)


def multiplied(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}//weight"] + weights[f"{name}//bias"]


def reference(weights: Weights, tower: str, images: np.ndarray) -> Tensor:
    """(n, width) embeddings of (n, image, row, col, 3) uint8, of the authors' length 6."""
    n, x = len(images), torch.from_numpy(images).flatten(0, 1).float() / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    encoder, pooling = f"{tower}encoder", f"{tower}decoder"
    x = normalised(weights, f"{encoder}//Stem_0//_Norm_0", convolved(weights, f"{encoder}//Stem_0//Conv_0", x, 4), 1e-6)
    for stage, depth in enumerate(DEPTHS):
        if stage:
            down = f"{encoder}//Downsample_{stage - 1}"
            x = convolved(weights, f"{down}//Conv_0", normalised(weights, f"{down}//_Norm_0", x, 1e-6), 2)
        for block in range(depth):
            name = f"{encoder}//Stage_{stage}//Block_{block}"
            y = convolved(weights, f"{name}//Conv_0", x, 1, 3, groups=x.shape[-1])
            y = multiplied(weights, f"{name}//_Linear_0", normalised(weights, f"{name}//_Norm_0", y, 1e-6))
            y = multiplied(weights, f"{name}//_Linear_1", F.gelu(y, approximate="tanh"))
            x = x + y * weights[f"{name}//scale"]
    tokens = normalised(weights, f"{pooling}//_Norm_0", x.reshape(n, -1, x.shape[-1]), 1e-5)
    share = (tokens @ weights[f"{pooling}//_Linear_0//weight"]).softmax(1)
    value = multiplied(weights, f"{pooling}//_Linear_1", tokens)
    parts = value.chunk(HEADS, dim=2)
    z = torch.cat([(part * share[:, :, head, None]).sum(1) for head, part in enumerate(parts)], 1)
    return 6 * z / (z.norm(dim=-1, keepdim=True) + 1e-5)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., StatewideRetriever]:
    """Write weights to a file and import it."""

    def write(weights: Weights, **options: int) -> StatewideRetriever:
        save_file(weights, tmp_path / "last.safetensors")
        return import_statewide(tmp_path / "last.safetensors", tmp_path / "model", **options)

    return write


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)


def test_embeddings_are_those_of_the_authors_code(run) -> None:
    weights = random_weights()
    towers = run(weights, image_size=64).load_encoder("cpu")
    photos, cells = images(2, 96, 128), images(2, 4, 64, 64)
    exact = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(6 * towers.encode_photos(photos), reference(weights, PHOTO, photos[:, None]), **exact)
    torch.testing.assert_close(6 * towers.encode_cells(cells), reference(weights, MAP, cells), **exact)


def test_the_retriever_has_the_published_settings(run) -> None:
    retriever = run(random_weights())
    config = retriever.load_encoder("cpu").config
    assert (config.width, config.heads, config.image_size) == (WIDTH, HEADS, 384)
    assert config.background == (255, 255, 255) and config.lods_m == (0.2, 0.4, 0.8, 1.6)
    assert (retriever.temperature, retriever.cell_m, retriever.method) == (1 / 36, 30, "statewide")


def test_names_without_underscores_and_half_precision_are_read(run) -> None:
    weights = random_weights()
    renamed = {name.replace("//_", "//"): tensor.half() for name, tensor in weights.items()}
    towers = run(renamed, image_size=64).load_encoder("cpu")
    photos = images(2, 96, 128)
    half = {name: tensor.half().float() for name, tensor in weights.items()}
    expected = reference(half, PHOTO, photos[:, None])
    torch.testing.assert_close(6 * towers.encode_photos(photos), expected, atol=1e-5, rtol=0)


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: value for key, value in weights.items() if not key.startswith(name)}


def having(name: str, *shape: int, value: float = 0.5, dtype: Any = torch.float32) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, name: torch.full(shape, value, dtype=dtype)}


BLOCK = "params//pv_encoder//Stage_2//Block_1"


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (without(f"{BLOCK}//_Linear_1//bias"), ["missing: " + f"{BLOCK}//_Linear_1//bias"]),
        (without("params//aerial_encoder//Stage_0//Block_0//Conv_0//kernel"), ["missing: params//aerial_encoder"]),
        (without("params//aerial_decoder"), ["missing: params//aerial_decoder//_Norm_0//scale"]),
        (without("params//aerial_encoder"), ["params//aerial_encoder// has 0 stages"]),
        (without("params//pv_decoder//_Linear_0"), ["params//pv_decoder//_Linear_0//weight"]),
        (without("params//pv_encoder//Stage_1//"), ["missing", "wrong shape"]),
        (having("params//scale"), ["extra: params//scale"]),
        (having(f"{BLOCK}//Conv_1//kernel", 7, 7, 1, 64), ["extra"]),
        (having(f"{BLOCK}//Conv_0//kernel", 64, 1, 7, 7), ["wrong shape", "(64, 1, 7, 7) instead of (7, 7, 1, 64)"]),
        (having("params//aerial_decoder//_Linear_1//weight", 128, 96), ["(128, 96) instead of (128, 48)"]),
        (having("params//pv_decoder//_Linear_0//weight", 128, 5), ["5 heads"]),
        (having("params//pv_decoder//_Linear_1//weight", 0), ["out of range"]),
        (having(f"{BLOCK}//scale", 64, value=float("nan")), [f"{BLOCK}//scale", "not finite"]),
        (having(f"{BLOCK}//scale", 64, dtype=torch.float64), ["F64"]),
        (having("params//pv_encoder//Stage_9//Block_0//scale", 1), ["10 stages"]),
        (having("params//pv_encoder//Stage_0//Block_9999//scale", 1), ["10000"]),
        (lambda _: {"encoder.weight": torch.zeros(1)}, ["0 stages"]),
        (lambda _: {}, ["0 stages"]),
    ],
)
def test_entries_that_do_not_fit_are_named(run, tmp_path, change: Callable, parts: list[str]) -> None:
    with pytest.raises(ModelError) as error:
        run(change(random_weights()), image_size=64)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message
    assert not (tmp_path / "model").exists()


def test_what_is_no_file_of_weights_is_refused(tmp_path, run) -> None:
    for content in (b"", b"\xff" * 64, b"PK\x03\x04"):
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match="cannot be read as a safetensors file"):
            import_statewide(tmp_path / "x.safetensors", tmp_path / "model")
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ModelError, match="there is no checkpoint"):
            import_statewide(path, tmp_path / "model")
    with pytest.raises(EncoderError, match="less than one patch"):
        run(random_weights(), image_size=16)
    run(random_weights())
    with pytest.raises(JziError, match="holds a model already"):
        run(random_weights())


def test_the_command_imports_and_refuses_options_without_effect(jzi, tmp_path) -> None:
    save_file(random_weights(), tmp_path / "last.safetensors")
    result = jzi("import-checkpoint --statewide last.safetensors -o model --image-size 64")
    assert "jzi index --retriever model" in result.stdout
    assert StatewideRetriever.load(tmp_path / "model").encoder.image_size == 64
    for option in ("--heads 8", "--encoder facebook/dinov2-base", "--layout halves", "--config jzi.toml"):
        name = option.split()[0]
        assert name in jzi(f"import-checkpoint --statewide last.safetensors -o other {option}", code=2).stderr
    assert not (tmp_path / "other").exists()
    jzi("import-checkpoint --statewide none.safetensors -o other", code=2)
    assert not (tmp_path / "other").exists()
