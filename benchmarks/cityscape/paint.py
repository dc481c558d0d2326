"""Colour a city: buildings by size and quarter, streets by width, and the ground between them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from jzi.synth.canvas import Canvas
from jzi.synth.ground import SQUARE_COLOURS, WATER_COLOURS, WHITE, YELLOW
from jzi.synth.shade import HALL, HOUSE, OFFICE, TERRACE, TOWER
from jzi.synth.styles import DOWNTOWN, ESTATE, INDUSTRY, OLD_TOWN, SUBURB, TERRACES

from .chance import WRAP, Area, hashed, pick, quarter, uniform, waves, waves_at
from .plan import Buildings, Ground, squared_distance

QUARTER = 260.0  # metres: side of a quarter, which shares preferred colours
REGION = 1600.0  # metres: wavelength of the tint of all buildings
LOW, ROW, BLOCK, HIGH, LARGE = range(5)  # kinds of building
#: For each kind: pairs of a roof and a wall, and facades, to sample from.
PAIRS = tuple(
    np.array([pair for style in styles for pair in style.pairs], np.float32)
    for styles in (
        (SUBURB, OLD_TOWN),
        (OLD_TOWN, TERRACES),
        (TERRACES, ESTATE),
        (DOWNTOWN, ESTATE),
        (INDUSTRY, ESTATE),
    )
)
WALLS = ((HOUSE, HOUSE), (TERRACE, HOUSE), (TERRACE, OFFICE), (TOWER, OFFICE), (HALL, OFFICE))
YARDS = np.array(((150, 138, 116), (112, 130, 82), (168, 166, 160), (104, 122, 76), (136, 124, 108)), np.float32)
ASPHALT = np.array(((92, 93, 98), (112, 110, 110), (128, 120, 112), (104, 108, 116), (138, 122, 112)), np.float32)
PAVING = np.array(((178, 170, 158), (168, 150, 136), (190, 186, 178), (160, 160, 164), (186, 160, 140)), np.float32)
LAWN = {"spring": (112, 150, 70), "summer": (100, 134, 66), "autumn": (138, 132, 72), "winter": (158, 142, 98)}
PAVEMENT_M = ((0, 0.7), (3, 1.3), (5, 2.6), (9, 4.0))  # half width of a street from which its sidewalk has this width
LEAST_STREET, LEAST_PARK = 2.0, 20.0  # half widths, metres
PARK_EDGE = 14.0  # metres from the buildings around a wide open space to its park, water or square
KERB, PLANT, PARAPET = 0.15, 2.2, 0.6  # metres


@dataclass(frozen=True)
class LandUse:
    """Use of the open ground, rasters (rows, cols) at 1 m a pixel.

    Attributes:
        street: bool, carriageways.
        green: bool, lawns with trees.
        quarter: int64, number of the quarter.
        verge: float32, metres from the carriageway's edge, positive on it.
    """

    street: np.ndarray
    green: np.ndarray
    quarter: np.ndarray
    verge: np.ndarray


def lay_out(area: Area, ground: Ground, seed: int) -> LandUse:
    """Assign uses to the open ground."""
    x, y = area.centres(1)
    coarse = quarter(np.floor(x[None, ::1] / 4) * 4 + 2, np.floor(y[:, None] / 4) * 4 + 2, QUARTER, seed * 100 + 1)
    pavement = np.zeros_like(ground.half)
    for half, width in PAVEMENT_M:
        pavement[ground.half >= half] = width
    wide = ground.half >= LEAST_PARK
    verge = np.where(wide, np.minimum(ground.away - 4, 12 - ground.away), ground.away - pavement)
    street = (ground.half >= LEAST_STREET) & (verge > 0)
    green = wide & (ground.away > PARK_EDGE) & (_use(coarse, seed) == 0)
    return LandUse(street, green, coarse, np.where(ground.half >= LEAST_STREET, verge, -1).astype(np.float32))


def _use(quarters: np.ndarray, seed: int) -> np.ndarray:
    """Return the use of each quarter's widest spaces: 0 park, 1 water, 2 square or car park."""
    return np.array([0, 0, 0, 0, 1, 2])[pick(seed * 100 + 2, 6, quarters)]


def finer(raster: np.ndarray, per_metre: int) -> np.ndarray:
    """Upsample a float raster from 1 m a pixel by linear interpolation."""
    if per_metre == 1:
        return raster
    stretched = functional.interpolate(torch.from_numpy(raster)[None, None], scale_factor=per_metre, mode="bilinear")
    return stretched[0, 0].numpy()


def repeated(raster: np.ndarray, per_metre: int) -> np.ndarray:
    """Upsample a raster from 1 m a pixel by repeating pixels."""
    return raster.repeat(per_metre, 0).repeat(per_metre, 1) if per_metre > 1 else raster


