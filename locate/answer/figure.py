"""A location as a small map for notebooks: HTML and SVG in one piece, without scripts and without the network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.store.geometry.lengths import length_text, round_length
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.plain import percent

#: A `jzi.Location`, whose module imports this one.
Located = Any

#: Side of the map, pixels.
SIDE = 360

#: Most cells that are drawn, each in about 80 bytes, and the share of the greatest probability below which none is.
CELLS, LEAST = 400, 0.003

#: Metres in a degree of latitude, on the mean sphere: the map is a picture, not a measurement.
DEGREE_M = 111_195.0

#: Colours of probabilities, from improbable to probable (matplotlib's inferno).
_RAMP = np.array([(106, 23, 110), (187, 55, 84), (249, 142, 9), (252, 255, 164)], float)


def location_html(location: Located) -> str:
    """A table of the answer beside a map of the probable cells, the circles of 68 and 95 % and the candidates.

    North is up. A position that is withheld is nowhere in it.

    Args:
        location: the location.
    """
    note = "".join(f"<div>note: {escape(each)}</div>" for each in location.notes)
    share = f"{percent(location.confidence)} {location.extent}"
    if not location.sure:
        text = f"position withheld: {share}, less than the {percent(location.abstain)} that were asked for"
        return f"<div><b>{escape(location.photo or 'photo')}</b><div>{text}</div>{note}</div>"
    at = f"{location.latitude:.6f}, {location.longitude:.6f}"
    osm = (
        f"https://www.openstreetmap.org/?mlat={location.latitude:.6f}&amp;mlon={location.longitude:.6f}"
        f"#map=17/{location.latitude:.6f}/{location.longitude:.6f}"
    )
    radii = ", ".join(
        f"{name} within {radius:.0f} m"
        for name, radius in (("68 % (circle)", location.radius_68), ("95 % (dashed)", location.radius_95))
        if math.isfinite(radius)
    )
    area = ""
    if location.inside is not None:
        area = f"<div>{location.doubt}{percent(location.inside)} that it is from this area at all</div>"
    others = "".join(
        f"<li>{each.latitude:.6f}, {each.longitude:.6f} ({percent(location.overall(each.probability))})</li>"
        for each in location.candidates[1:]
    )
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start">'
        f"{_svg(location)}<div><b>{escape(location.photo or 'photo')}</b>"
        f'<div style="font-size:1.2em">{at}</div><div>{share}</div><div>{radii}</div>{area}'
        f'<div><a href="{osm}" target="_blank" rel="noreferrer">OpenStreetMap</a> '
        f'<a href="geo:{location.latitude:.6f},{location.longitude:.6f}">Maps app</a></div>'
        + (f'<div>or</div><ol start="2" style="margin:0">{others}</ol>' if others else "")
        + f"{note}</div></div>"
    )


def _svg(location: Located) -> str:
    latitude, longitude, probability = _cells(location)
    x, y = _metres(location, latitude, longitude)
    points = _metres(
        location,
        np.array([each.latitude for each in location.candidates]),
        np.array([each.longitude for each in location.candidates]),
    )
    cell = location.cell_m
    reach = [3 * cell, *(1.15 * radius for radius in (location.radius_68, location.radius_95) if math.isfinite(radius))]
    probable = probability > 0.05 * probability.max(initial=0.0)
    reach += [float(np.abs(each).max(initial=0.0)) + cell for each in (x[probable], y[probable], *points)]
    half = max(reach)
    scale = SIDE / (2 * half)  # pixels per metre

    def across(metres: float) -> str:
        return f"{(metres + half) * scale:.1f}"

    def down(metres: float) -> str:
        return f"{(half - metres) * scale:.1f}"

    side = max(cell * scale, 1.0)
    shares = np.sqrt(probability / max(probability.max(initial=0.0), 1e-300))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIDE}" height="{SIDE}" viewBox="0 0 {SIDE} {SIDE}" '
        'font-family="sans-serif" font-size="12" role="img" aria-label="map of the probable cells">'
        f'<rect width="{SIDE}" height="{SIDE}" fill="#eef0f2"/>'
    ]
    if isinstance(location.posterior.area, Pyramid):
        bounds = location.posterior.area.bounds
        corners = location.posterior.area.unproject(
            [bounds.west, bounds.east, bounds.east, bounds.west],
            [bounds.south, bounds.south, bounds.north, bounds.north],
        )
        outline = " ".join(
            f"{across(each_x)},{down(each_y)}" for each_x, each_y in zip(*_metres(location, *corners), strict=True)
        )
        parts.append(f'<polygon points="{outline}" fill="#fff" stroke="#9aa1ab"/>')
    parts += [
        f'<rect x="{(each_x + half) * scale - side / 2:.1f}" y="{(half - each_y) * scale - side / 2:.1f}" '
        f'width="{side:.1f}" height="{side:.1f}" fill="{_colour(share)}" fill-opacity="{min(1.0, 0.25 + share):.2f}"/>'
        for each_x, each_y, share in zip(x[::-1], y[::-1], shares[::-1], strict=True)  # the probable ones on top
    ]
    for radius, dash in ((location.radius_95, "5 4"), (location.radius_68, "none")):
        if math.isfinite(radius):
            parts.append(
                f'<circle cx="{across(0)}" cy="{down(0)}" r="{radius * scale:.1f}" fill="none" stroke="#0072b2" '
                f'stroke-width="2" stroke-dasharray="{dash}"/>'
            )
    for rank, (each_x, each_y) in reversed(list(enumerate(zip(*points, strict=True), 1))):
        fill = "#d55e00" if rank == 1 else "#30343c"
        parts.append(
            f'<circle cx="{across(each_x)}" cy="{down(each_y)}" r="8" fill="{fill}" stroke="#fff" stroke-width="1.5"/>'
            f'<text x="{across(each_x)}" y="{down(each_y)}" dy="4" fill="#fff" text-anchor="middle">{rank}</text>'
        )
    return "".join([*parts, *_scale_bar(half, scale), "</svg>"])


def _cells(location: Located) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Latitudes, longitudes and probabilities of the cells to draw, the most probable first."""
    posterior = location.posterior
    row, col, probability = posterior.row[0][:CELLS], posterior.col[0][:CELLS], posterior.probability[0][:CELLS]
    drawn = probability > LEAST * probability.max(initial=0.0)
    latitude, longitude = posterior.area.unproject(*posterior.area.cell_centers(row[drawn], col[drawn]))
    return latitude, longitude, probability[drawn]


def _metres(
    location: Located, latitude: NDArray[np.float64], longitude: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Metres east and north of the answer."""
    east = (np.asarray(longitude) - location.longitude + 180) % 360 - 180
    return east * DEGREE_M * math.cos(math.radians(location.latitude)), (latitude - location.latitude) * DEGREE_M


def _colour(share: float) -> str:
    stops = np.linspace(0, 1, len(_RAMP))
    red, green, blue = (round(float(np.interp(share, stops, _RAMP[:, band]))) for band in range(3))
    return f"#{red:02x}{green:02x}{blue:02x}"


def _scale_bar(half: float, scale: float) -> Iterator[str]:
    """A bar of a round length, about a quarter of the map, at the lower left."""
    length = round_length(half / 2)
    yield f'<rect x="10" y="{SIDE - 14}" width="{length * scale:.1f}" height="4" fill="#30343c"/>'
    yield f'<text x="10" y="{SIDE - 19}" fill="#30343c">{length_text(length)}</text>'
