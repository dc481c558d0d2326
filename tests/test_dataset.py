"""The published data set: a small copy in its layout is set up, encoded and evaluated by the paper's protocol."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from click.testing import CliRunner
from PIL import Image
from pyproj import Transformer

from jzi.cli import main
from jzi.errors import PhotoTableError
from jzi.store.geometry.pyramid import preset
from jzi.store.photos.photo_table import read_photo_table

# Positions and zoom sequences as they were published (rows of pcvlab/justzoomin, CC BY-SA 4.0)
ROWS = [
    ("4449826985073821", 38.908513, -76.940898, [7, 6, 6, 5]),
    ("172710532042450", 38.909364, -76.940879, [7, 6, 2, 13]),
    ("466079048443791", 38.910576, -76.941785, [7, 2, 13, 15]),
]


def write_table(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f'{name},{latitude},{longitude},"{json.dumps(sequence)}"' for name, latitude, longitude, sequence in rows]
    path.write_text("\n".join(["image_id,latitude,longitude,sequence", *lines]) + "\n")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What `pcvlab/justzoomin` looks like, with a few coarse tiles and photos of noise; one photo is missing."""
    folder = tmp_path / "justzoomin"
    rng = np.random.default_rng(0)
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:26918", always_xy=True).transform(-76.9409, 38.9085)
    side = 512.0
    layout = {
        "crs": "EPSG:26918", "tile_axes": ["east", "north"], "tile_shape_px": [64, 64], "tile_shape_crs": [side, side],
        "origin_crs": [float(x - 10 * side), float(y - 10 * side)], "size_crs": [20 * side, 20 * side], "min_zoom": -1,
        "max_zoom": 0, "path": "{zoom}/{x}/{y}.jpg",
    }  # fmt: skip
    (folder / "satellite").mkdir(parents=True)
    (folder / "satellite" / "layout.yaml").write_text(yaml.safe_dump(layout))
    for zoom, size in ((0, 4), (-1, 2)):
        for column in range(size):
            for row in range(size):
                tile = folder / "satellite" / str(zoom) / str(8 // 2**-zoom + column) / f"{8 // 2**-zoom + row}.jpg"
                tile.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tile)
    photos = folder / "streetview" / "images"
    photos.mkdir(parents=True)
    for name, *_ in ROWS:
        Image.fromarray(rng.integers(0, 256, (40, 80, 3), dtype=np.uint8)).save(photos / f"{name}_undistorted.jpg")
    write_table(folder / "metadata" / "large_area_train_map.csv", [*ROWS[:2], ("111", 38.9085, -76.941, [7, 6, 6, 5])])
    write_table(folder / "metadata" / "large_area_val_map.csv", ROWS[2:])
    return folder


def run(line: str, code: int = 0):
    result = CliRunner().invoke(main, line.split())
    assert result.exit_code == code, result.output
    return result


def test_a_copy_of_the_data_set_becomes_a_working_directory(copy, encoder_folder, monkeypatch) -> None:
    pytest.importorskip("cv2")
    output = run(f"init --dataset just-zoom-in {copy}")
    assert "10000 m square around 38.89" in output.stdout and "3 photos in the area" in output.stdout
    assert "no such photo in" in output.stderr and "111" in output.stderr
    assert 'resampling = "reference"' in (copy / "jzi.toml").read_text()
    with rasterio.open(copy / "satellite.vrt") as vrt:  # a raster like any other
        assert (vrt.width, vrt.height, vrt.count, vrt.crs.to_epsg()) == (256, 256, 3, 26918)
    monkeypatch.chdir(copy)
    small = f"--set encoder.name={encoder_folder} --set encoder.image_size=14"
    first = json.loads(run(f"encode-map --json {small}").stdout)
    assert first["encoded"] > 0 and first["encoded"] + first["nodata"] == 4369
    encoded = json.loads(run(f"encode-queries --json {small}").stdout)
    assert (encoded["splits"], encoded["rejected"], encoded["disagreements"]) == ({"train": 2, "val": 1}, 1, 0)
    run(f"train-decoder {small} --set decoder.layers=1 --set train.epochs=1")
    report = run(f"evaluate {small}").stdout
    assert "1 photo of the val split" in report
    assert "Sample4Geo" in report and "66.3 %" in report and "this model" in report


