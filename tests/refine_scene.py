"""An analytic map of smooth colours, and photos that show the colours around them: what a refiner can learn at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from jzi.refine.config import CachedRefinerConfig, RefineConfig
from jzi.refine.windows.window import Windows
from jzi.store.geometry.pyramid import Pyramid
from jzi.train.refine.refine_data import Read
from jzi.train.refine.refine_pairs import PairPhotos

AREA = Pyramid.around(48.2, 16.37, 1024.0, levels=3)  # cells of 16 m
FEATURES, ROWS, COLS, SIDE = 6, 2, 16, 8

#: Metres from the camera that each row of a photo's tokens shows, from the top down.
DISTANCES = (9.0, 4.0)

TOKEN_M = 6.0


def refine_config(side: int = SIDE) -> RefineConfig:
    """Windows of some tokens."""
    return RefineConfig(window_m=TOKEN_M * side, side=side, bins=8, width=32, channels=(64, 32, 16, 8), blocks=1)


def network_config(side: int = SIDE) -> CachedRefinerConfig:
    """A tiny refiner without dropout, 59 000 parameters."""
    return replace(refine_config(side), dropout=0.0).cached(FEATURES, FEATURES, ROWS)


@dataclass(frozen=True)
class Colours:
    """A map: sums of waves with lengths of 12 m to 60 m in all directions, one sum for each feature."""

    waves: NDArray[np.float64]  # (feature, wave, 2) radians per metre
    phases: NDArray[np.float64]  # (feature, wave)

    @classmethod
    def draw(cls, seed: int = 0, count: int = 6) -> Colours:
        """Draw a map."""
        rng = np.random.default_rng(seed)
        angle, length = rng.uniform(0, 2 * np.pi, (FEATURES, count)), rng.uniform(12, 60, (FEATURES, count))
        waves = 2 * np.pi / length[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        return cls(waves, rng.uniform(0, 2 * np.pi, (FEATURES, count)))

    def at(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float32]:
        """(..., feature) colours of places, in metres."""
        angle = x[..., None, None] * self.waves[..., 0] + y[..., None, None] * self.waves[..., 1] + self.phases
        return np.sin(angle).mean(-1).astype(np.float32) * 3


@dataclass(frozen=True)
class Scene:
    """A `PairSource` of panoramas; `control` replaces photos by "black" ones or by those of another place."""

    train: PairPhotos
    val: PairPhotos
    colours: Colours
    control: str = ""
    area: Pyramid = AREA
    images: bool = False
    side: int = SIDE

    @classmethod
    def draw(cls, train: int = 200, val: int = 100, seed: int = 0, side: int = SIDE) -> Scene:
        """Draw a map and photos with known headings anywhere on it, 50 m or more from the edge."""
        rng = np.random.default_rng([seed, 1])
        west, south, east, north = AREA.bounds
        count = train + val
        x, y = rng.uniform(west + 50, east - 50, count), rng.uniform(south + 50, north - 50, count)
        latitude, longitude = AREA.unproject(x, y)
        frame = pd.DataFrame({"id": range(count), "latitude": latitude, "longitude": longitude, "panorama": 1.0})
        frame["heading_deg"] = rng.uniform(0, 360, count)
        photos = PairPhotos.of(AREA, frame, 70.0, 10.0)
        return cls(photos[:train], photos[train:], Colours.draw(seed), side=side)

    def with_control(self, control: str) -> Scene:
        """The same with other photos."""
        return replace(self, control=control)

    def read(self, photos: PairPhotos, windows: Windows) -> Read:
        """Tokens of photos and windows."""
        return Read(
            self.photo_tokens(photos), self.window_tokens(windows), torch.ones(len(photos), self.side, self.side) > 0
        )

    def photo_tokens(self, photos: PairPhotos) -> torch.Tensor:
        """(photo, ROWS, COLS, FEATURES): the colours around, the centre column in the direction of the heading."""
        if self.control == "black":
            return torch.zeros(len(photos), ROWS, COLS, FEATURES)
        x, y = photos.x, photos.y
        if self.control == "shuffled":  # every photo shows a place that is its own function, but unrelated
            x, y = 977 - 1.7 * y, 331 + 2.3 * x
        azimuth = np.radians(photos.heading_deg[:, None] + (np.arange(COLS) + 0.5 - COLS / 2) * (360 / COLS))
        far = np.array(DISTANCES)[None, :, None]
        east, north = far * np.sin(azimuth)[:, None], far * np.cos(azimuth)[:, None]
        return torch.from_numpy(self.colours.at(x[:, None, None] + east, y[:, None, None] + north))

    def window_tokens(self, windows: Windows) -> torch.Tensor:
        """(window, side, side, FEATURES): the colours at the centres of tokens."""
        centre = (np.arange(self.side) + 0.5) * windows.pixels / self.side
        u, v = np.broadcast_arrays(centre[None, None, :], centre[None, :, None])
        shape = len(windows), self.side, self.side
        x, y = windows.pixels_to_crs(np.broadcast_to(u, shape), np.broadcast_to(v, shape))
        return torch.from_numpy(self.colours.at(x, y))
