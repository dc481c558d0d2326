"""`jzi dataset filter` makes a data set of one's own photos, whatever lies among them and whenever it is killed."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import ExifTags, Image, ImageFilter

from jzi.curate import own_photos
from jzi.curate.folder import DatasetFolder
from jzi.curate.own_photos import JOURNAL
from jzi.store.photos.exif import write_position
from jzi.store.photos.photo_table import read_photo_table
from jzi.tests.test_prepare import panorama
from jzi.tests.test_quality import street

pytest.importorskip("cv2")


def photo(path: Path, image: Image.Image, latitude: float | None, time: str = "", orientation: int = 1) -> Path:
    """A JPEG with EXIF; without a position if the latitude is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "ACME", "Phone 3"
    exif[ExifTags.Base.Orientation] = orientation
    ifd = exif.get_ifd(ExifTags.IFD.Exif)
    ifd[ExifTags.Base.FocalLengthIn35mmFilm] = 28
    if time:
        ifd[ExifTags.Base.DateTimeOriginal] = time
    image.save(path, exif=exif, quality=90)
    if latitude is not None:
        write_position(path, path.with_suffix(".tmp.jpg"), latitude, 11.5, heading=90.0)
        path.with_suffix(".tmp.jpg").replace(path)
    return path


@pytest.fixture(scope="session")
def mixed_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good photos, 100 m apart, and others, each for a reason."""
    folder = tmp_path_factory.mktemp("own") / "holiday"
    for number in range(3):
        photo(
            folder / "walk" / f"good{number}.jpg", street(number), 48.1 + number / 1000, f"2024:05:01 10:0{number}:00"
        )
    photo(folder / "walk" / "near.jpg", street(7), 48.102009, "2024:05:01 10:02:10")
    photo(folder / "walk" / "blurred.jpg", street(8).filter(ImageFilter.GaussianBlur(5)), 48.105, "2024:05:01 10:05:00")
    photo(folder / "small copy.jpg", street(0).resize((640, 480)), 48.3, "2024:05:01 12:00:00")
    photo(folder / "future.jpg", street(9), 48.4, "2093:05:01 12:00:00")
    photo(folder / "no position.jpg", street(10, 200, 150), None)
    photo(folder / "thumbnail.jpg", street(11, 200, 150), 48.5)
    (folder / "page.jpg").write_text("<html><body>404</body></html>")
    photo(folder / "portrait.JPG", street(12), 48.6, orientation=6)
    shutil.copy(folder / "walk" / "good1.jpg", folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:4000])
    return folder


@pytest.fixture
def photos(mixed_photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mixed_photos, tmp_path / "holiday"))


REASONS = {
    "near.jpg": "spacing",
    "blurred.jpg": "blur",
    "small copy.jpg": "duplicate",
    "future.jpg": "time",
    "no position.jpg": "unusable",
    "thumbnail.jpg": "size",
    "page.jpg": "unusable",
    "cut.jpg": "unusable",
}


def rejected(folder: Path) -> dict[str, str]:
    with (folder / "rejected.csv").open(newline="") as file:
        return {row["id"].rpartition("/")[2]: row["filter"] for row in csv.DictReader(file)}


def test_each_photo_is_kept_or_has_a_reason(jzi: Callable, photos: Path) -> None:
    result = jzi("dataset filter holiday -o set --licence CC0 --attribution me")
    assert rejected(Path("set")) == REASONS
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert lines["found"].split() == ["found", "12"] and lines["kept"].split() == ["kept", "4"]
    assert lines["unusable"].split()[1] == "-3" and lines["blur"].split()[1] == "-1"
    assert "not blurred" in result.stdout and "set/photos.csv" in result.stdout
    data = DatasetFolder.read(Path("set"))
    assert data.photos["id"].tolist() == ["portrait.JPG", "walk/good0.jpg", "walk/good1.jpg", "walk/good2.jpg"]
    assert data.photos["drive"].tolist() == ["holiday", "walk", "walk", "walk"]
    assert data.photos["device"][1] == "ACME Phone 3" and data.photos["heading"].tolist() == [90.0] * 4
    assert data.photos["hfov"].round(1).tolist() == [46.4, 65.5, 65.5, 65.5], "28 mm, upright and across"
    (source,) = data.info.sources
    assert (source.kind, source.name, source.licence, source.attribution) == ("photos", "holiday", "CC0", "me")
    assert data.info.found == 12 and sum(each.removed for each in data.info.filters) == 8
    assert any("not blurred" in note for note in data.info.notes)


def test_the_data_set_is_a_photo_table_of_prepared_photos(jzi: Callable, photos: Path) -> None:
    jzi("dataset filter holiday -o set --size 320")
    table = read_photo_table(Path("set/photos.csv"))
    assert len(table) == 4 and not table.rejected
    for path, width, height in table.frame[["photo", "width", "height"]].itertuples(index=False):
        with Image.open(path) as image:
            assert image.size == (width, height) and max(image.size) == 320
            assert not image.getexif() and image.info.get("comment") is None
    assert table.frame["height"].tolist() == [320, 240, 240, 240], "the portrait is upright"


def test_a_dry_run_writes_no_data_set(jzi: Callable, photos: Path) -> None:
    result = jzi("dataset filter holiday -o set --dry-run --json")
    values = json.loads(result.stdout)
    assert values["kept"] == 4 and values["folder"] is None
    assert [path.name for path in Path("set").iterdir()] == [JOURNAL]


def prepares(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[str]:
    """The photos that are prepared from now on; an interruption after some."""
    prepared: list[str] = []
    original = own_photos.prepare

    def prepare(content, row, options):
        if stop_after is not None and len(prepared) >= stop_after:
            raise KeyboardInterrupt
        prepared.append(row["id"])
        return original(content, row, options)

    monkeypatch.setattr(own_photos, "prepare", prepare)
    return prepared


def test_an_interrupted_run_goes_on_where_it_was(jzi: Callable, photos: Path, files_of, monkeypatch) -> None:
    jzi("dataset filter holiday -o whole")
    for stop in (2, 9):  # while measuring, while copying
        folder = Path(f"set{stop}")
        with monkeypatch.context() as patch:
            first = prepares(patch, stop)
            jzi(f"dataset filter holiday -o {folder} --threads 1", code=130)
            assert not (folder / "photos.csv").exists()
        with monkeypatch.context() as patch:
            rest = prepares(patch)
            jzi(f"dataset filter holiday -o {folder} --threads 1")
            assert len(first) + len(rest) <= 12 + 2, "what was in flight at most is done again"
        ours, whole = files_of(folder), files_of(Path("whole"))
        del ours[JOURNAL], whole[JOURNAL]
        assert ours == whole


def test_other_thresholds_open_no_photo_again(jzi: Callable, photos: Path, monkeypatch) -> None:
    jzi("dataset filter holiday -o set")
    before = set(Path("set").rglob("*.jpg"))
    again = prepares(monkeypatch)
    Path("set/images/mine.jpg").write_text("not of jzi")
    jzi("dataset filter holiday -o set --sharpness 1500")
    assert again == []
    after = set(Path("set").rglob("*.jpg"))
    assert Path("set/images/mine.jpg") in after, "what others put there is kept"
    assert after - {Path("set/images/mine.jpg")} < before, "copies of photos that are out are removed"
    jzi("dataset filter holiday -o set --sharpness off")
    assert len(again) == len(set(again)), "only what is new is prepared"
    assert "walk/blurred.jpg" in again


def test_a_changed_photo_is_measured_again(jzi: Callable, photos: Path, monkeypatch) -> None:
    jzi("dataset filter holiday -o set --dry-run")
    os.utime(photos / "walk" / "good0.jpg", (1, 1))
    again = prepares(monkeypatch)
    jzi("dataset filter holiday -o set --dry-run")
    assert again == ["walk/good0.jpg"]


def test_all_rejected_is_an_error_with_the_counts(jzi: Callable, photos: Path) -> None:
    result = jzi("dataset filter holiday -o set --sharpness 100000", code=2)
    assert "'blur'" in result.stderr and "kept" in result.stderr
    assert not Path("set/photos.csv").exists() and not Path("set/images").exists()


def test_folders_without_photos_are_errors(jzi: Callable, tmp_path: Path) -> None:
    Path("empty").mkdir()
    assert "no usable photo" in jzi("dataset filter empty -o set", code=2).stderr
    (Path("empty") / "a.jpg").write_text("<html>")
    assert "cannot be read as a photo" in jzi("dataset filter empty -o set", code=2).stderr
    assert "there is no" in jzi("dataset filter nowhere -o set", code=2).stderr
    assert not Path("set").exists()


def test_a_full_disk_loses_no_measurement(jzi: Callable, photos: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:

        def write(folder: Path, prepared) -> dict:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "images"))

        patch.setattr(own_photos, "write_prepared", write)
        message = jzi("dataset filter holiday -o set", code=2).stderr
        assert "No space left on device" in message and "run it again" in message
    assert not Path("set/photos.csv").exists()
    again = prepares(monkeypatch)
    jzi("dataset filter holiday -o set")
    assert sorted(again) == sorted(DatasetFolder.read(Path("set")).photos["id"]), "only copies were missing"


def test_a_full_disk_of_the_journal_is_one_sentence(jzi: Callable, photos: Path, monkeypatch) -> None:
    def write(self, key, result):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(own_photos.Journal, "write", write)
    assert "disk is full" in jzi("dataset filter holiday -o set", code=2).stderr


def test_what_others_wrote_is_not_replaced(jzi: Callable, photos: Path) -> None:
    Path("other").mkdir()
    Path("other/photos.csv").write_text("precious")
    assert "something else" in jzi("dataset filter holiday -o other", code=2).stderr
    assert Path("other/photos.csv").read_text() == "precious"
    for output in ("holiday", "holiday/set"):
        assert "another folder" in jzi(f"dataset filter holiday -o {output}", code=2).stderr
    Path("bad").mkdir()
    (Path("bad") / JOURNAL).write_text("this is no database " * 100)
    assert "no SQLite file" in jzi("dataset filter holiday -o bad", code=2).stderr
    Path("file").write_text("")
    assert "is a file" in jzi("dataset filter holiday -o file", code=2).stderr


def test_without_copies_the_table_names_the_photos(jzi: Callable, photos: Path) -> None:
    jzi("dataset filter holiday -o set --no-copy --panoramas skip")
    assert not Path("set/images").exists()
    table = read_photo_table(Path("set/photos.csv"), allow_outside=True)
    assert sorted(table.frame["width"]) == [600, 800, 800, 800]
    assert all(Path(path).is_relative_to(photos) for path in table.frame["photo"])
    assert "--size" in jzi("dataset filter holiday -o b --no-copy --panoramas keep --size 99", code=2).stderr
    assert "panoramas" in jzi("dataset filter holiday -o b --no-copy", code=2).stderr


def test_panoramas_are_cropped_with_their_headings(jzi: Callable, tmp_path: Path) -> None:
    Path("sphere").mkdir()
    panorama().save("sphere/p.jpg", quality=95)
    pd.DataFrame({"id": ["p"], "latitude": 48.0, "longitude": 11.0, "heading": 30.0}).to_csv(
        "sphere/t.csv", index=False
    )
    off = "--sharpness off --max-sky off --max-occlusion off --max-bright off --duplicate-bits off --max-veil off"
    jzi(f"dataset filter sphere/t.csv -o set --crops 3 --size 256 {off}")
    data = DatasetFolder.read(Path("set"))
    assert data.photos["id"].tolist() == ["p_0", "p_1", "p_2"] and not data.photos["panorama"].any()
    assert data.photos["heading"].nunique() == 3 and data.photos["hfov"].between(60, 100).all()
    assert data.info.found == 1
    jzi(f"dataset filter sphere/t.csv -o kept --panoramas keep {off}")
    assert DatasetFolder.read(Path("kept")).photos["panorama"].tolist() == [True]
    assert "'panorama'" in jzi(f"dataset filter sphere/t.csv -o none --panoramas skip {off}", code=2).stderr


def test_a_table_may_have_sfm_positions_and_cameras(jzi: Callable, photos: Path) -> None:
    frame = pd.DataFrame(
        {
            "path": [f"walk/good{n}.jpg" for n in range(3)] + ["../secret.jpg", "gone.jpg"],
            "latitude": [48.1, 48.101, 48.102, 48.2, 48.3],
            "longitude": 11.5,
            "computed_latitude": [48.10001, 48.103, None, 48.2, 48.3],
            "computed_longitude": 11.5,
            "camera": "perspective",
            "camera_parameters": ["[1.1, -0.1, 0.01]", "", "0.9 nonsense", "", ""],
        }
    )
    frame.to_csv("holiday/table.csv", index=False)
    photo(Path("secret.jpg"), street(30), 48.2)
    jzi("dataset filter holiday/table.csv -o set")
    data = DatasetFolder.read(Path("set"))
    assert data.photos["latitude"].tolist() == [48.10001] and data.photos["gps_latitude"].tolist() == [48.1]
    assert data.photos["position_error_m"].round(1).tolist() == [1.1]
    assert "computed_latitude" not in data.photos and "camera_parameters" not in data.photos
    assert 46 < data.photos["hfov"][0] < 52, "from its parameters, not from EXIF"
    assert rejected(Path("set")) == {"good1.jpg": "gps", "good2.jpg": "unusable", "secret.jpg": "unusable",
                                     "gone.jpg": "unusable"}  # fmt: skip
