"""Write locations as one self-contained HTML page: photos, zoom, heat map, candidates and true position.

Leaflet is embedded in the page and the background is the user's imagery, so the page works offline: a picture of the
whole area, and tiles of the surroundings of the answers at the full resolution of the imagery.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from tqdm import tqdm

from jzi.encode.photo.photos import open_photo
from jzi.encode.rasters.imagery import Imagery
from jzi.export.files import write_file
from jzi.export.map_tiles import MapTiles, embedded_tiles, tile_data
from jzi.export.overlay import background_overlay, lat_lon_bounds
from jzi.export.page_data import photo_data, short_names
from jzi.locate.answer.location import Location
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.photos.exif import ExifPosition
from jzi.version import __version__

WEB = Path(__file__).parent / "web"

#: Scripts and styles of the page, in the order in which they are loaded.
SCRIPTS = ("leaflet.js", "map.js", "answer.js", "photos.js")
STYLES = ("leaflet.css", "map.css", "sheet.css")


def write_page(
    path: Path, located: Sequence[tuple[Path, Location, ExifPosition | None]], imagery: Imagery | None
) -> None:
    """Write the page.

    Its tiles have at most 4 MB and the picture of the area 2 MB; each photo adds about 0.3 MB.

    Args:
        path: file to write.
        located: photo file, its location, and the position in its EXIF (None if it has none).
        imagery: background of the map; None for a plain one.

    Raises:
        ExportError: the file cannot be written.
        ImageryError: the imagery cannot be read.
    """
    locations = [location for _, location, _ in located]
    area = locations[0].posterior.area
    names = short_names([location.photo for location in locations])
    tiles = MapTiles(imagery) if imagery else None
    sure = [
        [(each.latitude, each.longitude) for each in location.candidates] for location in locations if location.sure
    ]
    data = {
        "bounds": lat_lon_bounds(area) if isinstance(area, Pyramid) else _bounds_of(locations),
        **area_data(imagery, tiles),
        "grid": area.grid if isinstance(area, Pyramid) else 1,
        "embedded": embedded_tiles(tiles, sure) if tiles else {},
        "photos": [
            photo_data(open_photo(photo), replace(location, photo=name), truth, imagery)
            for name, (photo, location, truth) in zip(
                names, tqdm(located, unit="photo", desc="page", delay=2, disable=len(located) == 1), strict=True
            )
        ],
    }
    title = names[0] if len(names) == 1 else f"{len(names)} photos"
    text = render("page.html", title=title, data=data)
    write_file(path, lambda file: file.write_text(text))


def area_data(imagery: Imagery | None, tiles: MapTiles | None) -> dict[str, Any]:
    """Return what `map.js` draws of the imagery: the picture of the area, the zooms of its tiles, the credit line."""
    return {
        "imagery": background_overlay(imagery),
        "tiles": tile_data(tiles),
        "credit": imagery.attribution if imagery else "",
    }


def render(template: str, *, title: str, data: Any) -> str:
    """Render a template of the `web` folder with Leaflet and `data` embedded."""
    safe = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # a photo's name may contain "</script>"
    return (
        environment()
        .get_template(template)
        .render(
            title=title,
            version=__version__,
            data=Markup(safe),
            scripts=[Markup((WEB / name).read_text()) for name in SCRIPTS],
            styles=[Markup((WEB / name).read_text()) for name in STYLES],
        )
    )


def environment() -> Environment:
    """The templates of the `web` folder; what they insert is escaped."""
    return Environment(autoescape=True, loader=FileSystemLoader(WEB))


def _bounds_of(locations: Sequence[Location]) -> list[list[float]]:
    """South-west and north-east corners of a rectangle around the candidates of all sure answers, with a margin."""
    candidates = [each for location in locations if location.sure for each in location.candidates]
    if not candidates:
        return lat_lon_bounds(locations[0].posterior.area)
    latitude, longitude = (np.array([getattr(each, name) for each in candidates]) for name in ("latitude", "longitude"))
    longitude = np.where(longitude < longitude[0] - 180, longitude + 360, longitude)  # across the antimeridian
    margin = 0.003
    return [
        [float(latitude.min() - margin), float(longitude.min() - margin)],
        [float(latitude.max() + margin), float(longitude.max() + margin)],
    ]
