"""The layout of VIGOR, which `jzi init --dataset vigor` reads: aerial images that overlap by half, and their labels.

Each photo lies in the middle quarter of its positive, and in three others, the semi-positives (Zhu et al. 2021, section
3). Labels are the corrected ones: pixels of `SIDE` from the photo to the image's centre, north and east.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from jzi.curate.folder import cannot_write
from jzi.encode.photo.photos import open_photo
from jzi.encode.rasters.imagery import Imagery
from jzi.encode.rasters.raster import RasterOptions
from jzi.errors import DatasetError
from jzi.publish.area import area_of, imagery_needed
from jzi.publish.card import write_card
from jzi.publish.publication import (
    NO_IMAGERY,
    Photos,
    Publication,
    Request,
    begin,
    file_names,
    find_photos,
    fingerprint,
    finish,
    place,
    published,
)
from jzi.publish.tiles import save_jpeg
from jzi.store.disk.files import write_whole
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.pyramid import WGS84, Pyramid
from jzi.store.photos.splits import SPLITS
from jzi.store.photos.vigor_files import CITIES, CITY, SIDE, VIEWS, write_cities

#: Metres per pixel of the aerial images: about the mean of VIGOR's cities, so that an image is 72 m wide.
RESOLUTION = 0.1125

#: Distance between the centres of neighbouring images, metres: half a side, as in VIGOR.
STEP_M = SIDE * RESOLUTION / 2

#: Least share of an aerial image that the imagery covers: VIGOR's have no gaps; seams of mosaics have narrow ones.
COVERED = 0.95

#: Decimals of degrees in names of files: a millimetre.
_DECIMALS = 8

PANORAMAS_ONLY = "no panorama, but most others are"
PHOTOS_ONLY = "a panorama, but most others are not"
NO_VIEW = "heading or field of view unknown"

_LABELS = "splits__corrected"

_COLUMNS = {
    "id, latitude, longitude": "in the name of a photo's file",
    "satellite_<latitude>_<longitude>.jpg": f"an aerial image of {SIDE * RESOLUTION:g} m, north up, by its centre",
    "same_area_balanced_<split>__corrected.txt": "a photo, and four times an aerial image, pixels north and east to it",
    VIEWS: "a photo, its heading and its field of view, degrees; not of panoramas, which have north in their middle",
}


def publish_vigor(request: Request) -> Publication:
    """Publish a data set as one city in the layout of VIGOR, with cities.json and its card as README.md.

    If most photos are panoramas, these are published in <city>/panorama, rolled so that north is in the middle; else
    the others, in <city>/photos, with their headings and fields of view. Files that are there are kept, so that an
    interrupted publication is resumed.

    Raises:
        DatasetError: no imagery is given; the photos have no split, or one is missing; no photo has a heading; the
            folder holds something else or cannot be written.
        ImageryError: the imagery cannot be read, or does not overlap the area.
        PhotoError: a panorama cannot be read.
    """
    imagery_needed(request.rasters, "vigor")
    request = replace(request, area=request.area or area_of(request.folder.photos))
    area = request.area
    assert area is not None
    photos, panoramas = _with_views(find_photos(request))
    city = city_name(request.name)
    with Imagery(request.rasters, area, RasterOptions(remote=request.remote)) as imagery:
        values = fingerprint("vigor", request, photos, imagery)
        resumed = begin(request.output, values)
        try:
            satellite = request.output / city / "satellite"
            grid = _Grid(area)
            names = grid.write(imagery, satellite)
            photos = photos.take(np.array([name in names for name in grid.names_near(photos)[0]], bool), NO_IMAGERY)
            stems = _write_photos(photos, request.output / city, panoramas)
            _write_labels(photos, stems, grid, names, request.output / _LABELS / city, panoramas)
            write_cities(request.output / CITIES, {city: RESOLUTION})
            write_card(
                published(request, photos), request.name, request.rasters, request.imagery_sources,
                output=request.output, name="README.md", with_imagery=True, columns=_COLUMNS, remote=request.remote,
            )  # fmt: skip
            result = Publication(
                "vigor", request.output, photos.count(), photos.left_out, len(names), "aerial images", resumed
            )
            return finish(request.output, values, result)
        except OSError as error:
            raise DatasetError(cannot_write(request.output, error)) from error


def city_name(title: str) -> str:
    """The title as a name of a folder."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", title).strip("-_")[:100]
    return name if CITY.fullmatch(name) else "City"


