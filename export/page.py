"""Write locations as one self-contained HTML page: photo, zoom, heat map, candidates and true position.

Leaflet is embedded in the page and the background is the user's imagery, so the page works offline.
"""

from __future__ import annotations

import base64
import io
import json
import math
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
from jzi.export.fine_grid import fine_shares
from jzi.export.overlay import draw_cells
from jzi.locate.fix import Fix
from jzi.locate.fix_shapes import wedge_length
from jzi.locate.location import Candidate, Location
from jzi.store.cell_grid import Bounds, CellGrid
from jzi.store.exif import ExifPosition
from jzi.store.pyramid import Pyramid, geodesic_distance
from jzi.version import __version__

WEB = Path(__file__).parent / "web"

_ASSETS = ("leaflet.js", "leaflet.css", "map.js", "map.css")

#: Sides in pixels of the background, of a photo, of a zoom tile, and of the surroundings of a compared candidate.
BACKGROUND, PHOTO, TILE, CROP = 2048, 640, 192, 128

#: Side of the detailed background around an answer to metres, metres and pixels.
DETAIL_M, DETAIL = 200.0, 1024

#: Least and greatest distance, metres, from an answer to metres to the edge of the map that is first shown.
NEAR_M, FAR_M = 25.0, 80.0


def write_page(
    path: Path, located: Sequence[tuple[Path, Location, ExifPosition | None]], imagery: Imagery | None
) -> None:
    """Write the page.

    Args:
        path: file to write.
        located: photo file, its location, and the position in its EXIF (None if it has none).
        imagery: background of the map; None for a plain one, as for cells in bands.

    Raises:
        ExportError: the file cannot be written.
        ImageryError: the imagery cannot be read.
    """
    area = located[0][1].posterior.area
    title = located[0][1].photo if len(located) == 1 else f"{len(located)} photos"
    data = {
        "grid": area.grid if isinstance(area, Pyramid) else 1,
        "bounds": lat_lon_bounds(area) if isinstance(area, Pyramid) else _bounds_of([each for _, each, _ in located]),
        "imagery": background_overlay(imagery),
        "photos": [photo_data(open_photo(photo), location, truth, imagery) for photo, location, truth in located],
    }
    text = render("page.html", title=title, data=data)
    write_file(path, lambda file: file.write_text(text))


def render(template: str, *, title: str, data: Any) -> str:
    """Render a template of the `web` folder with Leaflet and `data` embedded."""
    safe = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # a photo's name may contain "</script>"
    return (
        Environment(autoescape=True)
        .from_string((WEB / template).read_text())
        .render(
            title=title,
            version=__version__,
            data=Markup(safe),
            **{name.replace(".", "_"): Markup((WEB / name).read_text()) for name in _ASSETS},
        )
    )


def photo_data(
    photo: Image.Image, location: Location, truth: ExifPosition | None, imagery: Imagery | None
) -> dict[str, Any]:
    """Return the JSON object from which `map.js` draws one located photo."""
    best, area = location.best, location.posterior.area
    image = photo.copy()
    image.thumbnail((PHOTO, PHOTO))
    steps = []
    if isinstance(area, Pyramid) and location.sure:
        keys = area.keys(np.array(best.path))
        steps = [
            {
                "image": _tile(imagery, key),
                "action": action,
                "caption": f"{area.footprint(key.level):.0f} m: {probability:.0%}",
            }
            for key, action, probability in zip(keys, best.path, best.step_probabilities, strict=False)
        ]
    error = ""
    if truth and location.sure:
        error_m = float(geodesic_distance(location.latitude, location.longitude, truth.latitude, truth.longitude))
        error = f"{error_m:.{0 if error_m >= 100 or not location.fix else 1}f} m from its EXIF position"
    return {
        "name": location.photo,
        "image": _jpeg(image),
        "answer": f"{location.latitude:.6f}, {location.longitude:.6f}" if location.sure else "not sure",
        "confidence": f"{location.confidence:.1%} {location.extent}",
        "error": error,
        "others": [
            {
                "at": [candidate.latitude, candidate.longitude],
                "text": f"{candidate.latitude:.5f}, {candidate.longitude:.5f} ({candidate.probability:.1%})",
            }
            for candidate in (location.candidates[1:] if location.sure else ())
        ],
        "comparisons": comparisons(location, imagery) if location.sure else [],
        "features": [feature for feature in to_features(location, truth) if feature["geometry"]],
        "heat": heat_overlay(location) if location.sure else None,
        "fix": fix_data(location.fix, location, imagery) if location.fix and location.sure else None,
        "cell_m": location.cell_m,
        "zoom": steps,
    }


