"""What the page draws of a located photo, as a JSON object: texts, images, shapes and files to download."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image
from rasterio.enums import Resampling
from rasterio.warp import transform_bounds

from jzi.encode.rasters.imagery import Imagery
from jzi.export.fine_grid import fine_shares
from jzi.export.heatmap import heatmap_bytes
from jzi.export.overlay import colours, heat_overlay, jpeg_url, warped_overlay
from jzi.locate.answer.fix import Fix
from jzi.locate.answer.fix_shapes import wedge_length
from jzi.locate.answer.geojson import to_features
from jzi.locate.answer.location import Candidate, Location
from jzi.locate.answer.wording import known_radii, unsearched
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.lengths import in_readable_unit
from jzi.store.geometry.pyramid import Pyramid, geodesic_distance
from jzi.store.photos.exif import ExifPosition
from jzi.store.plain import percent, share_text

#: Sides in pixels of a photo, of a zoom tile, and of the surroundings of a compared candidate.
PHOTO, TILE, CROP = 640, 192, 128

#: Least and greatest distance, metres, from an answer to metres to the edge of the map that is first shown.
NEAR_M, FAR_M = 25.0, 80.0

#: Largest heat map that a page has for downloading, cells and bytes; `jzi locate --heatmap` writes larger ones.
HEAT_CELLS, HEAT_BYTES = 1024 * 1024, 1_000_000


def photo_data(
    photo: Image.Image, location: Location, truth: ExifPosition | None, imagery: Imagery | None
) -> dict[str, Any]:
    """Return the JSON object from which `map.js` and `answer.js` draw one located photo."""
    best, area, sure = location.best, location.posterior.area, location.sure
    image = photo.copy()
    image.thumbnail((PHOTO, PHOTO))
    steps = []
    if isinstance(area, Pyramid) and sure:
        keys = area.keys(np.array(best.path))
        steps = [
            {
                "image": _tile(imagery, key),
                "action": action,
                "caption": f"{area.footprint(key.level):.0f} m: {percent(probability)}",
            }
            for key, action, probability in zip(keys, best.path, best.step_probabilities, strict=False)
        ]
    error = ""
    if truth and sure:
        error_m = float(geodesic_distance(location.latitude, location.longitude, truth.latitude, truth.longitude))
        (factor, unit), digits = in_readable_unit(error_m), 0 if error_m >= 100 or not location.fix else 1
        error = f"{factor * error_m:.{digits}f} {unit} from its EXIF position"
    return {
        "name": location.photo,
        "image": jpeg_url(image),
        "sure": sure,
        "answer": f"{location.latitude:.6f}, {location.longitude:.6f}" if sure else "not sure",
        "confidence": f"{percent(location.confidence)} {location.extent}",
        "spread": spread_text(location),
        "inside": None if location.inside is None else percent(location.inside),
        "elsewhere": location.elsewhere,
        "notes": list(location.notes),
        "error": error,
        "candidates": [
            {
                "at": [candidate.latitude, candidate.longitude],
                "text": f"{candidate.latitude:.6f}, {candidate.longitude:.6f}",
                "share": percent(location.overall(candidate.probability)),
            }
            for candidate in (location.candidates if sure else ())
        ],
        "comparisons": comparisons(location, imagery) if sure else [],
        "features": [feature for feature in to_features(location, truth) if feature["geometry"]],
        "heat": heat_overlay(location) if sure else None,
        "heat_file": heat_file(location) if sure else None,
        "fix": fix_data(location.fix, location) if location.fix and sure else None,
        "cell_m": location.cell_m,
        "zoom": steps,
    }


def spread_text(location: Location) -> str:
    """Return the radii around the answer in words, or why they are unknown, as the terminal does."""
    return "; ".join(each for each in (*known_radii(location), unsearched(location)) if each)


def heat_file(location: Location) -> str | None:
    """Return the heat map that `jzi locate --heatmap` writes as a data URL; None where it is larger than `HEAT_*`."""
    if math.prod(location.posterior.area.shape) > HEAT_CELLS:
        return None
    file = heatmap_bytes(location)
    return f"data:image/tiff;base64,{base64.b64encode(file).decode()}" if len(file) <= HEAT_BYTES else None


def short_names(names: Sequence[str]) -> list[str]:
    """Return the names of files without their folders; of those that are then equal, with the folder they are in.

    Example:
        >>> short_names(["/home/me/a/1.jpg", "/home/me/b/1.jpg", "/home/me/b/2.jpg"])
        ['a/1.jpg', 'b/1.jpg', '2.jpg']
    """
    paths = [PurePath(name) for name in names]
    last = [path.name for path in paths]
    return [
        "/".join(path.parts[-2:]).lstrip("/") if last.count(path.name) > 1 else path.name or name
        for name, path in zip(names, paths, strict=True)
    ]


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
                "before": f"{judged.rank} ({percent(location.overall(judged.probability))})",
                "after": percent(location.overall(candidate.probability)),
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
    return jpeg_url(Image.fromarray(image))


def fix_data(fix: Fix, location: Location) -> dict[str, Any]:
    """Return what `map.js` draws of an answer to metres: its values, probabilities and first view."""
    half = min(FAR_M, max(NEAR_M, 1.3 * wedge_length(fix)))
    major, minor = fix.semi_axes(0.68)
    return {
        "ellipse": f"{major:.1f} × {minor:.1f} m",
        "spread": f"half-axes of the ellipse of 68 %, long axis {fix.axis_deg:.0f}°",
        "near": f"{percent(fix.mode_mass)} within 10 m",
        "directions": [
            {
                "deg": each.heading_deg,
                "text": f"{each.heading_deg % 360:.0f}° ± {each.sd_deg:.0f}°"
                + (f" ({share_text(each.probability, 0)})" if fix.headings else ""),
            }
            for each in fix.directions
        ],
        "heading_known": fix.heading_deg is None or bool(fix.directions),
        "heat": [
            warped_overlay(
                colours(share).repeat(2, 0).repeat(2, 1), location.posterior.area.crs, bounds, Resampling.nearest
            )
            for share, bounds in fine_shares(location)
        ],
        "view": _square(fix, half),
    }


def _square(fix: Fix, half_m: float) -> list[list[float]]:
    """South-west and north-east corners of a square of Web Mercator around an answer, as [latitude, longitude]."""
    x, y, _, _ = transform_bounds("EPSG:4326", "EPSG:3857", *(fix.longitude, fix.latitude) * 2)
    half = half_m / math.cos(math.radians(fix.latitude))
    west, south, east, north = transform_bounds("EPSG:3857", "EPSG:4326", x - half, y - half, x + half, y + half)
    return [[south, west], [north, east]]


def _tile(imagery: Imagery | None, key: Any) -> str:
    if imagery is None:
        return jpeg_url(Image.new("RGB", (TILE, TILE), "#c9ced6"))
    return jpeg_url(Image.fromarray(imagery.render(imagery.pyramid.tile_bounds(key), TILE)[0]))
