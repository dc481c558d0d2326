"""Street photos from a height field.

A photo is made column by column. All pixels of an image column look along one line on the map, so the line is
walked once, outwards; the running maximum of (height - camera) / depth along it is the skyline so far, and the
first place where the skyline reaches a pixel's slope is what that pixel sees. That is one gather, one cumulative
maximum and one binary search per column for all its pixels, whatever the scene holds.
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

# Steps grow from 0.2 m to 4 m, as what a pixel covers does; 256 of them reach 340 m.
SAMPLES, FIRST_STEP, STEP_GROWTH = 256, 0.2, 0.012
# A rise steeper than 42 degrees over a step and a pixel is a wall; anything less is a roof or a bank.
WALL_SLOPE = 0.9
LEVEL = 0.3  # metres: a smaller rise over a step is cut where the pixel's ray meets it
SMOOTH_NEARER = 16.0  # metres: here a ground pixel of 0.5 m covers several of the photo's and its edges would show
RENDERED_AT_ONCE = 16  # photos; 8 to 32 measured alike on two cores, fewer is slower
# Where a shadow is looked for on the way to the sun, metres on the map. Six looks find a house or a tree.
SHADOW_REACH = (1.5, 3.5, 7.0, 13.0, 24.0, 42.0)


@dataclass(frozen=True)
class _Rays:
    """The lines on the map that image columns look along, in pixels: from (row, col) by (down, right) a metre."""

    row: Tensor  # (n,)
    col: Tensor  # (n,)
    lens: Tensor  # (n,) metres above the datum
    down: Tensor  # (n, width) per metre of depth, as the next
    right: Tensor  # (n, width)
    stretch: Tensor  # (n, width) metres along the ray per metre of depth
    slope: Tensor  # (n, rows) rise per metre of depth that a pixel row looks along
    depth: Tensor  # (sample,) metres along the optical axis at which heights are read


@dataclass(frozen=True)
class _Hits:
    """What M pixels see; every field is (M,)."""

    photo: Tensor  # which photo of the batch
    row: Tensor  # place on the map, pixels
    col: Tensor
    distance: Tensor  # metres
    level: Tensor  # height of the point above the datum, metres
    foot: Tensor  # height of the surface before it
    rise: Tensor  # from there to the surface behind the point
    wall: Tensor  # bool
    tilt: Tensor  # 0 for level ground to 1 for the steepest roof


def render(scene: Scene, cameras: Cameras, height_px: int, width_px: int, batch: int = RENDERED_AT_ONCE) -> Tensor:
    """Takes photos of a scene.

    Args:
        scene: the place; what lies outside it is not drawn.
        cameras: n cameras, which stand on the scene's surface.
        height_px: rows of a photo.
        width_px: columns of a photo; pixels are square, so the vertical field of view follows.
        batch: photos made at once.

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
    wanted = rays.slope[:, None].expand(-1, width_px, -1).contiguous()
    first = torch.searchsorted(skyline, wanted).view(-1)  # (n * width * rows,), SAMPLES where only sky is
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
    """Returns the heights along the rays, (n, width, sample); minus infinity outside the scene."""
    row = torch.addcmul(rays.row[:, None, None], rays.down[:, :, None], rays.depth)
    col = torch.addcmul(rays.col[:, None, None], rays.right[:, :, None], rays.depth)
    place = _flat_index(scene, row, col)
    height = scene.height.reshape(-1).index_select(0, place.view(-1)).view_as(row)
    ends_inside = (row[..., -1] >= 0) & (row[..., -1] < scene.rows) & (col[..., -1] >= 0) & (col[..., -1] < scene.cols)
    if not ends_inside.all():  # most cameras stand farther than SAMPLES reach from the edge of a large scene
        outside = (row < 0) | (row >= scene.rows) | (col < 0) | (col >= scene.cols)
        height.masked_fill_(outside, -math.inf)
    return height


def _flat_index(scene: Scene, row: Tensor, col: Tensor) -> Tensor:
    return row.int().clamp_(0, scene.rows - 1) * scene.cols + col.int().clamp_(0, scene.cols - 1)


