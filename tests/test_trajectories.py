"""Photos with trajectories: KITTI raw data, GPX, CSV, TUM and KITTI's poses; and the tracks that they are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from jzi.cli import main
from jzi.curate.folder import DatasetFolder
from jzi.errors import DatasetError
from jzi.recordings import gpx
from jzi.recordings.gpx import read_gpx
from jzi.recordings.track import Track, iso_time, parse_time
from jzi.store.geometry.pyramid import WGS84, geodesic_distance
from jzi.store.photos.photo_table import read_photo_table

START = 1_714_564_800.0  # 2024-05-01T12:00:00Z
METRE = 1 / 111_200  # degrees of latitude, nearly


def run(line: str, code: int = 0):
    result = CliRunner().invoke(main, line.split())
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def write_gpx(file: Path, points, body: str | None = None, head: str = "") -> Path:
    """Points are (time, latitude, longitude); a time of None is left out."""
    text = "".join(
        f'<trkpt lat="{north}" lon="{east}"><ele>1</ele>'
        + (f"<time>{iso_time(time)}</time>" if time is not None else "")
        + "<extensions><time>2001-01-01T00:00:00Z</time></extensions></trkpt>"
        for time, north, east in points
    )
    text = f"<trk><name>a</name><trkseg>{text}</trkseg></trk>" if body is None else body
    file.write_text(f'<?xml version="1.0"?>{head}<gpx xmlns="http://www.topografix.com/GPX/1/1">{text}</gpx>')
    return file


def photo(file: Path, time: str | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if time:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = time
    Image.new("RGB", (16, 12), (90, 100, 110)).save(file, exif=exif)
    return file


def line(speed: float = 10.0, count: int = 11, heading: float = 90.0):
    """Points a second apart on a straight line."""
    for second in range(count):
        east, north, _ = WGS84.fwd(16.37, 48.2, heading, speed * second)
        yield START + second, north, east


# Tracks


def test_a_track_is_sorted_and_loses_points_without_a_place_or_a_time() -> None:
    time = [3.0, 1.0, 2.0, 2.0, np.nan, 5.0, 6.0, 7.0]
    latitude = [48.3, 48.1, 48.2, 9.0, 48.0, 0.0, np.nan, 95.0]
    track = Track.of("track", time, latitude, [16.0] * 5 + [0.0, 16.0, 16.0])
    assert track.time_s.tolist() == [1, 2, 3] and track.latitude.tolist() == [48.1, 48.2, 48.3]
    assert track.dropped == 5 and track.unordered
    with pytest.raises(DatasetError, match="track has no two points to go by: of its 2 points 1 have"):
        Track.of("track", [1.0, 1.0], [48.0, 48.0], [16.0, 16.0])
    with pytest.raises(DatasetError, match="no times"):
        Track.of("track", [np.nan] * 3, [48.0] * 3, [16.0] * 3)


def test_positions_are_interpolated_and_neither_gaps_nor_ends_are_bridged() -> None:
    track = Track.of("track", [0, 10, 60, 70], [48.0, 48.1, 48.6, 48.7], [16.0] * 4)
    latitude, longitude, heading = track.at([-1, 0, 5, 10, 30, 60, 65, 70, 71], max_gap_s=20)
    assert latitude == pytest.approx([np.nan, 48, 48.05, 48.1, np.nan, 48.6, 48.65, 48.7, np.nan], nan_ok=True)
    assert (np.isnan(longitude) == np.isnan(latitude)).all() and np.nan_to_num(heading).max() == 0


def test_a_track_across_the_antimeridian_stays_there() -> None:
    track = Track.of("track", [0, 1], [10.0, 10.0], [179.9, -179.9])
    _, longitude, heading = track.at([0.25, 0.5, 0.75], 10)
    assert longitude == pytest.approx([179.95, 180, -179.95]) and heading == pytest.approx(90, abs=0.1)


@pytest.mark.parametrize("heading", [0.0, 90.0, 200.0, 359.0])
def test_the_heading_is_the_direction_of_travel(heading) -> None:
    track = Track.of("track", *np.array([*line(heading=heading)]).T)
    found = track.at(track.time_s, 10)[2]
    assert np.abs((found - heading + 180) % 360 - 180).max() < 0.01


def test_what_stands_still_has_no_heading() -> None:
    track = Track.of("track", np.arange(5.0), 48 + np.array([0, 1, 0, 1, 0]) * 0.1 * METRE, [16.0] * 5)
    assert np.isnan(track.at([2.0], 10)[2]).all()


@given(
    st.lists(st.tuples(st.floats(0.1, 20), st.floats(0, 20)), min_size=1, max_size=20),
    st.floats(1, 50),
    st.floats(0, 5),
)
@settings(max_examples=100, deadline=None)
def test_spaced_times_are_a_distance_apart_where_the_track_moves(steps, every, min_speed) -> None:
    time = np.cumsum([0, *(duration for duration, _ in steps)])
    north = np.cumsum([0, *(duration * speed for duration, speed in steps)])
    track = Track.of("track", time, 48 + north * METRE, np.full(len(time), 16.0))
    times = track.spaced(every, start_s=-1, end_s=1e9, min_speed=min_speed, max_gap_s=15)
    assert (np.diff(times) > 0).all() and ((times >= 0) & (times <= time[-1])).all()
    length = geodesic_distance(track.latitude[:-1], 16, track.latitude[1:], 16)
    moves = (length >= min_speed * np.diff(time)) & (length > 0) & (np.diff(time) <= 15)
    covered = np.concatenate([[0], np.cumsum(np.where(moves, length, 0))])
    assert len(times) == math.ceil(covered[-1] / every - 1e-12)
    assert np.interp(times, time, covered) == pytest.approx(np.arange(len(times)) * every, abs=1e-3)


def test_times_are_those_of_utc_unless_they_say_otherwise() -> None:
    assert parse_time("2024-05-01T12:00:00Z") == parse_time("2024-05-01T14:00:00+02:00") == START
    assert parse_time(" 2024-05-01 12:00:00 ") == START and parse_time("yesterday") is None
    assert iso_time(START + 0.25) == "2024-05-01T12:00:00.250Z" and iso_time(1e300) == "" == iso_time(math.nan)


# GPX


def test_points_of_a_gpx_are_those_that_gpxpy_reads(tmp_path) -> None:
    gpxpy = pytest.importorskip("gpxpy")
    file = write_gpx(tmp_path / "track.gpx", line())
    expected = [
        (point.time.timestamp(), point.latitude, point.longitude)
        for track in gpxpy.parse(file.read_text()).tracks for segment in track.segments for point in segment.points
    ]  # fmt: skip
    track = read_gpx(file)
    assert np.stack([track.time_s, track.latitude, track.longitude], 1) == pytest.approx(np.array(expected))


BOMB = "<!DOCTYPE gpx [" + "<!ENTITY a0 'aaaaaaaaaa'>" + "".join(
    f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 12)
) + "]>"  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": BOMB, "body": "<trk><name>&a11;</name></trk>"}, "it has a document type"),
        ({"head": '<!DOCTYPE gpx SYSTEM "file:///etc/passwd">'}, "it has a document type"),
        ({"body": "<trk>"}, "cannot be read as GPX"),
        ({"body": "<x>" * 100}, "nested more than 64 deep"),
        ({"body": "<wpt lat='1' lon='2'/>"}, "no track points"),
        ({"points": [(None, 48.2, 16.37), (None, 48.3, 16.37)]}, "2 points and no times"),
        ({"points": [(START, 0, 0), (START + 1, 0, 0)]}, "no two points to go by"),
        ({"points": [(START, "nan", 16), (START + 1, "x", 16), (START, 48, 16)]}, "no two points to go by"),
    ],
)
def test_a_track_that_cannot_be_used_is_one_sentence(tmp_path, change, message) -> None:
    photo(tmp_path / "images" / "a.jpg")
    file = write_gpx(tmp_path / "track.gpx", **{"points": [*line()], **change})
    output = run(f"dataset import trajectory {file} --images {tmp_path / 'images'} -o {tmp_path / 'out'}", 2).output
    assert message in output and output.count("\n") == 1 and len(output) < 1000
    assert not (tmp_path / "out").exists()


def test_other_xml_other_encodings_and_long_files(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.gpx").write_text("<kml></kml>")
    with pytest.raises(DatasetError, match="no element gpx"):
        read_gpx(tmp_path / "a.gpx")
    file = write_gpx(tmp_path / "b.gpx", line())
    text = file.read_text()
    file.write_bytes(text.encode("utf-16"))
    assert len(read_gpx(file).time_s) == 11
    file.write_bytes(text.replace("<?xml", BOMB.replace("a", "b") + "<?xml").encode("utf-16"))
    with pytest.raises(DatasetError):
        read_gpx(file)
    monkeypatch.setattr(gpx, "MAX_BYTES", 100)
    with pytest.raises(DatasetError, match="more than 100 bytes"):
        read_gpx(write_gpx(tmp_path / "c.gpx", line()))


# Photos on a track


def test_photos_get_the_place_of_their_time(tmp_path) -> None:
    file = write_gpx(tmp_path / "track.gpx", line())
    images = tmp_path / "images"
    for name, time in (("a", "14:00:02"), ("b", "14:00:05"), ("late", "18:00:00"), ("none", None)):
        photo(images / f"{name}.jpg", time and f"2024:05:01 {time}")
    command = f"dataset import trajectory {file} --images {images} -o {tmp_path / 'out'}"
    assert "correct the photos' times by --offset" in run(command, 2).output
    output = run(f"{command} --offset -7200 --direction 45")
    assert "is not on the trajectory" in output.stderr and "no time in a list" in output.stderr
    photos = DatasetFolder.read(tmp_path / "out").photos.set_index("id")
    assert sorted(photos.index) == ["a", "b"] and photos.loc["a", "captured_at"] == "2024-05-01T12:00:02.000Z"
    assert photos["heading"].tolist() == pytest.approx([135, 135], abs=0.01)
    distance = WGS84.inv(16.37, 48.2, *photos.loc["b", ["longitude", "latitude"]])[2]
    assert distance == pytest.approx(50, abs=0.01)
    assert len(read_photo_table(tmp_path / "out" / "photos.csv")) == 2


def test_a_csv_has_columns_by_any_usual_name_and_its_own_headings(tmp_path) -> None:
    rows = [f"{iso_time(time)};{north};{east};77" for time, north, east in line()]
    (tmp_path / "log.csv").write_text("\n".join(["Time;lat;lon;bearing", *rows, "x;y;z;0", ";;;"]))
    photo(tmp_path / "images" / f"{int(START + 3)}.jpg")
    photo(tmp_path / "images" / f"{int(START + 4) * 1000 + 500}.jpg")
    run(f"dataset import trajectory {tmp_path / 'log.csv'} --images {tmp_path / 'images'} -o {tmp_path / 'out'}")
    made = DatasetFolder.read(tmp_path / "out")
    assert made.photos["heading"].tolist() == [77, 77] and len(made.photos) == 2
    assert any("2 points of the trajectory" in note for note in made.info.notes)
    (tmp_path / "bad.csv").write_text("time,latitude\n1,2\n")
    output = run(f"dataset import trajectory {tmp_path / 'bad.csv'} --images {tmp_path / 'images'} -o x", 2).output
    assert "has no column longitude" in output


def tum(tmp_path: Path) -> tuple[str, Path]:
    """Along y of the frame, 10 m a second; an optical frame that looks along y: x right, z ahead, y down."""
    half = math.sqrt(0.5)
    rows = [f"{START + second:.6f} 0 {10 * second} 2 {-half} 0 0 {half}" for second in range(11)]
    (tmp_path / "tum.txt").write_text("# time tx ty tz qx qy qz qw\n" + "\n".join(rows))
    photo(tmp_path / "images" / f"{START + 2.5:.6f}.png")
    return f"dataset import trajectory {tmp_path / 'tum.txt'} --images {tmp_path / 'images'}", tmp_path / "out"


def test_tum_poses_are_placed_by_an_origin_and_a_heading(tmp_path) -> None:
    command, out = tum(tmp_path)
    assert "give --origin LATITUDE LONGITUDE" in run(f"{command} -o {out}", 2).output
    assert "belong together" in run(f"{command} -o {out} --origin 48.2 16.37", 2).output
    run(f"{command} -o {out} --origin 48.2 16.37 --heading 90")  # x is east, so y is north
    row = DatasetFolder.read(out).photos.iloc[0]
    azimuth, _, distance = WGS84.inv(16.37, 48.2, row["longitude"], row["latitude"])
    assert distance == pytest.approx(25, abs=0.01) and azimuth == pytest.approx(0, abs=0.01)
    assert row["heading"] == pytest.approx(0, abs=1e-6) and row["captured_at"] == iso_time(START + 2.5)
    run(f"{command} -o {out}2 --origin 48.2 16.37 --heading 200 --forward x")
    row = DatasetFolder.read(Path(f"{out}2")).photos.iloc[0]
    azimuth = WGS84.inv(16.37, 48.2, row["longitude"], row["latitude"])[0]
    assert azimuth % 360 == pytest.approx(110, abs=0.01) and row["heading"] == pytest.approx(200)


def test_poses_of_kitti_belong_to_photos_in_their_order(tmp_path) -> None:
    rows = []
    for index in range(3):  # ahead 10 m a photo, and turning right by 30 degrees
        angle = math.radians(30 * index)
        sin, cos = math.sin(angle), math.cos(angle)
        rows.append(f"{cos} 0 {sin} {index} 0 1 0 0 {-sin} 0 {cos} {10 * index}")
        photo(tmp_path / "images" / f"{index:06}.png")
    (tmp_path / "00.txt").write_text("\n".join(rows))
    (tmp_path / "times.txt").write_text("0.0\n1.0e-01\n2.0e-01\n")
    command = f"dataset import trajectory {tmp_path / '00.txt'} --images {tmp_path / 'images'} -o {tmp_path / 'out'}"
    assert "where its z axis points" in run(command, 2).output
    run(f"{command} --origin 48.2 16.37 --heading 90 --times {tmp_path / 'times.txt'}")
    photos = DatasetFolder.read(tmp_path / "out").photos
    assert photos["heading"].tolist() == pytest.approx([90, 120, 150])
    east, north = 10, -1  # ahead is east, right is south
    azimuth, _, distance = WGS84.inv(16.37, 48.2, *photos.loc[1, ["longitude", "latitude"]])
    assert distance == pytest.approx(math.hypot(east, north), rel=1e-4)
    assert azimuth == pytest.approx(math.degrees(math.atan2(east, north)), abs=0.01)
    photo(tmp_path / "images" / "9.png")
    assert "has 3 poses for 4 photos" in run(f"{command}2 --origin 48.2 16.37 --heading 90", 2).output


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "cannot be read as a table"), ("1 2 3\n", "its lines have 3 numbers"), ("\0\1", "it is no text"),
     ("1 2 3\nhello\n", "line 2 is 'hello'"), ("nan " * 8, "no times"), ("hello\n", "has no column time")],
)  # fmt: skip
def test_other_files_are_no_trajectories(tmp_path, text, message) -> None:
    photo(tmp_path / "images" / "a.jpg")
    (tmp_path / "poses.txt").write_text(text)
    command = f"dataset import trajectory {tmp_path / 'poses.txt'} --images {tmp_path / 'images'} -o {tmp_path / 'out'}"
    output = run(f"{command} --origin 48.2 16.37 --heading 0", 2).output
    assert message in output and output.count("\n") == 1
    (tmp_path / "empty").mkdir()
    assert "has no photos" in run(command.replace("/images", "/empty"), 2).output
    assert "latitude of --origin" in run(f"{command} --origin 95 16 --heading 0", 2).output


# KITTI raw data


def kitti(root: Path, frames: int = 4) -> Path:
    drive = root / "2011_09_26" / "2011_09_26_drive_0001_sync"
    (drive / "oxts" / "data").mkdir(parents=True)
    for index in range(frames):
        photo(drive / "image_02" / "data" / f"{index:010}.png")
        values = [
            49.0 + index * 10 * METRE,
            8.4,
            110.0,
            0.01,
            0.02,
            math.radians(90 - 20),
            *[0.0] * 17,
            0.05,
            *[1.0] * 6,
        ]
        (drive / "oxts" / "data" / f"{index:010}.txt").write_text(" ".join(map(str, values)))
    times = [f"2011-09-26 13:02:2{index}.964389445" for index in range(frames)]
    (drive / "image_02" / "timestamps.txt").write_text("\n".join(times))
    calibration = "S_rect_02: 1.242000e+03 3.750000e+02\nP_rect_02: 7.215377e+02 0 6.095593e+02 0 0 0 0 0 0 0 0 0\n"
    (drive.parent / "calib_cam_to_cam.txt").write_text(calibration)
    return drive


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_drives_of_kitti_are_found_from_any_folder_above(tmp_path, depth) -> None:
    drive = kitti(tmp_path / "raw")
    (drive / "oxts" / "data" / "0000000001.txt").write_text("0 0 0 0 0 0")
    (drive / "oxts" / "data" / "0000000002.txt").unlink()
    folder = [drive, drive.parent, drive.parent.parent][depth]
    report = json.loads(run(f"dataset import kitti {folder} -o {tmp_path / 'out'} --json").stdout)
    assert (report["photos"], report["rejected"]) == (2, 2)
    made = DatasetFolder.read(tmp_path / "out")
    row = made.photos.iloc[0]
    assert row["id"] == "2011_09_26_drive_0001_sync_0000000000" and row["drive"] == "2011_09_26_drive_0001_sync"
    assert row["heading"] == pytest.approx(20) and row["hfov"] == pytest.approx(81.4, abs=0.1)
    azimuth, _, distance = WGS84.inv(8.4, 49.0, row["longitude"], row["latitude"])
    assert distance == pytest.approx(math.hypot(1.08, 0.26)) and azimuth == pytest.approx(20 + 13.5, abs=0.1)
    assert row["captured_at"] == "2011-09-26T13:02:20.964" and row["position_error_m"] == 0.05
    assert {each.filter for each in made.rejected} == {"position"}
    assert len(read_photo_table(tmp_path / "out" / "photos.csv")) == 2
    (drive.parent / "calib_cam_to_cam.txt").write_text("S_rect_02:\nP_rect_02: 1\n")
    run(f"dataset import kitti {folder} -o {tmp_path / 'out2'}")
    assert "hfov" not in DatasetFolder.read(tmp_path / "out2").photos
    assert f"looks like kitti: jzi dataset import kitti {folder}" in run(f"dataset import {folder}", 2).output


def test_a_folder_without_drives_or_photos_is_refused(tmp_path) -> None:
    assert "has no drive of KITTI" in run(f"dataset import kitti {tmp_path} -o {tmp_path / 'out'}", 2).output
    drive = kitti(tmp_path / "raw", 1)
    command = f"dataset import kitti {tmp_path / 'raw'} -o {tmp_path / 'out'}"
    assert "has no photos of image_03" in run(f"{command} --camera image_03", 2).output
    (drive / "oxts" / "data" / "0000000000.txt").write_text("x" * 100_000)
    assert "is no pose of KITTI" in run(command, 2).output and not (tmp_path / "out").exists()