def comparisons(location: Location, imagery: Imagery | None) -> list[dict[str, Any]]:
    """Return what a re-ranker said of each candidate, in their new order, and their surroundings; empty if none did."""
    now = {each.judged.rank: rank for rank, each in enumerate(location.candidates, 1) if each.judged}
    rows = []
    for rank, candidate in enumerate(location.candidates, 1):
        judged = candidate.judged
        if judged is None:
            continue
        rows.append(
            {
                "rank": rank,
                "image": _surroundings(imagery, location, candidate) if imagery else None,
                "before": f"{judged.rank} ({judged.probability:.1%})",
                "after": f"{candidate.probability:.1%}",
                "score": "not shown" if judged.score is None else f"{judged.score:+.2f}",
                "against": [
                    {
                        "rank": now.get(each.rank, each.rank),
                        "text": "no answer" if each.log_odds is None else f"{each.log_odds:+.2f}",
                        "won": None if each.log_odds is None else each.log_odds > 0,
                        "unsure": each.consistent is False,
                    }
                    for each in sorted(judged.against, key=lambda each: now.get(each.rank, each.rank))
                ],
            }
        )
    return rows


def _surroundings(imagery: Imagery, location: Location, candidate: Candidate) -> str:
    """Two cells around a candidate's cell, as an image."""
    area = location.posterior.area
    x, y = (float(each) for each in area.cell_centers(*candidate.cell))
    image, _ = imagery.render(Bounds(x - area.cell_size, y - area.cell_size, x + area.cell_size, y + area.cell_size),
                              CROP)  # fmt: skip
    return _jpeg(Image.fromarray(image))


def fix_data(fix: Fix, location: Location, imagery: Imagery | None) -> dict[str, Any]:
    """Return what `map.js` draws of an answer to metres: its values, probabilities, background and first view."""
    half = min(FAR_M, max(NEAR_M, 1.3 * wedge_length(fix)))
    major, minor = fix.semi_axes(0.68)
    return {
        "ellipse": f"{major:.1f} × {minor:.1f} m",
        "spread": f"half-axes of the ellipse of 68 %, long axis {fix.axis_deg:.0f}°",
        "near": f"{fix.mode_mass:.1%} within 10 m",
        "directions": [
            {
                "deg": each.heading_deg,
                "text": f"{each.heading_deg % 360:.0f}° ± {each.sd_deg:.0f}°"
                + (f" ({each.probability:.0%})" if fix.headings else ""),
            }
            for each in fix.directions
        ],
        "heading_known": fix.heading_deg is None or bool(fix.directions),
        "heat": [
            _warped(_colours(share).repeat(2, 0).repeat(2, 1), location.posterior.area.crs, bounds, Resampling.nearest)
            for share, bounds in fine_shares(location)
        ],
        "detail": _detail(fix, imagery) if imagery else None,
        "view": _square(fix, half),
    }


def _detail(fix: Fix, imagery: Imagery) -> dict[str, Any]:
    """The imagery around an answer, at a finer resolution than that of the whole area."""
    (south, west), (north, east) = _square(fix, DETAIL_M / 2)
    bounds = Bounds(*transform_bounds("EPSG:4326", "EPSG:3857", west, south, east, north))
    image, covered = imagery.render(bounds, DETAIL, "EPSG:3857")
    return _placed(np.dstack([image, np.where(covered, 255, 0).astype(np.uint8)]), bounds)


def _square(fix: Fix, half_m: float) -> list[list[float]]:
    """South-west and north-east corners of a square of Web Mercator around an answer, as [latitude, longitude]."""
    x, y, _, _ = transform_bounds("EPSG:4326", "EPSG:3857", *(fix.longitude, fix.latitude) * 2)
    half = half_m / math.cos(math.radians(fix.latitude))
    west, south, east, north = transform_bounds("EPSG:3857", "EPSG:4326", x - half, y - half, x + half, y + half)
    return [[south, west], [north, east]]


