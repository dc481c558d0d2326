"""Lots and the buildings on them.

A block is cut into lots along its longer side, in one row or in two back to back. Everything about a building is a
function of the position in its lot, so all buildings of a district are built at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jzi.synth.canvas import Canvas
from jzi.synth.shade import OFFICE, TERRACE, TOWER
from jzi.synth.streets import Plan
from jzi.synth.styles import DOWNTOWN, INDUSTRY, Style

ROW_DEPTH = 15.0  # metres; blocks less than twice this deep have one row of lots
MAX_LOTS = 64  # along one block
EAVES = 0.6  # metres of wall above the uppermost storey
SHORE_WALK = 9.0  # metres without lots along water
# A lot of which an avenue or water leaves a smaller share than this has no building.
MIN_LOT_SHARE = 0.72


@dataclass(frozen=True)
class Lots:
    """Lots of one district, given for each of the M pixels of its open ground.

    Attributes:
        where: (M,) flat pixel indices.
        lot: (M,) index of the lot, 0.. `count`.
        block: (M,) index of the block, 0.. number of blocks.
        along: (M,) metres from the lot's first side, along the street.
        behind: (M,) metres from the front of the lot.
        width: (M,) width of the lot, metres.
        depth: (M,) depth of the lot, metres.
        open: (count,) whether the lot has no building.
        count: number of lots.
    """

    where: np.ndarray
    lot: np.ndarray
    block: np.ndarray
    along: np.ndarray
    behind: np.ndarray
    width: np.ndarray
    depth: np.ndarray
    open: np.ndarray
    count: int


def cut_lots(rng: np.random.Generator, plan: Plan, index: int, resolution: float) -> Lots:
    """Cut the blocks of district `index` into lots; `resolution` is metres per pixel."""
    style = plan.styles[index]
    free = (plan.district == index) & (plan.edge > style.pavement) & (plan.shore > SHORE_WALK)
    where = np.flatnonzero(free)
    names, block = np.unique(plan.block.flat[where], return_inverse=True)
    inner = np.stack([axis.flat[where] for axis in plan.inner]) - style.pavement
    extent = np.stack([axis.flat[where] for axis in plan.extent]) - 2 * style.pavement
    turned = extent[0] < extent[1]
    along, behind = np.where(turned, inner[::-1], inner)
    length, depth = np.where(turned, extent[::-1], extent).clip(min=1)

    lots = np.round(length / style.lot).clip(1, MAX_LOTS - 1)
    rows = np.where(depth > 2 * ROW_DEPTH, 2, 1) if style not in (DOWNTOWN, INDUSTRY) else np.ones_like(lots)
    rows = np.where((depth > 3 * ROW_DEPTH) & (rows == 1), 2, rows)
    width, depth = length / lots, depth / rows
    column = np.floor(along / width).clip(0, lots - 1)
    row = np.floor(behind / depth).clip(0, rows - 1)
    lot = ((block * MAX_LOTS + column) * 2 + row).astype(np.int64)
    count = len(names) * MAX_LOTS * 2
    behind = behind - row * depth
    behind = np.where(row == 1, depth - behind, behind)

    free_area = np.bincount(lot, minlength=count) * resolution**2
    lot_area = np.zeros(count)
    lot_area[lot] = width * depth
    cut = free_area < MIN_LOT_SHARE * lot_area
    empty = rng.random(count) < style.empty
    square = (rng.random(len(names)) < style.square).repeat(MAX_LOTS * 2)
    return Lots(where, lot, block, along - column * width, behind, width, depth, open=cut | empty | square, count=count)


def build(rng: np.random.Generator, canvas: Canvas, style: Style, lots: Lots) -> None:
    """Draw the buildings of one district on the canvas."""
    jitter = rng.uniform(0.6, 1.4, (3, lots.count))[:, lots.lot]
    left = lots.along - style.gap * jitter[0]
    right = lots.width - lots.along - style.gap * jitter[1]
    front = lots.behind - style.front * jitter[2]
    yard = style.back * jitter[0] * lots.depth
    rear = lots.depth - lots.behind - yard
    reach = np.minimum(np.minimum(left, right), np.minimum(front, rear))
    if style.gap > 0:
        reach = _cut_corner(rng, lots, reach, left, right, front, rear)
    house = (reach > 0) & ~lots.open[lots.lot]

    eaves = (np.round(_storeys(rng, style, lots)) * style.storey + EAVES)[lots.lot]
    # Roofs of terraced houses slope to the street and the yard only; detached houses have hipped roofs.
    slope_reach = np.minimum(front, rear) if style.gap == 0 else reach
    height = eaves + style.pitch * slope_reach.clip(0, 7)
    wall, roof = _colours(rng, style, lots)
    shade = np.ones(len(lots.lot), np.float32)
    if style.pitch == 0:
        height = height + np.where(reach < 0.8, 0.9, 0)  # a parapet
        shade[reach < 0.8] = 1.18
        height, shade = _roof_plant(rng, lots, reach, height, shade)
    if style is DOWNTOWN:
        height, shade = _tiers(rng, lots, reach, eaves, height, shade)
    if style is INDUSTRY:
        height, shade = _sawtooth(rng, lots, height, shade)

    where = lots.where[house]
    canvas.height.flat[where] = height[house]
    canvas.top.reshape(-1, 3)[where] = (roof[house] * shade[house, None]).clip(0, 255)
    canvas.side.reshape(-1, 3)[where] = wall[house]
    canvas.facade.flat[where] = _facades(rng, style, lots)[lots.lot[house]]


def _cut_corner(
    rng: np.random.Generator,
    lots: Lots,
    reach: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    front: np.ndarray,
    rear: np.ndarray,
) -> np.ndarray:
    """Make half of the buildings L-shaped by cutting out a rear corner."""
    across = rng.uniform(0.3, 0.6, lots.count)[lots.lot] * (left + right)
    deep = rng.uniform(0.3, 0.5, lots.count)[lots.lot] * (front + rear)
    form = rng.integers(0, 4, lots.count)[lots.lot]
    side = np.select([form == 0, form == 1], [left, right], np.inf)
    return np.minimum(reach, np.maximum(side - across, rear - deep))


def _storeys(rng: np.random.Generator, style: Style, lots: Lots) -> np.ndarray:
    """Return storeys per lot, (count,); downtown the squared random number makes tall buildings rare."""
    share = rng.random(lots.count) ** (2 if style is DOWNTOWN else 1)
    return style.floors[0] + (style.floors[1] - style.floors[0]) * share


def _colours(rng: np.random.Generator, style: Style, lots: Lots) -> tuple[np.ndarray, np.ndarray]:
    """Return wall and roof colours (M, 3); each block prefers two pairs of its style, so neighbouring blocks differ."""
    pairs = np.array(style.pairs, np.float32)  # (pair, roof and wall, 3)
    preferred = rng.integers(0, len(pairs), (lots.count // (MAX_LOTS * 2), 2)).repeat(MAX_LOTS * 2, 0)
    chosen = preferred[np.arange(lots.count), (rng.random(lots.count) < 0.35).astype(int)]
    chosen = np.where(rng.random(lots.count) < 0.15, rng.integers(0, len(pairs), lots.count), chosen)
    tone = rng.normal(1, 0.07, (lots.count, 1)) * rng.normal(1, 0.025, (lots.count, 3))
    wall = (pairs[chosen, 1] * tone).clip(20, 250)
    roof = (pairs[chosen, 0] * tone).clip(20, 250)
    return wall[lots.lot], roof[lots.lot]


def _facades(rng: np.random.Generator, style: Style, lots: Lots) -> np.ndarray:
    facade = np.full(lots.count, style.facade, np.uint8)
    if style is DOWNTOWN:
        facade[:] = rng.choice(np.array([TOWER, OFFICE, OFFICE, TERRACE], np.uint8), lots.count)
    return facade


def _roof_plant(
    rng: np.random.Generator, lots: Lots, reach: np.ndarray, height: np.ndarray, shade: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Put a machine room or two on flat roofs."""
    for _ in range(2):
        at = rng.uniform(0.25, 0.7, (2, lots.count))[:, lots.lot]
        size = rng.uniform(2, 5, (2, lots.count))[:, lots.lot]
        inside = (np.abs(lots.along - at[0] * lots.width) < size[0]) & (
            np.abs(lots.behind - at[1] * lots.depth) < size[1]
        )
        inside &= reach > 2
        height = np.where(inside, height + 2.4, height)
        shade = np.where(inside, rng.choice([0.72, 1.15], lots.count)[lots.lot], shade)
    return height, shade


def _tiers(
    rng: np.random.Generator, lots: Lots, reach: np.ndarray, eaves: np.ndarray, height: np.ndarray, shade: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Set back the upper parts of tall buildings above a podium; some get a crown."""
    inset = rng.uniform(2.5, 6.0, lots.count)[lots.lot]
    podium = np.minimum(eaves, 14.0)
    tall = eaves > 30
    height = np.where(tall & (reach < inset), podium, height)
    shade = np.where(tall & (reach < inset), shade * 1.12, shade)
    crown = tall & (reach > 2 * inset) & (rng.random(lots.count) < 0.6)[lots.lot]
    return np.where(crown, height + 9, height), np.where(crown, shade * 0.86, shade)


def _sawtooth(
    rng: np.random.Generator, lots: Lots, height: np.ndarray, shade: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Give about a third of the halls a sawtooth roof and the others light bands."""
    phase = (lots.along / 7.0) % 1.0
    saw = (rng.random(lots.count) < 0.35)[lots.lot]
    band = np.where(phase < 0.14, 1.16, 1.0)
    return np.where(saw, height + 2.0 * phase, height), shade * np.where(saw, 0.86 + 0.3 * phase, band)
