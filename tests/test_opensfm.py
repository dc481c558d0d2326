"""Reconstructions of OpenSfM become data sets."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyproj import Transformer

from jzi.cli import main
from jzi.curate.folder import DatasetFolder
from jzi.errors import DatasetError
from jzi.recordings import members
from jzi.recordings.frames import headings, quaternion_matrices, rotation_matrices, topocentric_positions
from jzi.recordings.members import read_members
from jzi.recordings.opensfm import camera_columns
from jzi.store.geometry.pyramid import WGS84
from jzi.store.photos.photo_table import read_photo_table

REFERENCE = {"latitude": 48.2, "longitude": 16.37, "altitude": 180.0}
PERSPECTIVE = {"projection_type": "perspective", "width": 80, "height": 60, "focal": 0.5, "k1": 0.0, "k2": 0.0}


def shot(east: float, north: float, heading: float, camera: str = "cam", **others) -> dict:
    """A level camera at a place; OpenSfM's cameras look along z, with y down."""
    azimuth = math.radians(heading)
    rotation = np.array([
        [math.cos(azimuth), -math.sin(azimuth), 0], [0, 0, -1], [math.sin(azimuth), math.cos(azimuth), 0]
    ])  # fmt: skip
    angle = math.acos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    vector = axis / (2 * math.sin(angle)) * angle
    translation = -rotation @ [east, north, 1.7]
    return {"rotation": vector.tolist(), "translation": translation.tolist(), "camera": camera, **others}


def write(folder: Path, shots: dict, cameras: dict | None = None, **others) -> Path:
    for name in shots:
        if ".." in name or name.startswith("/"):
            continue
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60), (len(name), 90, 30)).save(folder / "images" / name)
    value = [{
        "cameras": cameras or {"cam": PERSPECTIVE}, "shots": shots, "reference_lla": REFERENCE,
        "points": {str(index): {"coordinates": [1, 2, 3], "color": [1, 2, 3]} for index in range(50)}, **others,
    }]  # fmt: skip
    (folder / "reconstruction.json").write_text(json.dumps(value))
    return folder


def run(line: str, code: int = 0):
    result = CliRunner().invoke(main, line.split())
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def test_positions_headings_and_fields_of_view_are_those_of_the_shots(tmp_path) -> None:
    shots = {
        "a.jpg": shot(0, 0, 30, capture_time=1.7e9, skey="seq1"),
        "sub/b.jpg": shot(100, 200, 275),
        "p.jpg": shot(-50, 0, 100, "pano"),
        "portrait.jpg": shot(10, 0, 200, orientation=6),
    }
    cameras = {"cam": PERSPECTIVE, "pano": {"projection_type": "equirectangular", "width": 80, "height": 40}}
    write(tmp_path / "sfm", shots, cameras)
    exif = tmp_path / "sfm" / "exif"
    exif.mkdir()
    gps = {"latitude": 48.2, "longitude": 16.3701, "dop": 5}
    (exif / "a.jpg.exif").write_text(json.dumps({"make": "Acme", "model": "One", "gps": gps}))
    report = json.loads(run(f"dataset import opensfm {tmp_path / 'sfm'} -o {tmp_path / 'out'} --json").stdout)
    assert (report["photos"], report["rejected"], report["headings"]) == (4, 0, 4)
    photos = DatasetFolder.read(tmp_path / "out").photos.set_index("id")
    assert photos["heading"].round(6).to_dict() == {"a": 30, "sub_b": 275, "p": 100, "portrait": 200}
    azimuth, _, distance = WGS84.inv(16.37, 48.2, *photos.loc["sub_b", ["longitude", "latitude"]])
    assert distance == pytest.approx(math.hypot(100, 200), rel=1e-4)  # 180 m above the ellipsoid
    assert azimuth == pytest.approx(math.degrees(math.atan2(100, 200)), abs=0.01)
    assert photos.loc["a", "hfov"] == pytest.approx(90)
    assert photos.loc["portrait", "hfov"] == pytest.approx(2 * math.degrees(math.atan(0.75)), abs=1e-2)
    assert photos.loc["p", "hfov"] == 360 and photos.loc["p", "panorama"] in (True, "True")
    assert photos["camera"].to_dict()["p"] == "spherical" and photos.loc["a", "camera"] == "perspective"
    assert photos.loc["a", "captured_at"] == "2023-11-14T22:13:20.000Z" and photos.loc["a", "device"] == "Acme One"
    assert photos.loc["a", "gps_longitude"] == 16.3701 and photos.loc["a", "position_error_m"] == pytest.approx(
        7.4, abs=0.1
    )
    assert photos["drive"].to_dict() == {"a": "seq1", "sub_b": "sfm", "p": "sfm", "portrait": "sfm"}
    table = read_photo_table(tmp_path / "out" / "photos.csv")
    assert len(table) == 4 and not table.rejected


