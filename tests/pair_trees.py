"""Small trees of the data sets of pairs: VIGOR, CVUSA, CVACT and KITTI as their authors lay them out."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jzi.benchmarks.vigor_tree import CITIES, side_m, write_city
from jzi.datasets.kitti import IMAGE as KITTI_PIXELS
from jzi.datasets.kitti import RESOLUTION as KITTI_RESOLUTION
from jzi.datasets.kitti import place_view

Scene = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def scene(seed: int, wavelength: float = 40.0) -> Scene:
    """A smooth field of colours over the plane: metres east and north to (..., 3) in 0..1."""
    rng = np.random.default_rng(seed)
    waves = rng.normal(0, 2 * np.pi / wavelength, (3, 6, 2))
    phase = rng.uniform(0, 2 * np.pi, (3, 6))

    def color(east: NDArray[np.float64], north: NDArray[np.float64]) -> NDArray[np.float64]:
        angle = east[..., None, None] * waves[..., 0] + north[..., None, None] * waves[..., 1] + phase
        return 0.5 + 0.5 * np.tanh(np.sin(angle).sum(-1))

    return color


def aerial(color: Scene, east: float, north: float, side: float, pixels: int) -> Image.Image:
    """An aerial image of a scene around a place."""
    step = (np.arange(pixels) + 0.5) / pixels * side - side / 2
    return _image(color(east + step[None, :] + 0 * step[:, None], north - step[:, None] + 0 * step[None, :]))


def panorama(color: Scene, east: float, north: float, width: int, height: int) -> Image.Image:
    """A panorama of a scene: north in the middle, the sky above, and the ground up to 30 m away below."""
    azimuth = ((np.arange(width) + 0.5) / width - 0.5) * 2 * np.pi
    below = np.linspace(0.05, 1, height - height // 2)  # rows under the horizon
    distance = 1.6 / np.tan(below * np.pi / 2 * 0.97 + 0.04)
    x, y = (
        np.outer(np.minimum(distance, 30), np.sin(azimuth)),
        np.outer(np.minimum(distance, 30), np.cos(azimuth)),
    )
    ground = color(east + x, north + y)
    return _image(np.concatenate([np.full((height // 2, width, 3), 0.8), ground]))


def _image(values: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray((255 * values).round().astype(np.uint8))


def write_vigor(
    folder: Path,
    *,
    labels: str = "splits__corrected",
    by_city: bool = True,
    cities: tuple[str, ...] = tuple(CITIES),
    photos: int = 6,
    grid: int = 3,
    scale: float = 1.0,
    pixels: int = 32,
    panorama_width: int = 64,
) -> None:
    """Write a tree of VIGOR: per city grid x grid aerial images that overlap by half, and photos with labels.

    Args:
        folder: the folder of the data set.
        labels: name of the folder of labels.
        by_city: whether images are in <city>/panorama, or in ground/<city>.
        cities: the cities.
        photos: photos per city, half of them for training across the area.
        grid: aerial images in a row.
        scale: factor of the labels; 1 for correct ones.
        pixels: side of the aerial images on disk.
        panorama_width: width of the panoramas.
    """
    for number, city in enumerate(cities):
        rng, color, side = np.random.default_rng(number), scene(number), side_m(city)
        centers = np.array([(side / 2 * col, side / 2 * row) for row in range(grid) for col in range(grid)])
        # in the inner part, where four aerial images cover every place
        places = rng.uniform(side / 8, (grid - 1) * side / 2 - side / 8, (photos, 2))
        write_city(
            folder,
            city,
            centers,
            places,
            (aerial(color, east, north, side, pixels) for east, north in centers.tolist()),
            (panorama(color, east, north, panorama_width, panorama_width // 2) for east, north in places.tolist()),
            labels=labels,
            by_city=by_city,
            scale=scale,
        )


def write_cvusa(folder: Path, *, train: int = 4, test: int = 3, pixels: int = 32) -> None:
    """Write a tree of CVUSA; panoramas are 224 x 1232 in reality."""
    (folder / "splits").mkdir(parents=True)
    (folder / "split_locations").mkdir()
    lines: dict[str, list[str]] = {"train": [], "val": []}
    positions = []
    for number in range(1, train + test + 1):
        reference, photo = f"bingmap/19/{number:07d}.jpg", f"streetview/panos/{number:07d}.jpg"
        for path in (reference, photo):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        color = scene(number)
        aerial(color, 0, 0, 60, pixels).save(folder / reference)
        panorama(color, 0, 0, 88, 16).save(folder / photo)
        split = "train" if number <= train else "val"
        lines[split].append(f"{reference},{photo},streetview/annotations/{number:07d}.png")
        positions.append(f"{40 + number},{-80},{40 + number},{-80 - number},1")
    for split, rows in lines.items():
        (folder / "splits" / f"{split}-19zl.csv").write_text("\n".join(rows) + "\n")
    (folder / "split_locations" / "all.csv").write_text("\n".join(positions) + "\n")


def write_cvact(folder: Path, *, train: int = 4, val: int = 2, test: int = 2, compressed: bool = True) -> None:
    """Write a tree of CVACT."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"pano{number:018d}" for number in range(train + val + test)]
    for number, name in enumerate(ids):
        images = folder / ("ANU_data_test" if number >= train + val else "ANU_data_small")
        for kind in ("streetview", "satview_polish"):
            (images / kind).mkdir(parents=True, exist_ok=True)
        color = scene(number)
        aerial(color, 0, 0, 60, 32).save(images / "satview_polish" / f"{name}_satView_polish.jpg")
        panorama(color, 0, 0, 64, 32).save(images / "streetview" / f"{name}_grdView.jpg")
    utm = np.stack([690_000.0 + 100 * np.arange(len(ids)), np.full(len(ids), 6_093_000.0)], 1)
    first, second = np.arange(1, train + 1), np.arange(train + 1, train + val + 1)
    variables = [
        char_matrix("panoIds", ids),
        number_matrix("utm", utm),
        struct_matrix("trainSet", {"trainName": char_matrix("", ["a"]), "trainInd": number_matrix("", first[:, None])}),
        struct_matrix("valSet", {"valName": char_matrix("", ["b"]), "valInd": number_matrix("", second[:, None])}),
    ]
    write_mat(folder / "ACT_data.mat", variables, compressed=compressed)


