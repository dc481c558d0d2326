"""Augmentation of pairs of a photo and a window, in which the true place and heading move with the images.

Flips and quarter turns work on images and on grids of tokens alike; jitter and dropout of images are those of
`jzi.encode.photo.augment`, and grids of tokens have dropout of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

from jzi.encode.photo.augment import DRAWS, augment_tiles

#: Probability of a flip, and of a turn by one, two or three quarters (Sample4Geo; paper, section IV.C).
FLIP, TURN = 0.5, 0.75

#: Probability that tokens of a photo or window are dropped, share of them at most, and share of whole columns or rows.
TOKEN_DROPOUT, DROPPED = 0.3, 0.4

#: Probability that the pixels of a window grow, where they may.
COARSE = 0.5


@dataclass(frozen=True)
class PairLabels:
    """Where in its window each photo was taken, and which way it looks.

    Attributes:
        place: (n, 2) column and row from the window's centre, right and down positive, fractions of its side.
        heading_deg: (n,) of the photo's centre column, clockwise from the window's north; nan if it is not known.
    """

    place: Tensor
    heading_deg: Tensor


@dataclass(frozen=True)
class Symmetry:
    """A flip and a turn of each pair.

    Attributes:
        flip: (n,) bool, whether window and photo are mirrored left-right, before the turn.
        turns: (n,) quarter turns of the window, counter-clockwise, 0..3; the photo stays as it is.
    """

    flip: Tensor
    turns: Tensor

    @classmethod
    def draw(cls, count: int, generator: torch.Generator, *, turn: bool = True) -> Symmetry:
        """Draw the symmetries of a batch.

        Args:
            count: number of pairs.
            generator: source of the random numbers, on the CPU.
            turn: whether windows are turned.
        """
        flip, turned, by = torch.rand(3, count, generator=generator)
        turns = torch.where(turned < TURN, 1 + (3 * by).long().clamp(max=2), 0)
        return cls(flip < FLIP, turns if turn else torch.zeros_like(turns))

    def to(self, device: torch.device) -> Symmetry:
        """The same on a device."""
        return Symmetry(self.flip.to(device), self.turns.to(device))

    def __getitem__(self, index: slice | Tensor) -> Symmetry:
        return Symmetry(self.flip[index], self.turns[index])

    def same(self) -> Tensor:
        """(n, n) bool, pairs that are flipped and turned alike."""
        return (self.flip[:, None] == self.flip) & (self.turns[:, None] == self.turns)

    def windows(self, windows: Tensor, rows: int, cols: int) -> Tensor:
        """Windows flipped and turned.

        Args:
            windows: (n, ...), square in rows and columns.
            rows: axis of the rows.
            cols: axis of the columns.
        """
        return turn_windows(flip(windows, self.flip, cols), self.turns, rows, cols)

    def photos(self, photos: Tensor, cols: int) -> Tensor:
        """Photos flipped, (n, ...) with columns along an axis."""
        return flip(photos, self.flip, cols)

    def labels(self, labels: PairLabels) -> PairLabels:
        """The labels of the flipped and turned pairs."""
        return PairLabels(self.places(labels.place), self.headings(labels.heading_deg))

    def places(self, place: Tensor) -> Tensor:
        """Places (n, ..., 2) in windows, moved with their windows: flip u -> -u; each turn (u, v) -> (v, -u)."""
        more = (1,) * (place.ndim - 2)
        sign = torch.where(self.flip, -1.0, 1.0).to(place.dtype).view(-1, *more)
        turns = self.turns.view(-1, *more)
        u, v = place[..., 0] * sign, place[..., 1]
        columns = torch.stack([u, v, -u, -v]), torch.stack([v, -u, -v, u])  # (turns, n, ...)
        index = turns.expand(u.shape)[None]
        return torch.stack([each.gather(0, index)[0] for each in columns], -1)

    def headings(self, heading_deg: Tensor) -> Tensor:
        """Headings (n,) in degrees, moved with their windows: flip h -> -h; each turn h -> h - 90."""
        return (torch.where(self.flip, -heading_deg, heading_deg) - 90.0 * self.turns) % 360


def flip(images: Tensor, flipped: Tensor, cols: int) -> Tensor:
    """Mirror some images (n, ...) along the axis of their columns.

    Args:
        images: (n, ...).
        flipped: (n,) bool.
        cols: axis of the columns.
    """
    return torch.where(flipped.view(-1, *(1,) * (images.ndim - 1)), images.flip(cols), images)


def turn_windows(windows: Tensor, turns: Tensor, rows: int, cols: int) -> Tensor:
    """Turn windows (n, ...) by quarters, counter-clockwise, as `torch.rot90` along (rows, columns).

    Args:
        windows: (n, ...), square.
        turns: (n,) 0..3.
        rows: axis of the rows.
        cols: axis of the columns.
    """
    turned, turns = windows, turns.view(-1, *(1,) * (windows.ndim - 1))
    for count in (1, 2, 3):  # all of them, as the device would have to be waited for to know which
        turned = torch.where(turns == count, torch.rot90(windows, count, (rows, cols)), turned)
    return turned


def roll_panoramas(photos: Tensor, heading_deg: Tensor, columns: Tensor, cols: int) -> tuple[Tensor, Tensor]:
    """Roll 360-degree photos to the right, so that their centre columns look elsewhere.

    Args:
        photos: (n, ...).
        heading_deg: (n,) of their centre columns.
        columns: (n,) whole columns; negative ones roll to the left.
        cols: axis of the columns.

    Returns:
        The photos, and the headings of their new centre columns. After `turns` quarter turns of the window, rolling by
        -turns * width / 4 columns restores the heading (paper: synchronized rotation).
    """
    width = photos.shape[cols]
    source = (torch.arange(width, device=photos.device) - columns[:, None]) % width  # (n, width)
    shape = [1] * photos.ndim
    shape[0], shape[cols] = len(photos), width
    rolled = photos.gather(cols, source.view(shape).expand(photos.shape))
    return rolled, (heading_deg - columns * (360.0 / width)) % 360


def jitter_images(images: Tensor, generator: torch.Generator, hole: float) -> Tensor:
    """Colour jitter, JPEG compression, blur or sharpening, and grid or coarse dropout; nothing moves.

    Args:
        images: (n, 3, rows, cols) in 0..1.
        generator: source of the random numbers, on the CPU.
        hole: side of the dropped squares of a grid as a fraction of a grid cell's: `PHOTO_HOLE` or `TILE_HOLE`.
    """
    return augment_tiles(images, torch.rand(len(images), DRAWS, generator=generator), hole)


def coarsen_images(images: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """Give half of the images larger pixels, as those of a coarser map that is rendered at the same size.

    Args:
        images: (n, 3, rows, cols).
        largest: factor by which the sides of pixels grow at most, from 1, with which the images
            stay as they are; smaller ones are as likely, in proportion.
        generator: source of the random numbers, on the CPU.
    """
    if largest == 1:
        return images
    select, share = torch.rand(2, len(images), generator=generator).tolist()
    coarse = images.clone()
    for index, size in enumerate(share):
        if select[index] < COARSE:
            side = [max(1, round(each / largest**size)) for each in images.shape[2:]]
            small = F.interpolate(images[index : index + 1], size=side, mode="area")
            coarse[index] = F.interpolate(small, size=images.shape[2:], mode="bilinear", align_corners=False)[0]
    return coarse


def drop_tokens(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Set some tokens of some photos or windows to 0: single ones, or a rectangle.

    Args:
        tokens: (n, rows, cols, feature).
        generator: source of the random numbers, on the CPU.
    """
    n, rows, cols, _ = tokens.shape
    select, share, x, y, width, height = torch.rand(6, n, generator=generator)
    single = torch.rand(n, rows, cols, generator=generator) < (DROPPED * share)[:, None, None]

    def inside(count: int, start: Tensor, extent: Tensor) -> Tensor:
        position = (torch.arange(count) + 0.5) / count
        extent = 0.1 + 0.3 * extent
        start = start * (1 - extent)
        return (position >= start[:, None]) & (position < (start + extent)[:, None])

    hole = inside(rows, y, height)[:, :, None] & inside(cols, x, width)[:, None, :]
    chosen = (select < TOKEN_DROPOUT)[:, None, None]
    dropped = chosen & torch.where((select < TOKEN_DROPOUT / 2)[:, None, None], single, hole)
    return tokens * ~dropped[..., None].to(tokens.device)
