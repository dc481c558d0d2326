"""VIGOR-M: its tiles are the cells of a pyramid, and its lists are photo tables."""

from __future__ import annotations

import csv
import json
import math
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jzi.cli import main
from jzi.datasets.vigor_m import area_of, read
from jzi.errors import DatasetError

#: West, south, east, north of two cities; the first is a square on the ground, the second is not quite one.
BOUNDS = {
    "Chicago": (-87.66, 41.86, -87.62, 41.86 + 0.04 * math.cos(math.radians(41.875))),
    "Seattle": (-122.36, 47.58, -122.30, 47.622),
}
PIXELS, PHOTOS = 4, 12
PYRAMIDS = {city: area_of(*bounds, name=city) for city, bounds in BOUNDS.items()}

#: Side of the part of a city that has tiles and photos.
CORNER = 8


@lru_cache
def png(red: int, green: int) -> bytes:
    """A tile."""
    file = BytesIO()
    Image.new("RGB", (PIXELS, PIXELS), (red, green, 9)).save(file, "PNG")
    return file.getvalue()


def tile(city: str, level: int, latitude: float, longitude: float) -> str:
    """The name of a photo's tile by the formula of the authors' prepare_vigor_m_metadata.py."""
    west, south, east, north = BOUNDS[city]
    side = 4**level
    col = max(0, min(side - 1, int((longitude - west) / ((east - west) / side))))
    row = max(0, min(side - 1, int((north - latitude) / ((north - south) / side))))
    return f"{city}_L{level}_r{row:02d}_c{col:02d}"


def write(root: Path, names: tuple[str, str, str] = ("panoramas", "satellite", "metadata")) -> Path:
    """A small copy; tiles have the colour (4 row, 4 column, 9). There are those of the north-west and the last one."""
    panoramas, satellite, metadata = names
    rng = np.random.default_rng(0)
    rows: dict[str, list[list[str]]] = {"train": [], "test": []}
    for city, (west, south, east, north) in BOUNDS.items():
        tiles = root / satellite / city / "L3"
        tiles.mkdir(parents=True)
        for row, col in [*np.ndindex(CORNER, CORNER), (63, 63)]:
            (tiles / f"{city}_L3_r{row:02d}_c{col:02d}.png").write_bytes(png(4 * row, 4 * col))
        share = CORNER / 64
        (root / panoramas / city).mkdir(parents=True)
        for index in range(PHOTOS):
            latitude, longitude = (
                rng.uniform(north - share * (north - south), north),
                rng.uniform(west, west + share * (east - west)),
            )
            latitude, longitude = round(latitude, 8), round(longitude, 8)
            name = f"{latitude:.8f}, {longitude:.8f}_2019_05_{city}-{index}_x.jpg"
            Image.fromarray(rng.integers(0, 256, (16, 32, 3), dtype=np.uint8)).save(root / panoramas / city / name)
            path = (
                f"panoramas/{city}/{name}" if panoramas == "panoramas" else f"/home/someone/VIGOR-M/Pano/{city}/{name}"
            )
            levels = [tile(city, level, latitude, longitude) for level in range(4)]
            rows["test" if index % 3 == 2 else "train"].append(
                [city, f"{city}-{index},{latitude},{longitude},.jpg", path, str(latitude), str(longitude), *levels]
            )
    head = ["city", "ground", "ground_path", "lat", "lon", "L0", "L1", "L2", "L3"]
    for split, values in rows.items():
        write_csv(root / metadata / f"same_area_{split}.csv", [head, *values])
    both = [*rows["train"], *rows["test"]]
    for split, city in (("train", "Seattle"), ("test", "Chicago")):
        write_csv(root / metadata / f"cross_area_{split}.csv", [head, *(row for row in both if row[0] == city)])
    file = "metadata/city_bounds.csv"
    if metadata != "metadata":
        file = "figures/pano_distribution/pano_distribution_summary.csv"
    bounds = [[city, 7, *values] for city, values in BOUNDS.items()]
    write_csv(root / file, [["city", "n", "l0_min_lon", "l0_min_lat", "l0_max_lon", "l0_max_lat"], *bounds])
    return root


