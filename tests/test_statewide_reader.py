"""The photos of the state-wide data set, as its scripts lay them out."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import yaml
from click.testing import CliRunner
from PIL import Image
from rasterio.transform import from_bounds

from jzi.cli import main
from jzi.datasets.statewide import photo_path, read
from jzi.errors import DatasetError

COUNT, LEVELS = 120, 1
TIME_MS = 1_600_000_000_000


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Photos in three sequences; photo 5 is not on disk, and photo 7 has no metadata."""
    folder = tmp_path / "mapillary-state"
    rng = np.random.default_rng(0)
    position = np.stack([38.9 + rng.uniform(0, 0.005, COUNT), -77.02 + rng.uniform(0, 0.005, COUNT)], 1)
    for index in range(COUNT):
        file = folder / "images" / photo_path(index, LEVELS)
        file.parent.mkdir(parents=True, exist_ok=True)
        if index != 5:
            Image.new("RGB", (8, 6), (index, 0, 0)).save(f"{file}-480.jpg")
        metadata = {"sequence": f"s{index // 40}", "camera-type": "fisheye_opencv", "image-id": 10**15 + index}
        if index != 7:
            Path(f"{file}.json").write_text(json.dumps({**metadata, "creator": "someone"}))
    np.savez_compressed(folder / "latlons.npz", latlons=position)
    np.savez_compressed(folder / "timestamps.npz", timestamps=(TIME_MS + 1000 * np.arange(COUNT)).astype("uint64"))
    np.savez_compressed(folder / "sequence-idxs.npz", sequence_idxs=(np.arange(COUNT) // 40).astype("int32"))
    write_info(folder)
    return folder


def write_info(folder: Path, **changes) -> None:
    info = {"images-num": COUNT, "images-directory-levels": LEVELS, "sequences-num": 3, "orig-resolution": [480, 640]}
    (folder / "dataset.json").write_text(json.dumps({**info, **changes}))


def run(line: str, code: int = 0):
    result = CliRunner().invoke(main, line.split())
    assert result.exit_code == code, result.output
    return result


def test_paths_are_the_reversed_index_cut_into_folders() -> None:
    assert photo_path(4711, 3) == "1/1/7/400000000" and photo_path(0, 0) == "000000000000"
    for index, levels in ((123456, 4), (7, 1)):  # the loop of the authors' code
        path = f"{index:012}"[::-1]
        for level in reversed(range(levels)):
            path = path[: level + 1] + "/" + path[level + 1 :]
        assert photo_path(index, levels) == path


def test_photos_have_what_arrays_and_metadata_say(state) -> None:
    frame, rejected = read(state)
    assert [(each.name, each.reason) for each in rejected] == [("1000000000000005", "photo is not on disk")]
    assert len(frame) == COUNT - 1
    row = frame.iloc[50]
    assert (row["id"], row["path"]) == ("1000000000000051", "1/50000000000-480.jpg")
    assert (row["drive"], row["camera"], row["creator"]) == ("s1", "fisheye", "someone")
    assert row["captured_at"] == pd.Timestamp(TIME_MS + 51_000, unit="ms", tz="UTC")
    assert frame["latitude"].iloc[50] == np.load(state / "latlons.npz")["latlons"][51, 0]
    without = frame.iloc[6]
    assert (without["id"], without["drive"], without["camera"]) == ("7", "s0", "")


@pytest.mark.parametrize("camera", ["spherical", "equirectangular"])
def test_panoramas_are_left_out(state, camera: str) -> None:
    (state / "images" / f"{photo_path(9, LEVELS)}.json").write_text(json.dumps({"camera-type": camera}))
    frame, rejected = read(state)
    assert [(each.name, each.reason) for each in rejected[1:]] == [("9", "photo is a panorama")]
    assert len(frame) == COUNT - 2


def test_a_state_becomes_a_region_with_its_imagery(state, tmp_path, monkeypatch) -> None:
    tiles = tmp_path / "imagery"
    (tiles / "0" / "0").mkdir(parents=True)
    Image.new("RGB", (32, 32), (90, 120, 60)).save(tiles / "0" / "0" / "0.jpg")
    layout = {
        "crs": "EPSG:4326", "tile_axes": ["east", "north"], "tile_shape_px": [32, 32], "tile_shape_crs": [0.01] * 2,
        "origin_crs": [38.897, -77.0225], "size_crs": [0.01, 0.01], "path": "{zoom}/{x}/{y}.jpg",
    }  # fmt: skip
    (tiles / "layout.yaml").write_text(yaml.safe_dump(layout))
    monkeypatch.chdir(tmp_path)
    output = run(f"init work --dataset statewide --data {state} --map {tiles} --cell 50")
    assert "119 photos in the region, split by drives (3 of them)" in output.stdout
    assert "photo is not on disk" in output.stderr and "--split all" in output.stdout
    text = (tmp_path / "work" / "jzi.toml").read_text()
    assert 'rasters = ["imagery.vrt"]' in text and "remote = true" in text and 'table = "photos.parquet"' in text
    table = pd.read_parquet(tmp_path / "work" / "photos.parquet")
    assert [*table] == ["id", "path", "latitude", "longitude", "captured_at", "drive", "camera", "creator"]
    assert "exists" in run(f"init work --dataset statewide --data {state} --map {tiles}", 2).output


def test_options_that_do_not_belong_are_refused(state, tmp_path) -> None:
    raster = tmp_path / "map.tif"
    with rasterio.open(raster, "w", driver="GTiff", width=20, height=20, count=3, dtype="uint8", crs="EPSG:4326",
                       transform=from_bounds(-77.02, 38.9, -77.015, 38.905, 20, 20)) as file:  # fmt: skip
        file.write(np.full((3, 20, 20), 99, np.uint8))
    start = f"init {tmp_path / 'work'} --dataset statewide --data {state}"
    assert "name the imagery of the state by --map" in run(start, 2).output
    assert "--queries is not for the state-wide data set" in run(f"{start} --map {raster} --queries x.csv", 2).output
    assert "--download, --size is not for a region" in run(f"{start} --map {raster} --size 100 --download", 2).output
    assert not (tmp_path / "work").exists()
    assert run(f"{start} --map {raster}").exit_code == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images-num": 0}, "images-num 0"),
        ({"images-num": 10**12}, "images-num 1000000000000"),
        ({"images-num": "x"}, "images-num 'x'"),
        ({"images-directory-levels": 40}, "images-directory-levels 40"),
        ({"images-num": COUNT + 1}, "belongs to another dataset.json"),
        ({"images-num": 3}, "too many for 3 photos"),
    ],
)
def test_numbers_that_do_not_fit_are_one_sentence(state, changes, message) -> None:
    changes = {"images-num": COUNT, **changes}
    write_info(state, **changes)
    if changes["images-num"] == 3:
        np.savez_compressed(state / "latlons.npz", latlons=np.zeros((5000, 2)))
    with pytest.raises(DatasetError, match=message):
        read(state)


