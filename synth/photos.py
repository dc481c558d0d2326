"""Street photos of a synthetic town: camera positions, and the geotagged JPEG files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational
from pyproj import Geod
from torch.nn import functional

from jzi.store.photos.exif import sexagesimal
from jzi.synth.render import RENDERED_AT_ONCE, render
from jzi.synth.scene import Cameras, Town

CLEARANCE = 2.5  # metres from a camera to anything taller than a kerb
FREE_VIEW = 9.0  # metres ahead of a camera without anything taller than a car
EDGE_MARGIN = 20.0  # metres from a camera to the town's edge
DRAW = 256  # cameras are drawn in groups of this size, so that a photo does not depend on their total number
JPEG_QUALITY = 92
FILM_MM = 36.0  # width of the film that a focal length in EXIF refers to


def camera_places(town: Town) -> np.ndarray:
    """Return the flat indices of pixels where a camera can stand: on a street, clear of obstacles."""
    reach = round(CLEARANCE / town.scene.resolution)
    height = town.scene.height[None, None]
    for kernel in ((2 * reach + 1, 1), (1, 2 * reach + 1)):
        height = functional.max_pool2d(height, kernel, stride=1, padding=(kernel[0] // 2, kernel[1] // 2))
    places = town.street & (height[0, 0] < 0.4).numpy()
    margin = round(EDGE_MARGIN / town.scene.resolution)
    inside = np.zeros_like(places)
    inside[margin:-margin, margin:-margin] = True
    return np.flatnonzero(places & inside)


def place_cameras(town: Town, seed: int, count: int) -> Cameras:
    """Draw `count` cameras on the town's streets; the first n do not depend on the count."""
    places = camera_places(town)
    groups = [
        _draw_cameras(np.random.default_rng([seed, 1, group]), town, places) for group in range(-(-count // DRAW))
    ]
    return Cameras(
        **{name: np.concatenate([getattr(group, name) for group in groups])[:count] for name in vars(groups[0])}
    )


def _draw_cameras(rng: np.random.Generator, town: Town, places: np.ndarray) -> Cameras:
    """Draw one group: of twelve candidates for each camera, the first with a free view."""
    tries = 12  # 85 % have a free view, measured over three towns; no camera without one was observed
    size = (DRAW, tries)
    row, col = np.divmod(rng.choice(places, size), town.scene.cols)
    x = (col + rng.random(size)) * town.scene.resolution
    y = (town.scene.rows - row - rng.random(size)) * town.scene.resolution
    # Most photos look along their street, as from a car; some across it, as from a sidewalk.
    manner = rng.random(size)
    turn = np.where(manner < 0.6, rng.normal(0, 12, size), rng.normal(90, 22, size))
    turn = np.where(manner > 0.87, rng.uniform(0, 180, size), turn)
    heading = (town.street_deg[row, col] + turn + 180 * rng.integers(0, 2, size)) % 360
    fov = rng.uniform(60, 100, size)
    chosen = np.argmax(_view_is_free(town, x, y, heading, fov), axis=1)

    def taken(values: np.ndarray) -> np.ndarray:
        return values[np.arange(DRAW), chosen]

    cloud = np.where(rng.random(DRAW) < 0.3, rng.uniform(0.6, 1, DRAW), rng.uniform(0, 0.3, DRAW))
    return Cameras(
        x=taken(x),
        y=taken(y),
        heading_deg=taken(heading),
        fov_deg=taken(fov),
        eye=rng.uniform(1.5, 2.5, DRAW),
        pitch_deg=rng.normal(2, 2.5, DRAW),
        sun_azimuth_deg=rng.uniform(90, 270, DRAW),
        sun_elevation_deg=rng.uniform(22, 60, DRAW),
        brightness=rng.uniform(0.78, 1.15, DRAW),
        haze=rng.uniform(0.0005, 0.004, DRAW),
        cloud=cloud,
    )


def _view_is_free(town: Town, x: np.ndarray, y: np.ndarray, heading_deg: np.ndarray, fov_deg: np.ndarray) -> np.ndarray:
    height = town.scene.height.numpy()
    free = np.ones(x.shape, dtype=bool)
    for side in (-0.25, 0.0, 0.25):
        bearing = np.radians(heading_deg + side * fov_deg)
        for reach in np.arange(CLEARANCE, FREE_VIEW + 0.1, 1.0):
            row, col = town.scene.pixel(x + reach * np.sin(bearing), y + reach * np.cos(bearing))
            free &= height[row, col] < 1.6
    return free


def photo_paths(folder: Path, count: int) -> list[Path]:
    """Return the paths of the first `count` photos."""
    return [folder / f"{index:05d}.jpg" for index in range(count)]


def take_photos(
    folder: Path,
    town: Town,
    seed: int,
    count: int,
    height_px: int,
    width_px: int,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Write `<id>.jpg` into the folder for the first `count` photos; existing files are kept.

    An interrupted call that is repeated gives the same bytes as an uninterrupted one. Photos are rendered in groups,
    and a group with a missing photo is rendered as a whole: the last digits of a sum may depend on a photo's position
    in its group.

    Args:
        folder: output folder.
        town: the town.
        seed: of the cameras.
        count: number of photos.
        height_px: rows of a photo.
        width_px: columns of a photo.
        progress: called with the number of photos written since the last call, after every group.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = photo_paths(folder, count)
    cameras = place_cameras(town, seed, count)

    def take(start: int) -> int:
        group = np.arange(start, min(start + RENDERED_AT_ONCE, count))
        missing = np.array([not paths[index].exists() for index in group])
        if not missing.any():
            return 0
        photos = render(town.scene, cameras[group], height_px, width_px).cpu().numpy()
        chosen = group[missing]
        save_photos(photos[missing], [paths[index] for index in chosen], geotags(town, cameras[chosen]))
        return len(chosen)

    # A group on one core each: its tensors are too small to be divided among cores, which would wait for one another.
    pool = ThreadPoolExecutor(torch.get_num_threads(), "photos", initializer=torch.set_num_threads, initargs=(1,))
    try:
        for future in as_completed([pool.submit(take, start) for start in range(0, count, RENDERED_AT_ONCE)]):
            if (taken := future.result()) and progress is not None:
                progress(taken)
    finally:
        pool.shutdown(cancel_futures=True)


def save_photos(photos: np.ndarray, paths: Iterable[Path], tags: Iterable[Image.Exif]) -> None:
    """Write photos (n, rows, cols, 3) uint8 as JPEG files, each complete or absent."""
    for photo, path, exif in zip(photos, paths, tags, strict=True):
        partial = path.with_suffix(".partial")
        Image.fromarray(photo).save(partial, "JPEG", quality=JPEG_QUALITY, exif=exif)
        partial.replace(path)


def geotags(town: Town, cameras: Cameras) -> list[Image.Exif]:
    """Return each camera's position, true heading and focal length as EXIF."""
    lon, lat = town.lon_lat(cameras.x, cameras.y)
    heading = np.radians(cameras.heading_deg)
    # The map's north is not the globe's: the true heading is that of the geodesic to a point 10 m ahead.
    ahead = town.lon_lat(cameras.x + 10 * np.sin(heading), cameras.y + 10 * np.cos(heading))
    azimuth, _, _ = Geod(ellps="WGS84").inv(lon, lat, *ahead)
    tags = []
    focal = np.rint(FILM_MM / 2 / np.tan(np.radians(cameras.fov_deg) / 2)).astype(int)
    for one_lon, one_lat, one_azimuth, one_focal in zip(lon, lat, np.asarray(azimuth) % 360, focal, strict=True):
        exif = Image.Exif()
        exif[ExifTags.IFD.Exif] = {ExifTags.Base.FocalLengthIn35mmFilm: int(one_focal)}
        exif[ExifTags.IFD.GPSInfo] = {
            ExifTags.GPS.GPSLatitudeRef: "N" if one_lat >= 0 else "S",
            ExifTags.GPS.GPSLatitude: sexagesimal(abs(one_lat)),
            ExifTags.GPS.GPSLongitudeRef: "E" if one_lon >= 0 else "W",
            ExifTags.GPS.GPSLongitude: sexagesimal(abs(one_lon)),
            ExifTags.GPS.GPSImgDirectionRef: "T",
            ExifTags.GPS.GPSImgDirection: IFDRational(round(one_azimuth * 100), 100),
        }
        tags.append(exif)
    return tags
