"""Single objects of a city: trees with seasons, poles, and cars that differ between photos."""

from __future__ import annotations

import numpy as np

from jzi.synth.canvas import Canvas
from jzi.synth.greenery import CAR_COLOURS, CAR_LENGTH, CAR_WIDTH, LEAF_COLOURS
from jzi.synth.shade import FOLIAGE

from .chance import Area, hashed, pick, uniform
from .paint import LEAST_PARK, LandUse
from .plan import Ground

CHUNK = 4096  # objects drawn at once
LEAST_KERB, LEAST_LANES = 6.0, 12.0  # metres: smallest half widths of streets with parked cars, with cars in lanes
LEAVES = {  # colours of deciduous trees by season
    "spring": np.array(((128, 158, 74), (112, 150, 70), (226, 178, 190), (140, 166, 84)), np.float32),
    "summer": LEAF_COLOURS,
    "autumn": np.array(((196, 132, 48), (176, 84, 46), (204, 168, 64), (150, 112, 58)), np.float32),
    "winter": np.array(((118, 104, 88), (132, 118, 100), (108, 98, 90)), np.float32),
}
EVERGREENS, EVERGREEN = LEAF_COLOURS[:6], 0.35  # colours and share of evergreen trees


def _one_per_cell(mask: np.ndarray, area: Area, cell: int, salt: int) -> np.ndarray:
    """Return (easting, northing) of a random pixel of the mask in each cell of `cell` metres."""
    row, col = np.nonzero(mask)
    x, y = area.west + col, area.north - 1 - row
    rank = hashed(salt, x, y)
    order = np.lexsort((rank, x // cell, y // cell))
    cells = np.stack([x // cell, y // cell])[:, order]
    first = np.ones(len(order), bool)
    first[1:] = (cells[:, 1:] != cells[:, :-1]).any(0)
    chosen = order[first]
    return np.stack([x[chosen], y[chosen]])


def _sample(positions: np.ndarray, share: float | np.ndarray, salt: int) -> np.ndarray:
    return positions[:, uniform(salt, *positions) < share]


def _look_up(raster: np.ndarray, area: Area, positions: np.ndarray) -> np.ndarray:
    return raster[area.north - 1 - positions[1], positions[0] - area.west]


def plant(
    canvas: Canvas, area: Area, per_metre: int, ground: Ground, land_use: LandUse, season: str, seed: int
) -> None:
    """Plant trees along wide streets, in yards and in parks, and set poles along lanes."""
    salt = seed * 100 + 30
    avenue = uniform(salt, land_use.quarter) < 0.7
    along = (ground.half >= 5) & ~land_use.street & (land_use.verge > -1.7) & (land_use.verge < -0.5) & avenue
    yards = (ground.half < 2) & (ground.away >= 1)
    groups = (
        (_sample(_one_per_cell(along, area, 9, salt + 1), 0.8, salt + 2), 1.2, 2.2),
        (_sample(_one_per_cell(yards, area, 11, salt + 3), 0.4, salt + 4), 0.8, 1.9),
        (_sample(_one_per_cell(land_use.green, area, 6, salt + 5), 0.5, salt + 6), 1.8, 4.0),
    )
    positions = np.concatenate([group for group, _, _ in groups], 1)
    radius = np.concatenate([low + (high - low) * uniform(salt + 7, *group) for group, low, high in groups])
    free = (canvas.height < 0.4) & (canvas.height > -0.5) & ~land_use.street.repeat(per_metre, 0).repeat(per_metre, 1)
    # The tallest trees are drawn last, over the others.
    tall = radius * (1.9 + 0.9 * uniform(salt + 8, *positions)) + 1.5
    order = np.lexsort((positions[0], positions[1], tall))
    for start in range(0, len(order), CHUNK):
        batch = order[start : start + CHUNK]
        _stamp_trees(canvas, area, per_metre, free, positions[:, batch], radius[batch], tall[batch], season, salt + 10)
    lanes = (ground.half >= 2) & (ground.half < 5) & ~land_use.street & (ground.away > 0.5)
    poles = _sample(_one_per_cell(lanes, area, 28, salt + 20), 0.8, salt + 21)
    row, col = (area.north - 1 - poles[1]) * per_metre, (poles[0] - area.west) * per_metre
    row, col = row[free[row, col]], col[free[row, col]]
    canvas.height[row, col] = 9.0
    canvas.top[row, col] = canvas.side[row, col] = (150, 148, 144)
    canvas.facade[row, col] = 0


def _stamp_trees(
    canvas: Canvas,
    area: Area,
    per_metre: int,
    free: np.ndarray,
    positions: np.ndarray,
    radius: np.ndarray,
    tall: np.ndarray,
    season: str,
    salt: int,
) -> None:
    evergreen = uniform(salt, *positions) < EVERGREEN
    bare = (season == "winter") & ~evergreen
    shed = LEAVES[season][pick(salt + 1, len(LEAVES[season]), *positions)]
    leaf = np.where(evergreen[:, None], EVERGREENS[pick(salt + 2, len(EVERGREENS), *positions)], shed)
    leaf = leaf * (0.85 + 0.3 * uniform(salt + 3, *positions)[:, None])
    reach = radius * np.where(bare, 0.7, 1.0)
    row, col, down, right, tree = _stencil(area, per_metre, positions, float(radius.max()) * 1.2, canvas.height.shape)
    lobes = 1 + 0.16 * np.sin(3 * np.arctan2(down, right) + 6 * uniform(salt + 4, *positions)[tree])
    away = np.hypot(down, right) / (reach[tree] * lobes)
    crown = (away < 1) & free[row, col]
    row, col, tree, away = row[crown], col[crown], tree[crown], away[crown]
    grain = uniform(salt + 5, area.west * per_metre + col, area.north * per_metre - row)
    canvas.height[row, col] = tall[tree] * (0.5 + 0.5 * np.sqrt(1 - away**2)) + 0.4 * grain
    canvas.top[row, col] = (leaf[tree] * (0.84 + 0.32 * grain)[:, None]).clip(0, 255)
    canvas.side[row, col] = (leaf[tree] * 1.2).clip(0, 255)
    canvas.facade[row, col] = FOLIAGE


def _stencil(
    area: Area, per_metre: int, positions: np.ndarray, reach: float, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return row, col, metres down, metres right and index of the object, for the pixels around each position."""
    pad = int(np.ceil(reach * per_metre))
    down, right = (offset.ravel() for offset in np.mgrid[-pad : pad + 1, -pad : pad + 1])
    row = ((area.north - 1 - positions[1]) * per_metre)[:, None] + down
    col = ((positions[0] - area.west) * per_metre)[:, None] + right
    inside = (row >= 0) & (row < shape[0]) & (col >= 0) & (col < shape[1])
    object_index = np.nonzero(inside)[0]
    metres = (np.broadcast_to(offset / per_metre, inside.shape)[inside] for offset in (down, right))
    return row[inside], col[inside], *metres, object_index


def park_cars(
    canvas: Canvas,
    area: Area,
    per_metre: int,
    ground: Ground,
    land_use: LandUse,
    no_cars: np.ndarray,
    turnout: int,
    seed: int,
) -> None:
    """Draw parked cars and cars in the lanes, none where `no_cars` is set; `turnout` selects which ones."""
    free = (canvas.height < 0.4) & ~no_cars.repeat(per_metre, 0).repeat(per_metre, 1)
    salt = seed * 100 + 60 + turnout * 7919
    at_kerb = land_use.street & (ground.half >= LEAST_KERB) & (np.abs(land_use.verge - 1.2) < 0.5)
    in_lane = (
        land_use.street
        & (ground.half >= LEAST_LANES)
        & (ground.half < LEAST_PARK)
        & (np.abs(land_use.verge - 4.6) < 0.5)
    )
    positions = np.concatenate(
        [
            _sample(_one_per_cell(at_kerb, area, 8, salt), 0.35, salt + 1),
            _sample(_one_per_cell(in_lane, area, 15, salt + 2), 0.45, salt + 3),
        ],
        1,
    )
    van = uniform(salt + 4, *positions) < 0.22
    colour = CAR_COLOURS[pick(salt + 5, len(CAR_COLOURS), *positions)]
    bearing = np.radians(_look_up(ground.along_deg, area, positions))
    for start in range(0, positions.shape[1], CHUNK):
        batch = slice(start, start + CHUNK)
        row, col, down, right, car = _stencil(
            area, per_metre, positions[:, batch], CAR_LENGTH * 0.8, canvas.height.shape
        )
        east, north = np.sin(bearing[batch])[car], np.cos(bearing[batch])[car]
        ahead, aside = right * east - down * north, right * north + down * east
        big = van[batch][car]
        body = (np.abs(ahead) < CAR_LENGTH / 2 * np.where(big, 1.3, 1)) & (np.abs(aside) < CAR_WIDTH / 2 + 0.1 * big)
        body &= (canvas.height[row, col] < 0.4) & ~np.isin(car, car[body & ~free[row, col]])
        row, col, car, ahead, big = row[body], col[body], car[body], ahead[body], big[body]
        cabin = (np.abs(ahead + 0.2) < 1.2) | big
        glass = cabin & (np.abs(np.abs(ahead + 0.2) - 0.95) < 0.3) & ~big
        paint = colour[batch][car]
        canvas.height[row, col] = np.where(big, 2.3, np.where(cabin, 1.5, 0.95))
        canvas.top[row, col] = np.where(glass[:, None], 56, paint)
        canvas.side[row, col] = np.where((cabin & ~big)[:, None], paint * 0.6, paint)
        canvas.facade[row, col] = 0