def test_arrays_are_neither_unpickled_nor_unpacked_beyond_their_size(state, tmp_path) -> None:
    touched = tmp_path / "touched"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (touched,)

    np.savez(state / "timestamps.npz", timestamps=np.array([Bomb()] * COUNT, object), allow_pickle=True)
    with pytest.raises(DatasetError, match=r"timestamps.npz .*"):
        read(state)
    assert not touched.exists()
    np.savez_compressed(state / "timestamps.npz", timestamps=np.zeros(2**22))
    with pytest.raises(DatasetError, match="too many for 120 photos"):
        read(state)
    np.savez_compressed(state / "timestamps.npz", timestamps=np.zeros(COUNT, "datetime64[s]"))
    with pytest.raises(DatasetError, match="of type datetime64"):
        read(state)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2)})
    with zipfile.ZipFile(state / "latlons.npz", "w") as archive:
        archive.writestr("latlons.npy", header.getvalue())
    with pytest.raises(DatasetError, match=r"shape \(1099511627776, 2\)"):
        read(state)
    (state / "latlons.npz").write_bytes(b"no zip")
    with pytest.raises(DatasetError, match=r"latlons.npz cannot be read"):
        read(state)
    (state / "latlons.npz").unlink()
    with pytest.raises(DatasetError, match=r"has no latlons\.npz"):
        read(state)


def test_positions_that_were_cut_to_whole_degrees_are_refused(state) -> None:
    np.savez_compressed(state / "latlons.npz", latlons=np.tile([38.0, -77.0], (COUNT, 1)))
    with pytest.raises(DatasetError, match="whole degrees only"):
        read(state)


def test_a_folder_of_something_else_is_refused(tmp_path) -> None:
    with pytest.raises(DatasetError, match=r"has no dataset.json"):
        read(tmp_path)
