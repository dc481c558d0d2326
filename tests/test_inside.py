"""Photos from elsewhere: what tells them apart, what they do to an answer, and what the metadata of photos say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner
from PIL import ExifTags, Image
from rasterio.transform import from_origin

from jzi.cli import main
from jzi.encode.photo.photo_reader import PhotoReader
from jzi.encode.photo.photos import SMOOTH, UNIFORM
from jzi.errors import ConfigError, ModelError, PhotoError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.answer.photo_notes import GEOREFERENCED
from jzi.locate.inside import (
    MIN_PHOTOS,
    UNLIKE,
    Evidence,
    Hidden,
    InsideDetector,
    auroc,
    fit_inside,
    probability_inside,
)
from jzi.retrieve.cells import CellsExpert
from jzi.retrieve.heads import HeadsConfig, SimilarityHeads
from jzi.retrieve.vpr import VprConfig, VprExpert
from jzi.store.model_config import FusionConfig, InsideConfig, read_config
from jzi.store.model_folder import update_config
from jzi.store.photos.exif import read_position, write_position
from jzi.store.plain import percent
from jzi.tests.test_experts import AREA, ENCODER, MAP, MASK, WIDTH, queries

FITTED = InsideConfig({"zoom": 1.0}, 0.0, 0.9, 100)


@pytest.fixture(scope="module")
def cells() -> CellsExpert:
    torch.manual_seed(0)
    return CellsExpert.from_map(MAP, ENCODER, SimilarityHeads(HeadsConfig(WIDTH, scales=AREA.levels, hidden=16)).eval())


@pytest.fixture(scope="module")
def vpr() -> VprExpert:
    rng = np.random.default_rng(5)
    row, col = np.nonzero(MASK)
    chosen = rng.integers(0, len(row), 30)
    x, y = AREA.cell_centers(row[chosen], col[chosen])
    return VprExpert(AREA, ENCODER, MASK, torch.randn(30, WIDTH), x, y, VprConfig(10.0))


class Familiar:
    """Evidence that is the first feature of a photo, less what hiding its surroundings takes from it."""

    name = "familiar"

    def evidence(self, query: torch.Tensor, hidden: Hidden | None = None) -> np.ndarray:
        return query[:, 0].double().numpy() - (0.0 if hidden is None else 2.0)


# Evidence


def test_evidence_of_cells_leaves_out_those_around_each_photo(cells) -> None:
    query = queries(2)
    at = AREA.cell_centers(np.array([3, 9]), np.array([4, 8]))
    evidence, hidden = cells.evidence(query), cells.evidence(query, Hidden(*at, 25.0))
    with torch.inference_mode():
        log = cells.log_probabilities(query.float()).double()
    x, y = AREA.cell_centers(cells.row, cells.col)
    for photo in range(2):
        far = (x - at[0][photo]) ** 2 + (y - at[1][photo]) ** 2 >= 25.0**2
        assert evidence[photo] == pytest.approx(float(log[photo].logsumexp(0)) - np.log(len(x)), abs=1e-5)
        assert hidden[photo] == pytest.approx(float(log[photo, far].logsumexp(0)) - np.log(len(x)), abs=1e-5)
        assert hidden[photo] < evidence[photo]


def test_evidence_of_training_photos_leaves_out_those_around_each_photo(vpr, monkeypatch) -> None:
    query, nearest = queries(4), vpr.nearest(queries(4))
    assert vpr.evidence(query) == pytest.approx(nearest[0][:, 0])
    at = vpr.x[nearest[1][:, 0]], vpr.y[nearest[1][:, 0]]
    hidden = vpr.evidence(query, Hidden(*at, 1.0))
    assert (hidden < vpr.evidence(query)).all() and (hidden <= nearest[0][:, 1] + 1e-6).all()
    monkeypatch.setattr("jzi.retrieve.vpr.EXACT_PHOTOS", 1)
    assert vpr.evidence(query, Hidden(*at, 1.0)) == pytest.approx(hidden, abs=1e-5)
    everything = vpr.evidence(query, Hidden(*at, 1e6))
    assert np.isfinite(everything).all() and (everything < hidden).all()


def test_evidence_of_the_zoom_is_what_a_short_search_finds(locator) -> None:
    zoom, query = locator.expert, torch.randn(3, locator.expert.encoder.width)
    best = zoom.posterior(query, LocateOptions("map", beams=4))
    assert zoom.evidence(query) == pytest.approx(np.log(best.probability.max(1)), abs=1e-6)
    x, y = zoom.area.cell_centers(best.row[:, 0], best.col[:, 0])
    hidden = zoom.evidence(query, Hidden(x, y, 1.0))
    second = np.sort(best.probability, 1)[:, -2] / (1 - best.probability.max(1))
    assert hidden == pytest.approx(np.log(second), abs=1e-6)
    assert np.isfinite(zoom.evidence(query, Hidden(x, y, 1e9))).all()
    assert isinstance(zoom, Evidence)


# The fit


def test_a_detector_is_calibrated_at_even_odds_and_its_auroc_is_that_of_the_photos() -> None:
    query = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    at = np.zeros(4000)
    fitted = fit_inside([Familiar()], query, Hidden(at, at))["familiar"]
    # Normal with the same deviation, 2 apart: the log-odds are 2 (evidence + 1)
    assert fitted.weights["familiar"] == pytest.approx(2.0, rel=0.1) and fitted.bias == pytest.approx(2.0, rel=0.1)
    assert fitted.auroc == pytest.approx(0.921, abs=0.01) and fitted.photos == 4000
    detector = InsideDetector({"familiar": Familiar()}, fitted)
    assert detector.log_odds(torch.tensor([[-1.0], [-100.0]])).tolist() == pytest.approx([0.0, -12.0], abs=0.1)


def test_more_photos_from_elsewhere_do_not_change_the_odds() -> None:
    query = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
    other, at = query - 2.0, np.zeros(2000)
    few = fit_inside([Familiar()], query, Hidden(at, at))["familiar"]
    many = fit_inside([Familiar()], query, Hidden(at, at), [other, other])["familiar"]
    assert many.bias == pytest.approx(few.bias, rel=0.05)


def test_evidence_that_says_the_contrary_gets_no_weight() -> None:
    class Contrary(Familiar):
        name = "contrary"

        def evidence(self, query: torch.Tensor, hidden: Hidden | None = None) -> np.ndarray:
            return -super().evidence(query, hidden)

    query, at = torch.randn(500, 1), np.zeros(500)
    fits = fit_inside([Familiar(), Contrary()], query, Hidden(at, at))
    assert sorted(fits) == ["contrary", "contrary+familiar", "familiar"]
    assert fits["contrary+familiar"].weights["contrary"] == pytest.approx(0.0, abs=1e-2)


def test_too_few_photos_fit_nothing() -> None:
    query, at = torch.randn(MIN_PHOTOS - 1, 1), np.zeros(MIN_PHOTOS - 1)
    assert fit_inside([Familiar()], query, Hidden(at, at)) == {}


def test_auroc_counts_ties_half() -> None:
    assert auroc(np.array([1.0, 2.0]), np.array([1.0, 0.0])) == pytest.approx(0.875)


@pytest.mark.parametrize(("elsewhere", "expected"), [(0.5, 0.75), (0.0, 1.0), (1.0, 0.0), (0.1, 27 / 28)])
def test_the_share_of_photos_from_elsewhere_is_a_prior(elsewhere, expected) -> None:
    assert probability_inside(np.log([3.0]), elsewhere) == pytest.approx([expected])


# Answers


class Doubtful:
    """A detector for which every second photo is from elsewhere."""

    def log_odds(self, query: torch.Tensor) -> np.ndarray:
        return np.where(np.arange(len(query)) % 2, -2.0, 2.0)

    def notes(self, query: torch.Tensor) -> list[tuple[str, ...]]:
        return [(UNLIKE,) if number % 2 else () for number in range(len(query))]


def test_the_confidence_is_that_of_the_photo_being_from_here_times_that_of_the_place(locator) -> None:
    query = torch.randn(2, locator.expert.encoder.width)
    plain = locator.locate_embeddings(query)
    locator.detector = Doubtful()
    here, elsewhere = locator.locate_embeddings(query, LocateOptions(elsewhere=0.5))
    assert here.inside == pytest.approx(1 / (1 + np.exp(-2))) and elsewhere.inside == pytest.approx(1 - here.inside)
    assert here.confidence == pytest.approx(plain[0].confidence * here.inside)
    assert (here.notes, elsewhere.notes) == ((), (UNLIKE,))
    assert here.best.probability == plain[0].best.probability and here.radius_68 == plain[0].radius_68
    assert here.to_dict()["inside"] == pytest.approx(here.inside, abs=1e-6) and plain[0].to_dict()["inside"] is None
    certain = locator.locate_embeddings(query, LocateOptions(elsewhere=0.0))
    assert [each.inside for each in certain] == [None, None]
    withheld = replace(elsewhere, abstain=elsewhere.best.probability)
    assert not withheld.sure, "a photo that is hardly from here is not answered"
    with pytest.raises(ConfigError, match="elsewhere"):
        LocateOptions(elsewhere=1.5)


def test_photos_of_one_place_are_from_here_together_or_not(locator, take_photo, tmp_path) -> None:
    photos = [take_photo(tmp_path / f"{seed}.jpg", seed=seed) for seed in range(2)]
    locator.detector = Doubtful()
    even = LocateOptions(elsewhere=0.5)
    assert locator.locate_together(photos, even).inside == pytest.approx(0.5)
    assert [each.inside for each in locator.locate_track(photos, [0.0, 1.0], 10.0, even)] == pytest.approx([0.5, 0.5])
    weight = np.ones(locator.expert.cell_mask.shape)
    assert locator.with_prior(weight).locate(photos[0], even).inside == pytest.approx(1 / (1 + np.exp(-2)))


def test_answers_to_several_photos_say_which_are_unlike_the_training_photos(locator, take_photo, tmp_path) -> None:
    photos = [take_photo(tmp_path / f"{seed}.jpg", seed=seed) for seed in range(4)]
    names = [each.photo for each in locator.locate(photos)]
    assert locator.locate_together(photos).notes == ()
    locator.detector = Doubtful()  # the second and the fourth
    assert locator.locate_together(photos).notes == (f"{names[1]}, {names[3]}: {UNLIKE}",)
    assert locator.locate_together(photos[:1]).notes == ()
    track = locator.locate_track(photos, [0.0, 1e4, 2e4, 3e4], 10.0)  # slow enough for any answers
    assert [each.notes for each in track] == [(), (UNLIKE,), (), (UNLIKE,)]


def test_answers_to_several_photos_say_what_each_of_them_shows(locator, take_photo, tmp_path) -> None:
    Image.new("RGB", (96, 48), "grey").save(tmp_path / "grey.png")
    photos = [take_photo(tmp_path / "street.jpg"), tmp_path / "grey.png"]
    names = [each.photo for each in locator.locate(photos)]
    detector, even = Doubtful(), LocateOptions(elsewhere=0.5)
    detector.notes = lambda query: [()] * len(query)  # type: ignore[method-assign]
    locator.detector = detector
    odds = np.sqrt(0.05)  # the mean of the log-odds 2 and -2 + log(0.05)
    together = locator.locate_together(photos, even)
    assert together.notes == (f"{names[1]}: {UNIFORM}",) and together.inside == pytest.approx(odds / (1 + odds))
    track = locator.locate_track(photos, [0.0, 1e4], 10.0, even)
    assert [each.notes for each in track] == [(), (UNIFORM,)]
    assert [each.inside for each in track] == pytest.approx([odds / (1 + odds)] * 2)


def test_answers_to_several_photos_say_that_a_recorded_position_is_elsewhere(locator, take_photo, tmp_path) -> None:
    photos = [take_photo(tmp_path / "far.jpg", 59.9, 10.7), take_photo(tmp_path / "none.jpg", seed=1)]
    (note,) = locator.locate_together(photos).notes
    assert "far.jpg: its EXIF" in note and "outside of this area" in note
    (note,) = locator.locate_together(photos[::-1]).notes
    assert "far.jpg: its EXIF" in note and "outside of this area" in note
    first, second = locator.locate_track(photos, [0.0, 1e4], 10.0)
    assert "outside of this area" in first.notes[0] and second.notes == ()


def test_a_model_folder_keeps_the_detector(locator, tmp_path, take_photo) -> None:
    update_config(tmp_path / "model", inside={"zoom": FITTED})
    import jzi

    again = jzi.load(tmp_path / "model")
    location = again.locate(take_photo(tmp_path / "photo.jpg"))
    assert 0 < location.inside < 1 and read_config(tmp_path / "model").inside == {"zoom": FITTED}
    result = CliRunner().invoke(main, f"locate {tmp_path}/photo.jpg --model {tmp_path}/model".split())
    assert f"{100 * location.inside:.1f} % that it was taken in this area; if so, " in result.stdout
    second = percent(location.overall(location.candidates[1].probability))
    assert f"  ({second} within 50 m of that point)" in result.stdout
    assert location.overall(location.best.probability) == location.confidence
    result = CliRunner().invoke(main, f"locate {tmp_path}/photo.jpg --model {tmp_path}/model --elsewhere 0".split())
    assert result.exit_code == 0 and "taken in this area" not in result.stdout


def test_evidence_of_experts_that_a_model_does_not_have_is_refused(locator, tmp_path) -> None:
    update_config(tmp_path / "model", inside={"zoom": InsideConfig({"cells": 1.0}, 0.0, 0.9, 100)})
    with pytest.raises(ModelError, match="evidence of other experts"):
        read_config(tmp_path / "model")


def test_a_fusion_of_experts_that_a_model_does_not_have_is_refused(locator, tmp_path) -> None:
    fusion = FusionConfig({"zoom": {"zoom": 1.0}}, {}, 60, "", {}, {"zoom": (0.1, -2.0)})
    update_config(tmp_path / "model", fusion=fusion)
    assert read_config(tmp_path / "model").fusion == fusion
    update_config(tmp_path / "model", fusion=replace(fusion, sharpness={"cells+zoom": (0.1, -2.0)}))
    with pytest.raises(ModelError, match="fusion of other experts"):
        read_config(tmp_path / "model")


# Metadata and pictures that warn


def test_a_position_in_the_metadata_outside_of_the_area_is_noted(locator, tmp_path, take_photo) -> None:
    photo = take_photo(tmp_path / "far.jpg", 59.3, 18.07)
    (note,) = locator.locate(photo).notes
    assert note == "its EXIF has the position 59.300000, 18.070000, which is outside of this area"
    assert locator.locate(photo.read_bytes()).notes == (note,)
    assert locator.locate(take_photo(tmp_path / "none.jpg")).notes == ()


def test_a_position_in_the_metadata_far_from_the_answer_is_noted(locator, tmp_path, take_photo, monkeypatch) -> None:
    monkeypatch.setattr("jzi.locate.answer.location.credible_radius", lambda *_: [np.full(1, 20.0), np.full(1, 60.0)])
    answer = locator.locate(take_photo(tmp_path / "a.jpg"))
    near, far = (
        locator.locate(take_photo(tmp_path / f"{north}.jpg", answer.latitude + north / 111_195, answer.longitude))
        for north in (30, 100)
    )
    assert near.notes == () and "100 m from this answer" in far.notes[0]


def test_a_map_that_is_named_as_a_photo_is_noted(locator, tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 48, 96), dtype=np.uint8)
    profile = {"count": 3, "dtype": "uint8", "crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 1, 1)}
    path = tmp_path / "map.tif"
    with rasterio.open(path, "w", driver="GTiff", width=96, height=48, **profile) as raster:
        raster.write(pixels)
    image = Image.fromarray(pixels.transpose(1, 2, 0))
    image.save(tmp_path / "plain.tif")
    image.save(tmp_path / "beside.png")
    assert locator.locate(tmp_path / "beside.png").notes == locator.locate(tmp_path / "plain.tif").notes
    (tmp_path / "beside.pgw").write_text("1\n0\n0\n-1\n0\n0\n")
    for picture in (path, path.read_bytes(), tmp_path / "beside.png"):
        assert GEOREFERENCED in locator.locate(picture).notes


@pytest.mark.parametrize(("spread", "uniform"), [(0, True), (3, True), (40, False)])
def test_a_nearly_uniform_picture_is_noted(tmp_path, spread, uniform) -> None:
    pixels = 128 + np.random.default_rng(0).integers(-spread, spread + 1, (48, 96, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.png")
    assert PhotoReader((48, 96)).read_one(tmp_path / "a.png").notes == ((UNIFORM,) if uniform else ())


@pytest.mark.parametrize(("size", "along"), [((96, 48), 1), ((48, 96), 0), ((1600, 1200), 0)])
def test_a_picture_without_edges_is_noted(tmp_path, size, along) -> None:
    ramp = np.linspace(0, 255, size[0] if along else size[1])
    pixels = np.broadcast_to(ramp[None, :, None] if along else ramp[:, None, None], (*size[::-1], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "gradient.jpg", quality=80)
    reader = PhotoReader((48, 96))
    assert reader.read_one(tmp_path / "gradient.jpg").notes == (SMOOTH,)
    framed = pixels.copy()
    framed[:: max(1, size[1] // 8)] = 0
    Image.fromarray(framed).save(tmp_path / "lines.png")
    assert reader.read_one(tmp_path / "lines.png").notes == ()


def test_a_nearly_uniform_picture_is_hardly_from_the_area(locator, tmp_path) -> None:
    Image.new("RGB", (96, 48), "grey").save(tmp_path / "grey.png")
    assert locator.locate(tmp_path / "grey.png").inside is None
    locator.detector = Doubtful()
    odds = 0.05 * np.exp(2.0)
    location = locator.locate(tmp_path / "grey.png", LocateOptions(elsewhere=0.5))
    assert location.inside == pytest.approx(odds / (1 + odds)) and location.notes == (UNIFORM,)


def test_a_position_in_the_metadata_is_replaced_only_if_that_is_asked_for(locator, tmp_path, take_photo) -> None:
    for name in ("a", "b"):
        take_photo(tmp_path / "in" / f"{name}.jpg", 59.3, 18.07)
    take_photo(tmp_path / "in" / "without.jpg")
    line = f"locate {tmp_path}/in --model {tmp_path}/model --write-exif {tmp_path}/out"
    result = CliRunner().invoke(main, line.split())
    assert result.exit_code == 0 and [each.name for each in (tmp_path / "out").iterdir()] == ["without.jpg"]
    assert f"a.jpg, {tmp_path}/in/b.jpg have a position in the EXIF already: no copy was written" in result.stderr
    result = CliRunner().invoke(main, [*line.split(), "--overwrite-gps"])
    assert result.exit_code == 0 and len(list((tmp_path / "out").iterdir())) == 3
    assert abs(read_position(tmp_path / "out" / "a.jpg").latitude - 59.3) > 1
    result = CliRunner().invoke(main, f"locate {tmp_path}/in --overwrite-gps".split())
    assert result.exit_code == 2 and "--write-exif" in result.stderr


def test_what_belongs_to_the_old_fix_goes_with_it(tmp_path) -> None:
    exif = Image.Exif()
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps.update(
        {1: "N", 2: (59.0, 0.0, 0.0), 3: "E", 4: (18.0, 0.0, 0.0), 5: b"\0", 6: 33.0, 11: 1.5, 13: 4.0, 17: 90.0}
    )
    exif[ExifTags.Base.Make] = "Maker"
    path = tmp_path / "a.jpg"
    Image.new("RGB", (16, 16)).save(path, exif=exif)
    with pytest.raises(PhotoError, match="has a position in its EXIF"):
        write_position(path, tmp_path / "b.jpg", 48.0, 16.0)
    assert not Path(tmp_path / "b.jpg").exists()
    write_position(path, tmp_path / "b.jpg", 48.0, 16.0, overwrite=True)
    with Image.open(tmp_path / "b.jpg") as image:
        tags = image.getexif()
        kept = tags.get_ifd(ExifTags.IFD.GPSInfo)
    assert not {5, 6, 11, 13} & kept.keys() and kept[17] == 90.0 and tags[ExifTags.Base.Make] == "Maker"
