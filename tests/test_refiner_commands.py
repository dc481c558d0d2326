"""`train-refiner` and `evaluate --refine` on an area: off the cache, resumed, with metres before and after."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import ExifTags, Image
from safetensors.torch import load_file

from jzi.encode.photo.photo_view import COLUMNS
from jzi.errors import CacheError
from jzi.evaluate.stages import refined_photos
from jzi.refine.info import read_refiner_info
from jzi.refine.networks.files import update_refiner
from jzi.refine.stage import NO_HEADING, NO_WEIGHT
from jzi.store.cache.feature_cache import FeatureCache
from jzi.train.refine.rays import RayTask
from jzi.train.refine.refiner import RefinerTask
from jzi.workspace.setup.settings_file import load_settings
from jzi.workspace.stages.refiner_training import coarse_map_warnings

# from rasterio itself
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")

#: The tiles of the area have 50 m, and 8 x 8 tokens.
REFINE = (
    "--set refine.window_m=40 --set refine.side=4 --set refine.bins=8 --set refine.width=16 --set refine.blocks=1 "
    "--set refine.channels=[16,16,8,8]"
)
TRAIN = f"train-refiner {REFINE} --set refiner.epochs=2 --set refiner.batch_size=8"
RAYS = (
    "train-refiner --set refine.kind=rays --set refine.window_m=40 --set refiner.epochs=1 --set refiner.batch_size=8 "
    "--set refine.rays.width=8"
)


@pytest.fixture(scope="module")
def folder(prepare: Callable, trained_folder: Path) -> Path:
    """A model, a cache with tokens of tiles and photos, and a trained refiner. Do not modify."""
    folder = prepare(trained_folder, "refining", "encode-map --detail", "encode-queries --tokens", TRAIN)
    assert read_refiner_info(folder / "model" / "refiner").fusion is None  # too few photos to fit it on
    update_refiner(folder / "model" / "refiner", fusion=(1.0, 1.0, 0.0), fusion_unknown=(1.0, 1.0, 0.0))
    return folder


@pytest.fixture
def town(folder: Path, jzi: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A copy of that folder as the working directory."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return jzi


def test_a_trained_refiner_lies_in_the_models_folder_and_fits_its_cache(town) -> None:
    info = read_refiner_info(Path("model/refiner"))
    assert info.window_m == 40.0
    assert info.encoder == FeatureCache.open("features.zarr").encoder.fingerprint
    assert json.loads(town(f"{TRAIN} --json").stdout)["epochs"] == 0
    located = json.loads(town("locate photos/day0/000.jpg --refine --json").stdout)
    assert located["fix"]["source"] == "refine"


def test_a_refiner_without_a_weight_leaves_answers_as_they_are_and_says_so(town) -> None:
    update_refiner(Path("model/refiner"), fusion=(1.0, 0.0, 0.0), fusion_unknown=(1.0, 0.0, 0.0))
    plain, refined = (json.loads(town(f"locate photos/day0/000.jpg --json {each}").stdout) for each in ("", "--refine"))
    assert refined.pop("notes") == [*plain.pop("notes"), NO_WEIGHT]
    assert refined == plain
    assert "no photo was refined" in town("evaluate --refine").stdout


def test_photos_whose_headings_a_cache_does_not_record_are_not_evaluated(town, monkeypatch) -> None:
    cache = FeatureCache.open("features.zarr")
    frame = refined_photos.usable_photos(cache, tokens=False).drop(columns=list(COLUMNS))
    monkeypatch.setattr(refined_photos, "usable_photos", lambda *_, **__: frame)
    with pytest.raises(CacheError, match=r"headings and fields of view.*encode-queries --tokens"):
        refined_photos.RefinedPhotos.load(cache, pixels=lambda *_: None)


@pytest.mark.parametrize(("options", "task"), [(TRAIN, RefinerTask), (f"{RAYS} --also .", RayTask)])
def test_the_first_run_of_a_new_folder_can_be_interrupted_and_goes_on(
    town, monkeypatch: pytest.MonkeyPatch, options: str, task: type[RefinerTask]
) -> None:
    loss, calls = task.loss, list[None]()

    def interrupted(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*arguments)

    def steps_of(folder: str, code: int = 0) -> int:
        before = len(calls)
        town(f"{options} -o {folder}", code)
        return len(calls) - before

    monkeypatch.setattr(task, "loss", interrupted)
    assert steps_of("new", 130) == 4
    assert Path("new/train/state.pt").exists()
    assert steps_of("new") == steps_of("whole") - 4
    assert load_file("new/refiner.safetensors").keys() == load_file("whole/refiner.safetensors").keys()
    for name, value in load_file("whole/refiner.safetensors").items():
        torch.testing.assert_close(load_file("new/refiner.safetensors")[name], value, rtol=0, atol=0)


def test_without_a_gain_for_unknown_headings_photos_with_a_heading_alone_are_refined(town) -> None:
    update_refiner(Path("model/refiner"), fusion_unknown=(1.0, 0.0, 0.0))
    Image.open("photos/day0/000.jpg").save("plain.jpg")
    line = "locate plain.jpg --refine --json"
    known, unknown = (json.loads(town(f"{line} {each}").stdout) for each in ("--heading 30", ""))
    assert known["fix"] and not unknown["fix"]
    assert NO_HEADING in unknown["notes"] and NO_HEADING not in known["notes"]
    given = json.loads(town("evaluate --refine --json").stdout)
    withheld = json.loads(town("evaluate --refine --json --no-headings").stdout)
    assert withheld["after"] == withheld["before"] == given["before"] != given["after"]


def test_photos_without_a_focal_length_are_noted(town) -> None:
    def notes(name: str, options: str = "") -> str:
        return " ".join(json.loads(town(f"locate {name} --refine {options} --json").stdout)["notes"])

    photo, exif = Image.open("photos/day0/000.jpg"), Image.Exif()
    photo.save("plain.jpg")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 28
    photo.save("lens.jpg", exif=exif)
    assert "assumed that it shows 70° of the horizon" in notes("plain.jpg")
    assert "focal length" not in notes("lens.jpg") + notes("plain.jpg", "--panorama")


@pytest.mark.slow
def test_training_and_evaluation_open_no_image(town, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(rasterio, "open", refuse)
    shutil.rmtree("photos")
    Path("map.tif").unlink()
    town(f"{TRAIN} -o other")
    assert read_refiner_info(Path("other")).config == read_refiner_info(Path("model/refiner")).config
    town("evaluate --refine --json")


def test_evaluation_reports_metres_before_and_after(town) -> None:
    values = json.loads(town("evaluate --refine --json").stdout)
    assert values["photos"] > 0
    for part in ("before", "unranked", "after"):
        assert set(values[part]) >= {"recall@1m", "recall@10m", "mean_error_m", "median_error_m"}
    assert 0 <= values["coverage_68"]["value"] <= values["coverage_95"]["value"] <= 1
    assert np.isfinite(values["nll_after"])
    assert values["heading_error_deg"]["value"] < 30  # it was given
    gallery = "--gallery-html failures.html --gallery-photos 3"
    text = town(f"evaluate --refine model/refiner --no-headings --refine-top 2 {gallery}").stdout
    assert "within    1 m" in text and "not given to the refiner" in text and "failures.html" in text
    page = Path("failures.html").read_text()
    assert page.count("<article") == 3 and "Answer to metres" in page and "Zoom steps</h3>" in page
    assert page.count("<polygon") == 2 * page.count("<b>Answer to metres</b>") > 0


@pytest.mark.slow
def test_controls_replace_the_photos(town) -> None:
    plain = json.loads(town("evaluate --refine --json").stdout)
    for control in ("black", "shuffled"):
        other = json.loads(town(f"evaluate --refine --json --control {control}").stdout)
        assert other["control"] == control
        assert other["before"] == plain["before"]
        assert other["unranked"] != plain["unranked"]


def test_photos_beside_training_photos_are_dropped_and_counted(town) -> None:
    cache = FeatureCache.open("features.zarr", "r+")
    frame = cache.queries.frame()
    train, test = frame[frame["split"] == "train"].iloc[0], frame[frame["split"] == "test"].index[0]
    before = json.loads(town("evaluate --refine --json").stdout)
    frame.loc[test, ["latitude", "longitude"]] = train["latitude"] + 1e-5, train["longitude"]  # 1 m north
    cache.queries.list_photos(frame)
    after = json.loads(town("evaluate --refine --json").stdout)
    assert (after["photos"], after["duplicates"]) == (before["photos"] - 1, before["duplicates"] + 1)
    assert after["split"] == "test"


def test_photos_that_the_refiner_was_trained_on_are_not_evaluated(town) -> None:
    cache = FeatureCache.open("features.zarr", "r+")
    frame = cache.queries.frame()
    cache.queries.list_photos(frame.assign(split=frame["split"].replace({"train": "test", "test": "train"})))
    shutil.copytree("model/refiner", "refiner")
    town("train-decoder --set decoder.layers=1 --set decoder.heads=2 --set train.epochs=1 --set model.path=other")
    refused = town("evaluate --refine refiner --set model.path=other", 2).stderr
    assert "refiner was trained on" in refused and "photos of the test split" in refused


def test_without_a_model_the_refiner_is_trained_and_says_what_is_missing(town) -> None:
    shutil.rmtree("model")
    result = town(f"{TRAIN} -o refiner --json")
    assert "run this again after `jzi train-decoder`" in result.stderr
    assert read_refiner_info(Path("refiner")).fusion is None


def test_the_refiner_is_trained_where_no_validation_photo_is_left_to_fit_the_fusion(town) -> None:
    cache = FeatureCache.open("features.zarr", "r+")
    frame = cache.queries.frame()
    cache.queries.list_photos(frame.assign(split=frame["split"].replace("val", "train")))
    result = town(f"{TRAIN} -o refiner")
    assert "the fusion with the model was not fitted" in result.stderr
    assert "there is no photo with split 'val'" in result.stderr
    assert read_refiner_info(Path("refiner")).fusion is None


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("evaluate --control black", "--control goes with --refine"),
        ("evaluate --refine --control black --gallery-html a.html", "which --control replaces"),
        ("evaluate --refine --gallery occupied --radius 20", "--gallery, --radius are not for --refine"),
        ("evaluate --refine photos", "there is no refiner in photos: run `jzi train-refiner`, or give its folder"),
        (f"{TRAIN} --set refine.kind=unifygeo -o other", "refine.kind"),
        (f"{TRAIN} --set refine.side=8", "holds a model that was trained with other settings"),
        (f"{TRAIN} --set refiner.patience=0 -o other", "refiner.patience"),
        ("train-refiner --set train.epochs=2", "train.epochs has no effect"),
    ],
)
def test_wrong_use_is_one_sentence(town, line: str, sentence: str) -> None:
    assert sentence in town(line, 2).stderr


def test_a_refiner_beside_the_model_is_suggested(town) -> None:
    town(f"{TRAIN} -o refiner")
    sentence = town("evaluate --refine photos", 2).stderr
    assert "there is no refiner in photos: give its folder, such as refiner" in sentence


def test_a_cache_without_tokens_is_refused(town) -> None:
    shutil.rmtree("features.zarr")
    town("encode-map")
    town("encode-queries")
    assert "encode-queries --tokens" in town(f"{TRAIN} -o other", 2).stderr
    assert not Path("other").exists()


def test_a_map_with_larger_pixels_than_a_refiner_sees_is_warned_about(town) -> None:
    rays = "refine.kind=rays", "refine.window_m=40"
    assert not coarse_map_warnings(load_settings(Path("jzi.toml"), rays))
    (warning,) = coarse_map_warnings(load_settings(Path("jzi.toml"), (*rays, "refine.rays.token_m=0.5")))
    assert warning.startswith("the imagery is coarse: a tile of 50 m has 50 pixels, which are enlarged to 400")
    assert not coarse_map_warnings(load_settings(Path("jzi.toml")))  # it reads tokens


@pytest.mark.slow
def test_a_refiner_with_trunks_is_trained_from_images_and_locates_off_the_cache(town) -> None:
    trunk = "{widths=[8,12],depths=[1,1],kernel=3,features=6,layer_scale=1.0}"
    options = f"{REFINE} --set refine.source=trained --set refine.trunk={trunk} --set refine.photo_trunk={trunk}"
    line = f"train-refiner {options} --set refiner.epochs=1 --set refiner.batch_size=8 -o trained"
    assert "encode-map --detail" in town(line).stderr  # the fusion needs the cache
    assert "--replace" in town("encode-map --detail --refiner trained", 2).stderr
    town("encode-map --detail --refiner trained --replace")
    result = town(f"{line} --json")
    assert json.loads(result.stdout)["epochs"] == 0
    values = json.loads(town("evaluate --refine trained --json").stdout)
    assert values["photos"] > 0