def test_photos_are_linked_and_an_import_is_repeated_without_a_change(tmp_path) -> None:
    write(tmp_path / "sfm", {"a.jpg": shot(0, 0, 30)})
    for _ in range(2):
        run(f"dataset import opensfm {tmp_path / 'sfm'} -o {tmp_path / 'out'}")
    assert (tmp_path / "out/images/a.jpg").samefile(tmp_path / "sfm/images/a.jpg")
    write(tmp_path / "other", {"a.jpg": shot(0, 0, 30)})
    assert (
        "holds another data set" in run(f"dataset import opensfm {tmp_path / 'other'} -o {tmp_path / 'out'}", 2).output
    )
    assert (
        "is not empty" in run(f"dataset import opensfm {tmp_path / 'sfm'} -o {tmp_path / 'sfm' / 'images'}", 2).output
    )
    assert "is what is imported" in run(f"dataset import opensfm {tmp_path / 'sfm'} -o {tmp_path / 'sfm'}", 2).output


def test_an_import_that_was_killed_is_continued(tmp_path, monkeypatch) -> None:
    from jzi.recordings import importing

    write(tmp_path / "sfm", {f"{index}.jpg": shot(index, 0, 30) for index in range(4)})
    link, count = importing.link_or_copy, []

    def dying(source: Path, target: Path) -> None:
        count.append(target)
        if len(count) == 3:
            raise KeyboardInterrupt
        link(source, target)

    monkeypatch.setattr(importing, "link_or_copy", dying)
    command = f"dataset import opensfm {tmp_path / 'sfm'} -o {tmp_path / 'out'}"
    run(command, 130)
    assert not (tmp_path / "out" / "photos.csv").exists() and (tmp_path / "out/images/1.jpg").exists()
    write(tmp_path / "other", {"9.jpg": shot(0, 0, 30)})
    assert "unfinished import of something else" in run(command.replace("/sfm ", "/other "), 2).output
    run(command)
    assert sorted(DatasetFolder.read(tmp_path / "out").photos["id"].astype(str)) == ["0", "1", "2", "3"]
    assert {each.name for each in (tmp_path / "out").iterdir()} == {
        "images",
        "photos.csv",
        "rejected.csv",
        "dataset.json",
    }


