"""A location as GeoJSON (RFC 7946): its answer, its candidates, and the shapes around them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.locate.answer.fix import Fix
from jzi.locate.answer.fix_shapes import ellipse, heading_line, wedge
from jzi.store.geometry.pyramid import WGS84, Pyramid, TileKey
from jzi.store.photos.exif import ExifPosition
from jzi.store.plain import rounded
from jzi.version import __version__

#: A `jzi.Location`, whose module imports this one.
Located = Any

#: Entries of `Location.to_dict` with positions in them, beside those to metres.
_POSITIONS = ("latitude", "longitude", "candidates", "path")

#: Vertices of a circle.
CORNERS = 64


def feature_collection(features: list[dict[str, Any]]) -> dict[str, Any]:
    """The features as a FeatureCollection that names its generator."""
    return {"type": "FeatureCollection", "generator": f"jzi {__version__}", "features": features}


def answer_feature(location: Located) -> dict[str, Any]:
    """The answer alone, with what `Location.to_dict` says of it; without a geometry if it is not sure."""
    point = _point(location.latitude, location.longitude) if location.sure else None
    return {"type": "Feature", "geometry": point, "properties": {"kind": "answer", **_about(location)}}


def _about(location: Located) -> dict[str, Any]:
    """What `Location.to_dict` says of an answer beside positions."""
    values: dict[str, Any] = location.to_dict()
    return {name: value for name, value in values.items() if name not in _POSITIONS}


def to_features(location: Located, truth: ExifPosition | None = None) -> list[dict[str, Any]]:
    """One location as GeoJSON features, each with the properties `photo` and `kind`.

    Tiles of a zoom and circles come first, so that points are drawn on top of them. There are no tiles where the area
    is no pyramid. Of an answer that is not sure there is one feature, without a geometry, and the true position.
    """
    area, features = location.posterior.area, []
    found = [_feature(_point(truth.latitude, truth.longitude), location, "truth")] if truth else []
    about = {name: value for name, value in _about(location).items() if name not in ("photo", "fix")}
    if not location.sure:
        return [_feature(None, location, "answer", **about), *found]
    if isinstance(area, Pyramid):
        for step, key in enumerate(area.keys(np.array(location.best.path))):
            tile = _polygon(_tile_corners(area, key))
            features.append(_feature(tile, location, "tile", step=step, footprint_m=area.footprint(step)))
    for share, radius in ((0.95, location.radius_95), (0.68, location.radius_68)):
        if np.isfinite(radius):
            corners = circle(location.latitude, location.longitude, radius)
            features.append(_feature(_polygon(corners), location, "circle", share=share, radius_m=radius))
    if location.fix:
        features += _fix_features(location, location.fix)
    for rank, candidate in enumerate(location.candidates):
        properties = {"rank": rank + 1, "probability": candidate.probability, "radius_m": candidate.radius_m}
        if candidate.judged:
            properties |= {"rank_before": candidate.judged.rank, "probability_before": candidate.judged.probability}
        kind = "candidate" if rank else "answer"
        properties |= {} if rank else about
        features.append(_feature(_point(candidate.latitude, candidate.longitude), location, kind, **properties))
    return features + found


def _fix_features(location: Located, fix: Fix) -> list[dict[str, Any]]:
    """Ellipses, wedges, lines and modes of an answer to metres."""
    features = []
    for share in (0.95, 0.68):
        major, minor = fix.semi_axes(share)
        values = {"semi_major_m": major, "semi_minor_m": minor, "axis_deg": fix.axis_deg, "mode_mass": fix.mode_mass}
        features.append(_feature(_polygon(ellipse(fix, share)), location, "ellipse", share=share, **values))
    for direction in fix.directions:
        values = {"heading_deg": direction.heading_deg, "sd_deg": direction.sd_deg}
        values["probability"] = direction.probability
        features.append(_feature(_polygon(wedge(fix, direction)), location, "wedge", **values))
        line = [[round(float(lon), 7), round(float(lat), 7)] for lat, lon in heading_line(fix, direction)]
        geometry = {"type": "LineString", "coordinates": line}
        features.append(_feature(geometry, location, "heading", **values))
    features += [
        _feature(_point(mode.latitude, mode.longitude), location, "mode", probability=mode.probability)
        for mode in fix.modes
    ]
    return features


def circle(latitude: float, longitude: float, radius: float) -> NDArray[np.float64]:
    """(corner, 2) latitudes and longitudes of a geodesic circle of `radius` metres, counter-clockwise."""
    azimuth = -np.linspace(0, 360, CORNERS, endpoint=False)
    ones = np.ones(CORNERS)
    lon, lat, _ = WGS84.fwd(longitude * ones, latitude * ones, azimuth, radius * ones)
    return np.stack([lat, lon], 1)


def _tile_corners(pyramid: Pyramid, key: TileKey) -> NDArray[np.float64]:
    """(4, 2) latitudes and longitudes of a tile's corners, counter-clockwise from the south-west."""
    bounds = pyramid.tile_bounds(key)
    x = [bounds.west, bounds.east, bounds.east, bounds.west]
    y = [bounds.south, bounds.south, bounds.north, bounds.north]
    return np.stack(pyramid.unproject(x, y), 1)


def _feature(geometry: dict[str, Any] | None, location: Located, kind: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {"photo": location.photo, "kind": kind, **rounded(properties)},
    }


def _point(latitude: float, longitude: float) -> dict[str, Any]:
    return {"type": "Point", "coordinates": [round(longitude, 7), round(latitude, 7)]}


def _polygon(corners: NDArray[np.float64]) -> dict[str, Any]:
    ring = [[round(float(lon), 7), round(float(lat), 7)] for lat, lon in [*corners, corners[0]]]
    return {"type": "Polygon", "coordinates": [ring]}
