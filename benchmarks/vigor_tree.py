"""Write images and labels of a made city in the layout of VIGOR."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jzi.datasets.vigor import RESOLUTION, SIDE
from jzi.store.geometry.pyramid import WGS84

#: Latitude and longitude of the south-west corners of the made cities, which have VIGOR's names.
CITIES = {
    "Chicago": (41.85, -87.65),
    "NewYork": (40.72, -73.99),
    "SanFrancisco": (37.76, -122.43),
    "Seattle": (47.53, -122.33),
}


def move(latitude: float, longitude: float, east: float, north: float) -> tuple[float, float]:
    """The place some metres east and north of another."""
    azimuth = math.degrees(math.atan2(east, north))
    lon, lat, _ = WGS84.fwd(longitude, latitude, azimuth, math.hypot(east, north))
    return lat, lon


def write_city(
    folder: Path,
    city: str,
    centers: NDArray[np.float64],
    places: NDArray[np.float64],
    aerial: Iterable[Image.Image],
    panoramas: Iterable[Image.Image],
    *,
    labels: str = "splits__corrected",
    by_city: bool = True,
    scale: float = 1.0,
) -> None:
    """Write a city: half of its photos are trained on in the same area, all of them across areas.

    Args:
        folder: the folder of the data set.
        city: name of the city, which has its resolution.
        centers: (image, 2) metres east and north of the city's corner, of the centres of aerial images.
        places: (photo, 2) the same of photos.
        aerial: the aerial images, 640 pixels of the city's resolution wide, at any number of pixels.
        panoramas: the photos, north in the middle.
        labels: name of the folder of labels.
        by_city: whether images are in <city>/panorama, or in ground/<city>.
        scale: factor of the labels; 1 for correct ones.
    """
    suffix = "__corrected" if labels == "splits__corrected" else ""
    grounds = folder / (f"{city}/panorama" if by_city else f"ground/{city}")
    satellites = folder / (f"{city}/satellite" if by_city else f"satellite/{city}")
    splits = folder / labels / city
    for path in (grounds, satellites, splits):
        path.mkdir(parents=True, exist_ok=True)
    names = []
    for center, image in zip(centers, aerial, strict=True):
        latitude, longitude = move(*CITIES[city], *center)
        names.append(f"satellite_{latitude:.14f}_{longitude:.14f}.png")
        image.save(satellites / names[-1])
    (splits / "satellite_list.txt").write_text("\n".join(names) + "\n")
    lines = []
    for number, (place, image) in enumerate(zip(places, panoramas, strict=True)):
        latitude, longitude = move(*CITIES[city], *place)
        values = [f"{city[:2]}{number:05d},{latitude:.6f},{longitude:.6f},.jpg"]
        image.save(grounds / values[0], quality=92)
        for index in np.argsort(np.abs(centers - place).max(1), kind="stable")[:4]:
            # from the camera to the centre, northwards and eastwards
            row, col = (centers[index] - place)[::-1] / RESOLUTION[city] * scale
            values += [names[index], f"{round(row):.1f}", f"{round(col):.1f}"]
        lines.append(" ".join(values))
    half = len(lines) // 2
    for kind, part in (
        ("same_area_balanced_train", lines[:half]),
        ("same_area_balanced_test", lines[half:]),
        ("pano_label_balanced", lines),
    ):
        text = "".join(f"{line}\r\n" for line in part)  # as the published files end their lines
        (splits / f"{kind}{suffix}.txt").write_text(text, newline="")


def side_m(city: str) -> float:
    """Side of an aerial image of a city, metres."""
    return SIDE * RESOLUTION[city]
