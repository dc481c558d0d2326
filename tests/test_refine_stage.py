"""Refining candidates off a cache: the same fix without any image but the photo; what does not fit is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

import jzi
from jzi.encode.photo.photo_reader import PhotoReader
from jzi.errors import ConfigError, ModelError
from jzi.locate.answer.location import Camera, LocateOptions
from jzi.refine.config import CachedRefinerConfig, TrunkConfig, UnifyGeoConfig
from jzi.refine.info import RefinerInfo
from jzi.refine.networks.cached import CachedRefiner
from jzi.refine.networks.files import save_refiner
from jzi.refine.networks.model import UnifyGeo
from jzi.refine.windows.answer import refine_candidates
from jzi.refine.windows.tokens import tokens_fingerprint
from jzi.store.cache.feature_cache import FeatureCache

# from rasterio itself
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")

#: The tiles of the area have 50 m; windows of 40 m have 4 x 4 tokens.
CONFIG = CachedRefinerConfig(
    features=32, photo_features=32, rows=4, side=4, width=16, blocks=1, channels=(16, 16, 8, 8), bins=8
)


def save(folder: Path, cache: FeatureCache, config: CachedRefinerConfig = CONFIG, **entries) -> Path:
    torch.manual_seed(0)
    refiner = CachedRefiner(config)
    for parameter in refiner.parameters():  # far from the start, so that what is read makes a difference
        parameter.data = parameter.data * 3
    values = {"encoder": cache.encoder.fingerprint, "detail": tokens_fingerprint(cache)} | entries
    save_refiner(folder, refiner, RefinerInfo(kind="cached", config=config, window_m=40.0, **values))
    return folder


@pytest.fixture(scope="module")
def folder(prepare: Callable, trained_folder: Path) -> Path:
    """A model and a cache with tokens of tiles and photos, and a refiner. Do not modify."""
    lines = "encode-map --detail --set map.detail_px=56", "encode-queries --tokens"
    folder = prepare(trained_folder, "refined", *lines)
    save(folder / "model" / "refiner", FeatureCache.open(folder / "features.zarr"))
    return folder


@pytest.fixture
def town(folder: Path, jzi: Callable, tmp_path: Path) -> Callable:
    """A copy of that folder as the working directory."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return jzi


def answer(run: Callable, line: str = "locate photos/day0/000.jpg --refine --json") -> dict:
    return json.loads(run(line).stdout)


# The answer


def test_a_refined_answer_has_a_fix_near_its_candidate(town) -> None:
    plain = answer(town, "locate photos/day0/000.jpg --json")
    refined = answer(town)
    assert plain["fix"] is None and plain["estimate"] == "mean"
    fix = refined["fix"]
    assert (refined["estimate"], fix["source"]) == ("refine", "refine")
    assert (refined["latitude"], refined["longitude"]) == (fix["latitude"], fix["longitude"])
    assert 0 < fix["probability"] <= 1 and fix["radius_68_m"] <= fix["radius_95_m"]
    assert len(refined["candidates"]) <= len(plain["candidates"])
    sources = [each["source"] for each in refined["candidates"]]
    assert sources == sorted(sources, key=lambda source: source != "refine")


def test_the_point_is_that_of_the_best_disc_unless_the_most_probable_place_is_asked_for(town, monkeypatch) -> None:
    seen = []

    def spy(output, proposals, calibration, options):
        seen.append(options.estimate)
        return refine_candidates(output, proposals, calibration, options)

    monkeypatch.setattr("jzi.refine.stage.refine_candidates", spy)
    locator = jzi.load("model", cache="features.zarr", refine=True)
    for estimate in ("mean", "radius", "map"):
        locator.locate("photos/day0/000.jpg", LocateOptions(estimate=estimate))
    assert seen == ["radius", "radius", "map"]


def test_no_image_but_the_photo_is_opened(town, monkeypatch) -> None:
    expected = answer(town)
    opened, open_image = [], Image.open

    def only_the_photo(file, *args, **options):
        assert os.path.samestat(os.fstat(file.fileno()), Path("photos/day0/000.jpg").stat())
        opened.append(file)
        return open_image(file, *args, **options)

    def refuse(*_, **__):
        raise AssertionError("an image of the map was opened")

    monkeypatch.setattr(Image, "open", only_the_photo)
    monkeypatch.setattr(rasterio, "open", refuse)
    Path("map.tif").unlink()
    assert answer(town, "locate photos/day0/000.jpg --refine --cache features.zarr --json") == expected
    assert opened


def test_python_and_the_command_agree(town) -> None:
    locator = jzi.load("model", cache="features.zarr", refine=True)
    location = locator.locate("photos/day0/000.jpg")
    assert location.fix is not None
    expected = answer(town)["fix"]
    assert location.fix.latitude == pytest.approx(expected["latitude"], abs=1e-7)
    assert abs((location.fix.heading_deg - expected["heading_deg"] + 180) % 360 - 180) < 0.01
    named = jzi.load("model", cache="features.zarr", refine="model/refiner").locate("photos/day0/000.jpg")
    assert named.fix == location.fix


