"""Splits keep drives and places together, stay as they are when photos are added, and are reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import ExifTags, Image

from jzi.errors import PhotoTableError
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos import splits
from jzi.store.photos.photo_table import read_photo_table
from jzi.store.photos.splits import (
    GAP_S,
    block_side,
    capture_seconds,
    drives_by_time,
    map_blocks,
    split_by_hash,
    split_photos,
)

NOON = 1_683_000_000  # seconds


def photos(count: int, **columns: object) -> pd.DataFrame:
    """Photos ten metres apart on a road to the east, with other columns."""
    frame = pd.DataFrame({"id": [f"p{index}" for index in range(count)], "latitude": 48.2})
    return frame.assign(longitude=16.37 + 1.35e-4 * np.arange(count), **columns)


def groups_of(frame: pd.DataFrame, split: pd.Series, key: str) -> int:
    """Number of groups whose photos are in more than one split."""
    return int((split.groupby(frame[key]).nunique() > 1).sum())


# By a hash


def test_a_split_by_hash_is_four_fifths_train_and_the_same_every_time() -> None:
    ids = pd.Series([f"photo{index}" for index in range(5000)])
    split = split_by_hash(ids)
    share = split.value_counts(normalize=True)
    assert share["train"] == pytest.approx(0.8, abs=0.02)
    assert share["val"] == pytest.approx(0.1, abs=0.02)
    assert split.equals(split_by_hash(ids))


def test_photos_stay_in_their_split_when_others_are_added_or_shuffled() -> None:
    ids = pd.Series([f"photo{index}" for index in range(400)])
    some = ids[::2].sample(frac=1, random_state=0)  # many enough that no split has to be filled by force
    of_all, of_some = split_by_hash(ids), split_by_hash(some)
    assert of_some.equals(of_all[some.index])


@pytest.mark.parametrize("n", [3, 4, 5, 8])
@pytest.mark.parametrize("prefix", "abcdefgh")
def test_no_split_is_empty_where_there_are_three_photos(n: int, prefix: str) -> None:
    assert set(split_by_hash(pd.Series([f"{prefix}{index}" for index in range(n)]))) == {"train", "val", "test"}


# By drives


@pytest.mark.parametrize("by", ["auto", "sequence"])
def test_photos_of_one_drive_stay_together(by: str) -> None:
    frame = photos(1000, drive=[f"drive {index // 10}" for index in range(1000)])
    split, info = split_photos(frame, by)
    assert (info.kind, info.source, info.groups) == ("sequence", "column", 100)
    assert groups_of(frame, split, "drive") == 0
    assert split.value_counts(normalize=True)["train"] == pytest.approx(0.8, abs=0.1)
    assert groups_of(frame, split_photos(frame, "photo")[0], "drive") > 50


def test_a_drive_stays_in_its_split_when_others_are_added() -> None:
    frame = photos(1000, drive=[f"drive {index // 10}" for index in range(1000)])
    some = frame.iloc[:500]
    for by in ("sequence", "block", "photo"):
        assert split_photos(some, by)[0].equals(split_photos(frame, by)[0].iloc[:500])


def test_photos_without_a_drive_are_kept_together_by_their_place() -> None:
    frame = photos(100, drive=[f"drive {index // 5}" if index < 60 else None for index in range(100)])
    split, info = split_photos(frame, "auto")
    assert info.source == "column"
    assert groups_of(frame.assign(block=map_blocks(frame, 100.0)).iloc[60:], split.iloc[60:], "block") == 0


@pytest.mark.parametrize("name", ["drive", "sequence_id", "sequence_key", "trip", "sequence"])
def test_a_column_of_drives_is_known_by_the_names_that_people_use(tmp_path: Path, name: str) -> None:
    long_id = 4449826985073000  # 16 digits: read as floats with a gap below, several ids would be one
    lines = [f"{index},48.2,{16.37 + index * 1e-4},{long_id + index // 2}" for index in range(12)]
    for index in range(13):
        (tmp_path / f"{index}.jpg").touch()
    (tmp_path / "table.csv").write_text("\n".join([f"id,lat,lon,{name}", *lines, "12,48.2,16.4,"]))
    table = read_photo_table(tmp_path / "table.csv")
    assert (table.split.kind, table.split.source, table.split.groups) == ("sequence", "column", 7)


def test_published_zoom_sequences_are_no_drives() -> None:
    frame = photos(200, sequence=[f"[{index % 2}, 7, 1, 0]" for index in range(200)])
    assert split_photos(frame, "auto")[1].kind == "block"


# By time


def test_a_pause_another_device_and_a_jump_begin_new_drives() -> None:
    seconds = NOON + 2.0 * np.arange(40)
    frame = photos(40, captured_at=seconds)
    assert drives_by_time(frame).nunique() == 1
    paused = frame.assign(captured_at=seconds + np.where(np.arange(40) >= 20, GAP_S, 0.0))
    assert drives_by_time(paused).nunique() == 2
    two_devices = frame.assign(device=["front", "rear"] * 20)
    assert drives_by_time(two_devices).groupby(two_devices["device"]).nunique().tolist() == [1, 1]
    jumped = frame.assign(latitude=np.where(np.arange(40) >= 30, 48.3, 48.2))
    assert drives_by_time(jumped).nunique() == 2


def test_cars_that_are_under_way_at_the_same_time_have_drives_of_their_own() -> None:
    car = np.arange(60) % 3
    seconds = NOON + np.arange(60) // 3 + np.arange(60) // 30 * 3600.0
    frame = photos(60, captured_at=seconds, latitude=48.2 + 0.01 * car)  # 1.1 km apart; an hour between two halves
    drives = drives_by_time(frame)
    assert drives.nunique() == 2  # cars that begin in the same second are kept together
    later = frame.assign(captured_at=seconds + 0.1 * car)
    drives = drives_by_time(later)
    assert drives.nunique() == 6 and (drives.groupby([car, np.arange(60) // 30]).nunique() == 1).all()
    shuffled = later.sample(frac=1, random_state=0)
    assert drives_by_time(shuffled).sort_index().equals(drives)
    back = photos(30, captured_at=NOON + 2.0 * np.arange(30))
    back = back.assign(latitude=np.where(np.arange(30) == 15, 48.3, 48.2))  # one wrong position in a drive
    assert drives_by_time(back).value_counts().tolist() == [29, 1]


def test_of_too_many_cars_the_one_seen_the_longest_ago_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "MOST_CARS", 2)
    car = np.array([0, 1, 0, 1, 2, 1, 0])  # the third one takes the place of the first
    drives = drives_by_time(photos(7, captured_at=NOON + 2.0 * np.arange(7), latitude=48.2 + 0.01 * car))
    first, second, _, _, third, _, again = drives
    assert drives.tolist() == [first, second, first, second, third, second, again]
    assert len({first, second, third, again}) == 4


def test_drives_do_not_depend_on_the_order_of_the_rows() -> None:
    frame = photos(300, captured_at=NOON + np.arange(300) * 3.0 + np.arange(300) // 20 * 3600)
    split, info = split_photos(frame, "auto")
    assert (info.kind, info.source, info.groups) == ("sequence", "time", 15)
    assert split_photos(frame.sample(frac=1, random_state=0), "auto")[0].sort_index().equals(split)


def test_times_are_read_in_the_forms_that_tables_have() -> None:
    written = pd.Series(
        [
            "2023-05-02T04:00:00Z",
            "2023-05-02 06:00:00+02:00",
            "2023:05:02 04:00:00",
            str(NOON),
            str(NOON * 1000),
            "noon",
        ]
    )
    assert capture_seconds(written).tolist()[:5] == [NOON] * 5
    assert np.isnan(capture_seconds(written).iloc[5])
    assert np.isnan(capture_seconds(pd.Series(["10:00:03"])).iloc[0]), "a time without a date"
    assert capture_seconds(pd.Series([NOON * 10**9, NOON * 10**6, NOON * 1000, NOON])).tolist() == [NOON] * 4
    assert capture_seconds(pd.Series(pd.to_datetime([NOON], unit="s"))).tolist() == [NOON]


def test_photos_of_a_folder_are_split_by_the_times_in_their_exif(tmp_path: Path) -> None:
    for index in range(40):
        exif = Image.Exif()
        exif[ExifTags.Base.Model] = "A1"
        moment = datetime(2023, 5, 2) + timedelta(hours=index // 5, seconds=index)
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = moment.strftime("%Y:%m:%d %H:%M:%S")
        gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
        gps[ExifTags.GPS.GPSLatitudeRef], gps[ExifTags.GPS.GPSLatitude] = "N", (48.0, 12.0, 0.0)
        gps[ExifTags.GPS.GPSLongitudeRef], gps[ExifTags.GPS.GPSLongitude] = "E", (16.0, 22.0, index * 0.5)
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index:02}.jpg", exif=exif)
    table = read_photo_table(tmp_path)
    assert (table.split.kind, table.split.source, table.split.groups) == ("sequence", "time", 8)
    assert table.frame["captured_at"][6] == "2023-05-02T01:00:06"
    assert set(table.frame["device"]) == {"A1"}
    assert groups_of(table.frame.assign(hour=np.arange(40) // 5), table.frame["split"], "hour") == 0


# By blocks of the map


def test_a_block_is_a_square_of_ground_wholly_in_one_split() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-1000, 1000, (2, 4000))
    pyramid = Pyramid.around(60.0, 25.0, 2000.0)
    latitude, longitude = pyramid.unproject(x, y)
    frame = pd.DataFrame({"id": [f"p{index}" for index in range(4000)], "latitude": latitude, "longitude": longitude})
    frame["block"] = map_blocks(frame, 100.0)
    extent = frame.assign(x=x, y=y).groupby("block")[["x", "y"]].agg(np.ptp)
    assert extent.to_numpy().max() < 103 and extent.to_numpy().mean() > 60  # not aligned with the CRS
    assert frame["block"].nunique() == pytest.approx(400, rel=0.15)
    split, info = split_photos(frame, "auto")
    assert (info.kind, info.block_m) == ("block", 100.0)
    assert groups_of(frame, split, "block") == 0
    assert set(split) == {"train", "val", "test"}


def test_the_side_of_blocks_depends_on_the_area_alone() -> None:
    assert [block_side(size) for size in (10_000, 1280, 800, 799, 320, 80)] == [100, 100, 100, 50, 25, 6.25]


# What auto falls back to, and what is reported


def test_with_too_few_groups_auto_takes_the_next_finer_kind_and_gives_the_reason() -> None:
    split, info = split_photos(photos(400, drive=["a", "b"] * 200), "auto")
    assert (info.kind, info.note) == ("block", "there are only 2 drives")
    split, info = split_photos(photos(5, drive=["a"] * 5), "auto")
    assert (info.kind, info.groups) == ("photo", 5)
    assert info.note.rstrip("s").endswith("map block"), "a coarser kind was tried first"
    assert set(split) == {"train", "val", "test"}


@pytest.mark.parametrize("count", [3, 4, 7])
def test_no_split_is_empty_where_there_are_three_drives(count: int) -> None:
    for seed in range(20):
        frame = photos(70, drive=[f"{seed} {index % count}" for index in range(70)])
        assert set(split_photos(frame, "sequence")[0]) == {"train", "val", "test"}


def test_drives_that_a_table_lacks_are_an_error() -> None:
    with pytest.raises(PhotoTableError, match="fewer than half of the photos have a drive"):
        split_photos(photos(10), "sequence")


# The commands


@pytest.fixture
def town(jzi: Callable, tmp_path: Path, town_raster: Path, photo_folder: Path, encoder_folder: Path) -> Callable:
    """A working directory whose 30 photos have ten drives, in a table without splits."""
    frame = read_photo_table(photo_folder).frame[["path", "latitude", "longitude"]]
    frame.assign(drive=[f"d{index % 10}" for index in range(30)]).to_csv(tmp_path / "photos.csv", index=False)
    options = f"--map {town_raster.name} --photos photos --encoder {encoder_folder} --image-size 56"
    jzi(f"init --queries photos.csv {options} --split-by photo")
    return jzi


def test_another_split_moves_photos_without_encoding_them_again(town: Callable) -> None:
    first = json.loads(town("encode-queries --json").stdout)
    assert first["split_by"]["kind"] == "photo" and first["moved"] == 0
    assert "held out" not in town("encode-queries --split-by photo").stderr
    result = town("encode-queries --split-by sequence --json")
    assert "split by sequence in this cache only" in result.stderr and "which is photo" in result.stderr
    again = json.loads(result.stdout)
    assert (again["encoded"], again["reused"], again["split_by"]["groups"]) == (0, 30, 10)
    assert again["moved"] > 0 and "have changed their split" in result.stderr
    assert all(count % 3 == 0 for count in again["splits"].values()) and len(again["splits"]) == 3
    text = town("encode-queries --set queries.split_by=block").stdout
    assert "split by map blocks of 100 m (" in text and " of them): " in text and " train, " in text
    assert "split by drives (10 of them): " in town("encode-queries --split-by auto").stdout


@pytest.mark.parametrize("override", ["--split-by photo", "--set queries.split_by=auto"])
def test_an_override_of_splits_that_a_table_brings_along_is_refused(
    town: Callable, tmp_path: Path, override: str
) -> None:
    table = pd.read_csv(tmp_path / "photos.csv").assign(split=["train", "val", "test"] * 10)
    table.to_csv(tmp_path / "photos.csv", index=False)
    assert "queries.split_by has no effect" in town(f"encode-queries {override}", 2).stderr
    options = "--queries photos.csv --photos photos --center 48.2 16.37 --size 800 --force"
    assert "has no effect" in town(f"init {options} --split-by auto", 2).stderr
    assert "30 photos in the area, split as in the table" in town(f"init {options}").stdout
