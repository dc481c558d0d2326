"""The overhead view of a height field: an orthophoto with hillshading and cast shadows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jzi.synth.scene import Scene
from jzi.synth.shade import light

STRIP = 512  # rows lit at once: 10 000 x 10 000 pixels take 3 GB of memory in strips and 8 GB at once


def orthophoto(scene: Scene, sun_azimuth_deg: float = 160.0, sun_elevation_deg: float = 48.0) -> Tensor:
    """Render the overhead view of a scene in sunlight.

    Args:
        scene: scene to render.
        sun_azimuth_deg: direction of the sun, clockwise from north.
        sun_elevation_deg: elevation of the sun above the horizon.

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
    """Return the share of direct sunlight on the tops of a strip of rows, (rows, cols) float32."""
    lines = torch.arange(rows.start - 1, min(rows.stop, scene.rows) + 1, device=scene.height.device)
    height = scene.height[lines.clamp(0, scene.rows - 1)]
    # A slope of more than 45 degrees is an edge; unclamped, every roof would have a black and a white rim.
    north = ((height[:-2] - height[2:]) / (2 * scene.resolution)).clamp_(-1, 1)
    east = torch.zeros_like(north)
    east[:, 1:-1] = ((height[1:-1, 2:] - height[1:-1, :-2]) / (2 * scene.resolution)).clamp_(-1, 1)
    slant = (north * math.cos(azimuth) + east * math.sin(azimuth)) * math.cos(elevation)
    return ((math.sin(elevation) - slant) / torch.sqrt(1 + north**2 + east**2)).clamp_(min=0)


def _cast_shadow(height: Tensor, resolution: float, azimuth: float, elevation: float) -> Tensor:
    """Return where direct sunlight is blocked, (rows, cols) bool.

    The height of the shadow at a pixel is the maximum, along the ray to the sun, of the surface height minus the
    rise of the ray. Doubling the distance in each pass takes log2(distance) passes instead of hundreds of steps.
    """
    climb = math.tan(elevation) * resolution  # rise of the ray, metres per pixel
    longest = float(height.max() - height.min()) / climb
    shadow = height - 0.2  # keeps a level surface from shading itself
    distance = 1
    while distance <= longest:
        down, right = round(-math.cos(azimuth) * distance), round(math.sin(azimuth) * distance)
        shadow = torch.maximum(shadow, _shifted(shadow, down, right) - climb * distance)
        distance *= 2
    return shadow > height


def _shifted(raster: Tensor, down: int, right: int) -> Tensor:
    """Return a raster with pixel (row + down, col + right) moved to (row, col); -inf beyond the edges."""
    rows, cols = raster.shape
    shifted = torch.full_like(raster, -math.inf)
    if abs(down) < rows and abs(right) < cols:
        target = shifted[max(0, -down) : rows - max(0, down), max(0, -right) : cols - max(0, right)]
        target.copy_(raster[max(0, down) : rows - max(0, -down), max(0, right) : cols - max(0, -right)])
    return shifted
