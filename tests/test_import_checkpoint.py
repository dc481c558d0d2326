"""Imported checkpoints compute the reference's embeddings and logits; others are refused with names of entries."""

from __future__ import annotations

import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import jzi
from jzi.cli import main
from jzi.decode.import_checkpoint import import_checkpoint
from jzi.decode.model import ZoomModel
from jzi.encode.encode_map import encode_map
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import ConfigError, EncoderError, JziError, ModelError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.geometry.pyramid import Pyramid, preset
from tests import hostile


@pytest.fixture
def reference(shared: Path, tmp_path: Path) -> Path:
    """A copy of the reference model, its encoder's config in a separate folder."""
    shutil.copytree(shared / "reference-model", tmp_path / "reference")
    (tmp_path / "encoder").mkdir()
    shutil.copy(shared / "reference-model" / "backbone_config.json", tmp_path / "encoder" / "config.json")
    return tmp_path / "reference"


@pytest.fixture
def load(reference: Path, tmp_path: Path) -> Callable[..., ZoomModel]:
    """Change the checkpoint's weights, import it and load the model."""

    def run(change: Callable[[dict], dict] = dict, **options) -> ZoomModel:
        state = torch.load(reference / "checkpoint.pth", weights_only=True)["model_state_dict"]
        torch.save({"model_state_dict": change(state)}, tmp_path / "changed.pth")
        options = {"encoder": str(tmp_path / "encoder"), "image_size": 56, **options}
        import_checkpoint(tmp_path / "changed.pth", tmp_path / "model", preset("just-zoom-in-dc"), **options)
        return ZoomModel.load(tmp_path / "model")

    return run


def prefixed(prefix: str) -> Callable[[dict], dict]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@torch.no_grad()
def test_embeddings_and_logits_are_those_of_the_reference(reference, load, prefix: str) -> None:
    model = load(prefixed(prefix))
    encoder = model.load_encoder("cpu")
    case = load_file(reference / "case.safetensors")
    n, halves = case["ground"].shape[:2]
    query = encoder.embed(case["ground"].flatten(0, 1)).unflatten(0, (n, halves)).mean(1)
    tiles = encoder.embed(case["satellite"].flatten(0, 1)).unflatten(0, (n, -1))
    exact = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(query, case["ground_embedding"], **exact)
    torch.testing.assert_close(tiles, case["satellite_embedding"], **exact)
    torch.testing.assert_close(model.decoder(query, tiles, case["actions"]), case["logits"], **exact)
    logits, past = model.decoder.prefill(query, tiles[:, 0])
    torch.testing.assert_close(logits, case["logits"][:, 0], **exact)
    for step in range(1, 4):
        logits, past = model.decoder.step(case["actions"][:, step - 1], tiles[:, step], past)
        torch.testing.assert_close(logits, case["logits"][:, step], **exact)


def test_heads_are_read_off_the_frequencies_or_taken_as_said(load) -> None:
    assert load().decoder.config.heads == 4


def test_heads_without_frequencies_are_eight_unless_said(load, tmp_path) -> None:
    def without(state: dict) -> dict:
        return {name: tensor for name, tensor in state.items() if name != "decoder.freqs"}

    with pytest.raises(ConfigError, match=r"decoder\.heads is 5"):
        load(without, heads=5)
    assert not (tmp_path / "model").exists()
    assert load(without).decoder.config.heads == 8


