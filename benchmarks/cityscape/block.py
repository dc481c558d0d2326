"""One block of a city as a scene: what the map and the photos of that part are made from.

A block is made from its own heights and those around it, and chance that belongs to places, so the blocks of a city
fit together, and so do two windows of it that overlap.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
from torch.nn import functional

from jzi.synth.canvas import Canvas
from jzi.synth.overhead import orthophoto
from jzi.synth.scene import Scene

from .chance import Area, uniform
from .furnish import LEAST_KERB, LEAST_LANES, park_cars, plant
from .heights import HeightRaster
from .paint import LEAST_PARK, Lay, lay_out, paint_ground, raise_buildings, weather
from .plan import Ground, find_buildings, survey

SIDE = 1024  # metres of a block; its scene of 1728 m takes 1 GB while it is made at 0.5 m a pixel
MARGIN = 352  # metres around it that photos see: the renderer looks 340 m far
SEASONS = ("spring", "summer", "autumn", "winter")
MAP_SEASON, MAP_TURNOUT = "summer", 0
HIDES = 1.0  # metres: what is taller stands in a camera's way
BLOCKED = 255  # in the raster of the streets; 0 is open ground, and 1 + degrees a place for a camera
HELD_CELL, HELD_BORDER = 12, 2  # metres: of the cells that are held out, and from their edges to a camera in one
HELD = {"train": (0.0, 0.85), "val": (0.85, 0.9), "test": (0.9, 1.0)}  # shares of the cells


@dataclass(frozen=True)
class CityBlock:
    """A block and what is around it, before trees and cars.

    Attributes:
        area: with its margin.
        per_metre: pixels.
        seed: of its chance.
        ground: what lies open.
        lay: and what for.
        canvas: ground and buildings in the map's season.
    """

    area: Area
    per_metre: int
    seed: int
    ground: Ground
    lay: Lay
    canvas: Canvas
    height: np.ndarray

    @classmethod
    def make(cls, raster: HeightRaster, core: Area, per_metre: int, seed: int) -> CityBlock:
        """Makes the block of an area."""
        area = core.grown(MARGIN)
        height = raster.read(area, per_metre)
        ground = survey(height, per_metre)
        lay = lay_out(area, ground, seed)
        shape = height.shape
        canvas = Canvas(
            height=np.zeros(shape, np.float32),
            top=np.zeros((*shape, 3), np.uint8),
            side=np.full((*shape, 3), (148, 143, 134), np.uint8),
            facade=np.zeros(shape, np.uint8),
            bare=np.zeros((0, 0), bool),
            resolution=1 / per_metre,
        )
        paint_ground(canvas, area, per_metre, ground, lay, MAP_SEASON, seed)
        raise_buildings(canvas, area, per_metre, height, find_buildings(height, area, per_metre, raster.step), seed)
        weather(canvas, area, per_metre, seed)
        return cls(area, per_metre, seed, ground, lay, canvas, height)

    def _planted(self, season: str) -> Canvas:
        canvas = copy.deepcopy(self.canvas)
        plant(canvas, self.area, self.per_metre, self.ground, self.lay, season, self.seed)
        return canvas

    def scene(self, season: str = MAP_SEASON, turnout: int = MAP_TURNOUT) -> Scene:
        """The block with the leaves of a season and some turnout of cars."""
        canvas = self._planted(season)
        kept = self._streets() > 0
        park_cars(canvas, self.area, self.per_metre, self.ground, self.lay, kept, turnout, self.seed)
        return canvas.scene()

    def map(self) -> tuple[np.ndarray, np.ndarray]:
        """The block without its margin, from above.

        Returns:
            (3, rows, cols) uint8, the orthophoto; and (metres north to south, metres) uint8, where a camera can
            stand: 1 + the street's direction in whole degrees, `BLOCKED` where something is in the way, else 0.
        """
        inner = slice(MARGIN * self.per_metre, -MARGIN * self.per_metre)
        photo = orthophoto(self.scene())[inner, inner].permute(2, 0, 1).numpy()
        planted = self._planted(MAP_SEASON).scene().height
        tallest = functional.max_pool2d(planted[None, None], self.per_metre)[0, 0].numpy()
        inner = slice(MARGIN, -MARGIN)
        return photo, np.where(tallest > HIDES, BLOCKED, self._streets())[inner, inner].astype(np.uint8)

    def _streets(self) -> np.ndarray:
        """Keeps cameras out of the lanes that have cars in them, or will have."""
        half, verge = self.ground.half, self.lay.verge
        room = np.select(
            [half < 2.5, half < LEAST_KERB, half < LEAST_LANES, half < LEAST_PARK], [9.0, 1.0, 2.9, 6.6], 2.9
        )
        walk = (half >= 5) & (verge < -0.8) & (self.ground.away > 1.5) & (half < LEAST_PARK)
        place = (self.lay.street & (verge > room)) | walk
        return np.where(place, 1 + np.round(self.ground.along_deg) % 180, 0)


def blocks(window: Area) -> list[Area]:
    """Cuts a window along the lines of one grid for all windows."""
    found = []
    for south in range(window.south // SIDE * SIDE, window.north, SIDE):
        for west in range(window.west // SIDE * SIDE, window.east, SIDE):
            found.append(Area(west, south, SIDE, SIDE).within(window))
    return found


def held_out(area: Area, split: str, seed: int) -> np.ndarray:
    """Where cameras of a split may stand, (rows, cols) bool at 1 m a pixel.

    The ground is cut in cells, each for one split. Cameras of the splits that are held out keep `HELD_BORDER` metres
    from their cell's edge, so that no other split has one nearer than that.
    """
    x, y = (np.floor(axis).astype(np.int64) for axis in area.centres(1))
    chance = uniform(seed * 100 + 99, x[None] // HELD_CELL, y[:, None] // HELD_CELL)
    low, high = HELD[split]
    place = (chance >= low) & (chance < high)
    if split == "train":
        return place
    inner = [(axis % HELD_CELL >= HELD_BORDER) & (axis % HELD_CELL < HELD_CELL - HELD_BORDER) for axis in (x, y)]
    return place & inner[0][None] & inner[1][:, None]
