"""Batches of photos and windows for training a refiner, read ahead from a source: tokens of a cache, or images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from numpy.typing import NDArray
from torch import Tensor

from jzi.encode.encoders.families import IMAGENET
from jzi.encode.photo.augment import PHOTO_HOLE, TILE_HOLE
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.refine.azimuth import log_heading_prior
from jzi.refine.networks.cached import CachedRefiner
from jzi.refine.networks.files import Refiner
from jzi.refine.outputs import PhotoInput
from jzi.refine.windows.window import Windows
from jzi.store.geometry.cell_grid import CellGrid
from jzi.train.refine.refine_augment import PairLabels, Symmetry, coarsen_images, drop_tokens, jitter_images
from jzi.train.refine.refine_losses import PairTruth
from jzi.train.refine.refine_pairs import PairPhotos, places_in

#: Batches that are read ahead.
AHEAD = 3


class Read(NamedTuple):
    """Photos and windows as read.

    Attributes:
        photos: (n, H', W', F) tokens, or (n, 3, H, W) pixels 0..255.
        windows: (n, side, side, F) tokens, or (n, 3, S, S) pixels 0..255 of the map around them.
        mask: (n, side, side) bool, tokens of the windows with imagery.
        fill: (n,) share of the width that each photo fills, in the middle.
        grid: (n, side, side, 2) of pixels: where in them, without the margin, the windows' tokens lie, x and y from -1
            to 1.
    """

    photos: Tensor
    windows: Tensor
    mask: Tensor
    fill: Tensor | None = None
    grid: Tensor | None = None


class PairSource(Protocol):
    """What a refiner is trained on.

    Attributes:
        area: the map.
        train: training photos.
        val: validation photos, which select the epoch.
        images: whether photos and windows are pixels rather than tokens.
    """

    @property
    def area(self) -> CellGrid:
        """See above."""
        ...

    @property
    def train(self) -> PairPhotos:
        """See above."""
        ...

    @property
    def val(self) -> PairPhotos:
        """See above."""
        ...

    @property
    def images(self) -> bool:
        """See above."""
        ...

    def read(self, photos: PairPhotos, windows: Windows) -> Read:
        """Read photos and the windows of their numbers; called from several threads."""
        ...


@dataclass(frozen=True)
class Pairs:
    """A batch of n photos and their windows.

    Attributes:
        photos: as `Read.photos`.
        windows: as `Read.windows`.
        mask: as `Read.mask`.
        places: as `PairTruth.places`.
        heading_deg: (n,) from the windows' north; nan if it is not known.
        heading_sd_deg: (n,) standard deviation.
        hfov_deg: (n,) horizontal field of view.
        panorama: (n,) bool.
        fill: as `Read.fill`.
        grid: as `Read.grid`.
    """

    photos: Tensor
    windows: Tensor
    mask: Tensor
    places: Tensor
    heading_deg: Tensor
    heading_sd_deg: Tensor
    hfov_deg: Tensor
    panorama: Tensor
    fill: Tensor | None = None
    grid: Tensor | None = None

    @classmethod
    def read(cls, source: PairSource, photos: PairPhotos, windows: Windows) -> Pairs:
        """Read photos and their windows from a source."""
        read = source.read(photos, windows)
        values = photos.heading_sd_deg, photos.hfov_deg
        sd, hfov = (torch.from_numpy(each).float() for each in values)
        return cls(
            read.photos,
            read.windows,
            read.mask,
            torch.from_numpy(places_in(windows, photos)).float(),
            torch.from_numpy(windows.grid_heading(photos.heading_deg)).float(),
            sd,
            hfov,
            torch.from_numpy(photos.panorama),
            read.fill,
            read.grid,
        )

    def to(self, device: torch.device) -> Pairs:
        """The same on a device."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in values.items() if value is not None})

    def __len__(self) -> int:
        return len(self.photos)


class Prepared(NamedTuple):
    """A batch as the network takes it, and the truth."""

    photos: PhotoInput
    windows: Tensor
    mask: Tensor
    truth: PairTruth
    grid: Tensor | None = None


