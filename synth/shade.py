"""Shading of the renderers: facades, sunlight, haze and sky.

Everything is elementwise over flat lists of hits (M,), so empty sky costs nothing. Colours are planes (3, M), so values
shared by the three channels broadcast over whole rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Roughly linear display weights: sunlight is warm and skylight cool; white stays about white under both.
SUNLIGHT = (0.78, 0.74, 0.66)
SKYLIGHT = (0.48, 0.51, 0.57)
ZENITH_CLEAR = (72.0, 124.0, 198.0)
ZENITH_CLOUDY = (166.0, 174.0, 184.0)
HORIZON_CLEAR = (196.0, 214.0, 230.0)
HORIZON_CLOUDY = (206.0, 209.0, 212.0)


@dataclass(frozen=True)
class Facade:
    """Arrangement of windows on a wall. Lengths in metres; `width` and `height` are shares of a bay and a storey."""

    bay: float
    storey: float
    width: float
    height: float
    glass: tuple[float, float, float]
    shop: float = 0.0  # height of a glazed ground floor
    leaves: float = 0.0  # 1 for foliage, which has no windows


PLAIN, HOUSE, TERRACE, OFFICE, TOWER, HALL, FOLIAGE = range(7)
FACADES = (
    Facade(3.0, 3.0, 0.0, 0.0, (0, 0, 0)),
    Facade(3.4, 2.9, 0.34, 0.42, (62, 72, 86)),
    Facade(2.5, 3.3, 0.42, 0.56, (52, 58, 70), shop=3.6),
    Facade(3.2, 3.5, 0.80, 0.50, (58, 78, 98), shop=4.2),
    Facade(1.6, 3.4, 0.86, 0.74, (84, 120, 146), shop=4.5),
    Facade(7.0, 9.0, 0.72, 0.16, (88, 98, 104)),
    Facade(1.0, 1.0, 0.0, 0.0, (0, 0, 0), leaves=1.0),
)


_TABLE = torch.tensor([[f.bay, f.storey, f.width, f.height, f.shop, f.leaves, *f.glass] for f in FACADES]).t()


def noise(a: Tensor, b: Tensor) -> Tensor:
    """Return a pseudo-random value in [0, 1) for each pair of integers (a hash); broadcasts."""
    mixed = a.to(torch.int64) * 374761393 + b.to(torch.int64) * 668265263
    mixed = ((mixed >> 13) ^ mixed) * 1274126177 & 0x7FFFFFFF
    return (mixed >> 7 & 0xFFFF).to(torch.float32) / 65536


def paint_walls(wall: Tensor, facade: Tensor, along: Tensor, above: Tensor, rise: Tensor, distance: Tensor) -> Tensor:
    """Return wall colours (3, M) with windows, shop fronts or leaves on them.

    Args:
        wall: (3, M) float32 colours of the bare walls.
        facade: (M,) indices into `FACADES`.
        along: (M,) metres along the wall.
        above: (M,) metres above the ground in front of the wall.
        rise: (M,) metres from that ground to the top of the wall.
        distance: (M,) metres from the camera; patterns fade out before they become finer than a pixel.
    """
    table = _TABLE.to(wall.device).index_select(1, facade.int())  # (9, M)
    bay, storey, width, height, shop, leaves = table[:6].unbind(0)
    column, floor = along / bay, (above - shop) / storey
    across, up = column - column.floor() - 0.5, floor - floor.floor() - 0.52
    variety = noise(column.floor(), floor.floor())

    lintel = shop + (floor.floor() + 0.6 + height / 2) * storey
    window = (across.abs() < width / 2) & (up.abs() < height / 2) & (above > shop) & (lintel < rise)
    shopfront = (across.abs() < 0.44) & (above > 0.4) & (above < shop - 0.9)
    fascia = (above < shop) & (above > shop - 0.9)
    sharp = (1.4 - distance / 110).clamp_(0, 1)
    dark = table[6:] * (0.65 + 0.8 * variety)
    colour = torch.lerp(wall, dark, sharp * (window | shopfront)) * (1 - 0.35 * sharp * fascia)

    # A tree in a height field is a column; a foot as dark as a trunk makes it look like a tree.
    # A rise of less than 2 m lies within a crown, which has no foot there.
    mottle = noise((along * 2.2).floor(), (above * 2.2).floor())
    up = torch.where(rise < 2, 7.0, above)
    crown = (0.36 + 0.3 * (up - 0.8)).clamp_(0.36, 0.86) + (up / 24).clamp_(max=0.3)
    return torch.where(leaves > 0, wall * (crown * (0.72 + 0.5 * mottle * sharp)), colour)


def light(colour: Tensor, lambert: Tensor, cloud: Tensor, brightness: Tensor) -> Tensor:
    """Return colours (3, ...) lit by the sky and by `lambert` (...), the share of direct sunlight on a surface."""
    sun = _planes(colour, SUNLIGHT) * (lambert * (1 - cloud) * brightness)
    return colour * (sun + _planes(colour, SKYLIGHT) * ((1 + 0.55 * cloud) * brightness))


def horizon_colour(cloud: Tensor, brightness: Tensor) -> Tensor:
    """Return the colour (3, ...) of the sky at the horizon and of haze."""
    return _between(HORIZON_CLEAR, HORIZON_CLOUDY, cloud) * (0.35 + 0.65 * brightness)


def sky(slope: Tensor, cloud: Tensor, brightness: Tensor) -> Tensor:
    """Return the sky (3, n, rows) seen at the slopes (n, rows), from haze at the horizon to blue overhead."""
    zenith = _between(ZENITH_CLEAR, ZENITH_CLOUDY, cloud) * (0.35 + 0.65 * brightness)
    share = (slope.clamp(min=0) / 0.7).clamp_(max=1).sqrt_()
    return torch.lerp(horizon_colour(cloud, brightness)[..., None], zenith[..., None], share)


def _planes(like: Tensor, colour: tuple[float, float, float]) -> Tensor:
    return like.new_tensor(colour).view(3, *[1] * (like.dim() - 1))


def _between(first: tuple[float, float, float], second: tuple[float, float, float], share: Tensor) -> Tensor:
    return torch.lerp(_planes(share[None], first), _planes(share[None], second), share)
