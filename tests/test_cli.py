"""The commands, as a user runs them: an area from nothing to a located photo, and what can be given wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import rasterio.shutil
from click.testing import CliRunner, Result
from PIL import Image

from jzi.cli import main
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.photos.exif import read_position

TINY = "--set decoder.layers=1 --set decoder.heads=2"
FAST = f"--set train.epochs=2 {TINY}"


@pytest.fixture
def trained(area, trained_folder, tmp_path) -> Callable[[str], Result]:
    """A working directory with a full cache and a trained model."""
    shutil.copytree(trained_folder, tmp_path, dirs_exist_ok=True)
    return area


def test_an_area_from_nothing_to_a_located_photo(area, tmp_path) -> None:
    first = json.loads(area("encode-map --json").stdout)
    again = json.loads(area("encode-map --json").stdout)
    assert (first["encoded"], first["reused"], again["encoded"], again["reused"]) == (273, 0, 0, 273)
    first = json.loads(area("encode-queries --json").stdout)
    again = json.loads(area("encode-queries --json").stdout)
    assert (first["encoded"], again["encoded"], again["reused"], sum(again["splits"].values())) == (30, 0, 30, 30)
    trained = json.loads(area(f"train-decoder {FAST} --json").stdout)
    assert trained["epochs"] == 2 and trained["train"] + trained["val"] < 30
    found = json.loads(area("evaluate --json --radii 50,400").stdout)
    assert set(found) >= {"recall@50m", "recall@400m", "median_error_m", "sequence_accuracy", "step_accuracy"}
    answer = json.loads(area("locate photos/day0/000.jpg --json").stdout)
    pyramid = FeatureCache.open(tmp_path / "features.zarr").pyramid
    assert pyramid.paths(answer["latitude"], answer["longitude"])[0].tolist() == answer["path"]
    assert answer["photo"] == "photos/day0/000.jpg" and 0 < answer["confidence"] <= 1
    assert answer["cell_m"] == round(pyramid.cell_size, 2)
    # and for people
    assert "recall within   40 m" in area("evaluate").stdout
    assert "confidence" in area("locate photos/day0/000.jpg").stdout


def test_the_precision_of_search_is_that_of_jzi_toml(trained, tmp_path) -> None:
    from jzi.decode.expert import ZoomExpert
    from jzi.workspace.models.evaluated import open_experts
    from jzi.workspace.models.locators import open_locator
    from jzi.workspace.setup.settings_file import load_settings

    exact = json.loads(trained("locate photos/day0/000.jpg --json --experts zoom --estimate map").stdout)
    (tmp_path / "jzi.toml").open("a").write('\n[model]\nprecision = "bfloat16"\n')
    rounded = json.loads(trained("locate photos/day0/000.jpg --json --experts zoom --estimate map").stdout)
    assert rounded["confidence"] == pytest.approx(exact["confidence"], rel=0.1)
    settings = load_settings(tmp_path / "jzi.toml", (), training=())
    options = {"cache": None, "retriever": None, "approximate": False, "experts": ("zoom",)}
    used = [open_locator(None, Path("jzi.toml"), **options).expert, open_experts(settings)[0].experts["zoom"]]
    assert [expert.model.precision for expert in used if isinstance(expert, ZoomExpert)] == ["bfloat16"] * 2
    assert "float32, bfloat16" in trained("settings model").stdout
    assert "model.precision" in trained("evaluate --set model.precision=int8", 2).stderr


FINETUNED = "--set encoder.name=finetuned/encoder --set cache.path=finetuned.zarr"


@pytest.mark.slow
def test_from_fine_tuning_to_a_decoder_that_goes_on_from_it(area, tmp_path) -> None:
    tune = f"finetune --blocks 1 --set finetune.epochs=2 {TINY}"
    output = json.loads(area(f"{tune} --json").stdout)
    assert output["epochs"] == 2 and output["train"] + output["val"] < 30 and output["samples_per_s"] > 0
    assert json.loads(area(f"{tune} --json").stdout)["epochs"] == 0
    assert "finetuned/encoder" in area(tune).stdout
    area(f"encode-map {FINETUNED}")
    encoded = json.loads(area(f"encode-queries {FINETUNED} --views 2 --json").stdout)
    assert encoded["encoded"] == 30
    area(f"evaluate {FINETUNED} --set model.path=finetuned")  # the decoder that was trained with the encoder
    assert "confidence" in area("locate photos/day0/000.jpg --model finetuned --cache finetuned.zarr").stdout
    fresh = json.loads(area(f"train-decoder {FINETUNED} {FAST} --json").stdout)
    begun = f"{FINETUNED} --set train.epochs=2 --set train.init=finetuned --set model.path=begun"
    begun = json.loads(area(f"train-decoder {begun} --json").stdout)
    assert fresh["epochs"] == begun["epochs"] == 2
    assert fresh["best"]["loss"] != begun["best"]["loss"]
    area("encode-map", 0)  # the first encoder's cache is another


@pytest.mark.slow
def test_several_areas_are_fine_tuned_on_together(area, tmp_path) -> None:
    other = tmp_path / "other"
    area(f"init {other} --map map.tif --queries photos --encoder encoder --image-size 56")
    output = json.loads(area(f"finetune --blocks 1 --also other --set finetune.epochs=1 {TINY} --json").stdout)
    alone = json.loads(area(f"finetune --blocks 1 -o alone --set finetune.epochs=1 {TINY} --json").stdout)
    assert output["train"] == 2 * alone["train"]
    area("init other --map map.tif --queries photos --encoder encoder --image-size 56 --levels 2 --force")
    assert "must have the same pyramid.grid" in area("finetune --also other -o third", 2).stderr


def test_a_model_is_used_alone_on_another_machine(trained, tmp_path, monkeypatch) -> None:
    before = json.loads(trained("locate photos/day0/000.jpg --json").stdout)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(tmp_path / "model", elsewhere / "model")
    shutil.copy(tmp_path / "photos" / "day0" / "000.jpg", elsewhere / "photo.jpg")
    for name in ("features.zarr", "encoder", "jzi.toml", "map.tif"):
        path = tmp_path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.chdir(elsewhere)
    after = json.loads(trained("locate photo.jpg --json").stdout)
    assert after | {"photo": ""} == before | {"photo": ""}


def test_one_unreadable_photo_among_twenty_costs_only_itself(trained, tmp_path) -> None:
    photos = sorted((tmp_path / "photos").rglob("*.jpg"))[:20]
    photos[7].write_bytes(photos[7].read_bytes()[:400])
    names = " ".join(str(photo.relative_to(tmp_path)) for photo in photos)
    result = trained(f"locate --json {names}", code=1)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["photo"] for answer in answers] == names.split()
    assert [index for index, answer in enumerate(answers) if "error" in answer] == [7]


def test_a_folder_stands_for_its_photos_and_several_places_are_named(trained) -> None:
    lines = trained("locate photos/day1 --beams 4 --top 3 --json").stdout.splitlines()
    assert len(lines) == 15
    candidates = json.loads(lines[0])["candidates"]
    assert len(candidates) == 3
    assert [c["probability"] for c in candidates] == sorted((c["probability"] for c in candidates), reverse=True)


def test_the_papers_protocol_is_one_cell(trained) -> None:
    answer = json.loads(trained("locate photos/day0/000.jpg --estimate greedy --json").stdout)
    assert len(answer["candidates"]) == 1 and answer["radius_m"] is None
    assert answer["confidence"] == pytest.approx(np.prod(answer["candidates"][0]["step_probabilities"]), abs=1e-6)


def test_an_answer_that_is_not_sure_is_withheld(trained) -> None:
    answer = json.loads(trained("locate photos/day0/000.jpg --abstain 1 --json").stdout)
    assert (answer["sure"], answer["latitude"]) == (False, None) and answer["confidence"] < 1
    assert "not sure" in trained("locate photos/day0/000.jpg --abstain 1").stdout
    assert "not sure" not in trained("locate photos/day0/000.jpg --abstain 0").stdout


def test_estimates_are_compared_and_confidence_is_calibrated(trained, tmp_path) -> None:
    found = json.loads(trained("evaluate --estimates --plot plot.png --abstain 0.5 --json").stdout)
    estimates = found["posterior"]["estimates"]
    assert set(estimates) == {"greedy", "map", "radius", "mean"}
    assert estimates["greedy"]["recall@40m"] == found["recall@40m"]
    assert set(estimates["mean"]) == {*(f"recall@{radius}m" for radius in (20, 40, 50, 100)), "median_error_m"}
    assert all(each["median_error_m"]["low"] <= each["median_error_m"]["value"] for each in estimates.values())
    assert 0 <= found["posterior"]["calibration_error"] <= 1 and 0 <= found["abstain"]["coverage"] <= 1
    assert Image.open(tmp_path / "plot.png").width > 800
    assert "before calibration" in trained("evaluate --estimates").stdout
    assert len(json.loads((tmp_path / "model" / "config.json").read_text())["temperature"]) == 3


@pytest.mark.slow
def test_answers_are_written_for_other_tools(trained, tmp_path) -> None:
    files = "--geojson a.geojson --heatmap a.tif --map a.html --csv a.csv --write-exif copies --overwrite-gps"
    answer = json.loads(trained(f"locate photos/day0/000.jpg --json {files} --picture a.png").stdout)
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    (place,) = [each for each in features if each["properties"]["kind"] == "answer"]
    assert place["geometry"]["coordinates"] == pytest.approx([answer["longitude"], answer["latitude"]], abs=1e-6)
    position = read_position(tmp_path / "copies" / "000.jpg")
    assert (position.latitude, position.longitude) == pytest.approx((answer["latitude"], answer["longitude"]), abs=1e-7)
    table = pd.read_csv(tmp_path / "a.csv")
    assert table["confidence"][0] == pytest.approx(answer["confidence"])
    assert Image.open(tmp_path / "a.png").width > 1000
    assert (tmp_path / "a.tif").exists() and "<script" in (tmp_path / "a.html").read_text()
    many = trained("locate photos/day1 --csv b.csv --heatmap b.tif --geojson b.geojson --map b.html").stdout
    assert many.count("within 50 m of this point") == 15 and len(pd.read_csv(tmp_path / "b.csv")) == 15
    with rasterio.open(tmp_path / "b.tif") as raster:
        assert raster.count == 15 and raster.descriptions[0] == "001.jpg"


def test_several_photos_are_located_together_or_along_a_drive(trained, tmp_path) -> None:
    names = " ".join(f"photos/day0/00{n}.jpg" for n in (0, 2, 4))
    (line,) = trained(f"locate --together {names} --json --picture a.png").stdout.splitlines()
    assert json.loads(line)["photo"] == names.replace(" ", " + ")
    drive = trained(f"locate --track --interval 3 {names} --json --geojson a.geojson").stdout.splitlines()
    assert [json.loads(each)["photo"] for each in drive] == names.split()
    for second, name in ((9, "000"), (2, "002"), (5, "004")):  # by the time in their EXIF
        with Image.open(tmp_path / "photos" / "day0" / f"{name}.jpg") as image:
            exif = image.getexif()
            exif.get_ifd(0x8769)[36867] = f"2026:05:01 10:00:0{second}"
            image.save(tmp_path / f"{name}.jpg", exif=exif)
    timed = trained("locate --track 000.jpg 002.jpg 004.jpg --json").stdout.splitlines()
    assert [json.loads(each)["photo"] for each in timed] == ["002.jpg", "004.jpg", "000.jpg"]


def test_info_tells_what_things_are_and_whether_they_belong_together(trained, tmp_path) -> None:
    described = [json.loads(line) for line in trained("info --json features.zarr model map.tif").stdout.splitlines()]
    assert [each.get("kind") for each in described] == ["cache", "model", "raster", None]
    assert described[0]["tiles"] == {"encoded": 273, "without_imagery": 0, "missing": 0}
    assert described[-1] == {"belong_together": True, "problems": []}
    partly = trained("info gone map.tif photos model --json", code=1)
    kinds = [json.loads(line).get("kind") for line in partly.stdout.splitlines()]
    assert kinds == ["raster", "model", None] and partly.stderr.count("jzi: ") == 2
    trained("encode-map --set encoder.image_size=42 --set cache.path=other.zarr")
    output = trained("info other.zarr model", code=1).stdout
    assert "different encoders" in output


def test_tile_takes_a_minus_sign_as_typed(jzi) -> None:
    answer = json.loads(jzi("tile 38.9085 -76.9409 --json").stdout)
    assert answer["path"] == [7, 6, 6, 5]
    assert len(answer["tiles"]) == 5
    assert json.loads(jzi("tile --preset just-zoom-in-dc 38.9085 -76.9409 --json").stdout) == answer


def test_tile_knows_the_area_of_the_working_directory(area) -> None:
    assert len(json.loads(area("tile 48.2 16.37 --json").stdout)["path"]) == 3


# Bad input: one sentence, exit code 2, nothing half-written and nothing lost


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("encode-map --set encoder.name=no/such-encoder", "not a local folder and cannot be downloaded"),
        ("encode-map --set encoder.image_size=42", "was filled by another encoder"),
        ("encode-map --set pyramid.size=700", "belongs to another pyramid (size"),
        ("encode-map --set decoder.depth=3", "'decoder.depth' that jzi does not know"),
        ("encode-map --set decoder.layers=many", "decoder.layers = 'many' has no sensible value"),
        ("encode-map --set layers", "--set takes section.name=value"),
        ("encode-map --set encoder.batch_size=0", "encoder.batch_size = 0 has no sensible value"),
        ("encode-map --set encoder.image_size=1e6", "encoder.image_size = 1000000.0 has no sensible value"),
        ("encode-map --set encoder.image_size=-1", "encoder.image_size = -1 has no sensible value"),
        ("encode-map --set pyramid.size=1e300", "pyramid.west, north and size are"),
        ("encode-map --set pyramid.west=nan", "pyramid.west, north and size are"),
        ('encode-map --set cache.path="a\\u0000b"', "the setting cache.path contains a null byte"),
        ('encode-map --set map.rasters=["a\\u0000b"]', "the setting map.rasters contains a null byte"),
        ("train-decoder --set train.seed=100000000000000000000", "train.seed = 100000000000000000000 has no sensible"),
        ("train-decoder --set train.seed=-1", "train.seed = -1 has no sensible value"),
        ("train-decoder --set train.learning_rate=inf", "train.learning_rate = inf has no sensible value"),
        ("train-decoder --set train.epochs=1e9", "train.epochs = 1000000000.0 has no sensible value"),
        ("train-decoder --set decoder.heads=0", "decoder.heads = 0 has no sensible value"),
        ("train-decoder --set decoder.layers=100000", "decoder.layers = 100000 has no sensible value"),
        ("train-decoder --set heads.hidden=10000000", "heads.hidden = 10000000 has no sensible value"),
        ("encode-queries --set queries.seed=100000000000000000000", "queries.seed = 100000000000000000000 has no"),
        ("init new --center nan 16 --size 500", "is no position on earth"),
        ("import-checkpoint map.tif -o new", "map.tif"),
        ("import-checkpoint photos -o new", "there is no checkpoint photos"),
        ("encode-map --set encoder.layout=thirds", "encoder.layout = 'thirds' has no sensible value"),
        ("encode-map --set map.crs=EPSG:99999", "map.crs 'EPSG:99999' is not a CRS"),
        ("evaluate --set decoder.layers=4", "--set decoder.layers has no effect on this command"),
        ("encode-map --set train.epochs=4", "--set train.epochs has no effect on this command"),
        ("train-decoder --set finetune.epochs=4", "--set finetune.epochs has no effect on this command"),
        ("train-decoder --set decoder.heads=7", "decoder.heads is 7"),
        ("encode-map --config elsewhere.toml", "there is no elsewhere.toml"),
        ("encode-map --set map.rasters=['gone.tif']", "there is no raster gone.tif"),
        ("encode-queries --set queries.table=gone.csv", "there is no gone.csv"),
        ("encode-queries --set queries.table=empty.csv", "has no column of latitudes"),
        ("encode-queries --set queries.table=swapped.csv", "latitude and longitude swapped"),
        ("encode-queries --set queries.table=far.csv", "none of the 1 photos"),
        ("train-decoder --set cache.path=gone.zarr", "there is no feature cache at gone.zarr"),
        ("train-decoder --set encoder.name=gone", "there is no encoder in gone, and the model folder needs a copy"),
        ("evaluate --set cache.path=gone.zarr", "there is no feature cache at gone.zarr"),
        ("evaluate --set model.path=gone", "there is no model in gone"),
        ("evaluate --gallery-photos 4", "--gallery-photos goes with --gallery-html: add it"),
        ("evaluate --radii near", "--radii takes metres"),
        ("evaluate --radii 20,-5", "--radii takes metres"),
        ("evaluate --radii 40,inf", "--radii takes metres"),
        ("evaluate --radii nan", "--radii takes metres"),
        ("evaluate --radius 1e6", "radius is 1e+06 m, more than the area's side of 801 m"),
        ("locate photos/day0 --radius 1e6", "radius is 1e+06 m, more than the area's side of 801 m"),
        ("train-decoder --set queries.split_by=block", "--set queries.split_by has no effect on this command"),
        ("encode-map --set queries.split_by=block", "--set queries.split_by has no effect on this command"),
        ("evaluate --set queries.table=far.csv", "--set queries.table has no effect on this command"),
        ("ablate decoder.layers=1,2 --set queries.split_by=block", "--set queries.split_by has no effect"),
        ("index --set queries.views=2", "--set queries.views has no effect on this command"),
        ("locate gone.jpg", "there is no photo gone.jpg"),
        ("locate jzi.toml", "not a photo in a format that is supported"),
        ("locate photos/day0/000.jpg --model gone", "there is no model in gone"),
        ("init", "jzi.toml exists"),
        ("init new", "no area is given"),
        ("init new --map photos/day0/000.jpg", "not georeferenced"),
        ("init new --map map.tif --center 60 20 --size 500", "does not overlap the area"),
        ("init new --center 200 20 --size 500", "200 20 is no position on earth: give latitude, longitude"),
        ("init new --center 116.4 39.9 --size 500", "on earth; 39.9 116.4 is one: give the latitude first"),
        ("tile 116.4 39.9", "116.4 39.9 is no position on earth; 39.9 116.4 is one: give the latitude first"),
        ("tile nan 39.9", "nan 39.9 is no position on earth: give latitude, longitude"),
        ("locate photos/day0/000.jpg --near 116.4 39.9 --within 9", "near 116.4 39.9 is no position on earth; 39.9"),
        ("init new --preset atlantis", "there is no preset 'atlantis'"),
        ("tile 0 0", "is outside the area"),
        ("tile 16.37 48.2", "is outside the area; 48.2 16.37 is inside: give the latitude first"),
        ("init new --map map.tif --center 16.37 48.2 --size 500", "is not on the map; 48.2 16.37 is inside"),
        ("locate photos/day0/000.jpg --csv gone/a.csv", "there is no folder gone"),
        ("locate photos/day0/000.jpg --csv -", "- is standard input for photos: name a file to write"),
        ("locate photos --picture a.png", "--picture draws one photo"),
        ("locate photos/day0/000.jpg --write-exif photos/day0", "is the folder of the photos"),
        ("locate photos/day0/000.jpg --map a.html --imagery gone.tif", "there is no raster gone.tif"),
        ("locate photos/day0/000.jpg --imagery ortho.tif", "--imagery is what --picture and --map draw"),
        ("locate --track photos/day0", "has no capture time"),
        ("locate --track --together photos/day0", "cannot be combined"),
        ("locate --top-speed 50 photos/day0", "add --track"),
        ("locate --interval 5 photos/day0", "add --track"),
        ("evaluate --abstain 0.5", "go with --estimates"),
        ("finetune --blocks 9", "the encoder has 2 blocks"),
        ("finetune --blocks some", "finetune.blocks is 'some'"),
        ("finetune --set finetune.accumulation=3", "which does not divide finetune.batch_size"),
        ("finetune --set queries.table=far.csv", "none of the 1 photos"),
        ("finetune --set map.rasters=['gone.tif']", "there is no raster gone.tif"),
        ("finetune --also gone", "there is no gone/jzi.toml"),
        ("finetune --blocks 1 -o model", "holds a model that was trained with other settings"),
        ("train-decoder --set train.init=gone --set model.path=new", "there is no model in"),
        ("encode-queries --set queries.views=256", "queries.views"),
        ("info gone", "there is nothing at gone"),
        ("info photos", "but no cache"),
        ("info far.csv", "far.csv is no cache, model, refiner, encoder or raster"),
        ("info jzi.toml", "jzi.toml is no cache, model, refiner, encoder or raster: `jzi settings --config jzi.toml`"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(trained, tmp_path, command: str, says: str) -> None:
    (tmp_path / "empty.csv").write_text("id,file\n1,photos/day0/000.jpg\n")
    (tmp_path / "swapped.csv").write_text("file,lat,lon\nphotos/day0/000.jpg,16.37,48.2\n")
    (tmp_path / "far.csv").write_text("file,lat,lon\nphotos/day0/000.jpg,-33.9,151.2\n")
    before = files_below(tmp_path)
    result = trained(command, code=2)
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2  # and perhaps a line of what was being done
    assert files_below(tmp_path) == before


def test_a_photo_without_position_is_listed_and_the_others_are_encoded(area, tmp_path) -> None:
    Image.new("RGB", (64, 32)).save(tmp_path / "photos" / "nowhere.jpg")
    result = CliRunner().invoke(main, ["encode-queries", "--json"])
    assert result.exit_code == 2
    assert "no GPS position in its EXIF: nowhere.jpg" in result.stderr
    assert json.loads(result.stdout)["encoded"] == 30
    assert json.loads(area("encode-queries --json --skip-unusable").stdout)["reused"] == 30


def test_an_unreadable_training_photo_is_told_each_time(area, tmp_path) -> None:
    photo = tmp_path / "photos" / "day0" / "004.jpg"
    photo.write_bytes(photo.read_bytes()[:-200])
    for encoded in (29, 0):
        result = area("encode-queries --json", code=1)
        assert json.loads(result.stdout)["encoded"] == encoded
        assert "photos cannot be read:" in result.stderr and "004.jpg" in result.stderr


def test_a_corrupt_chunk_stops_training_and_encoding_again_mends_it(trained, tmp_path) -> None:
    before = FeatureCache.open(tmp_path / "features.zarr").read_map()
    chunk = tmp_path / "features.zarr" / "map" / "1" / "embedding" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    shutil.rmtree(tmp_path / "model")
    assert "is damaged at map/1/embedding" in trained(f"train-decoder {FAST}", code=2).stderr
    assert not (tmp_path / "model").exists()
    report = json.loads(trained("encode-map --json").stdout)
    assert (report["encoded"], report["damaged"]) == (16, 16)
    after = FeatureCache.open(tmp_path / "features.zarr").read_map()
    assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(before.embedding, after.embedding, strict=True))


def test_a_model_whose_map_or_encoder_is_gone_is_one_sentence(trained, tmp_path) -> None:
    (tmp_path / "model" / "map.safetensors").rename(tmp_path / "aside")
    assert "model has no map" in trained("locate photos/day0/000.jpg", code=2).stderr
    (tmp_path / "aside").rename(tmp_path / "model" / "map.safetensors")
    shutil.rmtree(tmp_path / "model" / "encoder")
    assert "lacks its encoder" in trained("locate photos/day0/000.jpg", code=2).stderr


def test_a_model_is_not_used_with_a_cache_of_other_imagery(trained, tmp_path) -> None:
    trained("encode-map --set map.nodata=77 --set cache.path=other.zarr")
    output = trained("locate photos/day0/000.jpg --cache other.zarr", code=2).stderr
    assert "made from other imagery" in output and "that the model model was trained with" in output
    assert "different imagery" in trained("info model other.zarr", code=1).stdout


def test_others_may_read_the_model(trained, tmp_path) -> None:
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "model").rglob("*") if path.is_file()}
    plain = tmp_path / "plain"
    plain.touch()
    assert modes == {plain.stat().st_mode & 0o777}


def test_a_finished_training_keeps_no_state_to_resume_from(trained, tmp_path) -> None:
    assert (tmp_path / "model/train/state.pt").stat().st_size < (tmp_path / "model/decoder.safetensors").stat().st_size


def test_photos_where_the_map_is_empty_are_told_when_they_are_encoded(
    jzi, tmp_path, write_raster, pyramid, photo_folder, encoder_folder
) -> None:
    bounds = pyramid.bounds
    half = np.full((3, 100, 50), 90, np.uint8)
    write_raster(half, (bounds.west, bounds.south, bounds.west + 400, bounds.north), pyramid.crs, "half.tif")
    area = "--center 48.2 16.37 --size 800"
    jzi(f"init --map half.tif --queries photos --encoder {encoder_folder} --image-size 56 {area}")
    jzi("encode-map")
    result = jzi("encode-queries --json")
    off_map = json.loads(result.stdout)["off_map"]
    frame = FeatureCache.open(tmp_path / "features.zarr").queries.frame()
    x, _ = pyramid.project(frame["latitude"], frame["longitude"])
    assert 0 < (x > 20).sum() <= off_map <= (x > -20).sum()
    assert "photos will not be used" in result.stderr and "the map has no imagery there" in result.stderr


def test_the_splits_told_are_those_of_encoded_photos(area, tmp_path) -> None:
    photo = tmp_path / "photos" / "day0" / "004.jpg"
    photo.write_bytes(photo.read_bytes()[:-200])
    assert sum(json.loads(area("encode-queries --json", code=1).stdout)["splits"].values()) == 29


def test_changed_imagery_is_refused(trained, tmp_path) -> None:
    import rasterio

    with rasterio.open(tmp_path / "map.tif", "r+") as raster:
        data = raster.read()
        data[:, 5, 5] += 1
        raster.write(data)
    assert "was made from other imagery" in trained("encode-map", code=2).stderr


def test_a_table_of_photos_works_as_well_as_a_folder(jzi, tmp_path, town_raster, photo_folder, encoder_folder) -> None:
    lines = ["image_id,lat,lng,camera"]
    for index, photo in enumerate(sorted(photo_folder.rglob("*.jpg"))):
        shutil.copy(photo, tmp_path / f"{index}_undistorted.jpg")
        lines.append(f"{index},{48.2 + index * 1e-5},{16.37 - index * 1e-5},phone")
    (tmp_path / "photos.csv").write_text("\n".join([*lines, "99,48.2,16.37,gone", "98,,16.37,nowhere"]) + "\n")
    output = jzi(f"init --map {town_raster.name} --queries photos.csv --encoder {encoder_folder} --image-size 56")
    assert "30 photos in the area" in output.stdout and "2 photos cannot be used" in output.stderr
    assert json.loads(jzi("encode-queries --json").stdout)["rejected"] == 2
    assert set(FeatureCache.open(tmp_path / "features.zarr").queries.frame()["camera"]) == {"phone"}


def test_odd_names_and_links_of_photos_are_encoded_or_listed(area, tmp_path: Path) -> None:
    day = tmp_path / "photos" / "day0"
    os.rename(day / "000.jpg", os.fsencode(day) + b"/caf\xe9.jpg")  # noqa: PTH104
    (day / "002.jpg").rename(tmp_path / "else.jpg")
    (day / "002.jpg").symlink_to(tmp_path / "else.jpg")
    result = area("encode-queries --json")
    assert json.loads(result.stdout)["encoded"] == 29
    assert "outside of the folder of photos: use --allow-outside" in result.stderr
    assert json.loads(area("encode-queries --json --allow-outside").stdout)["encoded"] == 1
    assert "day0/caf\\xe9.jpg" in FeatureCache.open(tmp_path / "features.zarr").queries.frame()["id"].tolist()


def test_a_raster_elsewhere_needs_the_setting_of_the_map(area, tmp_path: Path) -> None:
    (tmp_path / "vrt").mkdir()
    rasterio.shutil.copy(tmp_path / "map.tif", tmp_path / "vrt" / "map.vrt", driver="VRT")
    result = area("encode-map --set map.rasters=['vrt/map.vrt']", code=2)
    assert "not a file in its folder: set map.remote = true" in result.stderr
    area("encode-map --set map.rasters=['vrt/map.vrt'] --set map.remote=true")