def test_tokens_of_the_embeddings_forward_pass_are_those_of_the_cache(town) -> None:
    locator = jzi.load("model", cache="features.zarr", refine=True)
    cache = FeatureCache.open("features.zarr")
    frame = cache.queries.frame()
    row = frame.index[frame["path"] == "day0/000.jpg"]
    read = PhotoReader(locator.encoder.photo_shape, locator.encoder.resampling).read_one("photos/day0/000.jpg")
    pixels = np.stack([read.pixels])
    embedding, tokens = locator.embed(pixels)
    projection = cache.queries.tokens.projection
    difference = projection.quantise(tokens.numpy()).astype(int) - cache.queries.tokens.read(row)
    assert np.abs(difference).max() <= 1
    torch.testing.assert_close(embedding, locator.encoder.encode_photos(pixels))


def test_embeddings_with_photos_are_refined_and_without_are_not(town) -> None:
    locator = jzi.load("model", cache="features.zarr", refine=True)
    whole = locator.locate("photos/day0/000.jpg")
    _, query = locator.encode(["photos/day0/000.jpg"])
    (with_photo,) = locator.locate_embeddings(query, photos=["photos/day0/000.jpg"])
    (without,) = locator.locate_embeddings(query)
    assert without.fix is None
    assert with_photo.fix is not None
    assert with_photo.fix.latitude == pytest.approx(whole.fix.latitude, abs=1e-7)


@pytest.mark.parametrize("top", [1, 3])
def test_only_as_many_candidates_are_refined(town, top: int) -> None:
    found = answer(town, f"locate photos/day0/000.jpg --refine --refine-top {top} --json")["candidates"]
    assert sum(each["source"] == "refine" for each in found) <= top and len(found) <= 5


def test_what_is_refined_does_not_depend_on_how_many_candidates_are_listed(town) -> None:
    one, all_ = (answer(town, f"locate photos/day0/000.jpg --refine --top {top} --json") for top in (1, 5))
    assert one["fix"] == all_["fix"] and one["candidates"] == all_["candidates"][:1]
    given = []

    class Next:
        name = "next"

        def __call__(self, query, posterior, candidates):
            given.append(len(candidates))
            return candidates

    locator = jzi.load("model", cache="features.zarr", refine=True).with_stage(Next())
    locator.locate("photos/day0/000.jpg", LocateOptions(top=2))
    assert given == [2]  # a stage that does not ask for more is given those that are listed


def test_a_known_heading_excludes_others(town) -> None:
    """The prior keeps three standard deviations."""
    for heading in (90, 270):
        fix = answer(town, f"locate photos/day0/000.jpg --refine --heading {heading} --heading-sd 5 --json")["fix"]
        assert abs((fix["heading_deg"] - heading + 180) % 360 - 180) < 23
        assert fix["heading_sd_deg"] < 20
    locator = jzi.load("model", cache="features.zarr", refine=True)
    options = LocateOptions(camera=Camera(heading_deg=270, heading_sd_deg=5))
    location = locator.locate("photos/day0/000.jpg", options)
    assert abs((location.fix.heading_deg - fix["heading_deg"] + 180) % 360 - 180) < 0.01


def test_a_panorama_is_seen_all_round(town) -> None:
    plain = answer(town)["fix"]
    panorama = answer(town, "locate photos/day0/000.jpg --refine --panorama --json")["fix"]
    assert plain["latitude"] != panorama["latitude"] or plain["heading_deg"] != panorama["heading_deg"]
    assert answer(town, "locate photos/day0/000.jpg --refine --no-panorama --json")["fix"] == plain


def test_the_service_refines_too(town) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from jzi.serve.app import make_app

    locator = jzi.load("model", cache="features.zarr", refine=True)
    with TestClient(make_app(locator), base_url="http://localhost") as client:
        photo = {"photo": Path("photos/day0/000.jpg").read_bytes()}
        reply = client.post("/locate", files=photo)
        turned = client.post("/locate", files=photo, params={"heading": 270, "heading_sd": 5})
        refused = client.post("/locate", files=photo, params={"heading": 999})
    assert (reply.status_code, turned.status_code, refused.status_code) == (200, 200, 422), reply.text
    assert abs(turned.json()["fix"]["heading_deg"] - 270) < 23
    plain = jzi.load("model")
    with TestClient(make_app(plain), base_url="http://localhost") as client:
        assert "for a service that refines" in client.post("/locate", files=photo, params={"panorama": 1}).text
    assert reply.json()["fix"]["latitude"] == pytest.approx(answer(town)["fix"]["latitude"], abs=1e-9)


# Networks of their own


