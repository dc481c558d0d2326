"""An analytic map in colours, and panoramas of it: what a refiner that looks along rays can learn at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from jzi.refine.config import RefineConfig
from jzi.refine.ray_config import RayConfig, RayTrunkConfig
from jzi.refine.windows.window import Windows
from jzi.store.geometry.pyramid import Pyramid
from jzi.train.refine.refine_data import Read
from jzi.train.refine.refine_pairs import PairPhotos

AREA = Pyramid.around(48.2, 16.37, 1024.0, levels=3)  # cells of 16 m

RAYS = RayConfig(
    distances=(0.0, 4.0, 8.0, 12.0),
    bins=12,
    fine=1,
    trunk=RayTrunkConfig(width=16, blocks=1, features=8),
    hidden=32,
    width=16,
    photo_height=32,
    photo_width=96,
    photo_channels=(16, 24),
    photo_blocks=1,
    dropout=0.0,
)
REFINE = RefineConfig(kind="rays", window_m=24.0, rays=RAYS)
SMALL = REFINE.ray_config()  # windows of 12 tokens


@dataclass(frozen=True)
class RayScene:
    """A `PairSource` of panoramas that show the colours 4 m to 12 m away, row by row."""

    train: PairPhotos
    val: PairPhotos
    waves: NDArray[np.float64]  # (3, wave, 2) radians per metre
    phases: NDArray[np.float64]  # (3, wave)
    area: Pyramid = AREA
    images: bool = True
    fingerprint: dict[str, str] = field(default_factory=dict)

    @classmethod
    def draw(cls, train: int, val: int, seed: int = 0) -> RayScene:
        """Draw a map and photos with known headings anywhere on it, 60 m or more from the edge."""
        rng = np.random.default_rng([seed, 1])
        west, south, east, north = AREA.bounds
        count = train + val
        x, y = rng.uniform(west + 60, east - 60, count), rng.uniform(south + 60, north - 60, count)
        latitude, longitude = AREA.unproject(x, y)
        frame = pd.DataFrame({"id": range(count), "latitude": latitude, "longitude": longitude, "panorama": 1.0})
        frame["heading_deg"] = rng.uniform(0, 360, count)
        photos = PairPhotos.of(AREA, frame, 70.0, 10.0)
        angle, length = rng.uniform(0, 2 * np.pi, (3, 6)), rng.uniform(16, 40, (3, 6))
        waves = 2 * np.pi / length[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        return cls(photos[:train], photos[train:], waves, rng.uniform(0, 2 * np.pi, (3, 6)))

    def colours(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> torch.Tensor:
        """(n, 3, row, col) uint8 colours of (n, row, col) places."""
        angle = x[..., None, None] * self.waves[..., 0] + y[..., None, None] * self.waves[..., 1] + self.phases
        values = 127.5 + 127 * np.tanh(1.5 * np.sin(angle).mean(-1))
        return torch.from_numpy(values.astype(np.uint8)).permute(0, 3, 1, 2)

    def read(self, photos: PairPhotos, windows: Windows) -> Read:
        """Pixels of photos and windows."""
        scale = windows.scale[:, None, None]
        count, rows, cols = SMALL.outer * 4, SMALL.photo_height, SMALL.photo_width
        step = ((np.arange(count) + 0.5) / 4 - SMALL.outer / 2) * SMALL.token_m
        x, y = (each[:, None, None] for each in (windows.x, windows.y))
        seen = self.colours(x + step * scale + 0 * step[:, None], y - step[:, None] * scale + 0 * step)
        azimuth = np.radians(photos.heading_deg[:, None] + ((np.arange(cols) + 0.5) / cols - 0.5) * 360)[:, None]
        far = 12 - 8 * (np.arange(rows)[:, None] / (rows - 1))
        px, py = (each[:, None, None] for each in (photos.x, photos.y))
        shown = self.colours(px + far * np.sin(azimuth) * scale, py + far * np.cos(azimuth) * scale)
        return Read(shown, seen, torch.ones(len(photos), SMALL.outer, SMALL.outer) > 0)

    @property
    def parts(self) -> tuple[RayScene, ...]:
        """As `RaySources`."""
        return (self,)
