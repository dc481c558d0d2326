"""Streets, blocks and water of a synthetic town, as rasters.

Streets are straight in warped coordinates (u, v), so they bend on the map. Districts are the Voronoi cells of a few
points; their borders are the avenues, and a rotated grid of streets cuts each district into blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jzi.synth.styles import OUTWARDS, STYLES, Style

NOWHERE = 1e4  # metres, farther than any distance in a town
DISTRICT_REACH = 800.0  # metres: no district of a 300 m grid reaches farther from its centre

OPEN, AVENUE, STREET, CROSSING = range(4)


@dataclass(frozen=True)
class Plan:
    """Streets and blocks of a town; every raster is (rows, cols), lengths in metres.

    Attributes:
        styles: the style of each district.
        district: uint8, index of the district.
        kind: uint8, OPEN (no carriageway), AVENUE, STREET or CROSSING.
        edge: float32, distance to the edge of the nearest carriageway; negative on the carriageway.
        along: float32, coordinate along the nearest carriageway.
        across: float32, signed distance from its centre line.
        half: float32, half its width.
        street: int32, index of the carriageway.
        ahead: float32, on a carriageway, distance to the edge of the nearest one that crosses it.
        block: int32, index of the block.
        inner: (2, rows, cols) float32, position in the block, from its two low edges.
        extent: (2, rows, cols) float32, size of the block.
        shore: float32, distance from the water's edge; negative in the water.
    """

    styles: tuple[Style, ...]
    district: np.ndarray
    kind: np.ndarray
    edge: np.ndarray
    along: np.ndarray
    across: np.ndarray
    half: np.ndarray
    street: np.ndarray
    ahead: np.ndarray
    block: np.ndarray
    inner: np.ndarray
    extent: np.ndarray
    shore: np.ndarray

    def street_deg(self) -> np.ndarray:
        """Return the direction of the nearest street, (rows, cols) float32 in [0, 180) degrees clockwise from north."""
        southward, eastward = np.gradient(self.across)
        return np.degrees(np.arctan2(-southward, -eastward)).astype(np.float32) % 180


def lay_streets(rng: np.random.Generator, size_m: float, resolution: float) -> Plan:
    """Plan the streets, blocks and water of a square town.

    Args:
        rng: source of all randomness.
        size_m: side of the town, metres.
        resolution: metres per pixel.
    """
    n = round(size_m / resolution)
    x = ((np.arange(n, dtype=np.float32) + 0.5) * resolution)[None, :]
    y = x[:, ::-1].T
    u, v = _warp(rng, x, y)
    shore = _shore(rng, x, y, size_m)
    seeds = _district_centres(rng, size_m)
    styles = _district_styles(rng, seeds, size_m)
    district, border, along, pair = _voronoi(u, v, seeds)
    half = rng.uniform(6.5, 10.0, int(pair.max()) + 1).astype(np.float32)[pair]

    shape = (n, n)
    plan = Plan(
        styles=styles,
        district=district,
        kind=np.where(np.abs(border) < half, AVENUE, OPEN).astype(np.uint8),
        edge=np.abs(border) - half,
        along=along,
        across=border,
        half=half,
        street=pair,
        ahead=np.full(shape, NOWHERE, np.float32),
        block=np.zeros(shape, np.int32),
        inner=np.zeros((2, *shape), np.float32),
        extent=np.zeros((2, *shape), np.float32),
        shore=shore,
    )
    blocks, streets = 0, int(pair.max()) + 1
    for index, style in enumerate(styles):
        where = np.flatnonzero(district == index)
        blocks, streets = _fill_district(rng, plan, style, where, u, v, seeds[index], blocks, streets)
    return plan


def _warp(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates (u, v) bent by three waves, which together turn a street by up to about 15 degrees."""
    u, v = x + np.zeros_like(y), y + np.zeros_like(x)
    for wavelength, amplitude in ((820, 20), (520, 10), (300, 4.5)):
        for target in (u, v):
            angle, phase = rng.uniform(0, 2 * np.pi, 2)
            wave = 2 * np.pi / wavelength
            target += amplitude * np.sin(wave * (np.cos(angle) * x + np.sin(angle) * y) + phase).astype(np.float32)
    return u, v


def _shore(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size_m: float) -> np.ndarray:
    """Return the distance from a winding river, or from a lake in a third of the towns."""
    cx, cy = rng.uniform(0.3, 0.7, 2) * size_m
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    ahead = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    aside = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    if rng.random() < 1 / 3:
        radius = rng.uniform(0.07, 0.11) * size_m
        bearing = np.arctan2(aside, ahead)
        reach = radius * (1 + 0.22 * np.sin(2 * bearing + phase) + 0.12 * np.sin(3 * bearing + 2 * phase))
        return (np.hypot(ahead, aside) - reach).astype(np.float32)
    bend = 46 * np.sin(ahead / 125 + phase) + 22 * np.sin(ahead / 61 + 2 * phase)
    width = rng.uniform(13, 22) + 4 * np.sin(ahead / 90)
    slant = np.hypot(1, 46 / 125 * np.cos(ahead / 125 + phase) + 22 / 61 * np.cos(ahead / 61 + 2 * phase))
    return (np.abs(aside - bend) / slant - width).astype(np.float32)


def _district_centres(rng: np.random.Generator, size_m: float) -> np.ndarray:
    """Return (district, 2) points, one in each cell of a grid of about 300 m."""
    side = max(2, round(size_m / 300))
    cells = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
    return (cells + rng.uniform(0.15, 0.85, cells.shape)) * (size_m / side)