def test_a_refiner_with_networks_of_its_own_reads_the_tokens_that_they_made(town, tmp_path) -> None:
    trunk = TrunkConfig(widths=(4, 8), depths=(1, 1), kernel=3, features=6)
    config = replace(CONFIG, features=6, photo_features=6, rows=6, source="trained", trunk=trunk, photo_trunk=trunk)
    cache = FeatureCache.open("features.zarr")
    save(tmp_path / "own", cache, config, detail="")
    line = "locate photos/day0/000.jpg --refine own --json"
    assert "tokens of another network" in town(line, 2).stderr
    report = json.loads(town("encode-map --detail --refiner own --set cache.path=own.zarr --json").stdout)
    assert report["detail"]["tokens"] == 5 and report["detail"]["width"] == 6
    assert FeatureCache.open("own.zarr").detail.info.producer == "refiner"
    assert answer(town, f"{line} --cache own.zarr")["fix"]["probability"] > 0
    assert "no network of its own" in town("encode-map --detail --refiner model", 2).stderr


def test_a_refiner_of_images_renders_the_map(town, tmp_path) -> None:
    config = UnifyGeoConfig(
        ground_height=64, ground_width=128, photo_width=96, aerial=64, widths=(8, 8, 16, 16), depths=(1, 1, 1),
        bins=8, aligned=False, layer_scale=1.0,
    )  # fmt: skip
    torch.manual_seed(0)
    save_refiner(tmp_path / "images", UnifyGeo(config), RefinerInfo(kind="unifygeo", config=config, window_m=40.0))
    located = answer(town, "locate photos/day0/000.jpg --refine images --json")
    assert located["fix"]["probability"] > 0 and located["fix"]["heading_deg"] is not None
    assert not any("coarse" in note for note in located["notes"])  # a pixel of the map is 1 m, one of the window 0.6 m
    narrow = RefinerInfo(kind="unifygeo", config=config, window_m=20.0)
    save_refiner(tmp_path / "narrow", UnifyGeo(config), narrow)
    notes = answer(town, "locate photos/day0/000.jpg --refine narrow --json")["notes"]
    assert any("a tile of 50 m has 50 pixels, which are enlarged to 160" in note for note in notes)
    figures = json.loads(town("evaluate --refine images --json").stdout)
    assert figures["photos"] > 0 and figures["not_refined"] == 0
    Path("jzi.toml").unlink()
    assert "--imagery" in town("locate photos/day0/000.jpg --model model --refine images", 2).stderr


# What does not fit


def test_a_foreign_cache_or_refiner_is_refused_in_one_sentence(town, tmp_path) -> None:
    cache = FeatureCache.open("features.zarr")
    line = "locate photos/day0/000.jpg --refine"
    save(tmp_path / "other-tokens", cache, detail="f" * 64)
    save(tmp_path / "other-encoder", cache, encoder="e" * 64)
    assert "was trained on other tokens" in town(f"{line} other-tokens", 2).stderr
    assert "another encoder than the model's" in town(f"{line} other-encoder", 2).stderr
    assert "there is no refiner in photos" in town(f"{line} photos", 2).stderr
    assert "there is no feature cache" in town(f"{line} --cache missing.zarr", 2).stderr
    (tmp_path / "model" / "refiner" / "refiner.json").write_text("{}")
    assert "refiner.json" in town(line, 2).stderr


def test_a_cache_of_another_area_is_refused(town, tmp_path) -> None:
    town("init other --map map.tif --queries photos --encoder encoder --image-size 56 --size 400")
    town("encode-map --detail --config other/jzi.toml")
    assert "another pyramid" in town("locate photos/day0/000.jpg --refine --cache other/features.zarr", 2).stderr


def test_a_cache_without_tokens_is_refused(town, tmp_path) -> None:
    shutil.rmtree("features.zarr")
    town("encode-map")
    town("encode-queries")
    error = town("locate photos/day0/000.jpg --refine", 2).stderr
    assert "was trained on other tokens" in error or "encode-map --detail" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--refine --together", "--together and --track"),
        ("--heading 90", "go with --refine"),
        ("--panorama", "go with --refine"),
        ("--refine-top 3", "goes with --refine"),
    ],
)
def test_options_that_do_not_fit_are_refused(town, options: str, message: str) -> None:
    assert message in town(f"locate photos/day0/000.jpg {options}", 2).stderr


@pytest.mark.parametrize("camera", [{"heading_deg": 361.0}, {"heading_sd_deg": 0.0}, {"heading_deg": float("nan")}])
def test_numbers_out_of_range_are_refused(camera: dict) -> None:
    with pytest.raises(ConfigError, match="heading"):
        Camera(**camera)


def test_a_photo_in_place_of_the_folder_is_noticed(town) -> None:
    assert "after the photos" in town("locate --refine photos/day0/000.jpg", 2).stderr
    with pytest.raises(ConfigError, match="reads tokens of the map from a cache"):
        jzi.load("model", refine=True)
    with pytest.raises(ModelError, match="no refiner"):
        jzi.load("model", cache="features.zarr", refine="photos")
