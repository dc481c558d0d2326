"""A model folder is what it was when it was written: every file is verified before it is read."""

from __future__ import annotations

import hashlib
import json
import platform
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import jzi
import jzi.store.model_folder as module
from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.model import ZoomModel, create_folder, save_weights
from jzi.demo.tour import FINETUNED
from jzi.encode.encoders.encoder import Encoder
from jzi.errors import JziError, ModelError
from jzi.retrieve.retriever import Retriever, save_retriever
from jzi.retrieve.search import CellIndex, build_graph, save_graph
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.disk.files import write_whole
from jzi.store.features.map_embeddings import ENCODED, MapEmbeddings
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import ImageryInfo
from jzi.store.model_config import CONFIG, ZoomModelConfig, read_config
from jzi.store.model_folder import (
    DECODER,
    EXPERT_FILES,
    MAP,
    copy_encoder,
    create_model,
    lock_model,
    record_files,
    update_config,
    write_file,
)
from jzi.tests.children import run_python
from tests import hostile

FILES = [DECODER, MAP, CONFIG, "encoder/model.safetensors", "encoder/config.json", "encoder/preprocessor_config.json"]


@pytest.fixture
def model(tmp_path: Path, encoder: Encoder, pyramid: Pyramid) -> Path:
    """A zoom model with everything that a folder may hold."""
    rng = np.random.default_rng(0)
    sides = [pyramid.tiles_per_side(level) for level in range(4)]
    embedding = tuple(rng.normal(size=(n, n, 32)).astype(np.float16) for n in sides[:-1])
    status = tuple(np.full((n, n), ENCODED, np.uint8) for n in sides)
    encoder.save(tmp_path / "encoder")
    torch.manual_seed(0)
    config = DecoderConfig(width=32, layers=1, heads=2)
    create_folder(tmp_path / "model", config, pyramid, encoder.info, tmp_path / "encoder")
    write_file(tmp_path / "model", MAP, MapEmbeddings(pyramid, embedding, status).save)
    save_weights(tmp_path / "model", ZoomDecoder(config))
    update_config(tmp_path / "model", temperature=(1.0, 1.25, 0.8))
    return tmp_path / "model"


@pytest.fixture
def answer(photo_folder: Path) -> Callable[[Path], dict]:
    return lambda model: jzi.load(model, "cpu").locate(photo_folder / "day0" / "000.jpg").to_dict()


def flip(path: Path, position: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= 1
    path.write_bytes(data)


def refused(model: Path, answer: Callable[[Path], dict], *parts: str) -> None:
    with pytest.raises(ModelError) as error:
        answer(model)
    assert "\n" not in str(error.value) and all(part in str(error.value) for part in parts), error.value


def rewrite(folder: Path, **entries: object) -> None:
    """Edit config.json, with the digest that belongs to the edit."""
    values = {**json.loads((folder / CONFIG).read_text()), **entries}
    values = {name: value for name, value in values.items() if name != "digest" and value is not ...}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    (folder / CONFIG).write_text(json.dumps({**values, "digest": digest}))


def test_a_copied_folder_answers_the_same(model, answer, tmp_path) -> None:
    before = answer(model)
    shutil.copytree(model, tmp_path / "elsewhere" / "model")
    (tmp_path / "elsewhere" / "model" / "encoder" / "README.md").write_text("of no concern")
    assert answer(tmp_path / "elsewhere" / "model") == before
    assert set(read_config(model).files) == {*FILES} - {CONFIG}


@pytest.mark.parametrize("position", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_file_is_one_sentence(model, answer, name, position) -> None:
    flip(model / name, position)
    refused(model, answer, str(model / name), "copy the model again, or train it again")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_one_sentence(model, answer, name) -> None:
    (model / name).unlink()
    refused(model, answer, str(model))


def test_a_folder_without_its_encoder_is_one_sentence(model, answer) -> None:
    shutil.rmtree(model / "encoder")
    refused(model, answer, "lacks its encoder", "copy the model again")


def test_a_file_that_was_added_to_the_encoder_is_refused(model, answer) -> None:
    (model / "encoder" / "adapter_config.json").write_text("{}")
    refused(model, answer, "adapter_config.json is not among the files that config.json records")


def test_an_edited_number_in_the_config_is_one_sentence(model, answer) -> None:
    text = (model / CONFIG).read_text()
    for old, new in (("1.25", "1.26"), ('"layers": 1', '"layers": 2'), ('"west": -400.0', '"west": -401.0')):
        assert text.count(old) == 1
        (model / CONFIG).write_text(text.replace(old, new))
        refused(model, answer, CONFIG, "does not match its own digest")
    (model / CONFIG).write_text(json.dumps(json.loads(text)))  # another layout of the same entries
    answer(model)


@pytest.mark.parametrize(
    "entries",
    [
        {"kind": "oracle"},
        {"kind": ["zoom"]},
        {"kind": "retriever"},
        {"pyramid": None},
        {"pyramid": {"crs": "EPSG:4326", "west": 0, "north": 0, "size": 1}},
        {"encoder": {"name": "x"}},
        {"imagery": {"fingerprint": "a", "files": [["x"]], "description": ""}},
        {"temperature": [1.0, "2"]},
        {"temperature": [1.0, float("nan")]},
        {"decoder": {"layers": "3"}},
        {"decoder": {"layers": 0}},
        {"decoder": {"width": 32, "heads": 2, "layers": 1, "more": 1}},
        {"decoder": [1]},
        {"files": {DECODER: "short"}},
        {"files": ...},
        {"extra": 1},
        {"version": 2},
    ],
)
def test_entries_of_no_use_are_one_sentence(model, answer, entries) -> None:
    rewrite(model, **entries)
    refused(model, answer, str(model))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "is not a model folder of jzi"),
        ('{"model_type": "dinov2"}', "is not a model folder of jzi"),
        ('{"jzi_format": 1, "decoder": {}}', "of format 1, but jzi .* reads format 3: train the model again"),
        ('{"jzi_format": 2}', "of format 2"),
        ('{"jzi_format": 3}', "does not match its own digest"),
    ],
)
def test_what_is_no_config_of_this_format_is_one_sentence(model, answer, text, sentence) -> None:
    (model / CONFIG).write_text(text)
    with pytest.raises(ModelError, match=sentence) as error:
        answer(model)
    assert "\n" not in str(error.value)


