"""Ground surfaces of a synthetic town: carriageways and their markings, pavements, yards, squares, water."""

from __future__ import annotations

import numpy as np

from jzi.synth.buildings import MAX_LOTS, Lots
from jzi.synth.canvas import Canvas
from jzi.synth.streets import AVENUE, CROSSING, OPEN, STREET, Plan
from jzi.synth.styles import GRASS, INDUSTRY, SUBURB, Style

WHITE, YELLOW = (226, 226, 220), (224, 182, 70)
WATER_LEVEL, PAVEMENT_LEVEL = -2.5, 0.15
WATER_COLOURS = ((64, 98, 116), (70, 104, 88), (58, 88, 122), (92, 104, 88))
CYCLE_LANES = ((162, 78, 66), (84, 128, 88), (74, 104, 152))
SQUARE_COLOURS = ((204, 176, 140), (176, 118, 96), (150, 152, 162), (214, 202, 168), (134, 116, 128))


def paint_ground(rng: np.random.Generator, canvas: Canvas, plan: Plan) -> None:
    """Paint all ground outside of lots."""
    styles = plan.styles
    tint = rng.normal(1, 0.05, (len(styles), 1)) * rng.normal(1, 0.02, (len(styles), 3))
    yard, asphalt, paving = (
        np.clip(np.array([getattr(style, part) for style in styles]) * tint, 0, 255)
        for part in ("yard", "asphalt", "paving")
    )
    pavement = np.array([style.pavement for style in styles], np.float32)[plan.district]
    canvas.paint(plan.kind == OPEN, yard[plan.district[plan.kind == OPEN]])
    walk = (plan.kind == OPEN) & (plan.edge < pavement)
    canvas.paint(walk, paving[plan.district[walk]])
    canvas.height[plan.kind == OPEN] = PAVEMENT_LEVEL
    kerb = walk & (plan.edge < 0.5)
    canvas.paint(kerb, paving[plan.district[kerb]] * 0.86)

    drive = plan.kind != OPEN
    streets = int(plan.street.max()) + 1
    tone = rng.normal(1, 0.10, (streets, 1)) * rng.normal(1, 0.03, (streets, 3))
    surface = asphalt[plan.district]
    surface[plan.kind == AVENUE] = asphalt.mean(0)  # an avenue has one colour on both sides of a district border
    canvas.paint(drive, (surface * tone[plan.street])[drive].clip(40, 235))
    _mark_streets(rng, canvas, plan)
    _draw_water(rng, canvas, plan)


def _mark_streets(rng: np.random.Generator, canvas: Canvas, plan: Plan) -> None:
    """Paint centre lines, edge lines, cycle lanes and zebra crossings in one manner per street."""
    streets = int(plan.street.max()) + 1
    aside = np.abs(plan.across)
    lane = (plan.kind == AVENUE) | (plan.kind == STREET)
    bridge = (plan.kind == AVENUE) & (plan.shore < 0)
    clear = lane & ((plan.ahead > 5.5) | bridge)  # markings end before a crossing
    wide = plan.half > 4.2

    manner = rng.integers(0, 4, streets)[plan.street]
    yellow = (rng.random(streets) < 0.4)[plan.street]
    dash = (plan.along % 7.0) < 3.5
    centre = clear & wide & (aside < 0.42) & (dash | (manner == 0)) & (manner < 3)
    canvas.paint(centre & ~yellow, WHITE)
    canvas.paint(centre & yellow, YELLOW)
    lanes = clear & (plan.half > 7) & (np.abs(aside - plan.half / 2) < 0.3) & dash
    canvas.paint(lanes, WHITE)

    lane_colour = np.array(CYCLE_LANES)[rng.integers(0, len(CYCLE_LANES), streets)]
    cycling = clear & (plan.half > 6) & (plan.half - aside < 1.7) & (rng.random(streets) < 0.45)[plan.street]
    canvas.paint(cycling, lane_colour[plan.street[cycling]])
    canvas.paint(clear & wide & (np.abs(plan.half - aside - 2.0) < 0.25) & (manner != 2), WHITE)

    zebra = lane & ~bridge & (plan.ahead > 0.8) & (plan.ahead < 4.2) & (plan.across % 2.0 < 1.0) & wide
    zebra &= (rng.random(streets) < 0.75)[plan.street]
    canvas.paint(zebra, WHITE)
    table = (plan.kind == CROSSING) & (rng.random(streets) < 0.25)[plan.street]
    canvas.paint(table, np.array(SQUARE_COLOURS)[plan.street[table] % len(SQUARE_COLOURS)])