def _with_views(photos: Photos) -> tuple[Photos, bool]:
    """The panoramas, or the other photos if these are more, of known views; and whether they are panoramas."""
    frame = photos.frame
    panorama = frame["panorama"].to_numpy(bool) if "panorama" in frame else np.zeros(len(frame), bool)
    panoramas = bool(panorama.mean() >= 0.5)
    photos = photos.take(panorama == panoramas, PANORAMAS_ONLY if panoramas else PHOTOS_ONLY)
    frame, known = photos.frame, np.ones(len(photos), bool)
    for name in ("heading",) if panoramas else ("heading", "hfov"):
        known &= np.isfinite(frame[name].to_numpy(float)) if name in frame else False
    if "hfov" in frame and not panoramas:
        known &= ((frame["hfov"] > 0) & (frame["hfov"] <= 360)).to_numpy(bool)
    return photos.take(known, NO_VIEW), panoramas


class _Grid:
    """Centres of aerial images over an area, and one more on each side, in rows from south to north."""

    def __init__(self, area: Pyramid) -> None:
        self.area = area
        self.count = int(np.ceil(area.size / STEP_M)) + 1
        bounds = area.bounds
        steps = np.arange(self.count) * STEP_M - ((self.count - 1) * STEP_M - area.size) / 2
        self._x, self._y = bounds.west + steps, bounds.south + steps

    def positions(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.float64]:
        """(..., 2) latitude and longitude of centres, rounded as in the names of their files."""
        return np.stack(self.area.unproject(self._x[col], self._y[row]), -1).round(_DECIMALS)

    def name(self, latitude: float, longitude: float) -> str:
        """Name of the aerial image with a centre."""
        return f"satellite_{latitude:.{_DECIMALS}f}_{longitude:.{_DECIMALS}f}.jpg"

    def write(self, imagery: Imagery, folder: Path) -> dict[str, None]:
        """Write the images that the imagery covers, and return their names in order; those that are there are kept."""
        folder.mkdir(parents=True, exist_ok=True)
        names: dict[str, None] = {}
        half = SIDE * RESOLUTION / 2
        rows, cols = np.nonzero(self._touched(imagery))
        centers = self.positions(rows, cols)
        with tqdm(total=len(centers), unit="image", desc="imagery", delay=2) as progress:
            for latitude, longitude in centers.tolist():
                name = self.name(latitude, longitude)
                progress.update()
                if not (folder / name).exists():
                    # north up at its own centre
                    crs = f"+proj=aeqd +lat_0={latitude} +lon_0={longitude} +datum=WGS84 +units=m +no_defs"
                    image, covered = imagery.render(Bounds(-half, -half, half, half), SIDE, crs=crs)
                    if covered.mean() < COVERED:
                        continue
                    save_jpeg(Image.fromarray(image), folder / name)
                names[name] = None
        return names

    def _touched(self, imagery: Imagery) -> NDArray[np.bool_]:
        """(row, col) whether the middle of an image lies in or near the extent of a raster."""
        touched = np.zeros((self.count, self.count), bool)
        for extent in imagery.extents:
            cols = (self._x > extent.west - STEP_M) & (self._x < extent.east + STEP_M)
            rows = (self._y > extent.south - STEP_M) & (self._y < extent.north + STEP_M)
            touched |= rows[:, None] & cols
        return touched

    def near(self, photos: Photos) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centres of the four images around each photo, the nearest first, and how far they are.

        Returns:
            (photo, 4, 2) latitude and longitude, and (photo, 4, 2) metres north and east from the photo to the centre.
        """
        latitude, longitude = (photos.frame[name].to_numpy(float) for name in ("latitude", "longitude"))
        x, y = self.area.project(latitude, longitude)
        col, row = ((each - start[0]) / STEP_M for each, start in ((x, self._x), (y, self._y)))
        corner = [np.clip(np.floor(each).astype(int), 0, self.count - 2) for each in (row, col)]
        rows, cols = (
            each[:, None] + np.array(offset) for each, offset in zip(corner, ((0, 0, 1, 1), (0, 1, 0, 1)), strict=True)
        )
        centers = self.positions(rows, cols)  # (photo, 4, 2)
        start = np.broadcast_to(latitude[:, None], rows.shape), np.broadcast_to(longitude[:, None], rows.shape)
        azimuth, _, distance = WGS84.inv(start[1], start[0], centers[..., 1], centers[..., 0])
        angle = np.radians(azimuth)
        delta = np.stack([distance * np.cos(angle), distance * np.sin(angle)], -1)
        order = np.abs(delta).max(-1).argsort(1, kind="stable")[..., None]
        return np.take_along_axis(centers, order, 1), np.take_along_axis(delta, order, 1)

    def names_near(self, photos: Photos) -> tuple[list[str], ...]:
        """Names of the four images around each photo, the nearest first: four lists of (photo,)."""
        centers = self.near(photos)[0]
        return tuple([self.name(*center) for center in centers[:, rank].tolist()] for rank in range(4))


def _write_photos(photos: Photos, folder: Path, panoramas: bool) -> list[str]:
    """Write the photos, and return the names of their files, as VIGOR has them: id,latitude,longitude,.jpg."""
    frame = photos.frame
    folder = folder / ("panorama" if panoramas else "photos")
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    columns = (file_names(frame["id"].tolist()), frame["latitude"], frame["longitude"], photos.files)
    for row, (name, latitude, longitude, file) in enumerate(
        tqdm(zip(*columns, strict=True), total=len(frame), unit="photo", desc="copies", delay=2)
    ):
        names.append(
            f"{name},{latitude:.{_DECIMALS}f},{longitude:.{_DECIMALS}f},{'.jpg' if panoramas else file.suffix.lower()}"
        )
        target = folder / names[-1]
        if panoramas:
            _place_panorama(file, target, float(frame["heading"].iloc[row]))
        else:
            place(file, target)
    return names


def _place_panorama(source: Path, target: Path, heading: float) -> None:
    """Put a panorama with north in its middle; it is encoded anew only if it must be rolled."""
    if target.exists():
        return
    image = open_photo(source)
    columns = round(heading % 360 / 360 * image.width) % image.width
    if columns == 0 and source.suffix.lower() in (".jpg", ".jpeg"):
        place(source, target)
        return
    rolled = np.roll(np.asarray(image), columns, axis=1)
    save_jpeg(Image.fromarray(rolled), target)


def _write_labels(
    photos: Photos, names: list[str], grid: _Grid, images: dict[str, None], folder: Path, panoramas: bool
) -> None:
    """Write the lists of aerial images, labels of each split, and views of photos that are no panoramas."""
    folder.mkdir(parents=True, exist_ok=True)
    near, delta = grid.names_near(photos), grid.near(photos)[1] / RESOLUTION
    _write_lines(folder / "satellite_list.txt", list(images))
    lines = []
    for row, name in enumerate(names):
        parts = [f"{near[rank][row]} {delta[row, rank, 0]:.4f} {delta[row, rank, 1]:.4f}" for rank in range(4)]
        lines.append(" ".join([name, *parts]))
    split = photos.frame["split"].to_numpy()
    for kind in SPLITS:
        of_split = [line for line, its in zip(lines, split, strict=True) if its == kind]
        file = folder / f"same_area_balanced_{kind}__corrected.txt"
        if of_split or kind != "val":  # VIGOR has train and test
            _write_lines(file, of_split)
        elif file.exists():
            file.unlink()
    if not panoramas:
        views = zip(names, photos.frame["heading"].to_numpy(float), photos.frame["hfov"].to_numpy(float), strict=True)
        _write_lines(folder / VIEWS, [f"{name} {heading % 360:.6g} {hfov:.6g}" for name, heading, hfov in views])


def _write_lines(file: Path, lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    write_whole(file, lambda path: path.write_text(text, encoding="utf-8"))
