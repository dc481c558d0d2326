"""Claims about the city that is made from a raster of building heights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from click.testing import CliRunner
from PIL import Image
from pyproj import Transformer
from rasterio.transform import from_origin

from jzi.benchmarks.city import main, make_city
from jzi.benchmarks.cityscape.block import BLOCKED, MARGIN, CityBlock, blocks
from jzi.benchmarks.cityscape.chance import Area
from jzi.benchmarks.cityscape.heights import HeightRaster
from jzi.benchmarks.cityscape.plan import REACH, find_buildings, survey
from jzi.errors import ConfigError
from jzi.store.photos.photo_table import read_photo_table
from jzi.workspace.inputs import open_imagery
from jzi.workspace.setup.settings_file import load_settings

WEST, SOUTH, SIDE = 390_000, 5_819_000, 400
COUNTS = (24, 5, 6)


def boxes() -> np.ndarray:
    """Heights in metres of 400 x 400 m: blocks of 4 houses between streets of 8 and 14 m, and a park."""
    heights = np.zeros((SIDE, SIDE), np.float32)
    rng = np.random.default_rng(3)
    for row in range(6, SIDE - 40, 42):
        for col in range(6, SIDE - 40, 38):
            for down in (0, 17):
                for right in (0, 12):
                    heights[row + down : row + down + 16, col + right : col + right + 11] = rng.integers(5, 40)
    heights[100:220, 100:220] = 0
    return heights


def write_heights(
    path: Path, values: np.ndarray, *, crs: str = "EPSG:32633", scale: float = 1, offset: float = 0, **options: object
) -> Path:
    """Writes a raster of the 400 m with any number of pixels."""
    transform = from_origin(WEST, SOUTH + SIDE, SIDE / values.shape[1], SIDE / values.shape[0])
    with rasterio.open(
        path, "w", driver="GTiff", width=values.shape[1], height=values.shape[0], count=1, dtype=values.dtype, crs=crs,
        transform=transform, **options,
    ) as raster:  # fmt: skip
        raster.write(values, 1)
        raster.scales, raster.offsets = (scale,), (offset,)
    return path


@pytest.fixture(scope="module")
def heights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_heights(tmp_path_factory.mktemp("heights") / "height.tif", boxes())


def make(folder: Path, heights: Path, counts: tuple[int, int, int] = COUNTS, **options: object) -> None:
    small: dict = {"size": 240, "corner": (60, 80), "resolution": 1.0, "photo_size": (32, 64), "jobs": 1}
    make_city(folder, heights, counts=counts, **(small | options))


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory, heights: Path) -> Path:
    folder = tmp_path_factory.mktemp("city")
    make(folder, heights)
    return folder


def test_a_city_is_a_working_directory_of_jzi(city: Path) -> None:
    settings = load_settings(city / "jzi.toml")
    table = read_photo_table(city / "photos.csv").inside(settings.pyramid)
    assert table.rejected == ()
    assert dict(table.frame["split"].value_counts()) == dict(zip(("train", "val", "test"), COUNTS, strict=True))
    assert settings.pyramid.cell_size <= 40
    with rasterio.open(city / "ortho.tif") as raster:
        assert raster.bounds == settings.pyramid.bounds == (WEST + 60, SOUTH + 80, WEST + 300, SOUTH + 320)
        assert raster.crs.to_epsg() == 32633
        assert raster.profile["tiled"]
    with open_imagery(settings) as imagery:
        assert imagery is not None


@pytest.mark.slow
def test_the_same_seed_makes_the_same_city_and_another_one_another(city: Path, heights: Path, tmp_path: Path) -> None:
    make(tmp_path / "again", heights)
    make(tmp_path / "other", heights, seed=1)
    for name in ("ortho.tif", "photos.csv", "photos/train/000/000007.jpg", "photos/test/000/000002.jpg"):
        assert (tmp_path / "again" / name).read_bytes() == (city / name).read_bytes()
        assert (tmp_path / "other" / name).read_bytes() != (city / name).read_bytes()


@pytest.mark.slow
def test_two_windows_show_the_same_city_where_they_overlap(heights: Path) -> None:
    raster = HeightRaster.open(heights)
    one, other = Area(WEST + 40, SOUTH + 100, 160, 160), Area(WEST + 97, SOUTH + 33, 180, 150)
    shared = one.within(other)
    seen = []
    for area in (one, other):
        photo, streets = CityBlock.make(raster, area, 2, 0).map()
        left, top = shared.west - area.west, area.north - shared.north
        seen.append(
            (
                photo[:, 2 * top : 2 * (top + shared.height), 2 * left : 2 * (left + shared.width)],
                streets[top : top + shared.height, left : left + shared.width],
            )
        )
    assert np.array_equal(seen[0][0], seen[1][0])
    assert np.array_equal(seen[0][1], seen[1][1])
    assert seen[0][0].std() > 20
    assert MARGIN >= REACH  # buildings here are small; this is what it takes where they are not


def test_blocks_cover_a_window_once() -> None:
    window = Area(-1500, 2040, 3000, 3000)
    covered = np.zeros((3000, 3000), int)
    for block in blocks(window):
        covered[window.north - block.north :, block.west - window.west :][: block.height, : block.width] += 1
    assert (covered == 1).all()


@pytest.mark.slow
def test_no_photo_that_is_held_out_is_taken_within_2_m_of_another_splits(heights: Path, tmp_path: Path) -> None:
    make(tmp_path, heights, counts=(300, 40, 60), photo_size=(4, 8))
    table = pd.read_csv(tmp_path / "photos.csv")
    place = {split: part[["easting", "northing"]].to_numpy() for split, part in table.groupby("split")}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        apart = np.linalg.norm(place[one][:, None] - place[other][None], axis=-1)
        assert 2 <= apart.min() < 20  # and yet they share the streets


def test_cameras_stand_on_open_ground_and_see_different_seasons_and_fields_of_view(city: Path, heights: Path) -> None:
    table = pd.read_csv(city / "photos.csv")
    col, row = (table["easting"] - WEST).astype(int), (SOUTH + SIDE - table["northing"]).astype(int)
    assert (boxes()[row, col] == 0).all()
    assert table["season"].nunique() == 4
    assert table["fov_deg"].std() > 5
    assert table["heading"].std() > 40


@pytest.mark.parametrize(
    "how", ["decimetres in uint16", "half metres with nodata", "centimetres below a datum, in int32"]
)
def test_heights_of_other_kinds_are_read_as_the_same_metres(tmp_path: Path, heights: Path, how: str) -> None:
    metres = boxes()
    path = tmp_path / "other.tif"
    if how == "decimetres in uint16":
        write_heights(path, (metres * 10).astype(np.uint16), scale=0.1)
    elif how == "half metres with nodata":
        fine = np.where(metres > 0, metres, -9999).repeat(2, 0).repeat(2, 1)
        write_heights(path, fine.astype(np.float32), crs="EPSG:25833", nodata=-9999)
    else:
        write_heights(path, (metres * 100 + 700).astype(np.int32), scale=0.01, offset=-7)
    area = Area(WEST - 30, SOUTH + 50, 200, 120)  # a part lies outside of the raster
    found = HeightRaster.open(path).read(area, 2)
    assert np.allclose(found, HeightRaster.open(heights).read(area, 2), atol=1e-4)
    assert (found[:, :60] == 0).all()
    assert found.max() > 30


def test_pitched_roofs_stay_whole_where_heights_were_measured(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    roof = np.minimum(np.arange(20), np.arange(20)[::-1]) * 0.6 + 6
    metres = np.zeros((SIDE, SIDE), np.float32)
    for row in range(20, 360, 40):
        for col in range(20, 360, 30):
            metres[row : row + 30, col : col + 20] = roof + rng.normal(0, 0.1, (30, 20))
    raster = HeightRaster.open(write_heights(tmp_path / "lidar.tif", metres))
    area = raster.bounds
    found = find_buildings(raster.read(area, 1), area, 1, raster.step)
    assert len(found.height) - 1 == 9 * 12


def test_neighbours_of_different_heights_are_two_buildings(heights: Path) -> None:
    raster = HeightRaster.open(heights)
    found = find_buildings(raster.read(raster.bounds, 1), raster.bounds, 1, raster.step)
    row, col = 6, 6
    labels = found.label[row : row + 30, col : col + 22]
    assert len({labels[2, 2], labels[2, 18], labels[20, 2], labels[20, 18]} - {0}) == 4


def test_a_street_is_as_wide_as_its_walls_stand_apart_and_runs_along_them() -> None:
    heights = np.zeros((120, 120), np.float32)
    heights[:50], heights[64:] = 10, 10  # 14 m from north to south
    ground = survey(heights, 1)
    middle = np.s_[52:62, 40:80]
    assert (np.abs(ground.half[middle] - 7) <= 1).all()
    assert np.allclose((ground.along_deg[middle] + 5) % 180, 95, atol=4)
    assert ground.ridge[57, 60] <= 0.5 < 0.9 < ground.ridge[53, 60]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_more_photos_leave_the_first_ones(heights: Path, tmp_path: Path) -> None:
    make(tmp_path, heights, counts=(6, 2, 3))
    kept, lost = (tmp_path / f"photos/train/000/00000{number}.jpg" for number in (3, 4))
    ortho = (tmp_path / "ortho.tif").stat().st_mtime_ns
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    rows = pd.read_csv(tmp_path / "photos.csv").query("split == 'train'")
    lost.unlink()
    make(tmp_path, heights, counts=(9, 2, 3))
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content
    assert (tmp_path / "ortho.tif").stat().st_mtime_ns == ortho
    more = pd.read_csv(tmp_path / "photos.csv").query("split == 'train'")
    assert more.head(6).equals(rows)
    assert len(list((tmp_path / "photos").rglob("*.jpg"))) == 14
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name or path.name.startswith(".")]


@pytest.mark.slow
def test_leaves_have_seasons_and_cars_have_turnouts(heights: Path) -> None:
    block = CityBlock.make(HeightRaster.open(heights), Area(WEST + 60, SOUTH + 80, 200, 200), 2, 0)
    summer, autumn, other = block.scene("summer", 1), block.scene("autumn", 1), block.scene("summer", 2)
    red_over_green = [float((s.top[..., 0].float() - s.top[..., 1].float()).mean()) for s in (summer, autumn)]
    assert red_over_green[1] > red_over_green[0] + 0.05
    changed = (summer.height != other.height).numpy()
    assert changed.any()
    assert block.land_use.street.repeat(2, 0).repeat(2, 1)[changed].mean() > 0.8
    _, streets = block.map()
    place = ((streets > 0) & (streets < BLOCKED)).repeat(2, 0).repeat(2, 1)
    inner = slice(2 * MARGIN, -2 * MARGIN)
    for scene in (summer, autumn, other):
        assert (scene.height.numpy()[inner, inner][place] < 0.4).all()  # no camera in a car


def test_photos_show_the_walls_of_the_buildings_that_stand_there(city: Path) -> None:
    photos = [np.asarray(Image.open(path)) for path in sorted((city / "photos").rglob("*.jpg"))]
    assert {photo.shape for photo in photos} == {(32, 64, 3)}
    assert np.mean([photo.std() for photo in photos]) > 25


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--window", "300", "0", "--size", "200"], "reaches out of it"),
        (["--center", "35.7", "139.7", "--size", "200"], "reaches out of it"),
        (["--resolution", "0.3"], "1 m divided by a whole number"),
        (["--size", "100"], "no room for streets"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_sentence(
    heights: Path, tmp_path: Path, options: list[str], sentence: str
) -> None:
    result = CliRunner().invoke(main, [str(tmp_path / "city"), "--heights", str(heights), *options])
    assert result.exit_code == 2
    assert sentence in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "city").exists()


def test_heights_in_degrees_or_none_at_all_are_refused_in_one_sentence(tmp_path: Path) -> None:
    degrees = write_heights(tmp_path / "degrees.tif", boxes(), crs="EPSG:4326")
    for path, sentence in ((degrees, "projected"), (tmp_path / "none.tif", "cannot be read")):
        result = CliRunner().invoke(main, [str(tmp_path / "city"), "--heights", str(path)])
        assert result.exit_code == 2
        assert sentence in result.output
        assert result.output.count("\n") == 1


def test_a_folder_of_another_city_is_refused(city: Path, heights: Path) -> None:
    with pytest.raises(ConfigError, match="another city"):
        make(city, heights, seed=5)


def test_the_middle_can_be_given_as_latitude_and_longitude(heights: Path) -> None:
    longitude, latitude = Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True).transform(
        WEST + 210.0, SOUTH + 190.0
    )
    window = HeightRaster.open(heights).window(160, None, (latitude, longitude))
    assert window == Area(WEST + 130, SOUTH + 110, 160, 160)