def _draw_water(rng: np.random.Generator, canvas: Canvas, plan: Plan) -> None:
    """Draw water and its banks; avenues cross it on bridges and streets end at it."""
    bridge = plan.kind == AVENUE
    water = (plan.shore < 0) & ~bridge
    colour = np.array(WATER_COLOURS[rng.integers(len(WATER_COLOURS))])
    depth = (1.08 - 0.02 * np.minimum(-plan.shore[water], 12))[:, None]
    canvas.paint(water, colour * depth)
    canvas.height[water] = WATER_LEVEL
    parapet = water & _grown(bridge, round(1 / canvas.resolution))
    canvas.paint(parapet, (196, 188, 174))
    canvas.height[parapet] = 0.6
    walk = (plan.shore >= 0) & (plan.shore < 5) & (plan.kind == OPEN)
    canvas.paint(walk, (200, 184, 152))
    canvas.paint(walk & (plan.shore < 0.8), (150, 146, 138))


def _grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Return the union of the mask and its copies shifted by `pixels` up, down, left and right."""
    grown = mask.copy()
    for axis in range(2):
        for shift in (-pixels, pixels):
            grown |= np.roll(mask, shift, axis)
    return grown


def paint_yards(rng: np.random.Generator, canvas: Canvas, plan: Plan, style: Style, lots: Lots) -> None:
    """Paint the lots of one district: gardens in differing tones, squares, pitches, car parks."""
    top = canvas.top.reshape(-1, 3)
    tone = rng.normal(1, 0.08, (lots.count, 1)) * rng.normal(1, 0.03, (lots.count, 3))
    top[lots.where] = (np.array(style.yard) * tone[lots.lot]).clip(0, 255)
    if style is SUBURB:
        _furnish_gardens(rng, canvas, lots)
    if style is INDUSTRY:
        _stack_containers(rng, canvas, lots)
    if style.empty == 1:
        _park_paths(rng, canvas, plan, lots)
    else:
        _lay_squares(rng, canvas, plan, style, lots)


def _block_is_open(lots: Lots) -> np.ndarray:
    """Return which blocks have no building, (block,) bool."""
    return np.all(lots.open.reshape(-1, MAX_LOTS * 2), axis=1)


def _lay_squares(rng: np.random.Generator, canvas: Canvas, plan: Plan, style: Style, lots: Lots) -> None:
    """Turn each block without buildings into a paved square, a sports pitch, a car park or a small garden."""
    blocks = lots.count // (MAX_LOTS * 2)
    use = np.where(_block_is_open(lots), rng.integers(0, 4, blocks), -1)[lots.block]
    chosen = np.flatnonzero(use >= 0)
    where, use = lots.where[chosen], use[chosen]
    x, y = (axis.flat[where] - style.pavement for axis in plan.inner)
    width, depth = (axis.flat[where] - 2 * style.pavement for axis in plan.extent)
    line = np.minimum(np.minimum(x, width - x), np.minimum(y, depth - y))
    middle = np.hypot(x - width / 2, y - depth / 2)

    paved = np.array(SQUARE_COLOURS)[rng.integers(0, len(SQUARE_COLOURS), blocks)][lots.block[chosen]]
    paved = paved * (0.86 + 0.18 * ((np.floor(x / 4) + np.floor(y / 4)) % 2))[:, None]
    paved[middle < 5] = (88, 160, 186)  # a fountain
    marks = (np.abs(line - 3) < 0.5) | ((np.abs(x - width / 2) < 0.5) & (line > 3)) | (np.abs(middle - 8) < 0.5)
    turf = np.array((84, 138, 66)) * np.where(x % 10 < 5, 0.92, 1.06)[:, None]
    pitch = np.where(marks[:, None], WHITE, turf)
    bays = (x % 3.0 < 0.6) & (y % 16 < 10)
    parking = np.where(bays[:, None], WHITE, (102, 102, 106))
    paths = (line < 2.5) | (np.abs(x - width / 2) < 1.5) | (np.abs(y - depth / 2) < 1.5)
    garden = np.where(paths[:, None], (204, 186, 146), np.array(GRASS) * 1.04)

    colour = np.select([(use == kind)[:, None] for kind in range(4)], [paved, pitch, parking, garden])
    canvas.top.reshape(-1, 3)[where] = colour.clip(0, 255)
    canvas.bare.flat[where[(use < 3) | paths]] = True


def _furnish_gardens(rng: np.random.Generator, canvas: Canvas, lots: Lots) -> None:
    """Add hedges or fences between gardens, a drive to the street, and a pool in 12 % of the gardens."""
    top = canvas.top.reshape(-1, 3)
    drive = (np.abs(lots.along - 3.2) < 1.4) & (lots.behind < 12)
    gravel = rng.uniform(140, 200, (lots.count, 1)) * np.array((1.0, 0.96, 0.9))
    top[lots.where[drive]] = gravel[lots.lot[drive]].clip(0, 255)
    pool = (np.hypot(lots.along - lots.width / 2, (lots.behind - lots.depth * 0.86) * 1.5) < 3.4) & (
        (rng.random(lots.count) < 0.12)[lots.lot]
    )
    top[lots.where[pool]] = (86, 178, 200)
    canvas.bare.flat[lots.where[drive | pool]] = True
    fence = (lots.along < 0.7) | (lots.behind > lots.depth - 0.6) | ((lots.behind < 0.7) & ~drive)
    fence &= (rng.random(lots.count) < 0.8)[lots.lot]
    kinds = np.array(((62, 96, 52), (70, 104, 48), (222, 222, 214), (134, 100, 70)))
    chosen = kinds[rng.integers(0, len(kinds), lots.count // (MAX_LOTS * 2))][lots.block[fence]]
    top[lots.where[fence]] = chosen
    canvas.side.reshape(-1, 3)[lots.where[fence]] = chosen
    canvas.height.flat[lots.where[fence]] = 1.1


def _stack_containers(rng: np.random.Generator, canvas: Canvas, lots: Lots) -> None:
    """Stack containers, one or two high, at the back of two industrial lots in three."""
    colours = np.array(((176, 66, 48), (52, 96, 150), (214, 150, 52), (78, 128, 84), (196, 196, 190)))
    slot = np.floor(lots.along / 7.2) * 16 + np.floor((lots.depth - lots.behind) / 3.4)
    key = (lots.lot * 131 + slot.astype(np.int64)) % 65_521
    stack = (lots.along % 7.2 < 6.2) & ((lots.depth - lots.behind) % 3.4 < 2.5) & (lots.behind > 0.72 * lots.depth)
    stack &= (lots.along > 2) & (lots.along < lots.width - 3) & (rng.random(lots.count) < 0.66)[lots.lot]
    stack &= (rng.random(65_521) < 0.6)[key] & ~_block_is_open(lots)[lots.block]
    where, key = lots.where[stack], key[stack]
    colour = colours[rng.integers(0, len(colours), 65_521)][key]
    canvas.top.reshape(-1, 3)[where] = colour
    canvas.side.reshape(-1, 3)[where] = colour
    canvas.height.flat[where] = np.where(rng.random(65_521) < 0.4, 5.2, 2.6)[key]
    canvas.bare.flat[where] = True


def _park_paths(rng: np.random.Generator, canvas: Canvas, plan: Plan, lots: Lots) -> None:
    """Draw winding paths in a park, the contour lines of two slow waves, with flower beds beside them."""
    row, col = np.divmod(lots.where, canvas.height.shape[1])
    x, y = col * canvas.resolution, row * canvas.resolution
    nearest = np.full(len(x), np.inf)
    for _ in range(2):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        p, q = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        wave = p + 17 * np.sin(q / 31 + phase)
        nearest = np.minimum(nearest, np.abs((wave + 42) % 84 - 42))
    ring = np.abs(plan.edge.flat[lots.where] - 9)
    nearest = np.minimum(nearest, ring)
    top = canvas.top.reshape(-1, 3)
    beds = (nearest > 2.2) & (nearest < 3.6) & (np.sin(x / 9) + np.sin(y / 11) > 0.9)
    flowers = np.array(((206, 84, 96), (226, 190, 84), (170, 110, 190), (230, 230, 220)))
    top[lots.where[beds]] = flowers[((x[beds] // 18).astype(int) + (y[beds] // 18).astype(int)) % 4]
    top[lots.where[nearest < 1.6]] = (204, 186, 146)
    canvas.bare.flat[lots.where[nearest < 3.6]] = True


def weather(rng: np.random.Generator, canvas: Canvas) -> None:
    """Add grain, and stains about 20 m wide, to every surface, as no real surface has one colour."""
    n = canvas.height.shape[0]
    grain = rng.normal(0, 4.0, (n, n)).astype(np.float32)
    coarse = max(2, round(n * canvas.resolution / 12))
    stain = _resampled(rng.normal(0, 6.0, (coarse, coarse)).astype(np.float32), n)
    canvas.top[:] = np.clip(canvas.top + (grain + stain)[..., None], 0, 255)


def _resampled(raster: np.ndarray, n: int) -> np.ndarray:
    """Return a raster resampled to n x n by linear interpolation."""
    at = np.linspace(0, raster.shape[0] - 1.001, n)
    low, share = at.astype(int), (at % 1).astype(np.float32)
    rows = raster[low] * (1 - share)[:, None] + raster[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share