def write_csv(file: Path, rows: list) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows(rows)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "VIGOR-M")


def run(line: str, code: int = 0):
    result = CliRunner().invoke(main, line.split())
    assert result.exit_code == code, result.output
    return result


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True), st.sampled_from(sorted(BOUNDS)))
@settings(max_examples=200, deadline=None)
def test_cells_are_the_tiles_of_the_authors(north_share, east_share, city) -> None:
    west, south, east, north = BOUNDS[city]
    latitude, longitude = south + north_share * (north - south), west + east_share * (east - west)
    row, col = (int(each[0]) for each in PYRAMIDS[city].cells_at(latitude, longitude))
    exact = (north - latitude) / (north - south) * 64, (longitude - west) / (east - west) * 64
    if all(1e-6 < share % 1 < 1 - 1e-6 for share in exact):  # not on an edge
        assert tile(city, 3, latitude, longitude) == f"{city}_L3_r{row:02d}_c{col:02d}"


def test_a_copy_becomes_a_working_directory_for_each_city(copy, tmp_path) -> None:
    output = run(f"init {tmp_path} --dataset vigor-m --data {copy}")
    assert "another zoom sequence" not in output.output and "cannot be used" not in output.output
    assert "Chicago: area: 33" in output.stdout and "3 steps of 4 x 4" in output.stdout
    assert "Seattle" in output.stdout and "by 73.0 m" in output.stdout  # a cell is 70.4 m wide
    assert "16 of the 37895 photos of train and 8 of the 37789 photos of test" in output.stdout
    with rasterio.open(tmp_path / "Chicago" / "satellite.vrt") as vrt:
        assert (vrt.width, vrt.height) == (64 * PIXELS, 64 * PIXELS)
        pixels = vrt.read()
        corner = pixels[:, : CORNER * PIXELS : PIXELS, : CORNER * PIXELS : PIXELS].tolist()
        steps = [4 * index for index in range(CORNER)]
        assert corner == [[[step] * CORNER for step in steps], [steps] * CORNER, [[9] * CORNER] * CORNER]
        assert pixels[:, -1, -1].tolist() == [252, 252, 9] and not vrt.read_masks(1)[-1, 0]


@pytest.mark.slow
def test_a_city_is_evaluated_among_the_cells_with_photos(copy, tmp_path, encoder_folder, monkeypatch) -> None:
    run(f"init {tmp_path} --dataset vigor-m --data {copy} --encoder {encoder_folder} --image-size 14")
    monkeypatch.chdir(tmp_path / "Seattle")
    encoded = json.loads(run("encode-map --json").stdout)
    assert encoded["encoded"] > 0
    assert json.loads(run("encode-queries --json").stdout)["splits"] == {"test": 4, "train": 8}
    run("train-decoder --set decoder.layers=1 --set train.epochs=1")
    report = run("evaluate --split test --gallery occupied").stdout
    assert "4 photos of the test split" in report and "only among the 4 cells that hold a photo of the split" in report


def test_older_names_and_paths_of_another_machine_are_read(tmp_path) -> None:
    cities = read(write(tmp_path / "VIGOR-M", ("Pano", "level", "meta/level_pano")), "same")
    assert [city.name for city in cities] == ["Chicago", "Seattle"]
    photos = cities[0].photos
    assert photos["id"].iloc[0] == "Chicago-0_x" and photos["panorama"].all()
    assert all((cities[0].panoramas / name).is_file() for name in photos["path"])


def test_cross_area_trains_in_one_city_and_tests_in_the_other(copy, tmp_path) -> None:
    output = run(f"init {tmp_path} --dataset vigor-m --data {copy} --area cross --json")
    values = json.loads(output.stdout)
    assert values["photos"] == {"test": PHOTOS, "train": PHOTOS} and "42595" in values["protocol"]
    splits = {city.name: set(city.photos["split"]) for city in read(copy, "cross")}
    assert splits == {"Chicago": {"test"}, "Seattle": {"train"}}


