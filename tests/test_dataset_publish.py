"""Published data sets are read by our own readers with equal positions and splits, resumed where they are the same, and
refused where they are not."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jzi.curate.folder import DatasetFolder, DatasetInfo
from jzi.datasets import vigor
from jzi.datasets.just_zoom_in import JustZoomIn
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import DatasetError, ImageryError, JziError, PairsError, PyramidError
from jzi.publish import card, huggingface, tiles
from jzi.publish import publication as publication_module
from jzi.publish.area import area_of
from jzi.publish.huggingface import publish_huggingface
from jzi.publish.just_zoom_in import publish_just_zoom_in
from jzi.publish.publication import Request, file_names
from jzi.publish.vigor import RESOLUTION, city_name, publish_vigor
from jzi.store.geometry.pyramid import Pyramid, geodesic_distance
from jzi.store.photos.area_file import read_area, write_area
from jzi.store.photos.photo_table import read_photo_table
from jzi.store.photos.vigor_files import SIDE, read_cities
from jzi.workspace.pairs import load_pairs, training_pairs

#: A part of the town, so that few aerial images are cut.
SMALL = Pyramid.around(48.2, 16.37, 120.0)


def dataset(folder: Path, photos: int = 12, spread: float = 50.0, **columns: Any) -> DatasetFolder:
    """Photos at random places within some metres of the middle of the town, 48.2 north, 16.37 east."""
    rng = np.random.default_rng(1)
    latitude, longitude = SMALL.unproject(*rng.uniform(-spread, spread, (2, photos)))
    rows = []
    for number in range(photos):
        path = f"images/{number:02}.jpg"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (6, 12, 3), dtype=np.uint8)
        Image.fromarray(np.repeat(np.repeat(pixels, 4, 0), 4, 1)).save(folder / path)
        rows.append((f"{number}", path, latitude[number], longitude[number]))
    frame = pd.DataFrame(rows, columns=["id", "path", "latitude", "longitude"])
    frame = frame.assign(split=["train", "train", "val", "test"] * (photos // 4), heading=30.0, hfov=80.0, width=48)
    frame = frame.assign(drive=[f"-d{n % 3}" for n in range(photos)], panorama=False, device="x", creator="=x")
    data = DatasetFolder(folder, frame.assign(**columns), DatasetInfo(split="by hand"))
    data.write()
    return DatasetFolder.read(folder)


@pytest.fixture
def data(tmp_path: Path) -> DatasetFolder:
    return dataset(tmp_path / "set")


@pytest.fixture
def town(town_folder: Path) -> list[str]:
    return [str(town_folder / "map.tif")]


@pytest.fixture(autouse=True)
def without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of cards take longer than all else; tests/test_dataset_card.py looks at them."""
    if "jzi" not in request.fixturenames:
        for name in ("draw_map", "draw_histograms"):
            monkeypatch.setattr(card, name, lambda _, output, *__: output.write_bytes(b"png"))


def positions(frame: pd.DataFrame) -> np.ndarray:
    return frame[["latitude", "longitude"]].to_numpy(float)


# Hugging Face


def test_parquet_shards_hold_the_photos_and_the_features_of_datasets(data: DatasetFolder, tmp_path: Path) -> None:
    result = publish_huggingface(Request(data, tmp_path / "out", "My town"))
    assert result.photos == {"train": 6, "val": 3, "test": 3} and result.files == 3 and not result.resumed
    names = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert names == [f"{name}-00000-of-00001.parquet" for name in ("test", "train", "validation")]
    table = pq.read_table(tmp_path / "out" / "data" / names[1])
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"} and features["width"] == {"dtype": "int64", "_type": "Value"}
    assert list(features) == table.column_names and features["panorama"]["dtype"] == "bool"
    rows = table.to_pylist()
    for row in rows:
        assert row["image"]["bytes"] == (data.path / row["image"]["path"]).read_bytes()
    train = data.photos[data.photos["split"] == "train"]
    assert [row["id"] for row in rows] == train["id"].tolist() and rows[0]["drive"] == train["drive"].iloc[0]
    front = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert front["pretty_name"] == "My town" and len(front["configs"][0]["data_files"]) == 3
    assert (tmp_path / "out" / "card" / "map.png").exists()


def test_the_shards_are_tables_of_photos_too(data: DatasetFolder, tmp_path: Path) -> None:
    publish_huggingface(Request(data, tmp_path / "out"))
    files = {
        ours: tmp_path / "out" / "data" / f"{name}-00000-of-00001.parquet" for ours, name in huggingface.NAMES.items()
    }
    read = read_photo_table(files, _named_by_id(data, tmp_path)).frame
    read = read.set_index("id").loc[data.photos["id"]]
    assert read["split"].tolist() == data.photos["split"].tolist()
    assert np.array_equal(positions(read), positions(data.photos)) and "image" not in read