def _district_styles(rng: np.random.Generator, seeds: np.ndarray, size_m: float) -> tuple[Style, ...]:
    """Return the districts' styles: roughly, tall buildings in the middle and low ones outside."""
    centre = rng.uniform(0.35, 0.65, 2) * size_m
    rank = np.hypot(*(seeds - centre).T) * rng.uniform(0.6, 1.4, len(seeds))
    styles: list[Style] = [STYLES[0]] * len(seeds)
    for position, index in enumerate(np.argsort(rank)):
        styles[index] = STYLES[OUTWARDS[position % len(OUTWARDS)]]
    return tuple(styles)


def _voronoi(u: np.ndarray, v: np.ndarray, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the district (uint8), the signed distance from and coordinate along its border, and the border (int32)."""
    first = np.full(u.shape, np.inf, np.float32)
    second = first.copy()
    nearest = np.zeros(u.shape, np.uint8)
    runner_up = nearest.copy()
    for index, (su, sv) in enumerate(seeds.astype(np.float32)):
        square = (u - su) ** 2 + (v - sv) ** 2
        closer = square < first
        closer_than_second = square < second
        runner_up = np.where(closer, nearest, np.where(closer_than_second, index, runner_up)).astype(np.uint8)
        second = np.where(closer, first, np.minimum(second, square))
        nearest[closer] = index
        np.minimum(first, square, out=first)
    low, high = np.minimum(nearest, runner_up), np.maximum(nearest, runner_up)
    step = (seeds[high] - seeds[low]).astype(np.float32)
    length = np.hypot(step[..., 0], step[..., 1])
    border = (second - first) / (2 * length) * np.where(nearest == low, -1, 1)
    along = (v * step[..., 0] - u * step[..., 1]) / length
    return nearest, border.astype(np.float32), along.astype(np.float32), low.astype(np.int32) * len(seeds) + high


def _fill_district(
    rng: np.random.Generator,
    plan: Plan,
    style: Style,
    where: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    seed: np.ndarray,
    blocks: int,
    streets: int,
) -> tuple[int, int]:
    """Draw a district's street grid on its pixels `where`; return the new numbers of blocks and streets."""
    angle = rng.uniform(0, np.pi)
    du, dv = u.flat[where] - np.float32(seed[0]), v.flat[where] - np.float32(seed[1])
    coordinates = [du * np.cos(angle) + dv * np.sin(angle), dv * np.cos(angle) - du * np.sin(angle)]
    index: list[np.ndarray] = []  # this and the lists below: one array per axis, with a value per pixel
    inner, extent, edge, across, half = [], [], [], [], []
    for axis in range(2):
        cuts, width = _cuts(rng, style)
        if axis == 1:  # shift cross streets from strip to strip, which makes T junctions
            coordinates[1] = coordinates[1] + (rng.random(100) * style.stagger).astype(np.float32)[index[0]]
        after = np.searchsorted(cuts, coordinates[axis]).clip(1, len(cuts) - 1)
        low, high = coordinates[axis] - cuts[after - 1], cuts[after] - coordinates[axis]
        low_half, high_half = width[after - 1] / 2, width[after] / 2
        nearer = low - low_half < high - high_half
        index.append(after)
        inner.append(low - low_half)
        extent.append(cuts[after] - cuts[after - 1] - low_half - high_half)
        edge.append(np.where(nearer, low - low_half, high - high_half))
        across.append(np.where(nearer, low, -high))
        half.append(np.where(nearer, low_half, high_half))

    plan.block.flat[where] = blocks + index[0] * 100 + index[1]  # fewer than 100 streets fit within DISTRICT_REACH
    for axis in range(2):
        plan.inner[axis].flat[where] = inner[axis]
        plan.extent[axis].flat[where] = extent[axis]
    avenue_edge = plan.edge.flat[where]
    nearest = np.argmin([avenue_edge, *edge], axis=0)
    for axis in range(2):
        on = nearest == axis + 1
        pixels = where[on]
        plan.edge.flat[pixels] = edge[axis][on]
        plan.across.flat[pixels] = across[axis][on]
        plan.half.flat[pixels] = half[axis][on]
        plan.along.flat[pixels] = coordinates[1 - axis][on]
        plan.street.flat[pixels] = streets + axis * 100 + (index[axis] - (across[axis] > 0))[on]
        plan.ahead.flat[pixels] = np.minimum(edge[1 - axis], avenue_edge)[on]
    on_avenue = nearest == 0
    plan.ahead.flat[where[on_avenue]] = np.minimum(edge[0], edge[1])[on_avenue]
    crossings = (np.stack([avenue_edge, *edge]) < 0).sum(0) > 1
    street_kind = np.where(crossings, CROSSING, np.where(np.minimum(*edge) < 0, STREET, OPEN))
    plan.kind.flat[where] = np.where(avenue_edge < 0, AVENUE, street_kind)
    return blocks + 10_000, streets + 200


def _cuts(rng: np.random.Generator, style: Style) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre lines of parallel streets across more than +-DISTRICT_REACH, and their widths."""
    gaps = rng.uniform(*style.block, int(2 * DISTRICT_REACH / style.block[0]) + 3)
    cuts = np.cumsum(gaps) - DISTRICT_REACH - rng.uniform(1, 2) * style.block[1]
    width = rng.uniform(*style.street, len(cuts)).astype(np.float32)
    width[::3] *= 1.25  # every third street is wider
    return cuts.astype(np.float32), width