def test_existing_settings_and_other_options_are_left_alone(copy, tmp_path) -> None:
    (tmp_path / "Seattle").mkdir()
    (tmp_path / "Seattle" / "jzi.toml").write_text("mine")
    command = f"init {tmp_path} --dataset vigor-m --data {copy}"
    assert "exists: edit it, or pass --force" in run(command, 2).output
    assert not (tmp_path / "Chicago").exists()
    run(f"{command} --force")
    assert "--map, --cell is not for VIGOR-M" in run(f"{command} --map x.tif --cell 3", 2).output
    assert "--area is VIGOR's protocol" in run(f"init {tmp_path} --area same --map x.tif", 2).output


def test_wrong_tiles_of_photos_are_reported(tmp_path) -> None:
    root = write(tmp_path / "VIGOR-M")
    file = root / "metadata" / "same_area_test.csv"
    lines = file.read_text().splitlines()
    lines[1] = lines[1].rpartition(",")[0] + ",Chicago_L3_r00_c00"
    file.write_text("\n".join(lines))
    output = run(f"init {tmp_path / 'work'} --dataset vigor-m --data {root}").stderr
    assert "its sequence is [0, 0, 0], but that of its position is" in output


@pytest.mark.parametrize(
    ("remove", "message"),
    [("metadata/city_bounds.csv", "no metadata/city_bounds.csv"), ("panoramas", "lacks panoramas/"),
     ("metadata/same_area_test.csv", "lacks same_area_train.csv or same_area_test.csv"),
     ("satellite/Chicago/L3", "has no tiles Chicago_L3_r00_c00.png")],
)  # fmt: skip
def test_incomplete_copies_are_one_sentence(copy, tmp_path, remove, message) -> None:
    root = tmp_path / "VIGOR-M"
    for part in ("panoramas", "satellite", "metadata"):
        for city in ("Chicago", "Seattle"):
            (root / part / city).mkdir(parents=True)
    for name in ("same_area_train.csv", "same_area_test.csv", "city_bounds.csv"):
        (root / "metadata" / name).write_bytes((copy / "metadata" / name).read_bytes())
    target = root / remove
    if target.is_dir():
        target.rename(tmp_path / "away")
    elif target.exists():
        target.unlink()
    output = run(f"init {tmp_path / 'work'} --dataset vigor-m --data {root}", 2).output
    assert message in output and output.count("\n") == 1 and not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "bounds", [(1, 2, 1, 3), (-87.66, 41.86, -87.62, 41.95), (-87.66, 41.86, -87.62, 41.861), (0, 0, float("nan"), 1),
               (170, 0, 190, 10)],
)  # fmt: skip
def test_bounds_that_are_no_square_are_refused(bounds) -> None:
    with pytest.raises(DatasetError, match="City"):
        area_of(*bounds, name="City")


def test_tables_of_strangers_are_refused_or_lose_rows(copy, tmp_path) -> None:
    bounds = (copy / "metadata" / "city_bounds.csv").read_bytes()
    root = tmp_path / "VIGOR-M"
    for part in ("panoramas", "satellite"):
        (root / part / "Chicago").mkdir(parents=True)
    (root / "metadata").mkdir()
    (root / "metadata" / "city_bounds.csv").write_bytes(bounds)
    head = "city,ground,ground_path,lat,lon,L3\n"
    (root / "metadata" / "same_area_train.csv").write_text(
        head + "Chicago,a,../../../etc/passwd.jpg,x,,Chicago_L3_r99_c00\n"
    )
    (root / "metadata" / "same_area_test.csv").write_text(head + "Chicago,b,,41.87,-87.65,\n")
    photos = read(root, "same")[0].photos
    assert photos["path"].tolist() == ["passwd.jpg", ""] and photos["sequence"].tolist() == ["", ""]
    assert np.isnan(photos["latitude"].iloc[0])
    (root / "metadata" / "same_area_test.csv").write_bytes(b"\xff\xfe\0\0")
    with pytest.raises(DatasetError, match=r"cannot be read as a table|has no column"):
        read(root, "same")