def test_the_copy_may_lie_elsewhere(copy, tmp_path) -> None:
    run(f"init --dataset just-zoom-in {tmp_path / 'work'} --data {copy}")
    assert (tmp_path / "work" / "jzi.toml").exists() and (tmp_path / "work" / "satellite.vrt").exists()
    assert not (copy / "jzi.toml").exists()


def test_a_sequence_that_is_not_ours_is_reported_with_its_row(copy) -> None:
    wrong = [ROWS[0], (*ROWS[1][:3], [7, 6, 2, 12])]
    write_table(copy / "metadata" / "large_area_train_map.csv", wrong)
    output = run(f"init --dataset just-zoom-in {copy}").stderr
    assert (
        "172710532042450 (line 3): its sequence is [7, 6, 2, 12], but that of its position is [7, 6, 2, 13]" in output
    )
    assert "1 photos have another zoom sequence" in output


def test_published_rows_agree_with_our_pyramid(shared, tmp_path) -> None:
    table = shared / "just-zoom-in-rows.csv"
    for name in (line.split(",")[0] for line in table.read_text().splitlines()[1:]):
        Image.new("RGB", (8, 4)).save(tmp_path / f"{name}.jpg")
    queries = read_photo_table(table, tmp_path).inside(preset("just-zoom-in-dc"))
    assert len(queries) == 8 and not queries.disagreements


def test_sequences_of_another_length_are_refused(copy) -> None:
    write_table(copy / "metadata" / "large_area_train_map.csv", [(*ROWS[0][:3], [7, 6, 6])])
    output = run(f"init --dataset just-zoom-in {copy}", code=2).stderr
    assert "sequences of 3, 4 actions, but the pyramid has 4 levels" in output
    assert not (copy / "jzi.toml").exists()


def test_image_series_that_mapillary_calls_sequences_are_no_zoom_sequences(tmp_path) -> None:
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg")
    (tmp_path / "t.csv").write_text("id,lat,lon,sequence\na,38.9,-77.0,pKxQ2bZ\n")
    assert not read_photo_table(tmp_path / "t.csv").inside(preset("just-zoom-in-dc")).disagreements


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda copy: (copy / "satellite" / "layout.yaml").unlink(), "layout.yaml"),
        (lambda copy: (copy / "metadata" / "large_area_val_map.csv").unlink(), "large_area_val_map.csv"),
        (lambda copy: (copy / "satellite" / "0").rename(copy / "aside"), "has no tile of zoom 0"),
    ],
    ids=["no layout", "no table", "no tiles"],
)
def test_a_copy_that_is_not_whole_is_one_sentence(copy, break_it, says: str) -> None:
    break_it(copy)
    result = run(f"init --dataset just-zoom-in {copy}", code=2)
    assert says in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not (copy / "jzi.toml").exists()


def test_a_download_without_network_is_one_sentence(tmp_path) -> None:
    output = run(f"init --dataset just-zoom-in {tmp_path / 'new'} --download", code=2).stderr
    assert "cannot be downloaded" in output and len(output.strip().splitlines()) == 1


def test_an_unknown_data_set_is_refused(tmp_path) -> None:
    assert "give just-zoom-in, vigor" in run(f"init --dataset other {tmp_path}", code=2).stderr


def test_tables_for_splits_that_do_not_exist_are_refused(tmp_path) -> None:
    with pytest.raises(PhotoTableError, match="not for train, val, test"):
        read_photo_table({"dev": tmp_path / "dev.csv"})