def prepare(
    pairs: Pairs,
    rolls: int,
    known: Tensor,
    generator: torch.Generator | None,
    *,
    images: bool,
    augment: bool,
    gsd_jitter: float = 1.0,
) -> Prepared:
    """Augment pairs and give some photos a prior of their heading.

    Args:
        pairs: on the device.
        rolls: R, number of headings that the network compares.
        known: (n,) bool, whose heading the network is given, if there is one.
        generator: source of the random numbers, on the CPU; None to add no noise to headings.
        images: whether photos and windows are pixels.
        augment: whether pairs are flipped and turned, and parts dropped.
        gsd_jitter: factor by which pixels of windows grow at most, of images that are augmented.
    """
    count, device = len(pairs), pairs.photos.device
    photos, windows = pairs.photos, pairs.windows
    if images:
        photos, windows = photos.float() / 255, windows.float() / 255
    axes = (2, 3) if images else (1, 2)
    alike = None
    places, heading, mask, grid = pairs.places, pairs.heading_deg, pairs.mask, pairs.grid
    if augment and generator is not None:
        if images:
            photos = jitter_images(photos, generator, PHOTO_HOLE)
            windows = jitter_images(windows, generator, TILE_HOLE)
            windows = coarsen_images(windows, gsd_jitter, generator)
        else:
            photos, windows = drop_tokens(photos, generator), drop_tokens(windows, generator)
        symmetry = Symmetry.draw(count, generator).to(device)
        photos = symmetry.photos(photos, axes[1])
        windows, mask = symmetry.windows(windows, *axes), symmetry.windows(mask, 1, 2)
        own = symmetry.labels(PairLabels(places.diagonal(dim1=0, dim2=1).T, heading))
        places, heading = symmetry.places(places.transpose(0, 1)).transpose(0, 1), own.heading_deg
        alike = symmetry.same()
        if grid is not None:
            moved = symmetry.windows(grid, 1, 2)
            grid = symmetry.places(moved.flatten(1, 2)).unflatten(1, moved.shape[1:3])
    noise = torch.zeros(count) if generator is None else torch.randn(count, generator=generator)
    observed = torch.where(known, heading + noise.to(device) * pairs.heading_sd_deg, torch.nan)
    if images:
        mean, sd = (torch.tensor(each, device=device)[:, None, None] for each in IMAGENET)
        photos, windows = (photos - mean) / sd, (windows - mean) / sd
    prior = log_heading_prior(observed % 360, pairs.heading_sd_deg, rolls)
    given = {"pixels" if images else "tokens": photos}
    photo = PhotoInput(pairs.hfov_deg, pairs.panorama, prior, **given, fill=pairs.fill)
    return Prepared(photo, windows, mask, PairTruth(places, heading, alike), grid)


def window_tokens(refiner: Refiner, windows: Tensor, grid: Tensor | None) -> Tensor:
    """What a refiner takes of windows: as they are, or the tokens of its trunk for the map around them.

    Args:
        refiner: the refiner.
        windows: tokens, or pixels with a margin.
        grid: as `Read.grid`; None for tokens.
    """
    if grid is None:
        return windows
    assert isinstance(refiner, CachedRefiner) and refiner.aerial_trunk is not None
    trunk = refiner.aerial_trunk
    tokens = trunk(windows, trunk.config.margin).permute(0, 3, 1, 2)
    return F.grid_sample(tokens.float(), grid, align_corners=False, padding_mode="border").permute(0, 2, 3, 1)


def read_ahead(
    source: PairSource, photos: PairPhotos, windows: Windows, batches: Iterable[NDArray[Any]]
) -> Iterator[Pairs]:
    """Read batches in order, some ahead, in threads.

    Args:
        source: the source.
        photos: (photo,).
        windows: (photo,) their windows.
        batches: (n,) indices of the photos of each batch.
    """

    def read(index: NDArray[Any]) -> Pairs:
        chosen = Windows(windows.area, windows.x[index], windows.y[index], windows.side_m, windows.pixels)
        return Pairs.read(source, photos[index], chosen)

    return prefetch(read, batches, min(AHEAD, reader_threads()), ahead=AHEAD)


def split_evenly(count: int, size: int) -> list[NDArray[np.int64]]:
    """Indices of all photos in batches of a size."""
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
