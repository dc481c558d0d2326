"""`Locator` in Python gives what the command gives, for whatever a photo comes as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import jzi
from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.locate import Location, Locator, NotLocated
from jzi.decode.model import ZoomModel, create_folder, save_weights
from jzi.encode.encoder import Encoder
from jzi.errors import ModelError, PhotoError
from jzi.store.map_features import ENCODED, MapFeatures
from jzi.store.pyramid import Pyramid


@pytest.fixture
def model(tmp_path: Path, encoder_folder: Path, pyramid: Pyramid) -> Path:
    """A model folder with random weights and a random map."""
    rng = np.random.default_rng(0)
    side = pyramid.tiles_per_side
    embedding = tuple(rng.normal(size=(side(k), side(k), 32)).astype(np.float16) for k in range(3))
    status = tuple(np.full((side(k), side(k)), ENCODED, np.uint8) for k in range(4))
    card = Encoder.load(encoder_folder, image_size=56).card
    torch.manual_seed(0)
    config = DecoderConfig(width=32, layers=2, heads=2)
    create_folder(tmp_path / "model", config, pyramid, card, encoder_folder)
    MapFeatures(pyramid, embedding, status).save(tmp_path / "model" / "map.safetensors")
    save_weights(tmp_path / "model", ZoomDecoder(config))
    return tmp_path / "model"


def test_a_path_bytes_an_open_file_and_an_image_are_the_same_photo(model, photo_folder) -> None:
    locator = Locator.load(model)
    path = photo_folder / "day0" / "000.jpg"
    with path.open("rb") as file:
        answers = [locator.locate(photo) for photo in (path, str(path), path.read_bytes(), file, Image.open(path))]
    assert len({(answer.latitude, answer.longitude, answer.confidence) for answer in answers}) == 1
    assert answers[0].photo == str(path)


def test_the_answer_is_the_centre_of_its_cell(model, photo_folder) -> None:
    locator = Locator.load(model)
    best = locator.locate(photo_folder / "day0" / "000.jpg").best
    row, col = locator.pyramid.path_to_tile(best.path)
    assert best.cell == (row, col)
    assert (best.latitude, best.longitude) == locator.pyramid.tile_positions(3, row, col)
    assert best.probability == pytest.approx(np.prod(best.step_probabilities))
    assert best.source == "greedy"


def test_many_photos_give_what_each_alone_gives_in_their_order(model, photo_folder) -> None:
    locator = Locator.load(model)
    photos = sorted(photo_folder.rglob("*.jpg"))[:9]
    together = list(locator.locate_all([*photos, photo_folder / "gone.jpg"], batch_size=4))
    assert isinstance(together[-1], NotLocated) and "there is no photo" in together[-1].error
    for photo, answer in zip(photos, together[:-1], strict=True):
        assert isinstance(answer, Location)
        assert answer.best.path == locator.locate(photo).best.path


def test_embeddings_are_located_without_an_encoder(model) -> None:
    locator = Locator.load(model)
    candidates = locator.locate_embeddings(torch.randn(3, 32), beams=5)
    assert [len(each) for each in candidates] == [5, 5, 5]
    assert "encoder" not in vars(locator)  # none was loaded


def test_a_photo_that_cannot_be_read_raises(model, tmp_path) -> None:
    with pytest.raises(PhotoError, match=r"there is no photo .*gone\.jpg"):
        Locator.load(model).locate(tmp_path / "gone.jpg")


def test_an_encoder_that_was_swapped_is_refused(model) -> None:
    encoder = Encoder.load(model / "encoder", image_size=56)
    next(iter(encoder.model.parameters())).data += 1
    encoder.save(model / "encoder")
    with pytest.raises(ModelError, match="was trained with the encoder"):
        Locator.load(model).encoder  # noqa: B018 - loading it is the act


@pytest.mark.parametrize("damage", ["decoder.safetensors", "map.safetensors", "config.json"])
def test_a_damaged_model_is_one_sentence(model, damage) -> None:
    (model / damage).write_bytes((model / damage).read_bytes()[:50])
    with pytest.raises(ModelError, match=damage) as error:
        Locator.load(model)
    assert "\n" not in str(error.value)


def test_the_package_gives_what_the_commands_use() -> None:
    assert jzi.Locator is Locator and jzi.ZoomDecoder is ZoomDecoder and jzi.Encoder is Encoder
    assert all(getattr(jzi, name) is not None for name in jzi.__all__)
    with pytest.raises(AttributeError):
        jzi.Nonsense  # noqa: B018


def test_a_model_without_its_map_still_gives_logits(model) -> None:
    (model / "map.safetensors").unlink()
    decoder = ZoomModel.load(model).decoder
    assert decoder(torch.zeros(1, 32), torch.zeros(1, 3, 32), torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 16)
