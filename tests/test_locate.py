"""`Locator` gives the same locations as the command, for every kind of photo source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import jzi
from jzi.commands.shared.tables import location_text
from jzi.decode.config import DecoderConfig
from jzi.decode.decoder import ZoomDecoder
from jzi.decode.model import ZoomModel, create_folder, save_weights
from jzi.encode.encoders.encoder import Encoder
from jzi.errors import ConfigError, EncoderError, ModelError, PhotoError, PyramidError
from jzi.evaluate.calibration import calibrate
from jzi.evaluate.photos import LabelledPhotos
from jzi.evaluate.protocol import evaluate
from jzi.locate.answer.location import Candidate, LocateOptions, Location, NotLocated
from jzi.locate.expert import Query
from jzi.locate.locator import Locator
from jzi.locate.posterior import Posterior
from jzi.store.features.map_embeddings import ENCODED, MapEmbeddings
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.model_folder import MAP, write_file


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
    locator = jzi.load(model)
    path = photo_folder / "day0" / "000.jpg"
    with path.open("rb") as file:
        answers = [locator.locate(photo) for photo in (path, str(path), path.read_bytes(), file, Image.open(path))]
    assert len({(answer.latitude, answer.longitude, answer.confidence) for answer in answers}) == 1
    assert answers[0].photo == str(path)


@pytest.mark.parametrize("estimate", ["greedy", "map"])
def test_a_cell_is_answered_by_its_centre_and_its_probability(model, photo_folder, estimate) -> None:
    locator = jzi.load(model)
    answer = locator.locate(photo_folder / "day0" / "000.jpg", LocateOptions(estimate))
    row, col = locator.pyramid.path_to_tile(np.array(answer.best.path))
    assert answer.best.cell == (row, col)
    assert (answer.latitude, answer.longitude) == locator.pyramid.tile_positions(3, row, col)
    assert answer.confidence == pytest.approx(np.prod(answer.best.step_probabilities))
    assert (answer.best.source, answer.best.radius_m) == (estimate, None)
    assert len(answer.candidates) == (1 if estimate == "greedy" else 5)


def test_a_point_is_answered_by_the_probability_around_it(model, photo_folder) -> None:
    locator = jzi.load(model)
    answer = locator.locate(photo_folder / "day0" / "000.jpg", LocateOptions(radius=60.0, top=3))
    best, found = answer.best, answer.posterior
    assert (best.source, best.radius_m, len(answer.candidates)) == ("mean", 60.0, 3)
    x, y = found.centers
    around = found.probability[np.hypot(x - best.x, y - best.y) <= 60].sum()
    assert answer.confidence == pytest.approx(around, rel=0.1)
    assert locator.pyramid.project(best.latitude, best.longitude) == pytest.approx((best.x, best.y), abs=0.01)
    side = locator.pyramid.cell_size / 2
    row, col = best.cell
    centre = locator.pyramid.tile_centers(3, np.array(row), np.array(col))
    assert abs(best.x - centre[0]) < side and abs(best.y - centre[1]) < side
    assert 0 < answer.radius_68 < answer.radius_95 and answer.residual == 0
    output = answer.to_dict()
    assert output["radius_68_m"] == round(answer.radius_68, 2) and len(output["candidates"]) == 3
    assert "within 60 m" in location_text(answer) and location_text(answer).count("    or ") == 2


def test_a_narrow_beam_says_what_it_left_out(model, photo_folder) -> None:
    answer = jzi.load(model).locate(photo_folder / "day0" / "000.jpg", LocateOptions(beams=1))
    assert answer.residual > 0.3 and answer.radius_95 == np.inf
    assert answer.to_dict()["radius_95_m"] is None
    assert "68 % and 95 % radii unknown: 99.2 % of the probability was not searched" in location_text(answer)


@pytest.mark.parametrize("wrong", [{"estimate": "best"}, {"radius": 0}, {"top": 0}, {"beams": 0}])
def test_a_question_that_makes_no_sense_is_refused(wrong) -> None:
    with pytest.raises(ConfigError):
        LocateOptions(**wrong)


def test_many_photos_give_what_each_alone_gives_in_their_order(model, photo_folder) -> None:
    locator = jzi.load(model)
    photos = sorted(photo_folder.rglob("*.jpg"))[:9]
    together = list(locator.locate_all([*photos, photo_folder / "gone.jpg"], batch_size=4))
    assert isinstance(together[-1], NotLocated) and "there is no photo" in together[-1].error
    for photo, answer in zip(photos, together[:-1], strict=True):
        assert isinstance(answer, Location)
        assert answer.best.path == locator.locate(photo).best.path


def test_embeddings_are_located_without_an_encoder(model) -> None:
    locator = jzi.load(model)
    answers = locator.locate_embeddings(torch.randn(3, 32), LocateOptions(top=4))
    assert [len(each.candidates) for each in answers] == [4, 4, 4]
    assert "encoder" not in vars(locator)  # the encoder was not loaded


def test_an_embedding_that_is_not_finite_has_no_location(model, photo_folder, monkeypatch) -> None:
    locator = jzi.load(model)
    query = torch.randn(3, 32)
    query[1, 4] = torch.nan
    message = r"computed an embedding that is not finite for photo 2 of 3"
    with pytest.raises(EncoderError, match=message):
        locator.locate_embeddings(query)
    broken = locator.with_prior(np.ones(locator.expert.area.shape))
    monkeypatch.setattr(Encoder, "encode_photos", lambda *_: query)
    photos = sorted(photo_folder.rglob("*.jpg"))[:3]
    for call in (
        lambda: locator.locate(photos),
        lambda: broken.locate(photos),
        lambda: broken.locate_together(photos),
        lambda: locator.locate_together(photos),
        lambda: locator.locate_track(photos, [0, 1, 2], 30),
    ):
        with pytest.raises(EncoderError, match=message):
            call()


def test_a_photo_that_cannot_be_read_raises(model, tmp_path) -> None:
    with pytest.raises(PhotoError, match=r"there is no photo .*gone\.jpg"):
        jzi.load(model).locate(tmp_path / "gone.jpg")


def test_an_encoder_that_was_swapped_is_refused(model) -> None:
    encoder = Encoder.load(model / "encoder", image_size=56)
    next(iter(encoder.model.parameters())).data += 1
    encoder.save(model / "encoder")
    with pytest.raises(ModelError, match=r"encoder/(config\.json|model\.safetensors) does not match"):
        jzi.load(model).encoder  # noqa: B018 - loading it is the act


@pytest.mark.parametrize("damage", ["decoder.safetensors", "map.safetensors", "config.json"])
def test_a_damaged_model_is_one_sentence(model, damage) -> None:
    (model / damage).write_bytes((model / damage).read_bytes()[:50])
    with pytest.raises(ModelError, match=damage) as error:
        jzi.load(model)
    assert "\n" not in str(error.value)


class Recorder:
    """A stage that reverses the candidates and records its arguments."""

    name = "recorder"

    def __init__(self) -> None:
        self.queries: list[Query] = []

    def __call__(self, query: Query, posterior: Posterior, candidates: Sequence[Candidate]) -> list[Candidate]:
        assert len(posterior) == 1
        self.queries.append(query)
        return [replace(each, source=self.name) for each in reversed(candidates)]


def test_stages_run_after_the_posterior_on_each_photo(model, photo_folder) -> None:
    plain, stage = jzi.load(model), Recorder()
    locator = Locator(plain.expert, lambda: plain.encoder, [stage], name="staged")
    photos = sorted(photo_folder.rglob("*.jpg"))[:3]
    before, after = list(plain.locate_all(photos)), list(locator.locate_all(photos))
    assert [query.photo for query in stage.queries] == photos
    assert [query.name for query in stage.queries] == [str(photo) for photo in photos]
    for one, other in zip(before, after, strict=True):
        assert isinstance(one, Location) and isinstance(other, Location)
        assert [each.cell for each in other.candidates] == [each.cell for each in one.candidates][::-1]
        assert other.best.source == "recorder" and other.radius_95 == one.radius_95
    _, embeddings = plain.encode(photos)
    off_cache = locator.locate_embeddings(embeddings)
    assert stage.queries[-1].photo is None and torch.equal(stage.queries[-1].embedding, embeddings[-1])
    assert [each.best.cell for each in off_cache] == [each.best.cell for each in after if isinstance(each, Location)]


class Uniform:
    """An expert with equal probabilities for all cells with imagery, in an area that is no pyramid."""

    name = "uniform"

    def __init__(self, locator: Locator) -> None:
        self.pyramid, self.cell_mask, self.encoder = locator.pyramid, locator.expert.cell_mask, locator.expert.encoder
        self.area = self

    crs, cell_size = property(lambda self: self.pyramid.crs), property(lambda self: self.pyramid.cell_size)
    shape, bounds = property(lambda self: self.pyramid.shape), property(lambda self: self.pyramid.bounds)

    def cells_at(self, latitude, longitude):
        return self.pyramid.cells_at(latitude, longitude)

    def cell_centers(self, row, col):
        return self.pyramid.cell_centers(row, col)

    def unproject(self, x, y):
        return self.pyramid.unproject(x, y)

    def posterior(self, query: torch.Tensor, options: LocateOptions) -> Posterior:
        row, col = np.nonzero(self.cell_mask)
        return Posterior.from_cells(self.area, row, col, np.full((len(query), len(row)), 1 / len(row)))

    def uncalibrated(self) -> None:
        return None


def test_any_expert_over_any_cells_can_locate_and_be_evaluated(model) -> None:
    plain = jzi.load(model)
    expert = Uniform(plain)
    locator = Locator(expert, lambda: plain.encoder)
    (location,) = locator.locate_embeddings(torch.zeros(1, 32))
    assert location.best.path == () and 0 < location.confidence < 1.02 * np.pi * 50**2 / 800**2
    with pytest.raises(PyramidError, match="square pyramid"):
        locator.pyramid  # noqa: B018
    latitude, longitude = plain.pyramid.unproject([0.0, 100.0], [0.0, 100.0])
    row, col = plain.pyramid.cells_at(latitude, longitude)
    photos = LabelledPhotos("test", torch.zeros(2, 32), latitude, longitude, row, col, 0)
    evaluation = evaluate(expert, photos)
    assert evaluation.photos == 2 and evaluation.step_accuracy == () and evaluation.recall_at == {}
    assert calibrate(expert, photos).error_before is None


def test_the_package_gives_what_the_commands_use() -> None:
    assert jzi.Locator is Locator and jzi.ZoomDecoder is ZoomDecoder and jzi.Encoder is Encoder
    assert all(getattr(jzi, name) is not None for name in jzi.__all__)
    with pytest.raises(AttributeError):
        jzi.Nonsense  # noqa: B018


def test_a_model_without_its_map_still_gives_logits(model) -> None:
    (model / "map.safetensors").unlink()
    decoder = ZoomModel.load(model).decoder
    assert decoder(torch.zeros(1, 32), torch.zeros(1, 3, 32), torch.zeros(1, 3, dtype=torch.int64)).shape == (1, 3, 16)


@pytest.mark.parametrize("name", [3, None, [], ["model", 3], {"model": 1}])
def test_what_does_not_name_a_model_is_one_sentence(name: object) -> None:
    with pytest.raises(ConfigError, match="a model is named by its folder or its name on the hub"):
        jzi.load(name)