def write_kitti(folder: Path, *, photos: int = 3, seed: int = 0) -> NDArray[np.float64]:
    """Write a tree of KITTI, and return shift_x, shift_y and theta of each photo of test1, shares of the limits."""
    date, drive = "2011_09_26", "2011_09_26_drive_0001_sync"
    rng = np.random.default_rng(seed)
    shares = rng.uniform(-1, 1, (photos, 3)).round(6)
    raw = folder / "raw_data" / date / drive
    for path in (raw / "image_02" / "data", raw / "oxts" / "data", folder / "satmap" / date / drive):
        path.mkdir(parents=True)
    (folder / "raw_data" / date / "calib_cam_to_cam.txt").write_text(
        "calib_time: 09-Jan-2012\nP_rect_02: 7.215377e+02 0 6.095593e+02 0 0 7.215377e+02 1.728540e+02 0 0 0 1 0\n"
    )
    names = []
    for number in range(photos):
        yaw = float(rng.uniform(-3, 3))
        name = f"{number:010d}.png"
        names.append(f"{date}/{drive}/{name}")
        Image.new("RGB", (124, 38), (90, 100, 110)).save(raw / "image_02" / "data" / name)
        (raw / "oxts" / "data" / name.replace(".png", ".txt")).write_text(f"49.0 8.4 110 0 0 {yaw} 0 0 0\n")
        camera, _ = place_view(yaw, 0, 0, 0)
        image = Image.new("RGB", (320, 320))
        pixel = KITTI_RESOLUTION * KITTI_PIXELS / 320
        col, row = int(160 + camera[0] / pixel), int(160 - camera[1] / pixel)
        image.paste((255, 255, 255), (col - 1, row - 1, col + 2, row + 2))
        image.save(folder / "satmap" / date / drive / name)
    (folder / "train_files.txt").write_text("\n".join(names) + "\n")
    for split in ("test1", "test2"):
        rows = [f"{name} {x} {y} {theta}" for name, (x, y, theta) in zip(names, shares, strict=True)]
        (folder / f"{split}_files.txt").write_text("\n".join(rows) + "\n")
    return shares


# MATLAB files of version 5, as far as CVACT needs them


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def _matrix(name: str, kind: int, shape: tuple[int, ...], parts: list[bytes]) -> bytes:
    flags = element(6, struct.pack("<II", kind, 0))
    dimensions = element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, flags + dimensions + element(1, name.encode()) + b"".join(parts))


def char_matrix(name: str, rows: list[str]) -> bytes:
    text = "".join("".join(column) for column in zip(*rows, strict=True))
    return _matrix(name, 4, (len(rows), len(rows[0])), [element(4, text.encode("utf-16-le"))])


def number_matrix(name: str, values: NDArray[Any]) -> bytes:
    data = np.asarray(values, "<f8").tobytes(order="F")
    return _matrix(name, 6, values.shape, [element(9, data)])


def cell_matrix(name: str, cells: list[bytes]) -> bytes:
    return _matrix(name, 1, (len(cells), 1), cells)


def struct_matrix(name: str, values: dict[str, bytes]) -> bytes:
    length = struct.pack("<HHi", 5, 4, 32)  # a small element
    names = element(1, b"".join(each.encode().ljust(32, b"\0") for each in values))
    return _matrix(name, 2, (1, 1), [length, names, *values.values()])


def write_mat(file: Path, variables: list[bytes], *, compressed: bool) -> None:
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    if compressed:
        packed = [zlib.compress(each) for each in variables]
        variables = [struct.pack("<II", 15, len(each)) + each for each in packed]
    file.write_bytes(header + b"".join(variables))