# Writing


def test_a_process_killed_while_it_replaces_weights_leaves_a_usable_folder(model, answer, monkeypatch) -> None:
    """Whichever write is the last one, and for two interrupted runs after one another."""
    decoders = [ZoomDecoder(DecoderConfig(width=32, layers=1, heads=2)) for _ in "ab"]
    for writes in (0, 1, 2, 3):
        for decoder in decoders:
            count = 0

            def write(path: Path, write: Callable, writes: int = writes) -> None:
                nonlocal count
                write_whole(path, write)  # a file's own writes include that of its digest
                if count == writes:
                    raise KeyboardInterrupt
                count += 1

            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(module, "write_whole", write)
                save_weights(model, decoder)
                raise KeyboardInterrupt
            assert answer(model)
            ZoomModel.load(model)
    flip(model / DECODER)
    refused(model, answer, DECODER)


def test_a_config_written_by_a_resumed_run_is_that_of_an_uninterrupted_one(model, encoder, tmp_path) -> None:
    """A killed process had already written the map and the weights when the folder is created again."""
    before, config = (model / CONFIG).read_bytes(), read_config(model)
    create_model(model, config, tmp_path / "encoder")
    assert (model / CONFIG).read_bytes() == before


def test_locking_a_model_removes_what_killed_processes_left(model) -> None:
    dead = run_python("")
    names = ["", "encoder", "train", "train/cells"]
    for name in names:
        (model / name / ".a.partial" / f"{dead.pid}.{platform.node()}" / "b").mkdir(parents=True)
    with lock_model(model):
        assert not list(model.rglob(".*"))


def test_resuming_does_not_sanction_what_was_damaged(model, answer) -> None:
    flip(model / "encoder" / "model.safetensors")
    save_weights(model, ZoomDecoder(DecoderConfig(width=32, layers=1, heads=2)))
    update_config(model, temperature=None)
    refused(model, answer, "encoder/model.safetensors does not match")
    record_files(model)  # but who says so explicitly has the last word
    answer(model)


def test_changing_an_entry_of_a_model_that_is_not_there_is_one_sentence(tmp_path) -> None:
    with pytest.raises(ModelError, match="there is no model in"):
        update_config(tmp_path, temperature=None)


# Other models


def test_the_model_that_comes_along_is_whole() -> None:
    model = ZoomModel.load(FINETUNED)
    encoder = model.load_encoder("cpu")
    anew = Encoder.load(FINETUNED / "encoder", image_size=84, device="cpu")
    assert encoder.fingerprint == anew.fingerprint == model.encoder.fingerprint
    layout = json.loads((FINETUNED / CONFIG).read_text())
    heads = {EXPERT_FILES["cells"], EXPERT_FILES["levels"]}
    assert set(layout["files"]) == {name for name in FILES if name not in (CONFIG, MAP)} | heads


