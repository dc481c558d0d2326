"""Mosaics of a whole area in memory, from which turned images of cells anywhere in it are cut, for training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from numpy.typing import NDArray
from pyproj import Transformer
from torch import Tensor

#: Pixels of a mosaic beyond its outermost images: one for interpolation, one for rounding.
MARGIN = 2


class HeldLevel(NamedTuple):
    """The mosaic of one level of detail.

    Attributes:
        image: (rows, cols, 3) uint8.
        metres: size of a pixel.
        west: west edge, metres.
        north: north edge, metres.
    """

    image: Tensor
    metres: float
    west: float
    north: float

    def pixels(self, x: float, y: float) -> tuple[float, float]:
        """Column and row of a point, fractional."""
        return (x - self.west) / self.metres, (self.north - y) / self.metres


@dataclass(frozen=True)
class HeldMosaics:
    """Mosaics of all levels of detail.

    Attributes:
        project: from longitude and latitude to x and y of the mosaics, metres.
        levels: the levels.
        finest: index of the level with the smallest pixels.
        covered: (rows, cols) where that level has imagery.
    """

    project: Transformer
    levels: Sequence[HeldLevel]
    finest: int
    covered: NDArray[np.bool_] = field(repr=False)

    def covers(self, latitude: float, longitude: float, half_m: float) -> bool:
        """Whether there is imagery in a square around a position; False beyond the mosaic."""
        level = self.levels[self.finest]
        across, down = level.pixels(*self.project.transform(longitude, latitude))
        half = half_m / level.metres
        rows, cols = (slice(max(0, math.floor(each - half)), max(0, math.ceil(each + half))) for each in (down, across))
        return bool(self.covered[rows, cols].any())

    def cut(self, latitude: float, longitude: float, rotation_deg: float, size: int) -> NDArray[np.uint8] | None:
        """(level, size, size, 3) uint8 images around a position; None for one that the mosaics do not surround.

        Args:
            latitude: degrees (WGS 84).
            longitude: degrees.
            rotation_deg: direction that is up in the images, degrees clockwise from north.
            size: side of an image, pixels.
        """
        x, y = self.project.transform(longitude, latitude)
        angle = math.radians(rotation_deg % 360)
        half = math.ceil(size / 2 * (abs(math.sin(angle)) + abs(math.cos(angle)))) + MARGIN
        turned = turned_offsets(size, angle)
        images = np.empty((len(self.levels), size, size, 3), np.uint8)
        for into, level in zip(images, self.levels, strict=True):
            across, down = level.pixels(x, y)
            if not (math.isfinite(across) and math.isfinite(down)):
                return None
            left, top = math.floor(across) - half, math.floor(down) - half
            height, width = level.image.shape[:2]
            if left < 0 or top < 0 or left + 2 * half > width or top + 2 * half > height:
                return None
            part = level.image[top : top + 2 * half, left : left + 2 * half]
            offset = torch.tensor([across - left - half, down - top - half], dtype=torch.float64)
            into[:] = sample_turned(part, (turned + offset) / half)
        return images


def turned_offsets(size: int, angle: float) -> Tensor:
    """(size, size, 2) offsets to the right and down of the pixels of a turned image from its centre, pixels.

    Args:
        size: side of the image, pixels.
        angle: direction that is up in the image, radians clockwise from north.
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    right = torch.arange(size, dtype=torch.float64) + 0.5 - size / 2
    up = -right[:, None]
    return torch.stack([right * cosine + up * sine, right * sine - up * cosine], -1)


def sample_turned(image: Tensor, grid: Tensor) -> NDArray[np.uint8]:
    """(size, size, 3) uint8 pixels of an image at points, by bilinear interpolation.

    Args:
        image: (rows, cols, 3) uint8.
        grid: (size, size, 2) points to the right and down of its centre, in halves of its sides.
    """
    source = image.permute(2, 0, 1)[None].float()
    sampled = F.grid_sample(source, grid[None].float(), padding_mode="border", align_corners=False)
    pixels: NDArray[np.uint8] = sampled[0].round().byte().permute(1, 2, 0).numpy()
    return pixels
