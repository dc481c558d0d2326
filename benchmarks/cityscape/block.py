"""One block of a city as a scene, from which that part of the map and its photos are rendered.

A block depends only on the heights in and around it and on hashes of positions, so blocks fit together, and
overlapping windows show the same city.
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
from .paint import LEAST_PARK, LandUse, lay_out, paint_ground, raise_buildings, weather
from .plan import Ground, find_buildings, survey

SIDE = 1024  # metres: side of a block; building its scene of 1728 m takes 1 GB at 0.5 m a pixel
MARGIN = 352  # metres around a block that photos can see; the renderer's rays reach 340 m
SEASONS = ("spring", "summer", "autumn", "winter")
MAP_SEASON, MAP_TURNOUT = "summer", 0
OBSTACLE = 1.0  # metres: taller objects block a camera
BLOCKED = 255  # value of obstacles in the street raster; 0 is open ground, 1 + degrees a camera position
SPLIT_CELL, SPLIT_BORDER = 12, 2  # metres: side of a split's cells, and from a held-out cell's edge to a camera
SPLIT_SHARES = {"train": (0.0, 0.85), "val": (0.85, 0.9), "test": (0.9, 1.0)}  # ranges of the cells' hashes


@dataclass(frozen=True)
class CityBlock:
    """A block and its margin, before trees and cars are added.

    Attributes:
        area: area of the block with its margin.
        per_metre: pixels per metre.
        seed: seed of the city.
        ground: open ground.
        land_use: use of the open ground.
        canvas: ground and buildings in the map's season.
        height: (rows, cols) float32, heights of the buildings, metres.
    """

    area: Area
    per_metre: int
    seed: int
    ground: Ground
    land_use: LandUse
    canvas: Canvas
    height: np.ndarray

    @classmethod
    def make(cls, raster: HeightRaster, core: Area, per_metre: int, seed: int) -> CityBlock:
        """Build the block of area `core` with its margin."""
        area = core.grown(MARGIN)
        height = raster.read(area, per_metre)
        ground = survey(height, per_metre)
        land_use = lay_out(area, ground, seed)
        shape = height.shape
        canvas = Canvas(
            height=np.zeros(shape, np.float32),
            top=np.zeros((*shape, 3), np.uint8),
            side=np.full((*shape, 3), (148, 143, 134), np.uint8),
            facade=np.zeros(shape, np.uint8),
            bare=np.zeros((0, 0), bool),
            resolution=1 / per_metre,
        )
        paint_ground(canvas, area, per_metre, ground, land_use, MAP_SEASON, seed)
        raise_buildings(canvas, area, per_metre, height, find_buildings(height, area, per_metre, raster.step), seed)
        weather(canvas, area, per_metre, seed)
        return cls(area, per_metre, seed, ground, land_use, canvas, height)

    def _planted(self, season: str) -> Canvas:
        canvas = copy.deepcopy(self.canvas)
        plant(canvas, self.area, self.per_metre, self.ground, self.land_use, season, self.seed)
        return canvas

    def scene(self, season: str = MAP_SEASON, turnout: int = MAP_TURNOUT) -> Scene:
        """Return the scene of the block in a season; `turnout` selects which cars are present."""
        canvas = self._planted(season)
        no_cars = self._streets() > 0
        park_cars(canvas, self.area, self.per_metre, self.ground, self.land_use, no_cars, turnout, self.seed)
        return canvas.scene()

    def map(self) -> tuple[np.ndarray, np.ndarray]:
        """Render the overhead view of the block without its margin.

        Returns:
            The orthophoto, (3, rows, cols) uint8, and the street raster, (rows, cols) uint8 at 1 m a pixel: 1 + the
            street's direction in whole degrees where a camera can stand, `BLOCKED` at obstacles, else 0.
        """
        inner = slice(MARGIN * self.per_metre, -MARGIN * self.per_metre)
        photo = orthophoto(self.scene())[inner, inner].permute(2, 0, 1).numpy()
        planted = self._planted(MAP_SEASON).scene().height
        tallest = functional.max_pool2d(planted[None, None], self.per_metre)[0, 0].numpy()
        inner = slice(MARGIN, -MARGIN)
        return photo, np.where(tallest > OBSTACLE, BLOCKED, self._streets())[inner, inner].astype(np.uint8)

    def _streets(self) -> np.ndarray:
        """Return 1 + the street's direction in degrees where a camera can stand, 0 elsewhere and in lanes with cars."""
        half, verge = self.ground.half, self.land_use.verge
        room = np.select(
            [half < 2.5, half < LEAST_KERB, half < LEAST_LANES, half < LEAST_PARK], [9.0, 1.0, 2.9, 6.6], 2.9
        )
        walk = (half >= 5) & (verge < -0.8) & (self.ground.away > 1.5) & (half < LEAST_PARK)
        free = (self.land_use.street & (verge > room)) | walk
        return np.where(free, 1 + np.round(self.ground.along_deg) % 180, 0)


def blocks(window: Area) -> list[Area]:
    """Cut a window into blocks along one grid that all windows share."""
    areas = []
    for south in range(window.south // SIDE * SIDE, window.north, SIDE):
        for west in range(window.west // SIDE * SIDE, window.east, SIDE):
            areas.append(Area(west, south, SIDE, SIDE).within(window))
    return areas


def held_out(area: Area, split: str, seed: int) -> np.ndarray:
    """Return where cameras of a split may stand, (rows, cols) bool at 1 m a pixel.

    The ground is cut into cells, each used by one split. Cameras of the held-out splits keep `SPLIT_BORDER` metres from
    the edge of their cell, so cameras of other splits are at least that far away.
    """
    x, y = (np.floor(axis).astype(np.int64) for axis in area.centres(1))
    chance = uniform(seed * 100 + 99, x[None] // SPLIT_CELL, y[:, None] // SPLIT_CELL)
    low, high = SPLIT_SHARES[split]
    in_split = (chance >= low) & (chance < high)
    if split == "train":
        return in_split
    inner = [(axis % SPLIT_CELL >= SPLIT_BORDER) & (axis % SPLIT_CELL < SPLIT_CELL - SPLIT_BORDER) for axis in (x, y)]
    return in_split & inner[0][None] & inner[1][:, None]