def test_names_and_links_do_not_lead_out_of_the_photos(tmp_path) -> None:
    outside = tmp_path / "secret.jpg"
    Image.new("RGB", (8, 8)).save(outside)
    shots = {
        name: shot(0, 0, 30) for name in ("ok.jpg", "../../secret.jpg", str(outside), "link.jpg", "gone.jpg", "..")
    }
    folder = write(tmp_path / "sfm", {"ok.jpg": shots["ok.jpg"]})
    write(folder, {name: value for name, value in shots.items() if name not in ("link.jpg", "gone.jpg")})
    value = json.loads((folder / "reconstruction.json").read_text())
    value[0]["shots"] = shots
    (folder / "reconstruction.json").write_text(json.dumps(value))
    (folder / "images" / "link.jpg").symlink_to(outside)
    run(f"dataset import opensfm {folder} -o {tmp_path / 'out'}")
    made = DatasetFolder.read(tmp_path / "out")
    assert made.photos["id"].tolist() == ["ok"] and len(made.rejected) == 5
    reasons = {each.id: each.reason for each in made.rejected}
    assert "leads out" in reasons["link"] and "no such photo" in reasons.pop("gone")
    assert all("leads out" in reason for reason in reasons.values())
    assert [each.name for each in (tmp_path / "out" / "images").rglob("*")] == ["ok.jpg"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference_lla": None}, "no geographic reference"),
        ({"reference_lla": {"latitude": 0, "longitude": 0, "altitude": 0}}, "no geographic reference"),
        ({"reference_lla": {"latitude": float("nan"), "longitude": 1}}, "no geographic reference"),
        ({"shots": {}}, "has no shots"),
        ({"shots": []}, "it has no shots"),
        ({"shots": {"a.jpg": {"rotation": [float("nan")] * 3, "translation": [0, 0, 0]}}}, "pose is no number"),
        ({"shots": {"a.jpg": {"rotation": "x"}}}, "pose is no number"),
        ({"shots": {"a.jpg": 7}}, "pose is no number"),
        ({"shots": {"a.jpg": shot(1e9, 0, 0)}}, "a thousand kilometres"),
    ],
)
def test_a_reconstruction_that_cannot_be_used_is_one_sentence(tmp_path, change, message) -> None:
    folder = write(tmp_path / "sfm", {"a.jpg": shot(0, 0, 30)})
    value = json.loads((folder / "reconstruction.json").read_text())
    (folder / "reconstruction.json").write_text(json.dumps([{**value[0], **change}]))
    output = run(f"dataset import opensfm {folder} -o {tmp_path / 'out'}", 2).output
    assert message in output and output.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", ["", "[", "nothing", "[1]", '{"shots": ', '[{"shots": {}', "[{}] ", '[{"a" 1}]', '[{"a":1,}]', "{" * 5000,
             '[{"cameras": ' + "[" * 100_000, '[{"points": ' + "[" * 2000 + "]" * 2000 + ', "shots": {}}]', "\x00\xff",
             '[{"shots": {"a.jpg": {"rotation": [1' + "0" * 5000 + ', 0, 0]}}}]'],
)  # fmt: skip
def test_damaged_json_is_one_sentence(tmp_path, text) -> None:
    folder = write(tmp_path / "sfm", {"a.jpg": shot(0, 0, 30)})
    (folder / "reconstruction.json").write_text(text, encoding="latin-1")
    output = run(f"dataset import opensfm {folder} -o {tmp_path / 'out'}", 2).output
    assert output.startswith("jzi: ") and output.count("\n") == 1 and len(output) < 1000


def test_a_folder_without_a_reconstruction_or_photos_is_refused(tmp_path) -> None:
    assert "is no folder" in run(f"dataset import opensfm {tmp_path / 'none'} -o {tmp_path / 'out'}", 2).output
    (tmp_path / "empty" / "images").mkdir(parents=True)
    output = run(f"dataset import opensfm {tmp_path / 'empty'} -o {tmp_path / 'out'}", 2).output
    assert "has no reconstruction.json" in output
    folder = write(tmp_path / "sfm", {"a.jpg": shot(0, 0, 30)})
    assert f"looks like opensfm: jzi dataset import opensfm {folder}" in run(f"dataset import {folder}", 2).output


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(
    st.lists(st.dictionaries(st.sampled_from(["shots", "cameras", "points", 'a"\\b']), JSON), max_size=3), st.booleans()
)
@settings(max_examples=60, deadline=None)
def test_wanted_members_are_those_that_json_reads(tmp_path_factory, value, indent) -> None:
    file = tmp_path_factory.mktemp("json") / "value.json"
    file.write_text(json.dumps(value, indent=2 if indent else None, ensure_ascii=indent))
    wanted = ("shots", "cameras")
    expected = [{name: each[name] for name in wanted if name in each} for each in value]
    assert list(read_members(file, wanted, "a test")) == expected