def _named_by_id(data: DatasetFolder, tmp_path: Path) -> Path:
    (tmp_path / "named").mkdir()
    for name, path in zip(data.photos["id"], data.photos["path"], strict=True):
        shutil.copy(data.path / path, tmp_path / "named" / f"{name}.jpg")
    return tmp_path / "named"


def test_large_splits_have_several_shards_and_small_row_groups(
    data: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = max((data.path / path).stat().st_size for path in data.photos["path"])
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 2 * size)
    monkeypatch.setattr(huggingface, "GROUP_BYTES", size)
    publish_huggingface(Request(data, tmp_path / "out"))
    train = sorted((tmp_path / "out" / "data").glob("train-*"))
    assert [path.name for path in train] == [f"train-{n:05d}-of-{len(train):05d}.parquet" for n in range(len(train))]
    assert len(train) >= 3 and all(
        pq.ParquetFile(path).num_row_groups == pq.ParquetFile(path).metadata.num_rows for path in train
    )
    ids = [row["id"] for path in train for row in pq.read_table(path).to_pylist()]
    assert ids == data.photos["id"][data.photos["split"] == "train"].tolist()


def test_an_interrupted_publication_writes_only_what_is_missing(
    data: DatasetFolder, tmp_path: Path, files_of: Callable[[Path], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    publish_huggingface(Request(data, whole, "t"))
    write, written = huggingface._write_shard, []

    def interrupted(file: Path, *others: Any) -> None:
        written.append(file.name)
        if len(written) == 2:
            raise KeyboardInterrupt
        write(file, *others)

    monkeypatch.setattr(huggingface, "_write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish_huggingface(Request(data, tmp_path / "out", "t"))
    assert json.loads((tmp_path / "out" / "publication.json").read_text())["complete"] is False
    assert publish_huggingface(Request(data, tmp_path / "out", "t")).resumed
    assert written == [written[0], written[1], written[1], written[3]] and len(set(written)) == 3
    assert files_of(tmp_path / "out") == files_of(whole)


# Just Zoom In


def test_the_layout_of_just_zoom_in_is_read_with_equal_positions_splits_and_zooms(
    data: DatasetFolder, town: list[str], tmp_path: Path, jzi: Callable[..., Any]
) -> None:
    area = Pyramid.around(48.2, 16.37, 700.0)
    result = publish_just_zoom_in(Request(data, tmp_path / "out", area=area, rasters=town))
    assert sum(result.photos.values()) == 12 and not result.left_out
    files = JustZoomIn.read(tmp_path / "out")
    assert files.area == area and set(files.tables) == {"train", "val", "test"}
    table = read_photo_table(files.tables, files.photos).inside(files.area)
    read = table.frame.set_index("id").loc[data.photos["id"]]
    assert not table.disagreements and not table.rejected
    assert read["split"].tolist() == data.photos["split"].tolist()
    assert np.array_equal(positions(read), positions(data.photos))
    assert [json.loads(each) for each in read["sequence"]] == area.paths(*positions(read).T).tolist()
    assert read["drive"].nunique() == 3 and read["creator"].iloc[0] == "'=x"
    assert os.path.samefile(read["photo"].iloc[0], data.path / "images" / "00.jpg")  # a hard link  # noqa: PTH121
    output = jzi("init --dataset just-zoom-in out")
    assert "12 photos in the area" in output.stdout and "have another zoom sequence" not in output.stderr
    with Imagery(town, area) as ours, Imagery([tmp_path / "out" / "satellite.vrt"], area) as theirs:
        expected, image = (each.render(area.bounds, 350)[0].astype(int) for each in (ours, theirs))
    assert np.abs(expected - image).mean() < 6  # JPEG, resampled once more
    assert np.abs(np.roll(expected, 8, 0) - image).mean() > 20


def test_coarser_tiles_are_the_finest_ones_shrunk(
    data: DatasetFolder, town: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "PIXELS", 64)
    area = Pyramid.around(48.2, 16.37, 300.0)
    publish_just_zoom_in(Request(data, tmp_path / "out", area=area, rasters=town))
    folder = tmp_path / "out" / "satellite"
    layout = yaml.safe_load((folder / "layout.yaml").read_text())
    assert layout["max_zoom"] == 3 and sorted(path.name for path in folder.iterdir()) == [
        "0",
        "1",
        "2",
        "3",
        "layout.yaml",
    ]
    with Imagery(town, area) as imagery:
        side = layout["tile_shape_crs"][0]
        bounds = area.bounds._replace(south=area.north - side, east=area.west + side)
        fine = imagery.render(bounds, 512)[0]
    expected = np.asarray(Image.fromarray(fine).convert("L").resize((64, 64), Image.Resampling.BOX)).astype(int)
    with Image.open(folder / "0" / "0" / "0.jpg") as image:
        top = np.asarray(image.convert("L")).astype(int)
    covered = slice(0, int(64 * 300 / side) - 1)
    assert np.abs(top - expected)[covered, covered].mean() < 6


def test_photos_without_imagery_or_outside_the_area_are_counted_and_left_out(town: list[str], tmp_path: Path) -> None:
    data = dataset(tmp_path / "set", spread=700.0)
    whole = publish_just_zoom_in(Request(data, tmp_path / "a", rasters=town))
    on_map = Pyramid.around(48.2, 16.37, 800.0).cells_at(*positions(data.photos).T)[0] >= 0
    assert sum(whole.photos.values()) == on_map.sum() < 12
    assert whole.left_out and set(whole.left_out) == {"no imagery where they were taken"}
    assert sum(whole.photos.values()) + sum(whole.left_out.values()) == 12
    assert "left out: no imagery where they were taken" in (tmp_path / "a" / "README.md").read_text()
    area = Pyramid.around(48.2, 16.37, 600.0)
    inside = publish_just_zoom_in(Request(data, tmp_path / "b", area=area, rasters=town))
    assert inside.left_out == {"outside the area": 12 - int((area.cells_at(*positions(data.photos).T)[0] >= 0).sum())}


def test_a_damaged_area_is_one_sentence(tmp_path: Path) -> None:
    write_area(tmp_path / "area.json", SMALL)
    assert read_area(tmp_path / "area.json") == SMALL
    good = json.loads((tmp_path / "area.json").read_text())
    for bad in (
        [],
        "x",
        good | {"more": 1},
        good | {"levels": 2.5},
        good | {"west": "x"},
        good | {"crs": 5},
        good | {"grid": True},
    ):
        (tmp_path / "area.json").write_text(json.dumps(bad))
        with pytest.raises(PyramidError, match="describes no area"):
            read_area(tmp_path / "area.json")


# VIGOR


def read_vigor(folder: Path) -> dict[str, Any]:
    return {split: vigor.read(folder, "same", split) for split in ("train", "val", "test")}


@pytest.mark.parametrize("panorama", [False, True])
def test_the_layout_of_vigor_is_read_with_equal_positions_and_splits(
    town: list[str], tmp_path: Path, panorama: bool, jzi: Callable[..., Any]
) -> None:
    data = dataset(tmp_path / "set", panorama=panorama)
    result = publish_vigor(Request(data, tmp_path / "out", "A town", town, area=SMALL))
    assert sum(result.photos.values()) == 12 and not result.left_out and result.files == 25
    assert read_cities(tmp_path / "out" / "cities.json") == {"A-town": RESOLUTION}
    for split, read in read_vigor(tmp_path / "out").items():
        ours = data.photos[data.photos["split"] == split]
        assert not read.rejected and not read.not_metric and read.name == "A-town in VIGOR's layout"
        assert [Path(path).name.split(",")[0] for path in read.photos] == ours["id"].tolist()
        away = geodesic_distance(*read.camera().T, *positions(ours).T)
        assert away.max() < 0.01
        assert np.abs(read.offset).max() <= SIDE * RESOLUTION / 4 + 0.01  # in the middle quarter
        assert (read.semi >= 0).all() and np.abs(read.semi_offset).max() <= SIDE * RESOLUTION / 2 + 0.01
        assert set(read.heading) == ({0.0} if panorama else {30.0}) and set(read.hfov_deg) == {
            360.0 if panorama else 80.0
        }
    jzi("init --dataset vigor work --data out")
    train, val = training_pairs(load_pairs(tmp_path / "work" / "jzi.toml"))
    assert (len(train), len(val)) == (6, 3)


def test_aerial_images_show_their_place_north_up(data: DatasetFolder, town: list[str], tmp_path: Path) -> None:
    publish_vigor(Request(data, tmp_path / "out", "T", town, area=SMALL))
    read = vigor.read(tmp_path / "out", "same", "train")
    local = Pyramid.around(*read.position[0].tolist(), SIDE * RESOLUTION, levels=1)
    with Imagery(town, local) as imagery:
        expected = imagery.render(local.bounds, SIDE)[0].astype(int)
    with Image.open(str(read.references[0])) as image:
        shown = np.asarray(image).astype(int)
    assert np.abs(expected - shown).mean() < 6 and np.abs(expected[::-1] - shown).mean() > 20


def test_panoramas_are_rolled_until_north_is_in_their_middle(town: list[str], tmp_path: Path) -> None:
    data = dataset(tmp_path / "set", panorama=True, heading=90.0)
    north = np.zeros((24, 48, 3), np.uint8)
    north[:, 10:14] = 255  # the middle column, 24, faces east: north is a quarter of the width to its left
    Image.fromarray(north).save(data.path / "images" / "00.jpg", quality=95)
    publish_vigor(Request(data, tmp_path / "out", "T", town, area=SMALL))
    (file,) = (tmp_path / "out" / "T" / "panorama").glob("0,*")
    with Image.open(file) as image:
        bright = np.asarray(image.convert("L")).mean(0)
    assert 22 <= bright.argmax() <= 25 and bright[24] > 150


def test_photos_of_the_other_kind_or_of_unknown_views_are_left_out(town: list[str], tmp_path: Path) -> None:
    number = np.arange(12)
    data = dataset(tmp_path / "set", panorama=number < 2, heading=np.where(number == 5, np.nan, 10.0))
    result = publish_vigor(Request(data, tmp_path / "out", "T", town, area=SMALL))
    assert result.left_out == {
        "a panorama, but most others are not": 2, "heading or field of view unknown": 1,
    }  # fmt: skip
    blind = dataset(tmp_path / "blind", heading=np.nan)
    with pytest.raises(DatasetError, match="no photo can be published"):
        publish_vigor(Request(blind, tmp_path / "other", "T", town, area=SMALL))
    assert not (tmp_path / "other").exists()


def test_cities_of_ones_own_have_no_protocol_across_areas_and_damaged_lists_are_refused(
    data: DatasetFolder, town: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    publish_vigor(Request(data, out, "T", town, area=SMALL))
    with pytest.raises(PairsError, match="has other cities than VIGOR"):
        vigor.read(out, "cross", "train")
    views = out / "splits__corrected" / "T" / "views.txt"
    views.write_text("\n".join(views.read_text().splitlines()[1:]))
    assert "no heading and field of view" in vigor.read(out, "same", "train").rejected[0].reason
    for bad in ("", "[]", '{"format": 1, "cities": {"../x": {"metres_per_pixel": 1}}}', '{"format": 2, "cities": {}}',
                '{"format": 1, "cities": {"T": {"metres_per_pixel": 0}}}', '{"format": 1, "cities": {}}'):  # fmt: skip
        (out / "cities.json").write_text(bad)
        with pytest.raises(PairsError, match=r"cities\.json"):
            vigor.read(out, "same", "train")
    assert city_name("A / b: c") == "A-b-c" and city_name("東京") == "City"


# What they share


@given(st.lists(st.text(), min_size=1, max_size=8, unique=True))
def test_names_of_files_are_safe_distinct_and_those_of_the_ids_where_they_can_be(ids: list[str]) -> None:
    names = file_names(ids)
    assert len({name.lower() for name in names}) == len(ids)
    for name in names:
        assert name.isascii() and name[0] not in ".-" and not set(name) & set("/\\ ,:\0\n") and len(name) <= 100
    assert file_names(["123", "a.b-c"]) == ["123", "a.b-c"]
    assert file_names(["A", "a"])[0] != "A"


PUBLISH = {"huggingface": publish_huggingface, "just-zoom-in": publish_just_zoom_in, "vigor": publish_vigor}


@pytest.mark.parametrize("layout", PUBLISH)
def test_an_existing_folder_is_refused_unless_it_is_the_same_publication(
    layout: str, data: DatasetFolder, town: list[str], tmp_path: Path, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    out, publish = tmp_path / "out", PUBLISH[layout]
    out.mkdir()
    (out / "mine.txt").write_text("x")
    request = Request(data, out, "T", town, area=SMALL)
    with pytest.raises(DatasetError, match="exists and is no publication of jzi"):
        publish(request)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    publish(request)
    before = files_of(out)
    assert publish(request).resumed and files_of(out) == before
    data.photos.loc[0, "split"] = "test"
    data.write()
    with pytest.raises(DatasetError, match="holds another publication"):
        publish(request)
    assert files_of(out) == before
    (out / "publication.json").write_text("{")
    with pytest.raises(DatasetError, match="is damaged"):
        publish(request)


@pytest.mark.parametrize("layout", PUBLISH)
def test_a_full_disk_is_one_sentence_and_the_work_is_kept(
    layout: str, data: DatasetFolder, town: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(data, tmp_path / "out", "T", town, area=SMALL)
    module = {"huggingface": huggingface}.get(layout, tiles)
    write, calls = module.write_whole, []

    def full(path: Path, write_file: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, write_file)

    monkeypatch.setattr(module, "write_whole", full)
    with pytest.raises(DatasetError, match="the disk is full"):
        PUBLISH[layout](request)
    assert calls[0].exists() and not calls[1].exists()
    assert PUBLISH[layout](request).resumed and calls[0] not in calls[1:]


def test_a_link_that_cannot_be_made_is_a_copy(
    data: DatasetFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(publication_module.os, "link", no_links)
    publication_module.place(data.path / "images" / "00.jpg", tmp_path / "copy.jpg")
    assert (tmp_path / "copy.jpg").read_bytes() == (data.path / "images" / "00.jpg").read_bytes()


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda data: (data.path / "images" / "03.jpg").unlink(), "1 of 12 photos cannot be published.*03.jpg"),
        (lambda data: (data.path / "images" / "03.jpg").write_text("<html>"), "03.jpg is not a photo"),
        (lambda data: data.photos.pop("split"), "are not split: run `jzi dataset split"),
        (lambda data: data.photos.__setitem__("latitude", 10.0), "no photo can be published"),
    ],
    ids=["missing", "not a photo", "no split", "elsewhere"],
)  # fmt: skip
@pytest.mark.parametrize("layout", PUBLISH)
def test_data_sets_that_are_not_whole_are_refused_before_anything_is_written(
    layout: str, break_it: Any, says: str, data: DatasetFolder, town: list[str], tmp_path: Path
) -> None:
    break_it(data)
    with pytest.raises(JziError, match=says):
        PUBLISH[layout](Request(data, tmp_path / "out", "T", town, area=SMALL))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["just-zoom-in", "vigor"])
def test_imagery_that_is_missing_or_somewhere_else_is_refused(
    layout: str, data: DatasetFolder, town: list[str], tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=r"has tiles of imagery: name it with --imagery"):
        PUBLISH[layout](Request(data, tmp_path / "out", "T", area=SMALL))
    far = dataset(tmp_path / "far", latitude=10.0)
    with pytest.raises(ImageryError, match="does not overlap the area"):
        PUBLISH[layout](Request(far, tmp_path / "out", "T", town))
    assert not (tmp_path / "out").exists()


def test_the_area_is_the_square_around_the_photos_also_across_180_degrees(data: DatasetFolder) -> None:
    area = area_of(data.photos)
    assert area.size in (300.0, 400.0) and (area.cells_at(*positions(data.photos).T)[0] >= 0).all()
    across = data.photos.assign(longitude=np.where(np.arange(12) % 2, 179.9995, -179.9995))
    assert area_of(across).size < 500 and (area_of(across).cells_at(*positions(across).T)[0] >= 0).all()


def test_the_command_publishes_for_the_area_of_a_jzi_toml(
    jzi: Callable[..., Any], tmp_path: Path, town_raster: Path
) -> None:
    dataset(tmp_path / "set", spread=200.0)
    jzi("init here --map map.tif --center 48.2 16.37 --size 300")
    result = jzi("dataset publish set --layout just-zoom-in -o out --imagery map.tif --area here/jzi.toml")
    assert "photos published in out: train" in result.stdout and "photos left out: outside the area" in result.stdout
    assert "no licence and credit of the imagery are known" in result.stderr
    assert JustZoomIn.read(tmp_path / "out").area.size == 300
    values = json.loads(jzi("dataset publish set --layout huggingface -o hf --json").stdout)
    assert values["layout"] == "huggingface" and sum(values["photos"].values()) == 12
    assert "give another folder" in jzi("dataset publish set --layout huggingface -o set", code=2).stderr


def test_rasters_that_name_files_elsewhere_are_trusted_only_if_the_user_says_so(
    jzi: Callable[..., Any], tmp_path: Path, town_raster: Path
) -> None:
    dataset(tmp_path / "set")
    (tmp_path / "maps").mkdir()
    jzi("dataset imagery map.tif -o maps/map.vrt --attribution X --licence CC0")
    assert "map.remote" in jzi("dataset card set --imagery maps/map.vrt", code=2).stderr
    jzi("dataset card set --imagery maps/map.vrt --remote")
    jzi("dataset publish set --layout just-zoom-in -o out --imagery maps/map.json --remote")
    assert "imagery" in (tmp_path / "out" / "README.md").read_text()
