"""The folder of a data set: what is written is read back, and hostile tables are refused in one sentence."""

from __future__ import annotations

import csv
import errno
import math
import os
from datetime import date
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jzi.curate import folder as folder_module
from jzi.curate.folder import DatasetFolder, DatasetInfo, FilterCount, Rejection, Source, read_info
from jzi.errors import DatasetError
from jzi.store.printable import printable, quote_formula, unquote_formula


def dataset(folder: Path, **columns: object) -> DatasetFolder:
    photos = pd.DataFrame({"id": ["a", "b"], "path": ["images/a.jpg", "images/b.jpg"], "latitude": [48.2, -48.3]})
    photos = photos.assign(longitude=[16.3, -16.4]).assign(**columns)
    source = Source(kind="photos", name="a folder", accessed=date(2024, 5, 1), details={"hours": 3.5, "by": "bike"})
    info = DatasetInfo(sources=(source,), found=3, filters=(FilterCount(name="age", setting="", removed=1),))
    return DatasetFolder(folder, photos, info, (Rejection("c", "age", "taken in 1904"),))


def test_a_folder_reads_back_what_was_written(tmp_path: Path) -> None:
    written = dataset(tmp_path, drive=["007", ""], panorama=[True, False], heading=[12.5, math.nan], width=[640, 480])
    written.write()
    read = DatasetFolder.read(tmp_path)
    assert read.info == written.info and read.rejected == written.rejected
    assert read.photos["drive"].tolist() == ["007", ""] and read.photos["panorama"].tolist() == [True, False]
    assert read.photos["heading"].isna().tolist() == [False, True]
    assert list(read.photos)[:4] == ["id", "path", "latitude", "longitude"]
    read.write()
    assert DatasetFolder.read(tmp_path).photos.equals(read.photos)


def test_no_cell_is_a_formula_and_names_that_begin_like_one_come_back(tmp_path: Path) -> None:
    names = ["=HYPERLINK(1)", "-Ab3_x"]
    written = dataset(tmp_path, id=names, drive=["+1", "@x"], creator=["'=1", "'t Hooft"], **{"=x": ["=y", "z"]})
    DatasetFolder(tmp_path, written.photos, written.info, (Rejection("=1", "-2", "@3"),)).write()
    for name in ("photos.csv", "rejected.csv"):
        with (tmp_path / name).open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@")) or cell.startswith("-A")], name
    read = DatasetFolder.read(tmp_path)
    assert read.photos["id"].tolist() == names and read.photos["creator"].tolist() == ["'=1", "'t Hooft"]
    assert read.photos["drive"].tolist() == ["+1", "@x"] and read.photos["=x"].tolist() == ["=y", "z"]
    assert read.photos["latitude"].tolist() == [48.2, -48.3]
    assert read.rejected == (Rejection("=1", "-2", "@3"),)