def test_what_is_skipped_is_not_built_and_what_is_wanted_is_bounded(tmp_path, monkeypatch) -> None:
    file = tmp_path / "large.json"
    file.write_text(json.dumps([{"points": "x" * 1000, "shots": {}}]))
    monkeypatch.setattr(members, "MAX_MEMBER", 100)
    assert list(read_members(file, ("shots",), "a test")) == [{"shots": {}}]
    with pytest.raises(DatasetError, match="points take more than 100 bytes"):
        list(read_members(file, ("points",), "a test"))


def test_topocentric_positions_are_those_of_proj_back_and_forth() -> None:
    offset = np.array([[0.0, 0, 0], [1000, -2000, 30], [-5, 4, 3]])
    latitude, longitude = topocentric_positions(-33.9, 151.2, 20.0, offset)
    assert (latitude[0], longitude[0]) == pytest.approx((-33.9, 151.2), abs=1e-12)
    local = Transformer.from_crs(
        "EPSG:4326", "+proj=aeqd +lat_0=-33.9 +lon_0=151.2 +ellps=WGS84 +units=m", always_xy=True
    ).transform(longitude, latitude)
    assert np.stack(local, 1) == pytest.approx(offset[:, :2], abs=0.05)


def test_rotations_agree_with_one_another_and_steep_views_have_no_heading() -> None:
    vector = np.array([[0.3, -0.2, 0.9], [0, 0, 0]])
    half = np.linalg.norm(vector, axis=1, keepdims=True) / 2
    quaternion = np.hstack([vector / np.where(half > 0, 2 * half, 1) * np.sin(half), np.cos(half)])
    assert rotation_matrices(vector) == pytest.approx(quaternion_matrices(3 * quaternion))
    found = headings([[0, 1, 0], [1, 0, 0.5], [0.1, 0, -1], [0, 0, 0], [np.nan, 1, 0]])
    assert found[:2].tolist() == [0, 90] and np.isnan(found[2:]).all()


def test_fields_of_view_follow_distortion_and_the_projection() -> None:
    wide = camera_columns({**PERSPECTIVE, "k1": -0.1})
    assert wide["hfov"] > 90 and json.loads(wide["camera_parameters"]) == [0.5, -0.1, 0.0]
    x = math.tan(math.radians(wide["hfov"] / 2))
    assert 0.5 * x * (1 - 0.1 * x**2) == pytest.approx(0.5, abs=1e-3)
    fisheye = camera_columns({**PERSPECTIVE, "projection_type": "fisheye", "focal": 0.3})
    assert fisheye["hfov"] == pytest.approx(2 * math.degrees(0.5 / 0.3), abs=0.01) and fisheye["camera"] == "fisheye"
    brown = {"projection_type": "brown", "width": 80, "height": 60, "focal_x": 0.5, "focal_y": 0.5, "k1": "x"}
    assert camera_columns(brown)["hfov"] == pytest.approx(90, abs=0.01)
    assert camera_columns({**PERSPECTIVE, "k1": -5.0})["hfov"] == pytest.approx(90)  # it bends back before the edge
    assert camera_columns({**PERSPECTIVE, "projection_type": "dual"}) == {} == camera_columns({})
    assert "hfov" not in camera_columns({**PERSPECTIVE, "focal": float("nan")})


def test_photos_of_several_reconstructions_are_taken_once(tmp_path) -> None:
    folder = write(tmp_path / "sfm", {"a.jpg": shot(0, 0, 30), "b.jpg": shot(5, 0, 40)})
    value = json.loads((folder / "reconstruction.json").read_text())
    value.append({**value[0], "shots": {"a.jpg": shot(90, 0, 99)}})
    (folder / "reconstruction.json").write_text(json.dumps(value))
    (folder / "images" / "b.jpg").write_bytes(b"no photo")
    run(f"dataset import opensfm {folder} -o {tmp_path / 'out'}")
    made = DatasetFolder.read(tmp_path / "out")
    assert made.photos["heading"].round(6).tolist() == [30] and made.rejected[0].filter == "photo"
    assert pd.Series([each.removed for each in made.info.filters]).tolist() == [0, 1] and made.info.found == 2
