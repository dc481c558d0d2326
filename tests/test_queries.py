"""Claims about reading photos' positions: folders with EXIF, CSV and Parquet tables."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jzi.errors import PhotoTableError
from jzi.store.cache.feature_cache import FeatureCache
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo
from jzi.store.photos.photo_table import PhotoTable, read_photo_table

LONG_ID = "4449826985073821"  # 16 digits; ...819 and ...823 are other photos, so it must never be rounded


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[..., Path]:
    """A CSV of the given text, in a folder with the photos that are named."""

    def write(text: str, photos: str = "a.jpg b.jpg c.jpg", name: str = "table.csv", encoding: str = "utf-8") -> Path:
        for photo in photos.split():
            (tmp_path / photo).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / photo).touch()  # nothing opens them here
        (tmp_path / name).write_text(text, encoding=encoding)
        return tmp_path / name

    return write


def rows(table: PhotoTable) -> list[tuple]:
    return list(table.frame[["id", "latitude", "longitude"]].itertuples(index=False, name=None))


def reasons(table: PhotoTable) -> dict[str, str]:
    return {rejected.name: rejected.reason for rejected in table.rejected}


# The names and forms that people use


@pytest.mark.parametrize(
    "header",
    ["id,latitude,longitude", "image_id,lat,lon", "photo_id,LAT,Lng", " query_id , gps_latitude , gps_longitude "],
)
def test_columns_are_known_by_the_names_that_people_use(write_table: Callable, header: str) -> None:
    assert rows(read_photo_table(write_table(f"{header}\na,48.2,16.3\n"))) == [("a", 48.2, 16.3)]


@pytest.mark.parametrize("header", ["path,lat,lon", "file,lat,long", "filename,lat,lng", "image,lat,lon"])
def test_photos_without_an_id_are_known_by_their_path(write_table: Callable, header: str) -> None:
    table = read_photo_table(write_table(f"{header}\nsub/a.jpg,48.2,16.3\n", photos="sub/a.jpg"))
    assert rows(table) == [("sub/a.jpg", 48.2, 16.3)]
    assert Path(table.frame["photo"][0]).is_absolute()


def test_the_preferred_name_wins_and_the_other_column_is_kept(write_table: Callable) -> None:
    table = read_photo_table(write_table("image_id,id,lat,latitude,lon,note\nother,a,1,48.2,16.3,wet\n"))
    assert rows(table) == [("a", 48.2, 16.3)]
    assert table.frame["note"].tolist() == ["wet"]
    assert table.frame["image_id"].tolist() == ["other"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_any_separator_and_a_byte_order_mark_will_do(write_table: Callable, separator: str, encoding: str) -> None:
    text = "id,lat,lon\na,48.2,16.3\nb,48.3,16.4\n".replace(",", separator)
    assert rows(read_photo_table(write_table(text, encoding=encoding))) == [("a", 48.2, 16.3), ("b", 48.3, 16.4)]


def test_decimal_commas_are_read(write_table: Callable) -> None:
    table = read_photo_table(write_table("id;lat;lon\na;48,2;-16,3\nb;48.3;16,4\nc;48,2,1;16,3\n"))
    assert rows(table) == [("a", 48.2, -16.3), ("b", 48.3, 16.4)] and "not a number" in reasons(table)["c"]


def test_separators_in_quotes_do_not_count(write_table: Callable) -> None:
    table = read_photo_table(write_table('id;lat;lon;"a, b, c, d, e"\na;48.2;16.3;x\n'))
    assert rows(table) == [("a", 48.2, 16.3)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("part", [',"a', ",'", '","', 'a"|'])
def test_a_header_full_of_quotes_takes_no_hours(write_table: Callable, part: str) -> None:
    with pytest.raises(PhotoTableError, match=r"table\.csv"):
        read_photo_table(write_table(part * (600_000 // len(part)) + "\n1,2,3\n"))


def test_quoted_fields_keep_their_commas(write_table: Callable) -> None:
    table = read_photo_table(write_table('id,lat,lon,sequence\na,48.2,16.3,"[7, 6, 6, 5]"\n'))
    assert table.frame["sequence"].tolist() == ["[7, 6, 6, 5]"]


@pytest.mark.parametrize("column", ["image_id", " image_id", '"image_id"'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_ids_are_text_to_the_last_digit(write_table: Callable, column: str, encoding: str) -> None:
    text, photos = f"{column},lat,lon\n{LONG_ID},48.2,16.3\n007,48.2,16.3\n", f"{LONG_ID}.jpg 007.jpg"
    assert [row[0] for row in rows(read_photo_table(write_table(text, photos, encoding=encoding)))] == [LONG_ID, "007"]


def test_ids_of_a_table_with_a_gap_are_text_to_the_last_digit(write_table: Callable) -> None:
    table = read_photo_table(write_table(f"id,lat,lon\n{LONG_ID},48.2,16.3\n,48.2,16.3\n", f"{LONG_ID}.jpg"))
    assert rows(table)[0][0] == LONG_ID
    assert reasons(table) == {"row 2": "it has no id"}


def test_parquet_text_that_is_not_utf_8_is_refused_and_bytes_are_read(tmp_path: Path) -> None:
    path, columns = tmp_path / "table.parquet", {"lat": [48.2], "lon": [16.3]}
    pd.DataFrame({"id": [b"caf\xe9"], "path": [b"a.jpg"], "note": [b"\xff"], **columns}).to_parquet(path)
    (tmp_path / "a.jpg").touch()
    assert rows(read_photo_table(path)) == [(r"caf\xe9", 48.2, 16.3)]
    for name in ("id", "note"):
        pd.DataFrame({"id": ["a"], **columns, name: ["odd0"]}).to_parquet(path, compression=None)
        path.write_bytes(path.read_bytes().replace(b"odd0", b"odd\xff"))
        with pytest.raises(PhotoTableError, match=r"table\.parquet cannot be read as a table: .*UTF8"):
            read_photo_table(path)


def test_a_small_parquet_file_that_becomes_large_is_refused(tmp_path: Path) -> None:
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(30_000, np.int32)), pa.array(["x" * 200_000]))
    table = pa.table({"id": text, "lat": np.full(30_000, 48.2), "lon": np.full(30_000, 16.3)})
    pq.write_table(table, tmp_path / "table.parquet")
    assert (tmp_path / "table.parquet").stat().st_size < 20_000
    with pytest.raises(PhotoTableError, match="becomes larger than 4 GiB"):
        read_photo_table(tmp_path / "table.parquet")


def test_parquet_reads_as_csv_does(tmp_path: Path, write_table: Callable) -> None:
    write_table("", f"{LONG_ID}.jpg")
    frame = pd.DataFrame({"image_id": [int(LONG_ID)], "lat": [48.2], "lon": [16.3], "tags": [["wet", "dark"]]})
    frame.to_parquet(tmp_path / "table.parquet")
    assert rows(read_photo_table(tmp_path / "table.parquet")) == [(LONG_ID, 48.2, 16.3)]


def test_an_index_with_a_name_is_a_column_and_one_without_is_not(tmp_path: Path, write_table: Callable) -> None:
    write_table("")
    frame = pd.DataFrame({"lat": [48.2, 48.3], "lon": [16.3, 16.4]}, index=pd.Index(["a", "b"], name="image_id"))
    frame.to_parquet(tmp_path / "named.parquet")
    frame.reset_index().set_index(pd.Index(["x", "y"])).replace("a", "").to_parquet(tmp_path / "unnamed.parquet")
    assert rows(read_photo_table(tmp_path / "named.parquet")) == [("a", 48.2, 16.3), ("b", 48.3, 16.4)]
    assert reasons(read_photo_table(tmp_path / "unnamed.parquet")) == {"row 1": "it has no id"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("tail", [",", ",,", ",4,5"])
def test_fields_beyond_the_header_do_not_shift_the_columns(write_table: Callable, tail: str) -> None:
    assert rows(read_photo_table(write_table(f"id,lat,lon\na,48.2,16.3{tail}\n"))) == [("a", 48.2, 16.3)]


@pytest.mark.parametrize(
    "photo", ["7.jpg", "7.JPG", "7.png", "7_undistorted.jpg", "deep/er/7.jpg", "deep/7_undistorted.jpg"]
)
def test_a_photo_is_found_by_its_id_under_the_names_that_data_sets_give(write_table: Callable, photo: str) -> None:
    table = read_photo_table(write_table("image_id,lat,lon\n7,48.2,16.3\n", photo))
    assert table.frame["photo"][0].endswith(photo)


def test_photos_may_lie_in_a_folder_of_their_own(write_table: Callable, tmp_path: Path) -> None:
    table = write_table("id,lat,lon\na,48.2,16.3\n", photos="images/a.jpg")
    assert read_photo_table(table, tmp_path / "images").frame["photo"][0] == str(tmp_path / "images" / "a.jpg")


def test_a_name_that_two_folders_have_is_not_guessed(write_table: Callable) -> None:
    table = read_photo_table(write_table("id,lat,lon\na,48.2,16.3\nb,48.2,16.3\n", "one/a.jpg two/a.jpg two/b.jpg"))
    assert [row[0] for row in rows(table)] == ["b"]
    assert "no such photo" in reasons(table)["a"]


# Splits


def test_a_split_that_is_given_is_honoured(write_table: Callable) -> None:
    table = read_photo_table(write_table("id,lat,lon,split\na,48,16,Train\nb,48,16, validation\nc,48,16,test\n"))
    assert table.frame["split"].tolist() == ["train", "val", "test"]


def test_a_split_that_does_not_exist_is_rejected(write_table: Callable) -> None:
    table = read_photo_table(write_table("id,lat,lon,split\na,48,16,train\nb,48,16,holdout\nc,48,16,\n"))
    assert table.frame["split"].tolist() == ["train"]
    assert set(reasons(table)) == {"b", "c"}
    assert "train, val, test" in reasons(table)["b"]


# Rows that cannot be used


def test_every_row_is_used_or_rejected_with_its_reason(write_table: Callable) -> None:
    text = """id,lat,lon