def paint_ground(
    canvas: Canvas, area: Area, per_metre: int, ground: Ground, land_use: LandUse, season: str, seed: int
) -> None:
    """Paint everything except buildings; the season sets the colour of the lawns."""
    salt = seed * 100 + 10
    blend = (waves(area, 1, 70, salt) * 0.5 + waves(area, 1, 23, salt + 1) * 0.5)[..., None]
    quarters = land_use.quarter

    def surface(colours: np.ndarray, number: int) -> np.ndarray:
        """Return patches of two colours that the quarter selects."""
        one, other = (colours[pick(salt + number + i, len(colours), quarters)] for i in (0, 1))
        return one + (other - one) * (blend > 0.55)

    away, verge, ridge = (finer(raster, per_metre) for raster in (ground.away, land_use.verge, ground.ridge))
    half = repeated(ground.half, per_metre)
    open_ground = half >= LEAST_STREET
    park = (half >= LEAST_PARK) & (away > PARK_EDGE)
    street = open_ground & (verge > 0)
    colour = repeated(surface(YARDS, 10), per_metre).astype(np.float32)
    walk = open_ground & ~street & ~park
    colour[walk] = repeated(surface(PAVING, 20), per_metre)[walk]
    colour[street] = (repeated(surface(ASPHALT, 30) * (0.9 + 0.25 * blend), per_metre))[street]
    canvas.height[:] = np.where(street, 0, KERB)
    canvas.paint(slice(None), colour.clip(0, 255).astype(np.uint8))
    kerb = walk & (verge > -0.4) & (half >= 3)
    canvas.paint(kerb, (colour[kerb] * 0.84).astype(np.uint8))
    _mark(canvas, area, per_metre, ground, land_use, (half, verge, ridge, street), salt + 50)
    _lay_parks(canvas, area, per_metre, repeated(quarters, per_metre), park, season, seed)


def _mark(
    canvas: Canvas,
    area: Area,
    per_metre: int,
    ground: Ground,
    land_use: LandUse,
    street: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    salt: int,
) -> None:
    """Paint lines and zebra crossings in one manner per quarter."""
    half, verge, ridge, drive = street
    x, y = area.centres(per_metre)
    turn = np.radians(np.round(repeated(ground.along_deg, per_metre) / 11.25) * 11.25).astype(np.float32)
    east, north = (x % WRAP).astype(np.float32)[None], (y % WRAP).astype(np.float32)[:, None]
    along = east * np.sin(turn) + north * np.cos(turn)
    across = east * np.cos(turn) - north * np.sin(turn)
    manner = repeated(pick(salt, 4, land_use.quarter), per_metre)
    dash = along % 8 < 4
    edge = drive & (half >= 4) & (np.abs(verge - 0.7) < 0.25) & (manner != 2)
    canvas.paint(edge, WHITE)
    middle = drive & (half >= 4) & (half < LEAST_PARK) & (ridge < 0.45) & (dash | (manner == 0))
    canvas.paint(middle & (manner < 2), WHITE)
    canvas.paint(middle & (manner >= 2), YELLOW)
    lanes = drive & (half >= 8) & dash & ((np.abs(verge - 3.8) < 0.25) | (np.abs(verge - 7.0) < 0.25))
    canvas.paint(lanes, WHITE)
    phase = repeated(uniform(salt + 1, land_use.quarter) * 40 + 60, per_metre)
    zebra = drive & (half >= 3.5) & (half < LEAST_PARK) & (along % phase < 3.6) & (across % 1.6 < 0.8) & (verge > 0.4)
    canvas.paint(zebra, WHITE)
    strip = drive & (half >= 2.5) & (half < 5) & (verge < 0.9) & (manner == 1)
    canvas.paint(strip, (92, 138, 104))  # a green strip for pedestrians


def _lay_parks(
    canvas: Canvas, area: Area, per_metre: int, quarters: np.ndarray, park: np.ndarray, season: str, seed: int
) -> None:
    """Turn wide open spaces into parks with winding paths, water or squares."""
    if not park.any():
        return
    salt = seed * 100 + 70
    use = _use(quarters, seed)
    lawn = np.array(LAWN[season], np.float32) * (0.85 + 0.3 * waves(area, per_metre, 31, salt)[..., None])
    path = np.abs(waves(area, per_metre, 85, salt + 1) - 0.5) < 0.014
    path |= np.abs(waves(area, per_metre, 60, salt + 2) - 0.45) < 0.014
    green = park & (use == 0)
    canvas.top[green] = lawn[green].clip(0, 255)
    canvas.paint(green & path, (204, 186, 146))
    water = park & (use == 1)
    canvas.top[water] = np.array(WATER_COLOURS)[pick(salt + 3, len(WATER_COLOURS), quarters[water])]
    canvas.height[water] = -1.5
    paved = park & (use == 2)
    x, y = area.centres(per_metre)
    board = (np.floor(x / 4)[None] + np.floor(y / 4)[:, None]) % 2
    slabs = np.array(SQUARE_COLOURS)[pick(salt + 4, len(SQUARE_COLOURS), quarters[paved])]
    canvas.top[paved] = slabs * (0.86 + 0.16 * board[paved])[:, None]


