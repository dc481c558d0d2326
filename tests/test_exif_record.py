"""EXIF of a folder of photos is read once, by commands that need positions; others do not read it at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jzi.store.photos import exif_record
from jzi.store.photos.exif import ExifPosition, read_position
from jzi.store.photos.photo_table import folder_files, read_photo_table
from jzi.tests.conftest import write_photo


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the photos whose EXIF is read, wherever it is."""
    names: list[str] = []

    def counted(photo: Path) -> ExifPosition:
        names.append(Path(photo).name)
        return read_position(photo)

    for module in ("jzi.store.photos.exif_record", "jzi.locate.answer.photo_notes", "jzi.store.photos.exif"):
        monkeypatch.setattr(f"{module}.read_position", counted)
    monkeypatch.setattr(exif_record, "MIN_RECORDED", 1)
    return names


@pytest.fixture
def read(photo_folder: Path, tmp_path: Path, opened: list[str]) -> Callable[[], tuple[pd.DataFrame, list[str]]]:
    """Read the photos; returns the table, and the names of the photos that were opened."""

    def read() -> tuple[pd.DataFrame, list[str]]:
        opened.clear()
        return read_photo_table(photo_folder, record=tmp_path / "photos.exif.parquet").frame, sorted(opened)

    return read


def test_only_new_and_changed_photos_are_opened_again(photo_folder, tmp_path, read) -> None:
    photos = sorted(photo_folder.rglob("*.jpg"))
    names = sorted(path.name for path in photos)
    plain = read_photo_table(photo_folder)
    first, opened = read()
    assert opened == names
    again, opened = read()
    assert opened == []
    for frame in (first, again):
        pd.testing.assert_frame_equal(frame, plain.frame)

    write_photo(photos[0])  # has no position
    shutil.copy(photos[1], photo_folder / "new.jpg")
    photos[2].unlink()
    stat = photos[3].stat()
    os.utime(photos[3], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    changed, opened = read()
    assert opened == sorted([photos[0].name, photos[3].name, "new.jpg"])
    pd.testing.assert_frame_equal(changed, read_photo_table(photo_folder).frame)
    assert read()[1] == []
    recorded = set(pd.read_parquet(tmp_path / "photos.exif.parquet")["photo"])
    assert recorded == {str(path) for path in photo_folder.rglob("*.jpg")}


def test_a_photo_that_cannot_be_opened_is_tried_again(photo_folder, read) -> None:
    broken = photo_folder / "broken.jpg"
    broken.write_bytes(b"no photo")
    read()
    assert read()[1] == ["broken.jpg"]


@pytest.mark.parametrize("damage", ["garbage", "version", "columns", "types", "positions"])
def test_a_record_that_cannot_be_used_is_replaced(photo_folder, tmp_path, read, damage) -> None:
    whole, names = read()
    record = tmp_path / "photos.exif.parquet"
    frame = pd.read_parquet(record)
    damaged = {
        "version": lambda: frame.assign(version=0),
        "columns": lambda: frame.drop(columns="device"),
        "types": lambda: frame.assign(bytes="many"),
        "positions": lambda: frame.assign(latitude=np.where(frame.index == 0, np.nan, 91.0)),
    }
    if damage == "garbage":
        record.write_bytes(b"PAR1 no more")
    else:
        damaged[damage]().to_parquet(record)
    repaired, opened = read()
    assert opened == names
    pd.testing.assert_frame_equal(repaired, whole)
    assert read()[1] == []


def test_a_record_of_two_folders_keeps_both(photo_folder, tmp_path, opened) -> None:
    other = Path(shutil.copytree(photo_folder, tmp_path / "photos2"))
    for _ in range(2):
        opened.clear()
        for folder in (photo_folder, other):
            read_photo_table(folder, record=tmp_path / "record.parquet")
    assert opened == []


def test_photos_are_found_by_their_ids_without_opening_them(photo_folder, opened) -> None:
    (photo_folder / "day").mkdir()
    write_photo(photo_folder / "day" / "a.jpg")
    (photo_folder / "away.jpg").symlink_to(write_photo(photo_folder.parent / "away.jpg"))
    files = folder_files(photo_folder)
    frame = read_photo_table(photo_folder).frame
    opened.clear()
    assert {name: files[name] for name in frame["id"]} == dict(zip(frame["id"], frame["photo"], strict=True))
    assert files["day/a.jpg"] == str(photo_folder / "day" / "a.jpg") and "away.jpg" not in files
    assert "away.jpg" in folder_files(photo_folder, allow_outside=True) and opened == []


# Commands


@pytest.mark.slow
def test_commands_read_the_positions_of_photos_once_and_those_off_the_cache_not_at_all(
    jzi, encoded_folder, tmp_path, opened
) -> None:
    shutil.copytree(encoded_folder, tmp_path, dirs_exist_ok=True)
    photos = sorted(path.name for path in (tmp_path / "photos").rglob("*.jpg"))

    def reads(line: str) -> list[str]:
        opened.clear()
        jzi(line)
        return sorted(opened)

    options = "--set train.epochs=1 --set decoder.layers=1 --set decoder.heads=2"
    assert reads("encode-queries") == photos
    for line in ("encode-queries", f"train-decoder {options}", "evaluate", "info features.zarr model"):
        assert reads(line) == [], line
    assert reads("evaluate --gallery-html cases.html --gallery-photos 2") == []
    two = sorted(str(path) for path in (tmp_path / "photos").rglob("*.jpg") if path.name in photos[:2])
    copies = "--geojson a.geojson --csv a.csv --map a.html --write-exif copies --overwrite-gps"
    assert reads(f"locate {' '.join(two)} {copies}") == photos[:2]
    assert reads(f"locate {' '.join(two)} --track --interval 1 --geojson b.geojson") == photos[:2]
    assert '"truth"' in (tmp_path / "a.geojson").read_text() and '"truth"' in (tmp_path / "b.geojson").read_text()
