"""The overhead view of a height field: an orthophoto with hillshading and cast shadows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jzi.synth.scene import Scene
from jzi.synth.shade import light

STRIP = 512  # rows coloured at once: a map of 10 000 x 10 000 pixels takes 3 GB in strips and 8 GB as a whole


def orthophoto(scene: Scene, sun_azimuth_deg: float = 160.0, sun_elevation_deg: float = 48.0) -> Tensor:
    """Looks straight down on a scene in sunlight.

    Returns:
        (rows, cols, 3) uint8, with hillshading and cast shadows.
    """
    azimuth, elevation = math.radians(sun_azimuth_deg), math.radians(sun_elevation_deg)
    shadow = _cast_shadow(scene.height, scene.resolution, azimuth, elevation)
    photo = torch.empty_like(scene.top)
    for first in range(0, scene.rows, STRIP):
        rows = slice(first, first + STRIP)
        lambert = _hillshade(scene, rows, azimuth, elevation).masked_fill_(shadow[rows], 0)
        colour = scene.top[rows].permute(2, 0, 1).float()
        lit = light(colour, lambert, cloud=torch.zeros_like(lambert), brightness=torch.ones_like(lambert))
        photo[rows] = lit.clamp_(0, 255).permute(1, 2, 0).to(torch.uint8)
    return photo


def _hillshade(scene: Scene, rows: slice, azimuth: float, elevation: float) -> Tensor:
    """Returns the share of direct sun that the tops of a strip of rows catch, (rows, cols) float32."""
    lines = torch.arange(rows.start - 1, min(rows.stop, scene.rows) + 1, device=scene.height.device)
    height = scene.height[lines.clamp(0, scene.rows - 1)]
    # Beyond 45 degrees it is an edge, not a surface; unclamped, every roof would have a black and a white rim.
    north = ((height[:-2] - height[2:]) / (2 * scene.resolution)).clamp_(-1, 1)
    east = torch.zeros_like(north)
    east[:, 1:-1] = ((height[1:-1, 2:] - height[1:-1, :-2]) / (2 * scene.resolution)).clamp_(-1, 1)
    slant = (north * math.cos(azimuth) + east * math.sin(azimuth)) * math.cos(elevation)
    return ((math.sin(elevation) - slant) / torch.sqrt(1 + north**2 + east**2)).clamp_(min=0)


def _cast_shadow(height: Tensor, resolution: float, azimuth: float, elevation: float) -> Tensor:
    """Returns where the sun does not reach, (rows, cols) bool.

    The height of the shadow at a pixel is the maximum, over the way to the sun, of the height there less what the
    sun's ray has climbed. Doubling the way covered in each pass takes log2 passes where a walk takes hundreds.
    """
    climb = math.tan(elevation) * resolution  # metres per pixel of way
    longest = float(height.max() - height.min()) / climb
    shadow = height - 0.2  # so that a level surface does not shade itself
    way = 1
    while way <= longest:
        down, right = round(-math.cos(azimuth) * way), round(math.sin(azimuth) * way)
        shadow = torch.maximum(shadow, _shifted(shadow, down, right) - climb * way)
        way *= 2
    return shadow > height


def _shifted(raster: Tensor, down: int, right: int) -> Tensor:
    """Returns the raster whose pixel (row, col) is the given one's (row + down, col + right); -inf from outside."""
    rows, cols = raster.shape
    shifted = torch.full_like(raster, -math.inf)
    if abs(down) < rows and abs(right) < cols:
        target = shifted[max(0, -down) : rows - max(0, down), max(0, -right) : cols - max(0, right)]
        target.copy_(raster[max(0, down) : rows - max(0, -down), max(0, right) : cols - max(0, -right)])
    return shifted
