"""Landmarks, one per district: a building visible from afar and easy to find on the map (church, dome, tanks)."""

from __future__ import annotations

import numpy as np

from jzi.synth.canvas import Canvas
from jzi.synth.shade import HOUSE, PLAIN
from jzi.synth.streets import Plan
from jzi.synth.styles import DOWNTOWN, ESTATE, INDUSTRY, OLD_TOWN, PARK, SUBURB, TERRACES, Colour

Form = tuple[np.ndarray, Colour, Colour]  # height, colours of the roof and of the wall

YARD = 17.0  # metres: radius of the cleared ground around a landmark
ROOFS = ((96, 150, 132), (70, 74, 84), (150, 74, 54), (190, 164, 92))
WALLS = ((222, 214, 196), (168, 84, 64), (196, 186, 160), (236, 234, 226))
TANKS = ((150, 86, 58), (82, 128, 156), (204, 204, 196), (110, 140, 104))


def raise_landmarks(rng: np.random.Generator, canvas: Canvas, plan: Plan) -> None:
    """Draw one landmark in the middle of a block of each district."""
    forms = {
        OLD_TOWN: _church, SUBURB: _church, TERRACES: _dome, ESTATE: _water_tower,
        INDUSTRY: _tanks, PARK: _obelisk, DOWNTOWN: _dome,
    }  # fmt: skip
    for index, style in enumerate(plan.styles):
        spots = np.flatnonzero((plan.district == index) & (plan.shore > YARD) & ~canvas.bare)
        if not len(spots):
            continue
        candidates = rng.choice(spots, 200)
        row, col = np.divmod(candidates[np.argmax(plan.edge.flat[candidates])], plan.edge.shape[1])
        p, q, window = _local(canvas, row, col, rng.uniform(0, np.pi))
        yard = (np.hypot(p, q) < YARD) & (plan.edge[window] > style.pavement)
        canvas.top[window][yard] = np.array(style.paving) * rng.normal(1, 0.06, 3)
        canvas.height[window][yard] = 0.15
        canvas.bare[window][yard] = True
        height, roof, wall = forms[style](rng, p, q)
        built = yard & (height > 0)
        canvas.height[window][built] = height[built]
        canvas.top[window][built] = roof
        canvas.side[window][built] = wall
        canvas.facade[window][built] = HOUSE if style in (OLD_TOWN, SUBURB) else PLAIN


def _local(canvas: Canvas, row: int, col: int, turn: float) -> tuple[np.ndarray, np.ndarray, tuple[slice, slice]]:
    """Return rotated coordinates around a pixel, metres, and the window of the rasters that they cover."""
    reach = int(YARD / canvas.resolution) + 1
    n = canvas.height.shape[0]
    rows = slice(max(0, row - reach), min(n, row + reach + 1))
    cols = slice(max(0, col - reach), min(n, col + reach + 1))
    south = (np.arange(rows.start, rows.stop) - row)[:, None] * canvas.resolution
    east = (np.arange(cols.start, cols.stop) - col)[None] * canvas.resolution
    return south * np.cos(turn) + east * np.sin(turn), east * np.cos(turn) - south * np.sin(turn), (rows, cols)


def _church(rng: np.random.Generator, p: np.ndarray, q: np.ndarray) -> Form:
    tall = rng.uniform(0.8, 1.2)
    nave = np.where((np.abs(p - 2) < 10) & (np.abs(q) < 4.5), 8 * tall + 1.1 * (4.5 - np.abs(q)), 0)
    away = np.maximum(np.abs(p + 10.5), np.abs(q))
    tower = np.where(away < 3, 24 * tall + 5 * (3 - away), 0)
    kind = rng.integers(len(ROOFS))
    return np.maximum(nave, tower), ROOFS[kind], WALLS[kind]


def _dome(rng: np.random.Generator, p: np.ndarray, q: np.ndarray) -> Form:
    away, radius = np.hypot(p, q), rng.uniform(7, 9)
    hall = np.where((np.abs(p) < 13) & (np.abs(q) < 7), 10, 0)
    dome = np.where(away < radius, 14 + np.sqrt(np.maximum(radius**2 - away**2, 0)), 0)
    kind = rng.integers(len(ROOFS))
    return np.maximum(hall, dome), ROOFS[kind], WALLS[kind - 1]


def _water_tower(rng: np.random.Generator, p: np.ndarray, q: np.ndarray) -> Form:
    away = np.hypot(p, q)
    shaft = np.where(away < 4, rng.uniform(34, 46) + (4 - away), 0)
    kind = rng.integers(len(TANKS))
    return np.maximum(shaft, np.where(away < 8, 4.5, 0)), TANKS[kind], TANKS[kind]


def _tanks(rng: np.random.Generator, p: np.ndarray, q: np.ndarray) -> Form:
    first, second = np.hypot(p - 6, q), np.hypot(p + 9, q + 3)
    height = np.where(first < 8, rng.uniform(14, 22) + 0.2 * (8 - first), 0)
    height = np.maximum(height, np.where(second < 5, rng.uniform(9, 14) + 0.2 * (5 - second), 0))
    kind = rng.integers(len(TANKS))
    return height, TANKS[kind], TANKS[kind]


def _obelisk(rng: np.random.Generator, p: np.ndarray, q: np.ndarray) -> Form:
    away = np.maximum(np.abs(p), np.abs(q))
    kind = rng.integers(len(WALLS))
    return np.select([away < 1.6, away < 5], [rng.uniform(20, 30), 1.4], 0), WALLS[kind], WALLS[kind]