def background_overlay(imagery: Imagery | None) -> dict[str, Any] | None:
    """Return the imagery of the whole area as a Leaflet image overlay, or None without imagery."""
    if imagery is None:
        return None
    image, covered = imagery.render(imagery.pyramid.bounds, BACKGROUND)
    alpha = np.where(covered, 255, 0).astype(np.uint8)
    return _overlay(np.dstack([image, alpha]), imagery.pyramid, Resampling.bilinear)


def heat_overlay(location: Location) -> dict[str, Any]:
    """Return the posterior as a coloured Leaflet image overlay; improbable cells are transparent."""
    if not isinstance(location.posterior.area, Pyramid):
        drawn = draw_cells(location.posterior, "EPSG:3857")
        bounds = drawn.west, drawn.south, drawn.east, drawn.north
        return _placed(_colours(drawn.share), bounds)
    grid = location.posterior.grid()
    colours = _colours(np.sqrt(grid / grid.max()))
    factor = max(1, 512 // len(grid))
    return _overlay(colours.repeat(factor, 0).repeat(factor, 1), location.pyramid, Resampling.nearest)


def _overlay(image: NDArray[np.uint8], pyramid: Pyramid, resampling: Resampling) -> dict[str, Any]:
    """Warp a (row, col, 4) image of the whole area to Web Mercator; bounds are south-west and north-east corners."""
    return _warped(image, pyramid.crs, pyramid.bounds, resampling)


def _warped(image: NDArray[np.uint8], crs: str, bounds: Bounds, resampling: Resampling) -> dict[str, Any]:
    """Warp a (row, col, 4) image of a rectangle of a CRS to Web Mercator."""
    height, width = image.shape[:2]
    source: Affine = from_origin(
        bounds.west, bounds.north, (bounds.east - bounds.west) / width, (bounds.north - bounds.south) / height
    )
    transform, columns, rows = calculate_default_transform(crs, "EPSG:3857", width, height, *bounds)
    warped = np.zeros((4, rows, columns), np.uint8)
    reproject(
        np.ascontiguousarray(np.moveaxis(image, -1, 0)),
        warped,
        src_transform=source,
        src_crs=crs,
        dst_transform=transform,
        dst_crs="EPSG:3857",
        resampling=resampling,
    )
    return _placed(np.moveaxis(warped, 0, -1), array_bounds(rows, columns, transform))


def _colours(share: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(row, col, 4) colours of (row, col) square roots of relative probabilities."""
    colours = (colormaps["inferno"](0.25 + 0.75 * share) * 255).astype(np.uint8)
    colours[..., 3] = (255 * np.minimum(1.0, 1.5 * share) * (share > 0.03)).astype(np.uint8)
    return np.asarray(colours)


def _placed(image: NDArray[np.uint8], corners: tuple[float, float, float, float]) -> dict[str, Any]:
    """A (row, col, 4) image in Web Mercator as an overlay; corners are west, south, east, north in metres."""
    west, south, east, north = transform_bounds("EPSG:3857", "EPSG:4326", *corners)
    return {"image": _data_url(Image.fromarray(image), "WEBP"), "bounds": [[south, west], [north, east]]}


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


def lat_lon_bounds(area: CellGrid) -> list[list[float]]:
    """Return the south-west and north-east corners of the area as [latitude, longitude]."""
    west, south, east, north = transform_bounds(area.crs, "EPSG:4326", *area.bounds)
    return [[south, west], [north, east if east > west else east + 360]]


def _tile(imagery: Imagery | None, key: Any) -> str:
    if imagery is None:
        return _jpeg(Image.new("RGB", (TILE, TILE), "#c9ced6"))
    return _jpeg(Image.fromarray(imagery.render(imagery.pyramid.tile_bounds(key), TILE)[0]))


def _jpeg(image: Image.Image) -> str:
    return _data_url(image, "JPEG")


def _data_url(image: Image.Image, format: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format, quality=85)
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