def _hits(scene: Scene, rays: _Rays, height: Tensor, seen: Tensor, first: Tensor) -> _Hits:
    """Finds where lines of sight meet the surface.

    Args:
        scene: the place.
        rays: the lines on the map.
        height: (n, width, sample) metres.
        seen: (M,) indices into (n, width, rows) of the pixels that meet it.
        first: (M,) the first sample that reaches each pixel's slope.
    """
    width, rows = rays.down.shape[1], rays.slope.shape[1]
    ray = seen // rows
    photo = ray // width
    slope = rays.slope.view(-1).index_select(0, photo * rows + seen % rows)
    eye, row, col = torch.stack([rays.lens, rays.row, rays.col]).index_select(1, photo).unbind(0)
    down, right, stretch = torch.stack([rays.down, rays.right, rays.stretch]).view(3, -1).index_select(1, ray).unbind(0)

    # The surface between the sample before the hit and the hit: a wall where it leaps, else a slope to cut.
    before = (first - 1).clamp_(min=0)
    near, far = rays.depth.index_select(0, before), rays.depth.index_select(0, first)
    low = height.view(-1).index_select(0, ray * SAMPLES + before)
    high = height.view(-1).index_select(0, ray * SAMPLES + first)
    step = (far - near).clamp_(min=FIRST_STEP)
    rise = high - low
    leap = WALL_SLOPE * (step + scene.resolution)
    start = torch.where(rise < -leap, high, low)  # behind an edge the far ground is what is seen, level
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
    """Returns the colours (3, M) of the hits, lit and in haze."""
    weather = torch.stack(_weather(cameras, hits.row.device)).index_select(1, hits.photo)
    cloud, brightness, haze, sun_north, sun_east, sun_up = weather.unbind(0)
    place = _flat_index(scene, hits.row, hits.col)
    facing = scene.facing.view(-1).index_select(0, place) * (2 * math.pi / 256)

    colour = _colours(scene.top, place)
    close = ((hits.distance < SMOOTH_NEARER) & ~hits.wall).nonzero().squeeze(1)
    colour.index_copy_(1, close, _smooth_colours(scene, hits.row[close], hits.col[close]))
    walls = hits.wall.nonzero().squeeze(1)
    painted = paint_walls(
        wall=_colours(scene.side, place[walls]),
        facade=_facades(scene, place[walls]),
        along=_along(hits.row[walls], hits.col[walls], facing[walls]) * scene.resolution,
        above=(hits.level - hits.foot)[walls],
        rise=hits.rise[walls],
        distance=hits.distance[walls],
    )
    colour.index_copy_(1, walls, painted)

    glance = sun_north * facing.cos() + sun_east * facing.sin()  # of the sun on a vertical face
    # A slope is seen as 0.6 of a wall: the direction a roof faces is known here, not how steep it is across the view.
    lambert = torch.where(hits.wall, glance, torch.lerp(sun_up, glance, 0.6 * hits.tilt)).clamp_(min=0)
    # Raised, so that ground does not shade itself by its grain of 0.15 m, nor a roof or a crown by its own slope.
    raised = hits.level + 0.3 + 0.9 * hits.tilt * ~hits.wall
    lambert *= ~_shaded(scene, hits.row, hits.col, raised, sun_north, sun_east, sun_up)
    lit = light(colour, lambert, cloud, brightness)
    return torch.lerp(horizon_colour(cloud, brightness), lit, torch.exp(-hits.distance * haze))


def _weather(cameras: Cameras, device: torch.device) -> tuple[Tensor, ...]:
    """Returns cloud, brightness, haze and the unit vector to the sun (north, east, up), each (n,)."""
    azimuth, elevation = np.radians(cameras.sun_azimuth_deg), np.radians(cameras.sun_elevation_deg)
    sun = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)
    return tuple(_tensor(part, device) for part in (cameras.cloud, cameras.brightness, cameras.haze, *sun))


def _colours(raster: Tensor, place: Tensor) -> Tensor:
    """Returns the colours (3, M) float32 of a (rows, cols, 3) raster at flat indices."""
    return raster.view(-1, 3).index_select(0, place).t().contiguous().float()


def _smooth_colours(scene: Scene, row: Tensor, col: Tensor) -> Tensor:
    """Returns the colours (3, M) of the tops at places, linear between the centres of pixels."""
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


def _facades(scene: Scene, place: Tensor) -> Tensor:
    if scene.facade is None:
        return torch.zeros_like(place, dtype=torch.uint8)
    return scene.facade.view(-1).index_select(0, place)


def _along(row: Tensor, col: Tensor, facing: Tensor) -> Tensor:
    """Returns pixels along the wall, its direction rounded to eighths of a turn.

    Rounding keeps a window in its place: measured along the exact direction, an error of a degree in it moves a
    pattern by metres, as the origin is far away.
    """
    turn = (facing * (4 / math.pi)).round() * (math.pi / 4)
    return col * turn.cos() + row * turn.sin()


def _shaded(scene: Scene, row: Tensor, col: Tensor, level: Tensor, north: Tensor, east: Tensor, up: Tensor) -> Tensor:
    """Returns whether something stands between the points and the sun, (M,) bool."""
    ground = torch.sqrt(north**2 + east**2)
    rise = up / ground
    upwards, rightwards = north / (ground * scene.resolution), east / (ground * scene.resolution)
    height = scene.height.view(-1)
    shaded = torch.zeros_like(level, dtype=torch.bool)
    for reach in SHADOW_REACH:
        place = _flat_index(scene, row - upwards * reach, col + rightwards * reach)
        shaded |= height.index_select(0, place) > level + rise * reach
    return shaded