a,48.2,16.3
,48.2,16.3
b,north,16.3
c,48.2,
gone,48.2,16.3
a,48.3,16.4
d,95,16.3
e,48.2,181
"""
    table = read_photo_table(write_table(text, "a.jpg b.jpg c.jpg d.jpg e.jpg"))
    assert rows(table) == [("a", 48.2, 16.3)], "the first of two with the same id"
    assert len(table) + len(table.rejected) == 8
    expected = {
        "row 2": "no id",
        "b": "not a number",
        "c": "not a number",
        "gone": "no such photo",
        "a": "twice",
        "d": "out of range",
        "e": "out of range",
    }
    assert reasons(table).keys() == expected.keys()
    for name, part in expected.items():
        assert part in reasons(table)[name]


@pytest.mark.parametrize(
    "header",
    ["x;Breite;Länge", "x;Breitengrad;Längengrad", "x;BREITE;LAENGE", "x;latitud;longitud", "x;Latitudine;Longitudine",
     "x;lat;lng", "x;GPSLatitude;GPSLongitude", "x;Geographische Breite;Geographische La\u0308nge"],
)  # fmt: skip
def test_columns_of_positions_have_names_in_several_languages(tmp_path: Path, take_photo, header) -> None:
    take_photo(tmp_path / "a.jpg")
    columns = ["file", *header.split(";")[1:]]
    (tmp_path / "t.csv").write_text(f"{';'.join(columns)}\na.jpg;48,2;16,37\n", encoding="utf-8")
    frame = read_photo_table(tmp_path / "t.csv").frame
    assert (frame["latitude"][0], frame["longitude"][0]) == (48.2, 16.37)


def test_columns_of_sizes_are_not_those_of_positions(tmp_path: Path, take_photo) -> None:
    take_photo(tmp_path / "a.jpg")
    (tmp_path / "t.csv").write_text("file,Breite,Länge,lat,lon\na.jpg,640,480,48.2,16.37\n", encoding="utf-8")
    frame = read_photo_table(tmp_path / "t.csv").frame
    assert (frame["latitude"][0], frame["longitude"][0], frame["Breite"][0]) == (48.2, 16.37, 640)


def test_a_table_in_another_encoding_says_how_to_save_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("file;Breite;Länge\na.jpg;48,2;16,37\n".encode("cp1252"))
    with pytest.raises(PhotoTableError, match=r"is not in UTF-8 .*: save it as CSV UTF-8"):
        read_photo_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("id,latitude\na,48.2\n", "no column of longitudes"),
        ("id,x,y\na,48.2,16.3\n", r"no column of latitudes .*: it has id, x, y; if x, y means that in .* rename"),
        ("id,GPS,lat_dd\na,48.2,16.3\n", r"if GPS, lat_dd means that"),
        ("id,plate,alone\na,48.2,16.3\n", r"it has id, plate, alone$"),
        ("lat,lon\n48.2,16.3\n", "does not identify photos"),
        ("id,lat,lon\n", "has no usable photo"),
        ("id,lat,lon\ngone,48.2,16.3\n", r"gone: no such photo.*1 were rejected"),
        ("id,lat,lon\na,116.4,39.9\nb,116.5,39.8\n", "latitude and longitude swapped"),
        ("", "not a CSV or Parquet"),
        ("\n\n", "not a CSV or Parquet"),
    ],
)
def test_a_table_that_cannot_be_used_says_why_in_one_sentence(write_table: Callable, text: str, match: str) -> None:
    with pytest.raises(PhotoTableError, match=match) as error:
        read_photo_table(write_table(text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / name)
    with pytest.raises(PhotoTableError):
        read_photo_table(tmp_path / name)


def test_a_source_that_is_not_there_is_refused(tmp_path: Path, write_table: Callable) -> None:
    with pytest.raises(PhotoTableError, match="there is no"):
        read_photo_table(tmp_path / "nothing.csv")
    with pytest.raises(PhotoTableError, match="no folder"):
        read_photo_table(write_table("id,lat,lon\na,48,16\n"), tmp_path / "nothing")


# Tables from strangers


def test_paths_lead_out_of_the_folder_of_photos_only_if_allowed(write_table: Callable, tmp_path: Path) -> None:
    for folder in ("else", "photos/sub"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "secret.jpg").touch()
    (tmp_path / "else" / "linked.jpg").touch()
    (tmp_path / "photos" / "a.jpg").touch()
    (tmp_path / "photos" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (tmp_path / "photos" / "good.jpg").symlink_to("a.jpg")
    (tmp_path / "photos" / "folder").symlink_to(tmp_path / "else")
    (tmp_path / "photos" / "other.jpg").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "photos" / "pipe.jpg")
    inside = ["a.jpg", "sub/../a.jpg", "good.jpg", str(tmp_path / "photos" / "a.jpg"), "photos/a.jpg"]
    outside = ["../secret.jpg", str(tmp_path / "secret.jpg"), "link.jpg", "folder/linked.jpg", "sub/../../secret.jpg"]
    missing = ["pipe.jpg", "other.jpg", "/etc/passwd", "..", "/", "x" * 5000 + ".jpg", "x/" * 2000 + "y.jpg"]
    lines = [f"{row},{path},48.2,16.3" for row, path in enumerate([*inside, *outside, *missing])]
    table = write_table("\n".join(["id,path,lat,lon", *lines]), photos="")
    photos = read_photo_table(table, tmp_path / "photos")
    assert photos.frame["id"].tolist() == [str(row) for row in range(len(inside))]
    assert [os.path.realpath(photo) for photo in photos.frame["photo"]] == [str(tmp_path / "photos" / "a.jpg")] * 5
    why = [row.reason for row in photos.rejected]
    assert all("--allow-outside" in reason for reason in why[: len(outside)])
    assert all("no such photo" in reason or "--allow-outside" in reason for reason in why[len(outside) :])
    photos = read_photo_table(table, tmp_path / "photos", allow_outside=True)
    assert photos.frame["id"].tolist() == [str(row) for row in range(len(inside) + len(outside))]


def test_links_of_a_folder_lead_out_of_it_only_if_allowed(photo_folder: Path, tmp_path: Path, take_photo) -> None:
    take_photo(tmp_path / "else.jpg", 48.2, 16.3)
    (photo_folder / "link.jpg").symlink_to(tmp_path / "else.jpg")
    table = read_photo_table(photo_folder)
    assert (len(table), [row.name for row in table.rejected]) == (30, ["link.jpg"])
    assert len(read_photo_table(photo_folder, allow_outside=True)) == 31


def test_a_name_that_is_not_utf8_is_written_in_escapes(tmp_path: Path, take_photo: Callable) -> None:
    take_photo(tmp_path / "plain.jpg", 48.2, 16.3)
    os.rename(tmp_path / "plain.jpg", os.fsencode(tmp_path) + b"/caf\xe9.jpg")  # noqa: PTH104
    frame = read_photo_table(tmp_path).frame
    assert frame[["id", "path"]].to_numpy().tolist() == [["caf\\xe9.jpg"] * 2]
    assert os.fsencode(frame["photo"][0]).endswith(b"/caf\xe9.jpg")


def test_cells_that_no_file_system_takes_cost_only_their_row(write_table: Callable) -> None:
    text = f"id,path,lat,lon\na,a.jpg,48.2,16.3\nlong,{'x' * 200_000}.jpg,48.2,16.3\nnul,b\0.jpg,48.2,16.3\n"
    table = read_photo_table(write_table(text))
    assert table.frame["id"].tolist() == ["a"]
    assert reasons(table).keys() == {"long", "nul"}
    table = read_photo_table(write_table(f"id,lat,lon\na,48.2,16.3\n{'y' * 5000},48,16\n\x1b[2J,48,16\n"))
    assert reasons(table).keys() == {"y" * 100 + "...", "\\x1b[2J"}, "short, and nothing that a terminal obeys"


def test_columns_keep_their_names_unless_those_are_too_long_for_the_cache(
    write_table: Callable, pyramid: Pyramid, info: EncoderInfo, tmp_path: Path
) -> None:
    header = f"id,lat,lon,..,.,,km/h,km_h,zarr.json,__x,{'z' * 201},{'/' * 70},{'ü' * 101}, {'ü' * 100}, id,ID"
    frame = read_photo_table(write_table(header + "\na,48.2,16.3,1,2,3,4,5,6,7,8,9,10,11,12,13\n")).frame
    odd = {"..": 1, ".": 2, "Unnamed: 5": 3, "km/h": 4, "km_h": 5, "zarr.json": 6, "__x": 7, "ü" * 100: 11}
    assert set(frame) == {"id", "ID", "latitude", "longitude", "photo", "path", "line", "split", *odd}
    assert frame["id"].tolist() == ["a"]
    FeatureCache.create(tmp_path / "a.zarr", pyramid, info).queries.list_photos(frame)
    kept = FeatureCache.open(tmp_path / "a.zarr").queries.frame()
    assert kept[list(odd)].to_numpy().tolist() == [list(odd.values())]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("id,lat,lon," + "x" * 140_000 + "\na,48,16,1\n", "field larger than field limit"),
        ("x" * 2_000_000, "its first line has"),
        ("," * 5000 + "\n", "has 5001 columns: the most is 1000"),
        ("id,lat,lon\na,48,16" + ",1" * 5000, "has 5003 columns"),
    ],
    ids=["header field", "header", "columns", "fields"],
)
def test_a_table_beyond_all_bounds_is_refused_at_once(write_table: Callable, text: str, match: str) -> None:
    with pytest.raises(PhotoTableError, match=match) as error:
        read_photo_table(write_table(text))
    assert len(str(error.value)) < 500


def test_each_folder_is_listed_once(write_table: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    lines = [f"{row},48.2,16.3" for row in range(200)]
    table = write_table("\n".join(["id,lat,lon", *lines]), " ".join(f"s{row % 3}/{row}.jpg" for row in range(100)))
    assert len(read_photo_table(table)) == 100
    assert len(listed) == len(set(listed)) == 4


# Folders


def test_a_folder_gives_every_photo_with_position_and_heading(photo_folder: Path, pyramid: Pyramid) -> None:
    table = read_photo_table(photo_folder)
    assert (len(table), table.rejected) == (30, ())
    assert sorted(table.frame["id"])[:2] == ["day0/000.jpg", "day0/002.jpg"]
    by_number = table.frame.sort_values("heading")
    np.testing.assert_allclose(by_number["heading"], np.arange(30) * 12.0, atol=1e-3)
    assert len(table.inside(pyramid)) == 30
    assert set(table.frame["split"]) == {"train", "val", "test"}


def test_south_and_west_are_negative(tmp_path: Path, take_photo: Callable) -> None:
    take_photo(tmp_path / "rio.jpg", -22.95, -43.21)
    assert rows(read_photo_table(tmp_path)) == [("rio.jpg", pytest.approx(-22.95), pytest.approx(-43.21))]


def test_photos_that_say_no_place_are_rejected_one_by_one(tmp_path: Path, take_photo: Callable) -> None:
    take_photo(tmp_path / "good.jpg", 48.2, 16.3)
    take_photo(tmp_path / "nowhere.jpg")
    take_photo(tmp_path / "null-island.jpg", 0.0, 0.0)
    take_photo(tmp_path / "beyond.jpg", 95.0, 16.3)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").write_text("no photo, and nobody asked")
    table = read_photo_table(tmp_path)
    assert table.frame["id"].tolist() == ["good.jpg"]
    why = reasons(table)
    assert sorted(why) == ["beyond.jpg", "broken.jpg", "empty.png", "nowhere.jpg", "null-island.jpg"]
    assert "no GPS position" in why["nowhere.jpg"]
    assert "without a fix" in why["null-island.jpg"]
    assert "cannot be read as a photo" in why["broken.jpg"]


def test_a_folder_without_a_usable_photo_is_refused(tmp_path: Path, take_photo: Callable) -> None:
    with pytest.raises(PhotoTableError, match="0 were rejected"):
        read_photo_table(tmp_path)
    take_photo(tmp_path / "nowhere.jpg")
    with pytest.raises(PhotoTableError, match="no GPS position"):
        read_photo_table(tmp_path)


def test_cameras_own_exif_is_understood(shared: Path) -> None:
    table = read_photo_table(shared / "exif-photos")
    assert table.rejected == ()
    places = table.frame.set_index("id")
    assert places.loc["berlin-01.jpg", ["latitude", "longitude"]].tolist() == pytest.approx([52.5, 13.4], abs=0.2)
    lund = places.loc[["lund-01.jpg", "lund-09.jpg", "lund-17.jpg"]]
    np.testing.assert_allclose(lund[["latitude", "longitude"]].astype(float), [[55.7, 13.2]] * 3, atol=0.1)


def test_a_real_table_of_photos_is_read_whole(shared: Path) -> None:
    source = shared / "helsinki-pairs" / "queries.csv"
    with source.open(newline="") as file:
        expected = {row["image_id"]: float(row["compass_deg"]) for row in csv.DictReader(file)}
    table = read_photo_table(source)
    assert dict(zip(table.frame["id"], table.frame["heading"], strict=True)) == expected
    assert all(Path(photo).stem == name for name, photo in zip(table.frame["id"], table.frame["photo"], strict=True))


# In the area


def test_photos_outside_of_the_area_are_rejected_and_the_others_kept(write_table: Callable, pyramid: Pyramid) -> None:
    table = read_photo_table(write_table("id,lat,lon\na,48.2,16.37\nb,48.3,16.37\nc,48.2001,16.3701\n"))
    inside = table.inside(pyramid)
    assert inside.frame["id"].tolist() == ["a", "c"]
    assert inside.frame.index.tolist() == [0, 1]
    assert reasons(inside) == {"b": "outside the area"}


def test_a_table_all_of_whose_photos_are_elsewhere_is_refused_with_both_places(
    write_table: Callable, pyramid: Pyramid
) -> None:
    table = read_photo_table(write_table("id,lat,lon\na,38.9,-77.0\nb,38.9,-77.1\n"))
    with pytest.raises(PhotoTableError, match=r"none of the 2 photos.*48\.20000, 16\.37000.*38\.90000, -77\.00000"):
        table.inside(pyramid)


def test_swapped_columns_are_named_even_where_both_are_in_range(write_table: Callable, pyramid: Pyramid) -> None:
    table = read_photo_table(write_table("id,lat,lon\na,16.37,48.2\nb,16.3701,48.2001\n"))
    with pytest.raises(PhotoTableError, match="latitude and longitude swapped"):
        table.inside(pyramid)
