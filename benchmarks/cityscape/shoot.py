"""Street photos of a city: place the cameras, and render the photos of a block."""

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
BATCH = 32  # photos rendered at once
TURNOUTS = 2  # sets of cars per season
FOLDER_SIZE = 1000  # photos per folder


@dataclass(frozen=True)
class Shoot:
    """The photos of one split.

    Attributes:
        split: name of the split.
        cameras: n cameras, metres from the window's west and south edges.
        season: (n,) index into `SEASONS`.
        turnout: (n,) number of the set of cars.
        town: window with its CRS and position.
    """

    split: str
    cameras: Cameras
    season: np.ndarray
    turnout: np.ndarray
    town: Town

    def __len__(self) -> int:
        return len(self.season)

    def path(self, index: int) -> str:
        """Return a photo's path relative to the city's folder."""
        return f"photos/{self.split}/{index // FOLDER_SIZE:03d}/{index:06d}.jpg"


def plan_shoot(streets: np.ndarray, window: Area, crs: str, split: str, count: int, seed: int) -> Shoot:
    """Place the cameras of a split; a smaller count gives a prefix of the same cameras.

    Args:
        streets: street raster of the window, see `CityBlock.map`.
        window: area of the window.
        crs: CRS of the window.
        split: name of the split; splits use disjoint ground (`held_out`).
        count: number of photos.
        seed: seed of the city.
    """
    number = SPLITS.index(split)
    blank = torch.zeros(1, 1, 3, dtype=torch.uint8).expand(*streets.shape, 3)
    tall = torch.from_numpy(np.where(streets == BLOCKED, np.float32(2), np.float32(0)))
    allowed = (streets > 0) & (streets < BLOCKED) & held_out(window, split, seed)
    town = Town(
        scene=Scene(tall, blank, blank, 1.0),
        street=allowed,
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
    """The photos to render from one block.

    Attributes:
        raster: building heights.
        core: area of the block.
        per_metre: pixels per metre.
        seed: seed of the city.
        cameras: n cameras, metres from the south-west corner of the block with its margin.
        season: (n,) index into `SEASONS`.
        turnout: (n,) number of the set of cars.
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
    """Return the job of a block's missing photos, or None if no photo is missing."""
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
        subset = shoot.cameras[chosen]
        x, y = subset.x + shoot.town.west - corner.west, subset.y + shoot.town.south - corner.south
        cameras.append(replace(subset, x=x, y=y))
    return Job(
        raster,
        core,
        per_metre,
        seed,
        Cameras(**{name: np.concatenate([getattr(part, name) for part in cameras]) for name in vars(cameras[0])}),
        np.concatenate([shoot.season[chosen] for shoot, chosen, _ in parts]),
        np.concatenate([shoot.turnout[chosen] for shoot, chosen, _ in parts]),
        [path for _, _, paths in parts for path in paths],
        [tag for shoot, chosen, _ in parts for tag in geotags(shoot.town, shoot.cameras[chosen])],
        size,
    )


def photograph(job: Job) -> int:
    """Render and write a block's photos; return their number."""
    for folder in {path.parent for path in job.paths}:
        folder.mkdir(parents=True, exist_ok=True)
    block = CityBlock.make(job.raster, job.core, job.per_metre, job.seed)
    for season, turnout in sorted(set(zip(job.season.tolist(), job.turnout.tolist(), strict=True))):
        scene = block.scene(SEASONS[season], turnout)
        same_scene = np.flatnonzero((job.season == season) & (job.turnout == turnout))
        for start in range(0, len(same_scene), BATCH):
            chosen = same_scene[start : start + BATCH]
            photos = render(scene, job.cameras[chosen], *job.size).numpy()
            save_photos(photos, [job.paths[i] for i in chosen], [job.tags[i] for i in chosen])
    return len(job.paths)
