"""Answers as one HTML file: photo, zoom, probability, candidates and true position on a map that needs no network.

The map is Leaflet's, which the file carries along; its background is the user's own imagery.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from jinja2 import Environment
from markupsafe import Markup
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import Resampling
from rasterio.transform import array_bounds, from_origin
from rasterio.warp import calculate_default_transform, reproject, transform_bounds

from jzi.encode.imagery import Imagery
from jzi.encode.photos import open_photo
from jzi.export.files import to_features, write_file
from jzi.locate.location import Location
from jzi.store.exif import ExifPosition
from jzi.store.pyramid import Pyramid, geodesic_distance
from jzi.version import __version__

WEB = Path(__file__).parent / "web"

_PARTS = ("leaflet.js", "leaflet.css", "map.js", "map.css")

#: Pixels: sides of the background, of a photo, and of a tile of the zoom.
BACKGROUND, PHOTO, TILE = 2048, 640, 192


def write_page(
    path: Path, located: Sequence[tuple[Path, Location, ExifPosition | None]], imagery: Imagery | None
) -> None:
    """Write the file.

    Args:
        path: the file.
        located: photos, where they were taken by our answer, and by their EXIF if that is known.
        imagery: the background; the map is plain without.

    Raises:
        ExportError: it cannot be written.
        ImageryError: the imagery cannot be read.
    """
    pyramid = located[0][1].pyramid
    title = located[0][1].photo if len(located) == 1 else f"{len(located)} photos"
    data = {
        "grid": pyramid.grid,
        "bounds": area(pyramid),
        "imagery": background(imagery),
        "photos": [about(open_photo(photo), place, truth, imagery) for photo, place, truth in located],
    }
    text = render("page.html", title=title, data=data)
    write_file(path, lambda file: file.write_text(text))


def render(template: str, *, title: str, data: Any) -> str:
    """One of the templates beside this file, with Leaflet and data in it."""
    safe = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # "</script>" in a name ends no script
    return (
        Environment(autoescape=True)
        .from_string((WEB / template).read_text())
        .render(
            title=title,
            version=__version__,
            data=Markup(safe),
            **{name.replace(".", "_"): Markup((WEB / name).read_text()) for name in _PARTS},
        )
    )


def about(
    photo: Image.Image, location: Location, truth: ExifPosition | None, imagery: Imagery | None
) -> dict[str, Any]:
    """One answer as the page takes it."""
    best, pyramid = location.best, location.pyramid
    image = photo.copy()
    image.thumbnail((PHOTO, PHOTO))
    keys = pyramid.keys(np.array(best.path))
    error = ""
    if truth:
        off = float(geodesic_distance(location.latitude, location.longitude, truth.latitude, truth.longitude))
        error = f"{off:.0f} m from where its EXIF says that it was taken"
    return {
        "name": location.photo,
        "image": _jpeg(image),
        "answer": f"{location.latitude:.6f}, {location.longitude:.6f}",
        "confidence": f"{location.confidence:.1%} {location.extent}",
        "error": error,
        "others": [
            {
                "at": [each.latitude, each.longitude],
                "text": f"{each.latitude:.5f}, {each.longitude:.5f} ({each.probability:.1%})",
            }
            for each in location.candidates[1:]
        ],
        "features": to_features(location, truth),
        "heat": heat(location),
        "zoom": [
            {
                "image": _tile(imagery, key),
                "action": action,
                "caption": f"{pyramid.footprint(key.level):.0f} m: {probability:.0%}",
            }
            for key, action, probability in zip(keys, best.path, best.step_probabilities, strict=False)
        ],
    }


def background(imagery: Imagery | None) -> dict[str, Any] | None:
    """The whole area's imagery, as Leaflet lays it on its map."""
    if imagery is None:
        return None
    image, covered = imagery.render(imagery.pyramid.bounds, BACKGROUND)
    alpha = np.where(covered, 255, 0).astype(np.uint8)
    return _overlay(np.dstack([image, alpha]), imagery.pyramid, Resampling.bilinear)


def heat(location: Location) -> dict[str, Any]:
    """The probability of every cell in colours, unlikely cells transparent."""
    grid = location.posterior.grid()
    share = np.sqrt(grid / grid.max())
    colours = (colormaps["inferno"](0.25 + 0.75 * share) * 255).astype(np.uint8)
    colours[..., 3] = (255 * np.minimum(1.0, 1.5 * share) * (share > 0.03)).astype(np.uint8)
    times = max(1, 512 // len(grid))
    return _overlay(colours.repeat(times, 0).repeat(times, 1), location.pyramid, Resampling.nearest)


def _overlay(image: NDArray[np.uint8], pyramid: Pyramid, resampling: Resampling) -> dict[str, Any]:
    """(row, col, 4) over the whole area, warped to Web Mercator, and its south-west and north-east corners."""
    side = len(image)
    source: Affine = from_origin(pyramid.west, pyramid.north, pyramid.size / side, pyramid.size / side)
    transform, width, height = calculate_default_transform(pyramid.crs, "EPSG:3857", side, side, *pyramid.bounds)
    warped = np.zeros((4, height, width), np.uint8)
    reproject(
        np.ascontiguousarray(np.moveaxis(image, -1, 0)),
        warped,
        src_transform=source,
        src_crs=pyramid.crs,
        dst_transform=transform,
        dst_crs="EPSG:3857",
        resampling=resampling,
    )
    corners = array_bounds(height, width, transform)
    west, south, east, north = transform_bounds("EPSG:3857", "EPSG:4326", *corners)
    picture = Image.fromarray(np.moveaxis(warped, 0, -1))
    return {"image": _encoded(picture, "WEBP", quality=85), "bounds": [[south, west], [north, east]]}


def area(pyramid: Pyramid) -> list[list[float]]:
    """South-west and north-east corners of the area, latitudes first."""
    west, south, east, north = transform_bounds(pyramid.crs, "EPSG:4326", *pyramid.bounds)
    return [[south, west], [north, east]]


def _tile(imagery: Imagery | None, key: Any) -> str:
    if imagery is None:
        return _jpeg(Image.new("RGB", (TILE, TILE), "#c9ced6"))
    return _jpeg(Image.fromarray(imagery.render(imagery.pyramid.tile_bounds(key), TILE)[0]))


def _jpeg(image: Image.Image) -> str:
    return _encoded(image, "JPEG", quality=85)


def _encoded(image: Image.Image, format: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