@settings(deadline=None)
@given(st.text())
def test_quoting_is_undone(text: str) -> None:
    assert unquote_formula(quote_formula(text)) == printable(text)
    assert not quote_formula(text).startswith(("=", "+", "-", "@", "\t", "\r"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(name=st.text(min_size=1), creator=st.text())
def test_text_of_strangers_survives_the_table(tmp_path: Path, name: str, creator: str) -> None:
    dataset(tmp_path, id=[name, f"{name}x"], creator=[creator, ""]).write()
    read = DatasetFolder.read(tmp_path).photos
    assert read["id"].tolist() == [printable(name), printable(f"{name}x")] and read["creator"][0] == printable(creator)


@pytest.mark.parametrize("name", ["NA", "null", "nan", "None", "007", "1e5", "True"])
def test_names_that_look_like_other_values_stay_text(tmp_path: Path, name: str) -> None:
    dataset(tmp_path, id=[name, "b"], drive=[name, "x"], device=[name, name]).write()
    read = DatasetFolder.read(tmp_path).photos
    assert read["id"][0] == read["drive"][0] == read["device"][1] == name


@pytest.mark.parametrize(
    "path", ["../a.jpg", "/etc/passwd", "images/../../a.jpg", "..\\a.jpg", "C:\\a.jpg", "", "~/a.jpg", "a/.."]
)
def test_paths_that_lead_out_of_the_folder_are_refused(tmp_path: Path, path: str) -> None:
    dataset(tmp_path, path=[path, "images/b.jpg"]).write()
    with pytest.raises(DatasetError, match=r"row 1 .* has a path that is not one of a file in the folder"):
        DatasetFolder.read(tmp_path)


def test_links_that_lead_out_of_the_folder_are_refused_and_missing_photos_named(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    inside = tmp_path / "set"
    data = dataset(inside)
    data.write()
    (inside / "images").mkdir()
    (inside / "images" / "a.jpg").symlink_to(tmp_path / "secret")
    (inside / "images" / "x..y.jpg").write_text("")
    with pytest.raises(DatasetError, match="is no file of the data set"):
        data.photo("images/a.jpg")
    with pytest.raises(DatasetError, match=r"lists images/b.jpg, which is not there"):
        data.photo("images/b.jpg")
    assert data.photo("images/x..y.jpg").is_file()


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"latitude": [math.nan, 1.0]}, "row 1 .* has no position on earth"),
        ({"longitude": [1.0, 181.0]}, "row 2 .* has no position on earth"),
        ({"id": ["a", "a"]}, "row 2 .* has the id of another row"),
        ({"id": ["", "a"]}, "row 1 .* has no id"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, columns: dict, says: str) -> None:
    dataset(tmp_path, **columns).write()
    with pytest.raises(DatasetError, match=says):
        DatasetFolder.read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0\0\0", b"\xff\xfe\xff", b"id,path\na,b\n", b'id,path,latitude,longitude\n"a', b"<html></html>",
        b"id,path,latitude,longitude\na,b,1,2,3,4\n" * 2, b"," * 3000, b"x" * 3_000_000,
        b"id,path,latitude,longitude\na,b,here,there\n", b"id,path,latitude,longitude\n\xe9,b,1,2\n",
    ],
    ids=range(11),
)  # fmt: skip
def test_damaged_tables_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    dataset(tmp_path).write()
    (tmp_path / "photos.csv").write_bytes(content)
    with pytest.raises(DatasetError) as error:
        DatasetFolder.read(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"format": 2}',
        b'{"found": -1}',
        b'{"extra": 1}',
        b'{"found": 1e400}',
        b"\xff",
    ],
)
def test_a_damaged_dataset_json_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    dataset(tmp_path).write()
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DatasetError, match=r"dataset.json is damaged or of another version"):
        DatasetFolder.read(tmp_path)


def test_a_fifo_and_a_huge_dataset_json_are_not_read(tmp_path: Path) -> None:
    dataset(tmp_path).write()
    (tmp_path / "dataset.json").write_bytes(b" " * (folder_module.MAX_INFO + 1))
    with pytest.raises(DatasetError, match="larger than"):
        read_info(tmp_path)
    (tmp_path / "dataset.json").unlink()
    os.mkfifo(tmp_path / "dataset.json")
    with pytest.raises(DatasetError, match="it is a FIFO"):
        read_info(tmp_path)
    with pytest.raises(DatasetError, match="is not the folder of a data set"):
        read_info(tmp_path / "nothing")


def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset(tmp_path).write()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(DatasetError, match="the disk is full"):
        dataset(tmp_path, drive=["x", "y"]).write()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_numbers_that_json_has_no_word_for_are_refused_when_they_are_given() -> None:
    with pytest.raises(ValueError, match="finite"):
        Source(kind="imagery", name="x", accessed=date(2024, 1, 1), details={"gsd": math.nan})
    assert Source(kind="photos", name="caf\udce9\n", accessed=date(2024, 1, 1)).name == r"caf\udce9\n"
