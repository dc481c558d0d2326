"""Single objects of a synthetic town: trees and parked cars."""

from __future__ import annotations

import numpy as np

from jzi.synth.canvas import Canvas
from jzi.synth.shade import FOLIAGE
from jzi.synth.streets import AVENUE, OPEN, STREET, Plan

TREE_CELL = 5.0  # metres: at most one tree in each such cell
LEAF_COLOURS = np.array(
    (
        (66, 104, 48),
        (84, 120, 56),
        (52, 88, 54),
        (110, 132, 62),
        (74, 98, 66),
        (58, 98, 70),
        (150, 130, 60),
        (112, 70, 66),
    ),
    np.float32,
)
CAR_COLOURS = np.array(
    ((226, 226, 226), (44, 46, 52), (150, 154, 160), (158, 44, 42), (48, 84, 146), (196, 178, 130), (70, 100, 80)),
    np.uint8,
)
CAR_SLOT, CAR_LENGTH, CAR_WIDTH = 6.4, 4.4, 1.8


def plant(rng: np.random.Generator, canvas: Canvas, plan: Plan) -> None:
    """Plant trees along streets and, at each district's density, on open ground."""
    street, garden = _street_trees(plan), _garden_trees(rng, canvas, plan)
    rows, cols = np.concatenate([street, garden], 1)
    favourite = rng.integers(0, len(LEAF_COLOURS), len(plan.styles))
    free = (canvas.height < 0.4) & (plan.edge > 0.3) & (plan.shore > 0)
    # Street trees are slim: in a height field a crown reaches the ground, and a wide one would hide the houses.
    radius = np.concatenate([rng.uniform(1.2, 1.9, street.shape[1]), rng.uniform(1.5, 3.2, garden.shape[1])])
    for row, col, reach in zip(rows, cols, radius, strict=True):
        is_favourite = rng.random() < 0.6
        leaf = LEAF_COLOURS[favourite[plan.district[row, col]] if is_favourite else rng.integers(len(LEAF_COLOURS))]
        _stamp_tree(rng, canvas, free, row, col, reach, leaf)


def _street_trees(plan: Plan) -> np.ndarray:
    """Return (row, col) of the trees along streets, at the outer edge of the sidewalks."""
    spacing = np.array([style.avenue_trees for style in plan.styles])[plan.district]
    pavement = np.array([style.pavement for style in plan.styles])[plan.district]
    verge = (plan.kind == OPEN) & (np.abs(plan.edge - pavement + 1.4) < 0.3) & (spacing > 0)
    row, col = np.nonzero(verge)
    is_spot = plan.along[row, col] % spacing[row, col] < 0.5
    row, col = row[is_spot], col[is_spot]
    _, first = np.unique((row // 8) * 10_000 + col // 8, return_index=True)  # a spot may cover several pixels
    return np.stack([row[first], col[first]])


def _garden_trees(rng: np.random.Generator, canvas: Canvas, plan: Plan) -> np.ndarray:
    """Return (row, col) of scattered trees, clumped by a wave over the town."""
    n = canvas.height.shape[0]
    cells = int(n * canvas.resolution / TREE_CELL)
    grid = np.stack(np.meshgrid(np.arange(cells), np.arange(cells), indexing="ij")).reshape(2, -1)
    spot = ((grid + rng.random(grid.shape)) * (TREE_CELL / canvas.resolution)).astype(int).clip(0, n - 1)
    row, col = spot
    density = np.array([style.trees for style in plan.styles])[plan.district[row, col]]
    clump = 1 + 0.8 * np.sin(row * canvas.resolution / 17) * np.sin(col * canvas.resolution / 23)
    pavement = np.array([style.pavement for style in plan.styles])[plan.district[row, col]]
    fits = (canvas.height[row, col] < 0.4) & ~canvas.bare[row, col]
    fits &= (plan.edge[row, col] > pavement + 1) & (plan.shore[row, col] > 6)
    return spot[:, fits & (rng.random(len(row)) < density * clump)]


def _stamp_tree(
    rng: np.random.Generator, canvas: Canvas, free: np.ndarray, row: int, col: int, reach: float, leaf: np.ndarray
) -> None:
    """Draw one tree as a lumpy dome."""
    pad = int(reach / canvas.resolution) + 1
    n = canvas.height.shape[0]
    window = np.s_[max(0, row - pad) : min(n, row + pad + 1), max(0, col - pad) : min(n, col + pad + 1)]
    down = (np.arange(window[0].start, window[0].stop) - row)[:, None] * canvas.resolution
    right = (np.arange(window[1].start, window[1].stop) - col)[None] * canvas.resolution
    lobes = 1 + 0.16 * np.sin(3 * np.arctan2(down, right) + rng.uniform(0, 6))
    away = np.hypot(down, right) / (reach * lobes)
    crown = free[window] & (away < 1)
    tall = reach * rng.uniform(1.9, 2.8) + 1.5
    dome = tall * (0.5 + 0.5 * np.sqrt(1 - away[crown] ** 2)) + rng.normal(0, 0.15, int(crown.sum()))
    colour = leaf * rng.normal(1, 0.08) * rng.normal(1, 0.09, (len(dome), 1))
    canvas.height[window][crown] = np.maximum(canvas.height[window][crown], dome)
    canvas.top[window][crown] = colour.clip(0, 255)
    canvas.side[window][crown] = (leaf * 1.2).clip(0, 255)
    canvas.facade[window][crown] = FOLIAGE


def park_cars(rng: np.random.Generator, canvas: Canvas, plan: Plan) -> None:
    """Park cars along the kerbs of streets wide enough to leave a lane."""
    kerb = plan.half - np.abs(plan.across)
    strip = ((plan.kind == AVENUE) | (plan.kind == STREET)) & (plan.half > 3.4) & (plan.ahead > 7) & (plan.shore > 4)
    strip &= (kerb > 0.3) & (kerb < 0.3 + CAR_WIDTH)
    row, col = np.nonzero(strip)
    slot, offset = np.divmod(plan.along[row, col], CAR_SLOT)
    side = plan.across[row, col] > 0
    key = ((plan.street[row, col] * 2 + side) * 1009 + slot.astype(np.int64)) % 65_521
    occupied = (rng.random(65_521) < 0.34)[key] & (offset < CAR_LENGTH)
    row, col, key, offset = row[occupied], col[occupied], key[occupied], offset[occupied]
    colour = CAR_COLOURS[rng.integers(0, len(CAR_COLOURS), 65_521)][key]
    cabin = (offset > 1.1) & (offset < 3.5)
    glass = cabin & ((offset < 1.6) | (offset > 3.0))
    canvas.height[row, col] = np.where(cabin, 1.5, 0.95)
    canvas.top[row, col] = np.where(glass[:, None], 56, colour)
    canvas.side[row, col] = np.where(cabin[:, None], colour * 0.6, colour)
