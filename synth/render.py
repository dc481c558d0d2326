"""Render street photos from a height field.

All pixels of an image column look along one line on the map. Heights are sampled outwards along that line; the running
maximum of (height - camera) / depth is the skyline, and a pixel sees the first sample at which the skyline reaches its
slope. A column costs one gather, one cumulative maximum and one binary search for all its pixels, whatever the scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jzi.synth.overhead import orthophoto
from jzi.synth.scene import Cameras, Scene
from jzi.synth.shade import horizon_colour, light, paint_walls, sky

__all__ = ["Cameras", "Scene", "orthophoto", "render"]

# Steps grow from 0.2 m to 4 m, like the footprint of a pixel; 256 of them reach 340 m.
SAMPLES, FIRST_STEP, STEP_GROWTH = 256, 0.2, 0.012
# A rise steeper than 42 degrees over a step and a pixel is a wall; a smaller one is a roof or a bank.
WALL_SLOPE = 0.9
LEVEL = 0.3  # metres; for a smaller rise over a step, the exact intersection with the ray is computed
SMOOTH_NEARER = 16.0  # metres: nearer, a ground pixel of 0.5 m covers several photo pixels and its edges show
RENDERED_AT_ONCE = 16  # photos; 8 to 32 are equally fast on two cores, fewer are slower
# Distances on the map, metres, at which the direction to the sun is checked for obstacles; six find houses and trees.
SHADOW_REACH = (1.5, 3.5, 7.0, 13.0, 24.0, 42.0)


@dataclass(frozen=True)
class _Rays:
    """Lines on the map along which image columns look, in pixels: from (row, col) by (down, right) per metre."""

    row: Tensor  # (n,)
    col: Tensor  # (n,)
    lens: Tensor  # (n,) metres above the datum
    down: Tensor  # (n, width) per metre of depth, as `right`
    right: Tensor  # (n, width)
    stretch: Tensor  # (n, width) metres along the ray per metre of depth
    slope: Tensor  # (n, rows) rise per metre of depth of each pixel row's ray
    depth: Tensor  # (sample,) metres along the optical axis at which heights are read


@dataclass(frozen=True)
class _Hits:
    """Surface points seen by M pixels; every field is (M,)."""

    photo: Tensor  # index of the photo in the batch
    row: Tensor  # position on the map, pixels
    col: Tensor
    distance: Tensor  # metres
    level: Tensor  # height of the point above the datum, metres
    foot: Tensor  # height of the surface before the point, metres
    rise: Tensor  # from there to the surface behind the point, metres
    wall: Tensor  # bool
    tilt: Tensor  # 0 for level ground to 1 for the steepest roof


def render(scene: Scene, cameras: Cameras, height_px: int, width_px: int, batch: int = RENDERED_AT_ONCE) -> Tensor:
    """Render photos of a scene.

    Args:
        scene: scene to render; nothing is drawn beyond its edges.
        cameras: n cameras, which stand on the scene's surface.
        height_px: rows of a photo.
        width_px: columns of a photo; pixels are square, which determines the vertical field of view.
        batch: photos rendered at once.

    Returns:
        (n, height_px, width_px, 3) uint8 on the scene's device.
    """
    photos = [
        _render_batch(scene, cameras[start : start + batch], height_px, width_px)
        for start in range(0, len(cameras), batch)
    ]
    return torch.cat(photos) if photos else scene.top.new_empty(0, height_px, width_px, 3)


def _render_batch(scene: Scene, cameras: Cameras, height_px: int, width_px: int) -> Tensor:
    rays = _rays(scene, cameras, height_px, width_px)
    height = _heights(scene, rays)  # (n, width, sample)
    skyline = torch.cummax((height - rays.lens[:, None, None]) / rays.depth, -1).values
    slope = rays.slope[:, None].expand(-1, width_px, -1).contiguous()
    first = torch.searchsorted(skyline, slope).view(-1)  # (n * width * rows,), SAMPLES for sky
    seen = (first < SAMPLES).nonzero().squeeze(1)

    air = sky(rays.slope, _tensor(cameras.cloud, seen.device), _tensor(cameras.brightness, seen.device))
    photo = air[:, :, None].expand(-1, -1, width_px, -1).reshape(3, -1)  # (3, n * width * rows)
    photo.index_copy_(1, seen, _colour(scene, cameras, _hits(scene, rays, height, seen, first[seen])))
    photo = photo.clamp_(0, 255).to(torch.uint8)
    return photo.view(3, len(cameras), width_px, height_px).permute(1, 3, 2, 0).contiguous()


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=device)


def _rays(scene: Scene, cameras: Cameras, height_px: int, width_px: int) -> _Rays:
    device = scene.height.device
    half = np.tan(np.radians(cameras.fov_deg) / 2)  # width of half a photo at a depth of 1
    focal = width_px / 2 / half  # pixels
    lateral = half[:, None] * ((np.arange(width_px) + 0.5) * 2 / width_px - 1)
    heading = np.radians(cameras.heading_deg)[:, None]
    east = np.sin(heading) + lateral * np.cos(heading)
    north = np.cos(heading) - lateral * np.sin(heading)
    horizon = height_px / 2 + focal * np.tan(np.radians(cameras.pitch_deg))
    slope = (horizon[:, None] - (np.arange(height_px) + 0.5)) / focal[:, None]
    foot = scene.height[tuple(torch.from_numpy(index).to(device) for index in scene.pixel(cameras.x, cameras.y))]
    steps = torch.arange(1, SAMPLES + 1, device=device, dtype=torch.float32)
    return _Rays(
        row=_tensor(scene.rows - cameras.y / scene.resolution, device),
        col=_tensor(cameras.x / scene.resolution, device),
        lens=foot + _tensor(cameras.eye, device),
        down=_tensor(-north / scene.resolution, device),
        right=_tensor(east / scene.resolution, device),
        stretch=_tensor(np.hypot(1, lateral), device),
        slope=_tensor(slope, device),
        depth=FIRST_STEP / STEP_GROWTH * torch.expm1(STEP_GROWTH * steps),
    )


def _heights(scene: Scene, rays: _Rays) -> Tensor:
    """Return the heights along the rays, (n, width, sample); -inf outside the scene."""
    row = torch.addcmul(rays.row[:, None, None], rays.down[:, :, None], rays.depth)
    col = torch.addcmul(rays.col[:, None, None], rays.right[:, :, None], rays.depth)
    index = _flat_index(scene, row, col)
    height = scene.height.reshape(-1).index_select(0, index.view(-1)).view_as(row)
    ends_inside = (row[..., -1] >= 0) & (row[..., -1] < scene.rows) & (col[..., -1] >= 0) & (col[..., -1] < scene.cols)
    if not ends_inside.all():  # in a large scene most rays end inside
        outside = (row < 0) | (row >= scene.rows) | (col < 0) | (col >= scene.cols)
        height.masked_fill_(outside, -math.inf)
    return height


def _flat_index(scene: Scene, row: Tensor, col: Tensor) -> Tensor:
    return row.int().clamp_(0, scene.rows - 1) * scene.cols + col.int().clamp_(0, scene.cols - 1)


def _hits(scene: Scene, rays: _Rays, height: Tensor, seen: Tensor, first: Tensor) -> _Hits:
    """Intersect the pixels' rays with the surface.

    Args:
        scene: scene to render.
        rays: lines of the image columns on the map.
        height: (n, width, sample) heights along the rays, metres.
        seen: (M,) indices into (n, width, rows) of the pixels whose rays meet the surface.
        first: (M,) index of the first sample that reaches each pixel's slope.
    """
    width, rows = rays.down.shape[1], rays.slope.shape[1]
    ray = seen // rows
    photo = ray // width
    slope = rays.slope.view(-1).index_select(0, photo * rows + seen % rows)
    eye, row, col = torch.stack([rays.lens, rays.row, rays.col]).index_select(1, photo).unbind(0)
    down, right, stretch = torch.stack([rays.down, rays.right, rays.stretch]).view(3, -1).index_select(1, ray).unbind(0)

    # Between the sample before the hit and the hit, the surface is a wall where it leaps, else a slope.
    before = (first - 1).clamp_(min=0)
    near, far = rays.depth.index_select(0, before), rays.depth.index_select(0, first)
    low = height.view(-1).index_select(0, ray * SAMPLES + before)
    high = height.view(-1).index_select(0, ray * SAMPLES + first)
    step = (far - near).clamp_(min=FIRST_STEP)
    rise = high - low
    leap = WALL_SLOPE * (step + scene.resolution)
    start = torch.where(rise < -leap, high, low)  # behind an edge, the far ground is seen as level
    share = (eye + slope * near - start) / (high - start - slope * step)
    depth = torch.where(rise > LEVEL, far, near + step * share.nan_to_num_(1.0).clamp_(0, 1))
    return _Hits(
        photo=photo,
        row=row + down * depth,
        col=col + right * depth,
        distance=depth * stretch,
        level=eye + slope * depth,
        foot=low,
        rise=rise,
        wall=rise > leap,
        tilt=((high - start) / (step * WALL_SLOPE)).abs_().clamp_(max=1),
    )


def _colour(scene: Scene, cameras: Cameras, hits: _Hits) -> Tensor:
    """Return the colours (3, M) of the hits, lit and in haze."""
    weather = torch.stack(_weather(cameras, hits.row.device)).index_select(1, hits.photo)
    cloud, brightness, haze, sun_north, sun_east, sun_up = weather.unbind(0)
    index = _flat_index(scene, hits.row, hits.col)
    facing = scene.facing.view(-1).index_select(0, index) * (2 * math.pi / 256)

    colour = _colours(scene.top, index)
    close = ((hits.distance < SMOOTH_NEARER) & ~hits.wall).nonzero().squeeze(1)
    colour.index_copy_(1, close, _smooth_colours(scene, hits.row[close], hits.col[close]))
    walls = hits.wall.nonzero().squeeze(1)
    painted = paint_walls(
        wall=_colours(scene.side, index[walls]),
        facade=_facades(scene, index[walls]),
        along=_along(hits.row[walls], hits.col[walls], facing[walls]) * scene.resolution,
        above=(hits.level - hits.foot)[walls],
        rise=hits.rise[walls],
        distance=hits.distance[walls],
    )
    colour.index_copy_(1, walls, painted)

    glance = sun_north * facing.cos() + sun_east * facing.sin()  # cosine of the sun's angle to a vertical face
    # A slope counts as 0.6 of a wall: the direction a roof faces is given, but not its steepness across the view.
    lambert = torch.where(hits.wall, glance, torch.lerp(sun_up, glance, 0.6 * hits.tilt)).clamp_(min=0)
    # Raised to keep ground from shading itself by its grain of 0.15 m, and a roof or a crown by its slope.
    raised = hits.level + 0.3 + 0.9 * hits.tilt * ~hits.wall
    lambert *= ~_shaded(scene, hits.row, hits.col, raised, sun_north, sun_east, sun_up)
    lit = light(colour, lambert, cloud, brightness)
    return torch.lerp(horizon_colour(cloud, brightness), lit, torch.exp(-hits.distance * haze))


def _weather(cameras: Cameras, device: torch.device) -> tuple[Tensor, ...]:
    """Return cloud, brightness, haze and the unit vector to the sun (north, east, up), each (n,)."""
    azimuth, elevation = np.radians(cameras.sun_azimuth_deg), np.radians(cameras.sun_elevation_deg)
    sun = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)
    return tuple(_tensor(part, device) for part in (cameras.cloud, cameras.brightness, cameras.haze, *sun))


def _colours(raster: Tensor, index: Tensor) -> Tensor:
    """Return the colours (3, M) float32 of a (rows, cols, 3) raster at flat indices."""
    return raster.view(-1, 3).index_select(0, index).t().contiguous().float()


def _smooth_colours(scene: Scene, row: Tensor, col: Tensor) -> Tensor:
    """Return the colours (3, M) of the tops at fractional pixels, interpolated linearly."""
    row, col = row - 0.5, col - 0.5
    down, right = row - row.floor(), col - col.floor()
    upper, lower = (
        torch.lerp(
            _colours(scene.top, _flat_index(scene, line, col)),
            _colours(scene.top, _flat_index(scene, line, col + 1)),
            right,
        )
        for line in (row, row + 1)
    )
    return torch.lerp(upper, lower, down)


def _facades(scene: Scene, index: Tensor) -> Tensor:
    if scene.facade is None:
        return torch.zeros_like(index, dtype=torch.uint8)
    return scene.facade.view(-1).index_select(0, index)


def _along(row: Tensor, col: Tensor, facing: Tensor) -> Tensor:
    """Return the coordinate along the wall in pixels, with the wall's direction rounded to eighths of a turn.

    Without rounding, an error of a degree in the direction moves windows by metres, as the origin is far away.
    """
    turn = (facing * (4 / math.pi)).round() * (math.pi / 4)
    return col * turn.cos() + row * turn.sin()


def _shaded(scene: Scene, row: Tensor, col: Tensor, level: Tensor, north: Tensor, east: Tensor, up: Tensor) -> Tensor:
    """Return whether an obstacle blocks the sun at the points, (M,) bool."""
    ground = torch.sqrt(north**2 + east**2)
    rise = up / ground
    upwards, rightwards = north / (ground * scene.resolution), east / (ground * scene.resolution)
    height = scene.height.view(-1)
    shaded = torch.zeros_like(level, dtype=torch.bool)
    for reach in SHADOW_REACH:
        index = _flat_index(scene, row - upwards * reach, col + rightwards * reach)
        shaded |= height.index_select(0, index) > level + rise * reach
    return shaded
