"""Claims about the made town and the renderer that photographs it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import ExifTags, Image
from pyproj import Proj

from jzi.encode.photo.photo_view import read_view
from jzi.errors import ConfigError
from jzi.synth.photos import CLEARANCE, place_cameras
from jzi.synth.render import Cameras, Scene, orthophoto, render
from jzi.synth.town import Town, make_town, write_town

SIZE_M, RESOLUTION = 320.0, 1.0  # more than one 256 px tile
RED, BLUE, GREY = (200, 30, 30), (30, 30, 200), (128, 128, 128)


@pytest.fixture(scope="module")
def town() -> Town:
    return make_town(7, SIZE_M, RESOLUTION)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("town")
    write_town(folder, 7, photos=12, size_m=SIZE_M, resolution=RESOLUTION)
    return folder


def field(*boxes: tuple[slice, slice, float, tuple[int, int, int]], n: int = 400, resolution: float = 0.5) -> Scene:
    """Level grey ground with plain boxes on it: (rows, cols, height in metres, colour)."""
    height = torch.zeros(n, n)
    top = torch.empty(n, n, 3, dtype=torch.uint8)
    top[:] = torch.tensor(GREY, dtype=torch.uint8)
    side = top.clone()
    for rows, cols, metres, colour in boxes:
        height[rows, cols] = metres
        top[rows, cols] = torch.tensor(colour, dtype=torch.uint8)
        side[rows, cols] = torch.tensor(colour, dtype=torch.uint8)
    return Scene(height, top, side, resolution)


def shoot(scene: Scene, x: float, y: float, heading_deg: float, size: tuple[int, int] = (112, 224)) -> np.ndarray:
    cameras = Cameras.plain(np.array([x]), np.array([y]), np.array([heading_deg]))
    return render(scene, cameras, *size)[0].numpy().astype(int)


def is_red(photo: np.ndarray) -> np.ndarray:
    return (photo[..., 0] > 1.8 * photo[..., 1]) & (photo[..., 0] > 1.8 * photo[..., 2])


def is_blue(photo: np.ndarray) -> np.ndarray:
    return (photo[..., 2] > 1.8 * photo[..., 0]) & (photo[..., 2] > 1.8 * photo[..., 1])


def test_same_seed_makes_the_same_town_and_photos(town: Town) -> None:
    again = make_town(7, SIZE_M, RESOLUTION)
    for name in ("height", "top", "side", "facade"):
        assert torch.equal(getattr(again.scene, name), getattr(town.scene, name))
    photos = [render(one.scene, place_cameras(one, 7, 3), 56, 112) for one in (town, again)]
    assert torch.equal(*photos)


def test_other_seed_makes_another_town(town: Town) -> None:
    other = make_town(8, SIZE_M, RESOLUTION)
    assert (other.street != town.street).mean() > 0.1
    difference = orthophoto(other.scene).int() - orthophoto(town.scene).int()
    assert difference.abs().float().mean() > 15


def test_the_first_photos_do_not_depend_on_how_many_are_taken(town: Town) -> None:
    few, many = place_cameras(town, 7, 5), place_cameras(town, 7, 300)
    assert np.array_equal(few.x, many.x[:5])
    assert np.array_equal(few.heading_deg, many.heading_deg[:5])


def test_orthophoto_is_a_geotiff_with_crs_and_bounds(written: Path, town: Town) -> None:
    with rasterio.open(written / "ortho.tif") as raster:
        assert raster.crs == rasterio.CRS.from_string(town.crs)
        assert raster.bounds == (town.west, town.south, town.west + SIZE_M, town.south + SIZE_M)
        assert raster.count == 3
        assert raster.dtypes[0] == "uint8"
        assert raster.block_shapes[0] == (256, 256)  # tiles, not strips
        assert raster.compression.name == "deflate"
        assert np.array_equal(raster.read(), orthophoto(town.scene).permute(2, 0, 1).numpy())


def test_exif_tells_the_camera_within_10_cm_on_a_street_and_its_heading(written: Path, town: Town) -> None:
    cameras = place_cameras(town, 7, 12)
    for index in range(12):
        gps = Image.open(written / "photos" / f"{index:05d}.jpg").getexif().get_ifd(ExifTags.IFD.GPSInfo)
        lat, lon = (
            float(degrees) + float(minutes) / 60 + float(seconds) / 3600
            for degrees, minutes, seconds in (gps[ExifTags.GPS.GPSLatitude], gps[ExifTags.GPS.GPSLongitude])
        )
        assert (gps[ExifTags.GPS.GPSLatitudeRef], gps[ExifTags.GPS.GPSLongitudeRef]) == ("N", "E")
        x, y = town.xy(lon, lat)
        assert math.hypot(x - cameras.x[index], y - cameras.y[index]) < 0.1
        assert town.street[town.scene.pixel(x, y)]
        from_true_north = cameras.heading_deg[index] + Proj(town.crs).get_factors(lon, lat).meridian_convergence
        assert abs((float(gps[ExifTags.GPS.GPSImgDirection]) - from_true_north + 180) % 360 - 180) < 0.02


def test_exif_tells_the_field_of_view_within_the_rounding_of_the_focal_length(written: Path, town: Town) -> None:
    cameras = place_cameras(town, 7, 12)
    for index in range(12):
        view = read_view(written / "photos" / f"{index:05d}.jpg")
        assert not view.panorama
        assert view.hfov_deg == pytest.approx(cameras.fov_deg[index], abs=1.6)


def test_cameras_keep_clear_of_walls(town: Town) -> None:
    cameras = place_cameras(town, 7, 200)
    for bearing in range(0, 360, 30):
        for reach in (0.0, CLEARANCE - RESOLUTION):
            east, north = math.sin(math.radians(bearing)), math.cos(math.radians(bearing))
            row, col = town.scene.pixel(cameras.x + reach * east, cameras.y + reach * north)
            assert (town.scene.height.numpy()[row, col] < 0.4).all()


def test_street_direction_runs_along_the_street(town: Town) -> None:
    row, col = np.nonzero(town.street)
    bearing = np.radians(town.street_deg[row, col])
    x, y = (col + 0.5) * RESOLUTION, (town.scene.rows - row - 0.5) * RESOLUTION
    inside = (np.abs(x - SIZE_M / 2) < SIZE_M / 2 - 20) & (np.abs(y - SIZE_M / 2) < SIZE_M / 2 - 20)

    def stays(turn: float) -> float:
        there = town.scene.pixel(x + 12 * np.sin(bearing + turn), y + 12 * np.cos(bearing + turn))
        return float(town.street[there][inside].mean())

    assert stays(0) > 0.85
    assert stays(0) > stays(math.pi / 2) + 0.3


def test_finished_photos_are_kept_and_missing_ones_made_again(written: Path) -> None:
    kept, lost = written / "photos" / "00003.jpg", written / "photos" / "00004.jpg"
    before, content = kept.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    steps: list[int] = []
    write_town(written, 7, photos=12, size_m=SIZE_M, resolution=RESOLUTION, progress=steps.append)
    assert kept.stat().st_mtime_ns == before
    assert lost.read_bytes() == content
    assert steps == [11, 1]
    assert not list(written.rglob("*.partial"))


class Killed(BaseException):
    """Stands for a signal."""


@pytest.fixture(scope="module")
def forty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forty")
    write_town(folder, 7, photos=40, size_m=SIZE_M, resolution=RESOLUTION)
    return folder


@pytest.mark.parametrize("photos", [0, 5, 16, 35])
def test_a_town_whose_making_was_stopped_is_resumed_to_the_same_files(
    tmp_path: Path, forty: Path, files_of: Callable, monkeypatch: pytest.MonkeyPatch, photos: int
) -> None:
    save, count = Image.Image.save, iter(range(photos))

    def killed(image: Image.Image, path: Path, *how: object, **more: object) -> None:
        save(image, path, *how, **more)
        if next(count, None) is None:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Image.Image, "save", killed)
        write_town(tmp_path, 7, photos=40, size_m=SIZE_M, resolution=RESOLUTION)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    assert len(kept) == photos
    steps: list[int] = []
    write_town(tmp_path, 7, photos=40, size_m=SIZE_M, resolution=RESOLUTION, progress=steps.append)
    assert sum(steps) == 40 and (not photos or steps[0] == photos)
    assert all(path.stat().st_mtime_ns == mtime_ns for path, mtime_ns in kept.items())
    assert files_of(tmp_path) == files_of(forty)


def test_a_run_that_is_stopped_between_groups_keeps_every_photo_that_was_counted(tmp_path: Path) -> None:
    steps: list[int] = []

    def stop(photos: int) -> None:
        steps.append(photos)
        raise Killed

    with pytest.raises(Killed):
        write_town(tmp_path, 7, photos=40, size_m=SIZE_M, resolution=RESOLUTION, progress=stop)
    kept = len(list(tmp_path.rglob("*.jpg")))
    assert kept >= steps[0] > 0  # groups that were being rendered are kept too
    steps.clear()
    write_town(tmp_path, 7, photos=40, size_m=SIZE_M, resolution=RESOLUTION, progress=steps.append)
    assert steps[0] == kept and sum(steps) == 40


def test_photos_that_are_kept_are_counted_before_the_town_is_made_and_a_whole_town_is_not_made(
    forty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise Killed

    steps: list[int] = []
    monkeypatch.setattr("jzi.synth.town.make_town", killed)
    write_town(forty, 7, photos=40, size_m=SIZE_M, resolution=RESOLUTION, progress=steps.append)
    with pytest.raises(Killed):
        write_town(forty, 7, photos=41, size_m=SIZE_M, resolution=RESOLUTION, progress=steps.append)
    assert steps == [40, 40]


def test_a_folder_of_another_town_is_refused(written: Path) -> None:
    with pytest.raises(ConfigError, match="another town"):
        write_town(written, 8, photos=1, size_m=SIZE_M, resolution=RESOLUTION)


def test_a_red_tower_in_the_north_is_seen_heading_north_only() -> None:
    scene = field((slice(100, 110), slice(195, 205), 30.0, RED))
    north, south = shoot(scene, 100, 100, 0), shoot(scene, 100, 100, 180)
    assert is_red(north)[30:60, 108:116].all()
    assert not is_red(south).any()


@pytest.mark.parametrize("heading_deg", [0, 37, 90, 200, 301])
def test_a_post_to_the_right_of_the_axis_stands_at_f_times_aside_over_depth(heading_deg: float) -> None:
    depth, aside = 30.0, 24.0
    east, north = math.sin(math.radians(heading_deg)), math.cos(math.radians(heading_deg))
    x, y = 100 + depth * east + aside * north, 80 + depth * north - aside * east
    row, col = round(400 - y / 0.5), round(x / 0.5)
    scene = field((slice(row - 1, row + 1), slice(col - 1, col + 1), 30.0, RED))
    seen = np.flatnonzero(is_red(shoot(scene, 100, 80, heading_deg)).any(0))
    assert seen.mean() == pytest.approx(112 + 112 * aside / depth, abs=2)


@pytest.mark.parametrize("distance", [15.0, 30.0, 60.0])
def test_a_wall_covers_f_h_over_d_pixels(distance: float) -> None:
    rise, width_m = 4.0, 8.0
    row = round((200 - 80 - distance) / 0.5)
    scene = field((slice(row - 20, row), slice(192, 208), rise, RED))
    red = is_red(shoot(scene, 100, 80, 0))
    focal = 112.0  # pixels, of a 224 px wide photo at 90 degrees
    assert red[:, 112].sum() == pytest.approx(focal * rise / distance, abs=1.5)
    assert red.any(0).sum() == pytest.approx(focal * width_m / distance, abs=2)


def test_straight_edges_stay_straight_off_the_axis() -> None:
    scene = field((slice(0, 140), slice(0, 400), 6.0, RED))  # a wall all along the north, seen head-on
    tops = is_red(shoot(scene, 100, 100, 0)).argmax(0)
    assert np.ptp(tops[10:-10]) <= 1


def test_a_near_box_hides_what_is_behind_it() -> None:
    near, far = (slice(140, 150), slice(180, 220), 10.0, RED), (slice(90, 100), slice(190, 210), 10.0, BLUE)
    assert is_blue(shoot(field(far), 100, 100, 0)).any()
    assert not is_blue(shoot(field(near, far), 100, 100, 0)).any()
    taller = (*far[:2], 60.0, BLUE)
    seen = is_blue(shoot(field(near, taller), 100, 100, 0))
    assert seen[:10, 112].any()  # over the near one
    assert not seen[40:, 112].any()


def test_nothing_is_drawn_beyond_the_edge_of_the_scene() -> None:
    column = shoot(field(), 100, 10, 180)[:, 112]  # 10 m from the south edge, whose ground is f * 1.7 / 10 px down
    edge = 56 + round(112 * 1.7 / 10)
    assert (column[57 : edge - 1] == column[57]).all()  # the sky at the horizon
    assert (column[edge + 2 :].sum(-1) < 0.8 * column[57].sum()).all()  # ground


def test_orthophoto_shadow_falls_away_from_the_sun_by_height_over_tangent() -> None:
    scene = field((slice(200, 204), slice(200, 204), 20.0, GREY))
    photo = orthophoto(scene, sun_azimuth_deg=180, sun_elevation_deg=45).int().sum(-1)
    lit = photo[300, 300]
    shaded = np.flatnonzero((photo[:200, 202] < 0.8 * lit).numpy())
    assert 200 - shaded.min() == pytest.approx(20 / 0.5, abs=2)  # to the north
    assert (photo[210:, 202] == lit).all()
