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
from jzi.decode.model import ZoomModel, create_folder, save_weights
from jzi.encode.encoder import Encoder
from jzi.errors import ConfigError, ModelError, PhotoError
from jzi.locate.locator import LocateOptions, Location, Locator, NotLocated
from jzi.store.map_embeddings import ENCODED, MapEmbeddings
from jzi.store.model_folder import MAP, write_file
from jzi.store.pyramid import Pyramid


@pytest.fixture
def model(tmp_path: Path, encoder_folder: Path, pyramid: Pyramid) -> Path:
    """A model folder with random weights and a random map."""
    rng = np.random.default_rng(0)
    side = pyramid.tiles_per_side
    embedding = tuple(rng.normal(size=(side(k), side(k), 32)).astype(np.float16) for k in range(3))
    status = tuple(np.full((side(k), side(k)), ENCODED, np.uint8) for k in range(4))
    info = Encoder.load(encoder_folder, image_size=56).info
    torch.manual_seed(0)
    config = DecoderConfig(width=32, layers=2, heads=2)
    create_folder(tmp_path / "model", config, pyramid, info, encoder_folder)
    write_file(tmp_path / "model", MAP, MapEmbeddings(pyramid, embedding, status).save)
    save_weights(tmp_path / "model", ZoomDecoder(config))
    return tmp_path / "model"


def test_a_path_bytes_an_open_file_and_an_image_are_the_same_photo(model, photo_folder) -> None:
    locator = Locator.load(model)
    path = photo_folder / "day0" / "000.jpg"
    with path.open("rb") as file:
        answers = [locator.locate(photo) for photo in (path, str(path), path.read_bytes(), file, Image.open(path))]
    assert len({(answer.latitude, answer.longitude, answer.confidence) for answer in answers}) == 1
    assert answers[0].photo == str(path)


@pytest.mark.parametrize("estimate", ["greedy", "map"])
def test_a_cell_is_answered_by_its_centre_and_its_probability(model, photo_folder, estimate) -> None:
    locator = Locator.load(model)
    answer = locator.locate(photo_folder / "day0" / "000.jpg", LocateOptions(estimate))
    row, col = locator.pyramid.path_to_tile(np.array(answer.best.path))
    assert answer.best.cell == (row, col)
    assert (answer.latitude, answer.longitude) == locator.pyramid.tile_positions(3, row, col)
    assert answer.confidence == pytest.approx(np.prod(answer.best.step_probabilities))
    assert (answer.best.source, answer.best.radius_m) == (estimate, None)
    assert len(answer.candidates) == (1 if estimate == "greedy" else 5)


def test_a_point_is_answered_by_the_probability_around_it(model, photo_folder) -> None:
    locator = Locator.load(model)
    answer = locator.locate(photo_folder / "day0" / "000.jpg", LocateOptions(radius=60.0, top=3))
    best, found = answer.best, answer.posterior
    assert (best.source, best.radius_m, len(answer.candidates)) == ("radius", 60.0, 3)
    x, y = found.centers
    around = found.probability[np.hypot(x - best.x, y - best.y) <= 60].sum()
    assert answer.confidence == pytest.approx(around, rel=0.1)
    assert locator.pyramid.project(best.latitude, best.longitude) == pytest.approx((best.x, best.y), abs=0.01)
    side = locator.pyramid.cell_size / 2
    row, col = best.cell
    centre = locator.pyramid.tile_centers(3, np.array(row), np.array(col))
    assert abs(best.x - centre[0]) < side and abs(best.y - centre[1]) < side
    assert 0 < answer.radius_68 < answer.radius_95 and answer.residual == 0
    told = answer.to_dict()
    assert told["radius_68_m"] == answer.radius_68 and len(told["candidates"]) == 3
    assert "within 60 m" in answer.to_text() and answer.to_text().count("    or ") == 2


def test_a_narrow_beam_says_what_it_left_out(model, photo_folder) -> None:
    answer = Locator.load(model).locate(photo_folder / "day0" / "000.jpg", LocateOptions(beams=1))
    assert answer.residual > 0.3 and answer.radius_95 == np.inf
    assert answer.to_dict()["radius_95_m"] is None and "did not look into" in answer.to_text()


@pytest.mark.parametrize("wrong", [{"estimate": "best"}, {"radius": 0}, {"top": 0}, {"beams": 0}])
def test_a_question_that_makes_no_sense_is_refused(wrong) -> None:
    with pytest.raises(ConfigError):
        LocateOptions(**wrong)


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
    answers = locator.locate_embeddings(torch.randn(3, 32), LocateOptions(top=4))
    assert [len(each.candidates) for each in answers] == [4, 4, 4]
    assert "encoder" not in vars(locator)  # none was loaded


def test_a_photo_that_cannot_be_read_raises(model, tmp_path) -> None:
    with pytest.raises(PhotoError, match=r"there is no photo .*gone\.jpg"):
        Locator.load(model).locate(tmp_path / "gone.jpg")


def test_an_encoder_that_was_swapped_is_refused(model) -> None:
    encoder = Encoder.load(model / "encoder", image_size=56)
    next(iter(encoder.model.parameters())).data += 1
    encoder.save(model / "encoder")
    with pytest.raises(ModelError, match=r"encoder/model\.safetensors does not match"):
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