def test_a_retriever_is_verified_as_a_zoom_model_is(tmp_path, encoder, pyramid) -> None:
    pytest.importorskip("faiss")
    small = replace(pyramid, levels=2)
    encoder.save(tmp_path / "source")
    folder = tmp_path / "retriever"
    folder.mkdir()
    copy_encoder(tmp_path / "source", folder / "encoder")
    imagery = ImageryInfo("a" * 64, (("ortho.tif", 1, 1, "b" * 64),), "bands as RGB")
    made = save_retriever(folder, small, encoder.info, imagery, context=2.0, temperature=0.05, method="infonce")
    cache = FeatureCache.create(made.cache_path, small, encoder.info, imagery)
    cells = cache.require_cells(2 * small.cell_size)
    embedding = np.random.default_rng(0).normal(size=(16, 16, 32)).astype(np.float16)
    cells.write((slice(0, 16), slice(0, 16)), np.full((16, 16), ENCODED, np.uint8), embedding)
    save_graph(build_graph(embedding.reshape(-1, 32)), made.hnsw_path)

    def load(folder: Path) -> None:
        retriever = Retriever.load(folder)
        retriever.load_encoder("cpu")
        CellIndex.load(retriever, approximate=True)

    load(folder)
    for name in ("hnsw.faiss", "encoder/model.safetensors", CONFIG):
        before = (folder / name).read_bytes()
        flip(folder / name)
        with pytest.raises(ModelError, match=re.escape(str(folder / name))):
            load(folder)
        (folder / name).write_bytes(before)
    load(folder)
    with pytest.raises(ModelError, match="is a retriever, not a zoom model"):
        ZoomModel.load(folder)
    create_model(folder, ZoomModelConfig(pyramid=small, encoder=encoder.info, imagery=None, decoder={}))
    with pytest.raises(JziError, match="is no retriever"):
        Retriever.load(folder)


# Folders that were made to deceive: every digest is right


def entries_of(value: object, path: tuple = ()) -> list[tuple]:
    items = list(value.items()) if isinstance(value, dict) else []
    items += list(enumerate(value)) if isinstance(value, list) else []
    return ([path] if path else []) + [each for key, part in items for each in entries_of(part, (*path, key))]


def test_any_entry_of_the_config_may_have_any_value_without_a_traceback(model, answer, tmp_path) -> None:
    before, text = answer(model), (model / CONFIG).read_text()
    paths = [path for path in entries_of(json.loads(text)) if path[0] != "digest"]
    rng, refused, changed = random.Random(hostile.attack_seed("config")), 0, set()
    count = hostile.attacks(60, 120, 2500)
    for _ in range(count):
        (*parents, last), value = rng.choice(paths), rng.choice(hostile.VALUES)
        entries = json.loads(text)
        part = entries
        for key in parents:
            part = part[key]
        part[last] = value
        rewrite(model, **entries)
        try:
            after = answer(model)
        except JziError as error:
            assert "\n" not in str(error) and len(str(error)) < 700
            refused += 1
        else:
            if after != before:
                changed.add((*parents, last)[0])
    assert refused > count // 2
    assert changed <= {"pyramid", "temperature", "decoder"}  # values that are possible


def resigned(model: Path, name: str, change: Callable[[dict], dict]) -> None:
    tensors = change(load_file(model / name))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, model / name)
    record_files(model)


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[3] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_value(float("nan")), "not finite"),
        (with_value(float("inf")), "not finite"),
        (lambda tensor: tensor[1:], "of shape"),
        (lambda tensor: tensor[None], "of shape"),
        (lambda tensor: tensor.flatten()[:0], "of shape"),
        (torch.Tensor.double, "type F64"),
        (torch.Tensor.long, "type I64"),
        (torch.Tensor.bool, "type BOOL"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "type F8_E4M3"),
        (lambda tensor: tensor.to(torch.complex64), "type C64"),
    ],
)
@pytest.mark.parametrize(("name", "tensor"), [(DECODER, "output_head.weight"), (MAP, "embedding.2")])
def test_tensors_of_another_shape_or_type_or_not_finite_are_refused(model, answer, name, tensor, change, says) -> None:
    resigned(model, name, lambda tensors: {**tensors, tensor: change(tensors[tensor])})
    refused(model, answer, name, tensor, says)


@pytest.mark.parametrize("name", [DECODER, MAP])
def test_a_tensor_that_is_missing_or_does_not_belong_is_refused(model, answer, name) -> None:
    resigned(model, name, lambda tensors: {**tensors, "more": torch.zeros(3)})
    refused(model, answer, "has a tensor 'more' that does not belong")
    resigned(model, name, lambda tensors: dict(list(tensors.items())[1:-1]))
    refused(model, answer, "lacks the tensor")
    (model / name).write_bytes((2**40).to_bytes(8, "little") + b"{}")
    record_files(model)
    refused(model, answer, name, "cannot be read")


def test_a_status_that_is_none_is_refused(model, answer) -> None:
    resigned(model, MAP, lambda tensors: {**tensors, "status.1": tensors["status.1"] + 7})
    refused(model, answer, "status of tiles")


def test_a_decoder_larger_than_its_file_is_not_allocated(model, answer) -> None:
    rewrite(model, decoder={"width": 32, "actions": 16, "layers": 256, "heads": 2, "dropout": 0.1})
    refused(model, answer, "lacks the tensor")
    rewrite(model, decoder={"width": 4096, "actions": 16, "layers": 1, "heads": 2, "dropout": 0.1})
    refused(model, answer, "4096 features")
