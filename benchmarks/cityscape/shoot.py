"""Street photos of a city: where the cameras stand, and a block's share of the photos."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from jzi.synth.photos import geotags, place_cameras, save_photos
from jzi.synth.render import render
from jzi.synth.scene import Cameras, Scene, Town

from .block import BLOCKED, MARGIN, SEASONS, CityBlock, held_out
from .chance import Area
from .heights import HeightRaster

SPLITS = ("train", "val", "test")
BATCH = 32  # photos made at once
TURNOUTS = 2  # of cars, for each season
FOLDER_OF = 1000  # photos to a folder


@dataclass(frozen=True)
class Shoot:
    """The photos of one split.

    Attributes:
        split: its name.
        cameras: where from, in metres from the window's west and south edges.
        season: (n,) index into `SEASONS`.
        turnout: (n,) which cars are about.
        town: the window, for its CRS and place.
    """

    split: str
    cameras: Cameras
    season: np.ndarray
    turnout: np.ndarray
    town: Town

    def __len__(self) -> int:
        return len(self.season)

    def path(self, index: int) -> str:
        """A photo's path below the city's folder."""
        return f"photos/{self.split}/{index // FOLDER_OF:03d}/{index:06d}.jpg"


def plan_shoot(streets: np.ndarray, window: Area, crs: str, split: str, count: int, seed: int) -> Shoot:
    """Draws the cameras of a split; the first ones are the same whatever the count.

    Args:
        streets: what `CityBlock.map` says of the window's streets.
        window: its place.
        crs: its CRS.
        split: which split; each has ground of its own (`held_out`).
        count: how many photos.
        seed: of the city and its photos.
    """
    number = SPLITS.index(split)
    blank = torch.zeros(1, 1, 3, dtype=torch.uint8).expand(*streets.shape, 3)
    tall = torch.from_numpy(np.where(streets == BLOCKED, np.float32(2), np.float32(0)))
    place = (streets > 0) & (streets < BLOCKED) & held_out(window, split, seed)
    town = Town(
        scene=Scene(tall, blank, blank, 1.0),
        street=place,
        street_deg=(streets.astype(np.float32) - 1).clip(0),
        crs=crs,
        west=window.west,
        south=window.south,
    )
    cameras = place_cameras(town, seed * 10 + number, count)
    rng = np.random.default_rng([seed, 2, number])
    season, turnout = (rng.random((count, 2)) * (len(SEASONS), TURNOUTS)).astype(int).T
    return Shoot(split, cameras, season, 1 + turnout, town)


@dataclass(frozen=True)
class Job:
    """The photos that one block has to make.

    Attributes:
        raster: the heights.
        core: the block.
        per_metre: pixels.
        seed: of the city.
        cameras: n of them, in metres from the corner of the block with its margin.
        season: (n,) index into `SEASONS`.
        turnout: (n,) which cars are about.
        paths: n files to write.
        tags: n geotags.
        size: rows and columns of a photo.
    """

    raster: HeightRaster
    core: Area
    per_metre: int
    seed: int
    cameras: Cameras
    season: np.ndarray
    turnout: np.ndarray
    paths: list[Path]
    tags: list[Image.Exif]
    size: tuple[int, int]


def make_job(
    raster: HeightRaster,
    core: Area,
    per_metre: int,
    seed: int,
    shoots: list[Shoot],
    folder: Path,
    size: tuple[int, int],
) -> Job | None:
    """Gathers the photos that are yet to be made from within a block; None where there are none."""
    parts = []
    for shoot in shoots:
        x, y = shoot.town.west + shoot.cameras.x, shoot.town.south + shoot.cameras.y
        inside = (x >= core.west) & (x < core.east) & (y >= core.south) & (y < core.north)
        paths = [(index, folder / shoot.path(index)) for index in np.flatnonzero(inside)]
        missing = [(index, path) for index, path in paths if not path.exists()]
        if missing:
            chosen = np.array([index for index, _ in missing])
            parts.append((shoot, chosen, [path for _, path in missing]))
    if not parts:
        return None
    corner = core.grown(MARGIN)
    cameras = []
    for shoot, chosen, _ in parts:
        some = shoot.cameras[chosen]
        x, y = some.x + shoot.town.west - corner.west, some.y + shoot.town.south - corner.south
        cameras.append(replace(some, x=x, y=y))
    return Job(
        raster,
        core,
        per_metre,
        seed,
        Cameras(**{name: np.concatenate([getattr(each, name) for each in cameras]) for name in vars(cameras[0])}),
        np.concatenate([shoot.season[chosen] for shoot, chosen, _ in parts]),
        np.concatenate([shoot.turnout[chosen] for shoot, chosen, _ in parts]),
        [path for _, _, paths in parts for path in paths],
        [tag for shoot, chosen, _ in parts for tag in geotags(shoot.town, shoot.cameras[chosen])],
        size,
    )


def photograph(job: Job) -> int:
    """Makes a block's photos, and returns how many."""
    for folder in {path.parent for path in job.paths}:
        folder.mkdir(parents=True, exist_ok=True)
    block = CityBlock.make(job.raster, job.core, job.per_metre, job.seed)
    for season, turnout in sorted(set(zip(job.season.tolist(), job.turnout.tolist(), strict=True))):
        scene = block.scene(SEASONS[season], turnout)
        alike = np.flatnonzero((job.season == season) & (job.turnout == turnout))
        for start in range(0, len(alike), BATCH):
            chosen = alike[start : start + BATCH]
            photos = render(scene, job.cameras[chosen], *job.size).numpy()
            save_photos(photos, [job.paths[i] for i in chosen], [job.tags[i] for i in chosen])
    return len(job.paths)
