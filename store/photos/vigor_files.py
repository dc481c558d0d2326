"""Files of data sets of one's own cities in the layout of VIGOR, which VIGOR itself has not.

cities.json                     the cities, and the resolution of their aerial images
splits__corrected/<city>/views.txt   a photo, its heading and its horizontal field of view, degrees, in each line
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from jzi.errors import PairsError, first_line
from jzi.store.disk.files import write_whole
from jzi.store.photos.photo_file import open_regular_file

CITIES, VIEWS = "cities.json", "views.txt"

#: Side of the aerial images, pixels.
SIDE = 640

#: Version of cities.json, its largest size in bytes, and the most metres that a pixel may have.
FORMAT, MAX_BYTES, MAX_RESOLUTION = 1, 2**20, 100.0

#: Names of cities, which are those of folders.
CITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def write_cities(file: Path, resolution: Mapping[str, float]) -> None:
    """Write cities.json.

    Args:
        file: the file.
        resolution: metres per pixel of the aerial images, by city.

    Raises:
        OSError: it cannot be written.
    """
    cities = {name: {"metres_per_pixel": metres} for name, metres in resolution.items()}
    text = json.dumps({"format": FORMAT, "cities": cities}, indent=2) + "\n"
    write_whole(file, lambda path: path.write_text(text, encoding="utf-8"))


def read_cities(file: Path) -> dict[str, float]:
    """Metres per pixel of the aerial images by city, as `write_cities` wrote them.

    Raises:
        PairsError: the file is damaged or of another version.
    """
    try:
        with open_regular_file(file) as opened:
            values = json.loads(opened.read(MAX_BYTES))
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']!r:.20}, not {FORMAT}")
        resolution = {str(name): float(each["metres_per_pixel"]) for name, each in values["cities"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise PairsError(f"{file} does not list the cities: {reason}") from error
    for name, metres in resolution.items():
        if not (CITY.fullmatch(name) and 0 < metres <= MAX_RESOLUTION):
            raise PairsError(f"{file} has a city {name!r:.100} with {metres:g} metres per pixel: correct it")
    if not resolution:
        raise PairsError(f"{file} lists no city")
    return resolution
