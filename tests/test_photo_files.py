"""The status of each file of a photo is requested once, and copies of a file are found by their bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from jzi.encode.photo import photo_files
from jzi.encode.photo.photo_files import UNKNOWN, PhotoFiles, with_copies_together
from jzi.store.photos.photo_table import PhotoTable
from jzi.store.photos.splits import TABLE_SPLIT, SplitInfo

NOTHING = pd.DataFrame({"id": [], "photo_bytes": [], "photo_mtime_ns": [], "photo_sha256": []})


@pytest.fixture
def table(tmp_path: Path) -> PhotoTable:
    """Four photos: a and c are copies, b is of the same size, and d does not exist."""
    for name, content in (("a", b"1234"), ("b", b"5678"), ("c", b"1234")):
        (tmp_path / name).write_bytes(content)
    frame = pd.DataFrame({"id": list("abcd"), "split": ["train", "val", "test", "val"]}, index=[3, 5, 8, 9])
    photos = frame.assign(photo=[str(tmp_path / name) for name in frame["id"]])
    return PhotoTable(photos, (), "photos", split=SplitInfo("photo", "photo", 4))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    names: list[str] = []
    sha256 = photo_files._sha256
    monkeypatch.setattr(photo_files, "_sha256", lambda path: (names.append(path.name), sha256(path))[1])
    return names


def test_each_file_is_read_at_most_once(table: PhotoTable, read: list[str]) -> None:
    files = PhotoFiles(table.frame)
    assert files.size.to_dict() == {"a": 4, "b": 4, "c": 4, "d": -1}
    assert files.mtime_ns["d"] == -1 and files.mtime_ns["a"] == Path(files.path["a"]).stat().st_mtime_ns
    first, again, missing = files.digests(["b", "a", "d"])[[0, 2, 2]]
    assert files.digests(["d", "b"]).tolist() == [UNKNOWN, first]
    assert again == missing == UNKNOWN and len(first) == 64
    assert sorted(read) == ["a", "b", "d"]


def test_copies_are_assigned_to_one_split(table: PhotoTable, read: list[str]) -> None:
    together, copies = with_copies_together(table, NOTHING, PhotoFiles(table.frame))
    assert (together.frame["split"].tolist(), copies) == (["train", "val", "train", "val"], 1)
    assert together.frame.index.equals(table.frame.index) and sorted(read) == ["a", "b", "c"]
    own = PhotoTable(table.frame, (), "photos", split=TABLE_SPLIT)
    assert with_copies_together(own, NOTHING, PhotoFiles(table.frame)) == (own, 1)


def test_digests_that_are_known_are_not_computed_again(table: PhotoTable, read: list[str]) -> None:
    files = PhotoFiles(table.frame)
    known = pd.DataFrame({"id": ["c", "a", ""], "photo_bytes": [4, 4, 4]})
    known = known.assign(photo_mtime_ns=[*files.mtime_ns[["c", "a"]], 0], photo_sha256=["x", "x", "y"])
    assert with_copies_together(table, known, files)[1] == 1 and read == ["b"]
    os.utime(files.path["a"], (1, 1))
    assert with_copies_together(table, known, PhotoFiles(table.frame))[1] == 0, "its digest may be another one"
    assert sorted(read) == ["a", "b", "b"]