def test_heads_that_contradict_the_checkpoint_are_refused(load) -> None:
    with pytest.raises(ModelError, match="of 4 heads, not of 8"):
        load(heads=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if "layer.1.norm2" not in k}, r"missing: .*layer\.1\.norm2\.weight"),
        (
            lambda s: {k: v for k, v in s.items() if k != "decoder.blocks.1.ffn.w2.weight"},
            r"missing: decoder\.blocks\.1",
        ),
        (lambda s: {**s, "decoder.bias_of_mine": torch.zeros(3)}, r"extra: decoder\.bias_of_mine"),
        (lambda s: {**s, "refiner.weight": torch.zeros(3)}, r"extra: refiner\.weight"),
        (
            lambda s: {**s, "decoder.final_norm.weight": torch.zeros(95)},
            r"wrong shape: decoder\.final_norm.*\(95,\) instead of \(96,\)",
        ),
        (lambda s: {k: v for k, v in s.items() if "output_head" not in k}, r"output_head\.weight is missing"),
    ],
    ids=["encoder lacks", "decoder lacks", "decoder more", "more", "wrong shape", "no head"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(load, tmp_path, change, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(change)
    assert not (tmp_path / "model").exists()


class Code:
    """What an attacker would put into a pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_refused_and_not_run(reference, tmp_path) -> None:
    torch.save({"model_state_dict": {}, "code": Code(tmp_path / "ran")}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="jzi runs no code from a checkpoint") as error:
        import_checkpoint(tmp_path / "evil.pth", tmp_path / "model", preset("just-zoom-in-dc"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "model").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_checkpoint_is_one_sentence(tmp_path, content: bytes) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.pth") as error:
        import_checkpoint(tmp_path / "x.pth", tmp_path / "model", preset("just-zoom-in-dc"))
    assert "\n" not in str(error.value)


def test_an_encoder_whose_config_cannot_be_had_is_one_sentence(load) -> None:
    with pytest.raises(EncoderError, match="config of the encoder 'no/such'"):
        load(encoder="no/such")


def test_a_model_that_is_there_is_not_overwritten(load) -> None:
    load()
    with pytest.raises(ModelError, match="holds a model already"):
        load()


def test_an_imported_model_locates_photos_on_a_map_made_with_its_encoder(
    reference, tmp_path, town_raster, photo_folder, pyramid: Pyramid
) -> None:
    options = {"encoder": str(tmp_path / "encoder"), "image_size": 56}
    import_checkpoint(reference / "checkpoint.pth", tmp_path / "model", pyramid, **options)
    encoder = ZoomModel.load(tmp_path / "model").load_encoder()
    with Imagery([town_raster], pyramid) as imagery:
        cache = FeatureCache.create(tmp_path / "features.zarr", pyramid, encoder.info, imagery.info())
        encode_map(cache, encoder, imagery)
    with pytest.raises(ModelError, match="has no map"):
        jzi.load(tmp_path / "model")
    place = jzi.load(tmp_path / "model", cache=tmp_path / "features.zarr").locate(photo_folder / "day0" / "000.jpg")
    assert pyramid.paths(place.latitude, place.longitude)[0].tolist() == list(place.best.path)
    assert np.isfinite(place.confidence)
    line = ["locate", str(photo_folder / "day0" / "000.jpg"), "--model", str(tmp_path / "model"), "--json"]
    result = CliRunner().invoke(main, [*line, "--cache", str(tmp_path / "features.zarr")])
    assert json.loads(result.stdout)["path"] == list(place.best.path)
    assert CliRunner().invoke(main, line).exit_code == 2


# Any file


def refused(path: Path, folder: Path, **options: object) -> str:
    with pytest.raises(JziError) as error:
        import_checkpoint(path, folder, preset("just-zoom-in-dc"), **options)
    text = str(error.value)
    assert (
        "\n" not in text and "weights_only" not in text and len(text) < 2000 and not (folder / "config.json").exists()
    )
    return text


def test_any_bytes_are_one_sentence(reference, tmp_path) -> None:
    rng, whole = random.Random(hostile.attack_seed("checkpoint")), (reference / "checkpoint.pth").read_bytes()
    encoder, path = str(tmp_path / "encoder"), tmp_path / "x.pth"
    starts = [b"", b"\x80\x02", b"\x80\x02}q\x00.", b"PK\x03\x04", b"\x1f\x8b", b"ustar", whole[:300]]
    for start in starts:
        path.write_bytes(start + rng.randbytes(500))
        refused(path, tmp_path / "model", encoder=encoder)
    for _ in range(hostile.attacks(10, 30, 300)):  # found by the checksums of the archive or by the names of weights
        half = len(whole) // 2
        path.write_bytes(whole[:half] + hostile.flip(whole[half:], rng))
        try:
            import_checkpoint(path, tmp_path / "model", preset("just-zoom-in-dc"), encoder=encoder, image_size=56)
        except ModelError as error:
            assert "\n" not in str(error)
        else:  # of a byte that no reader uses
            state = torch.load(path, weights_only=True)["model_state_dict"]
            original = torch.load(reference / "checkpoint.pth", weights_only=True)["model_state_dict"]
            assert all(torch.equal(state[name], original[name]) for name in original)
            shutil.rmtree(tmp_path / "model")
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, tmp_path / "model")
    refused(tmp_path, tmp_path / "model")
    os.mkfifo(tmp_path / "pipe")
    assert "there is no checkpoint" in refused(tmp_path / "pipe", tmp_path / "model")


def test_a_compressed_archive_is_refused_before_it_is_unpacked(reference, tmp_path) -> None:
    with (
        zipfile.ZipFile(reference / "checkpoint.pth") as source,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in source.infolist():
            bomb.writestr(entry.filename, source.read(entry))
        bomb.writestr("more", bytes(50_000_000))
    assert "an entry is compressed" in refused(tmp_path / "bomb.pth", tmp_path / "model")


@pytest.mark.parametrize(
    ("weights", "options", "says"),
    [
        ({"decoder.output_head.weight": torch.zeros(1).expand(16, 10**9)}, {}, "more values than it has bytes"),
        ({"decoder.output_head.weight": torch.zeros(16, 96, dtype=torch.complex64)}, {}, "not a checkpoint"),
        ({"decoder.output_head.weight": torch.zeros(16, 96).to_sparse()}, {}, "not a checkpoint"),
        ({7: torch.zeros(16, 96)}, {}, "not a checkpoint"),
        ({"decoder.output_head.weight": torch.zeros(9, 96)}, {}, "9 actions"),
        (
            {"decoder.output_head.weight": torch.zeros(16, 96), "decoder.freqs": torch.zeros(0)},
            {},
            "more than there are",
        ),
        ({"decoder.output_head.weight": torch.zeros(16, 96)}, {"heads": 0}, "decoder.heads = 0"),
        ({"decoder.output_head.weight": torch.zeros(16, 96)}, {"heads": 10**9}, "decoder.heads = 1000000000"),
        (
            {"decoder.output_head.weight": torch.zeros(16, 96), "decoder.blocks.99999.w": torch.zeros(1)},
            {},
            "decoder.layers = 100000",
        ),
    ],
    ids=["repeated", "complex", "sparse", "name", "actions", "no freqs", "no heads", "many heads", "many layers"],
)
def test_hostile_weights_are_one_sentence(reference, tmp_path, weights, options, says) -> None:
    torch.save({"model_state_dict": weights}, tmp_path / "x.pth")
    assert says in refused(tmp_path / "x.pth", tmp_path / "model", encoder=str(tmp_path / "encoder"), **options)


def test_weights_that_are_not_finite_are_refused(load) -> None:
    def broken(state: dict) -> dict:
        state["decoder.output_head.weight"][3, 4] = float("nan")
        return state

    with pytest.raises(ModelError, match=r"values in decoder\.output_head\.weight that are not finite"):
        load(broken)