def raise_buildings(
    canvas: Canvas, area: Area, per_metre: int, height: np.ndarray, buildings: Buildings, seed: int
) -> None:
    """Draw the buildings, with roof, wall and facade by kind and quarter."""
    salt = seed * 100 + 80
    label = buildings.label
    key = np.round(buildings.x * 4), np.round(buildings.y * 4), np.round(buildings.height * 2)
    kind = np.select(
        [
            (buildings.area > 1500) & (buildings.height < 16),
            (buildings.height < 11) & (buildings.area < 220),
            buildings.height < 13,
            buildings.height < 34,
        ],
        [LARGE, LOW, ROW, BLOCK],
        HIGH,
    )
    home = quarter(buildings.x, buildings.y, QUARTER, seed * 100 + 1)
    prefers = uniform(salt, *key) < 0.72  # one of the two preferred pairs of the quarter
    favourite = hashed(salt + 1, home, kind, (uniform(salt + 2, *key) < 0.35).astype(np.int64))
    chosen = np.where(prefers, favourite, hashed(salt + 3, *key))
    pairs = np.zeros((len(kind), 2, 3), np.float32)
    facade = np.zeros(len(kind), np.uint8)
    for number, (table, walls) in enumerate(zip(PAIRS, WALLS, strict=True)):
        of_kind = kind == number
        pairs[of_kind] = table[chosen[of_kind] % np.uint32(len(table))]
        facade[of_kind] = np.array(walls, np.uint8)[pick(salt + 4, 2, *(part[of_kind] for part in key))]
    tint = np.stack([waves_at(buildings.x, buildings.y, REGION, salt + 5 + band) for band in range(3)], -1)
    tone = 0.84 + 0.3 * uniform(salt + 9, *key)[:, None] + 0.24 * (tint - 0.5)
    pairs = (pairs * tone[:, None]).clip(20, 250)

    up, shade = _roofs(area, per_metre, buildings, kind, key, salt + 10)
    built = label > 0
    building = label[built]
    canvas.height[built] = height[built] + up[built]
    canvas.top[built] = (pairs[building, 0] * shade[built][:, None]).clip(0, 255)
    canvas.side[built] = pairs[building, 1]
    canvas.facade[built] = facade[building]


def _roofs(
    area: Area,
    per_metre: int,
    buildings: Buildings,
    kind: np.ndarray,
    key: tuple[np.ndarray, np.ndarray, np.ndarray],
    salt: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rise of the roofs above a building's height, metres, and the shade of their colour, (rows, cols)."""
    label = buildings.label
    border = np.zeros(label.shape, bool)
    border[1:] |= label[1:] != label[:-1]
    border[:, 1:] |= label[:, 1:] != label[:, :-1]
    border[:-1] |= label[1:] != label[:-1]
    border[:, :-1] |= label[:, 1:] != label[:, :-1]
    inside = np.sqrt(squared_distance(border, 6 * per_metre).astype(np.float32)) / per_metre
    ridged = (uniform(salt, *key) < np.choose(kind, (0.75, 0.3, 0.04, 0, 0.1)))[label]
    pitch = (0.35 + 0.4 * uniform(salt + 1, *key))[label]
    slope = pitch * (inside.clip(0, 5) - 1.0)
    parapet = inside < 0.6
    x, y = area.centres(per_metre)
    column, row = np.floor(x / 3.5)[None], np.floor(y / 3.5)[:, None]
    plant = (uniform(salt + 2, column, row) < 0.16) & (inside > 1.6)
    tall = (buildings.height > 9)[label]
    up = np.where(ridged, slope, np.where(parapet, PARAPET, PLANT * (plant & tall)))
    grey = 0.7 + 0.5 * uniform(salt + 3, column, row)
    shade = np.where(ridged, 1.0, np.where(parapet, 1.16, np.where(plant, grey, 1.0)))
    return up.astype(np.float32), shade.astype(np.float32)


def weather(canvas: Canvas, area: Area, per_metre: int, seed: int) -> None:
    """Add grain and stains to every surface, as no real surface has one colour."""
    salt = seed * 100 + 95
    x, y = area.centres(per_metre)
    grain = uniform(salt, np.floor(x * per_metre)[None], np.floor(y * per_metre)[:, None])
    mottle = 16 * (grain - 0.5) + 22 * (waves(area, per_metre, 14, salt + 1) - 0.5)
    for band in range(3):
        canvas.top[..., band] = (canvas.top[..., band] + mottle).clip(0, 255)
