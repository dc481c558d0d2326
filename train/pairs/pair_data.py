"""Batches of photos and aerial images for training UnifyGeo on a data set of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.encode.photo.augment import PHOTO_HOLE, TILE_HOLE
from jzi.encode.photo.pair_images import PairImages, Pixels
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.errors import TrainingError
from jzi.evaluate.pair_protocol import ALIGNED_SD_DEG, DEVIATION, MEAN
from jzi.refine.azimuth import log_heading_prior
from jzi.refine.outputs import PhotoInput
from jzi.retrieve.similarity import nearest
from jzi.store.photos.pairs import RADIUS_M, PairDataset, from_view, to_view
from jzi.train.encoders.sampling import nearest_on_map, neighbour_batches
from jzi.train.refine.refine_augment import PairLabels, Symmetry, jitter_images, roll_panoramas
from jzi.train.refine.refine_losses import PairTruth


@dataclass(frozen=True)
class PairBatch:
    """A batch of n photos that can be read with their aerial images.

    Attributes:
        index: (n,) indices of the photos in the data set.
        photos: (n, 3, H, W) pixels 0..255.
        windows: (n, 3, S, S) pixels 0..255 of the photos' views.
        places: (n, n, 2) column and row of photo b in window b', from its centre, right and down, shares of its side.
        heading: (n,) headings of the photos in their views, degrees.
        expected: (n,) headings that the network is given, degrees; nan for none.
    """

    index: NDArray[np.int64]
    photos: Tensor
    windows: Tensor
    places: Tensor
    heading: Tensor
    expected: Tensor

    def __len__(self) -> int:
        return len(self.index)


class Prepared(NamedTuple):
    """A batch as the network takes it, and the truth."""

    photos: PhotoInput
    windows: Tensor
    truth: PairTruth


def draw_views(dataset: PairDataset, seed: Sequence[int]) -> PairDataset:
    """The data set with views drawn anew, for an epoch; unchanged if it has none to draw.

    Args:
        dataset: the photos; without a shift, their views are kept.
        seed: of the draws.
    """
    if not dataset.shift_m:
        return dataset
    rng = np.random.default_rng([*seed])
    shift = dataset.shift_m * rng.uniform(-1, 1, (len(dataset), 2))
    turn = dataset.turn_deg * rng.uniform(-1, 1, len(dataset))
    centre = from_view(shift, dataset.view)
    return replace(dataset, view=np.column_stack([centre, dataset.view[:, 2] + turn]))


def places_in_views(dataset: PairDataset, photos: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, n, 2) column and row of photo b in the view of photo b', from its centre, right and down, shares of its side.

    Args:
        dataset: the photos.
        photos: (n,) indices of photos.
    """
    references, count = dataset.positive[photos], len(photos)
    offset = dataset.places(photos, references).reshape(-1, 2)
    views = np.tile(dataset.view[photos], (count, 1))  # of b', for all b
    right, up = to_view(offset, np.zeros(len(offset)), views)[0].T
    side = np.tile(dataset.sides(references), count)
    return np.stack([right / side, -up / side], -1).reshape(count, count, 2)


def read_ahead(
    dataset: PairDataset, images: PairImages, batches: Sequence[NDArray[np.int64]], aligned: bool
) -> Iterator[PairBatch]:
    """Read batches in order, the pairs of about two of them ahead in threads.

    Photos that cannot be read, or whose aerial image cannot, are left out.

    Args:
        dataset: the photos, with the views of the epoch.
        images: reads images of the data set.
        batches: (n,) indices of the photos of each batch.
        aligned: whether the network is given the headings of panoramas.

    Raises:
        TrainingError: no pair of a batch can be read.
    """

    def read(index: int) -> tuple[int, Pixels, Pixels] | None:
        photo = images.photo(index)
        view = None if photo is None else images.view(int(dataset.positive[index]), dataset.view[index])
        return None if photo is None or view is None else (index, photo, view)

    ahead = 2 * max(map(len, batches), default=1)
    pairs = prefetch(read, (int(index) for batch in batches for index in batch), reader_threads(), ahead)
    for batch in batches:
        readable = [each for each in islice(pairs, len(batch)) if each is not None]
        if not readable:
            reason = next(iter(images.unreadable.values()), "")
            raise TrainingError(f"none of the {len(batch)} pairs of a batch can be read: {reason}")
        yield _stack(dataset, readable, aligned)


def _stack(dataset: PairDataset, pairs: Sequence[tuple[int, Pixels, Pixels]], aligned: bool) -> PairBatch:
    index = np.array([number for number, _, _ in pairs])
    photos, views = np.stack([photo for _, photo, _ in pairs]), np.stack([view for _, _, view in pairs])
    heading = to_view(dataset.offset[index], dataset.heading[index], dataset.view[index])[1]
    known = dataset.expected_deg if aligned or dataset.turn_deg else np.nan
    return PairBatch(
        index,
        torch.from_numpy(photos).permute(0, 3, 1, 2),
        torch.from_numpy(views).permute(0, 3, 1, 2),
        torch.from_numpy(places_in_views(dataset, index)).float(),
        torch.from_numpy(heading).float(),
        torch.full((len(index),), known),
    )


def prepare(
    batch: PairBatch,
    dataset: PairDataset,
    rolls: int,
    generator: torch.Generator,
    device: torch.device,
    *,
    augment: bool,
    aligned: bool,
) -> Prepared:
    """Augment pairs, so that their places and headings move with the images, and give headings that are known.

    Aligned panoramas stay aligned: where a window is turned, its panorama is rolled back (paper: synchronized flip and
    rotation). Panoramas of unknown heading are rolled at random.

    Args:
        batch: as read.
        dataset: the data set of the photos.
        rolls: R, number of headings that the network compares.
        generator: source of the random numbers, on the CPU.
        device: where to compute.
        augment: whether pairs are changed.
        aligned: whether panoramas are aligned.
    """
    count = len(batch)
    photos, windows = (pixels.to(device).float() / 255 for pixels in (batch.photos, batch.windows))
    places, heading, expected = (each.to(device) for each in (batch.places, batch.heading, batch.expected))
    hfov = torch.from_numpy(dataset.hfov_deg[batch.index]).float().to(device)
    panoramas, width, alike = bool((hfov >= 360).all()), photos.shape[-1], None
    if augment:
        photos = jitter_images(photos, generator, PHOTO_HOLE)
        windows = jitter_images(windows, generator, TILE_HOLE)
        turn = not (panoramas and aligned) or width % 4 == 0  # whole columns
        symmetry = Symmetry.draw(count, generator, turn=turn).to(device)
        photos, windows = symmetry.photos(photos, 3), symmetry.windows(windows, 2, 3)
        heading = symmetry.labels(PairLabels(places.diagonal(dim1=0, dim2=1).T, heading)).heading_deg
        expected = symmetry.headings(expected)
        places = symmetry.places(places.transpose(0, 1)).transpose(0, 1)
        alike = symmetry.same()
        if panoramas and aligned:
            photos, heading = roll_panoramas(photos, heading, -symmetry.turns * (width // 4), 3)
            expected = heading
    if panoramas and not aligned:
        columns = torch.randint(width, (count,), generator=generator).to(device)
        photos, heading = roll_panoramas(photos, heading, columns, 3)
    mean, deviation = (torch.tensor(each, device=device)[:, None, None] for each in (MEAN, DEVIATION))
    sd = torch.full((count,), dataset.turn_deg or ALIGNED_SD_DEG, device=device)
    prior = torch.zeros(count, 1, device=device) if rolls == 1 else log_heading_prior(expected, sd, rolls)
    photo = PhotoInput(hfov, hfov >= 360, prior, pixels=(photos - mean) / deviation)
    return Prepared(photo, (windows - mean) / deviation, PairTruth(places, heading, alike))


# Batches


def distinct_batches(order: NDArray[np.int64], reference: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Cut an order of photos in batches, and leave out photos whose aerial image is in the batch already.

    Args:
        order: (photo,) indices of photos.
        reference: (photo,) aerial image of each photo, by its index.
        size: photos in a batch.
    """
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [part[np.sort(np.unique(reference[part], return_index=True)[1])] for part in parts]


def neighbours_by_position(dataset: PairDataset, references: NDArray[np.int64], count: int) -> NDArray[np.int32]:
    """(n, count) indices into n aerial images of those nearest to each."""
    latitude, longitude = np.radians(dataset.position[references]).T
    across = np.cos(latitude)
    space = RADIUS_M * np.stack([across * np.cos(longitude), across * np.sin(longitude), np.sin(latitude)], -1)
    return nearest_on_map(torch.from_numpy(space), count)


def neighbours_by_similarity(query: Tensor, reference: Tensor, own: NDArray[np.int64], count: int) -> NDArray[np.int32]:
    """(photo, count) indices of the references most similar to each photo, but its own.

    Args:
        query: (photo, feature).
        reference: (reference, feature).
        own: (photo,) index of each photo's reference.
        count: number of neighbours; at most all others.
    """
    count = min(count, len(reference) - 1)
    candidates = nearest(query, reference, count + 1)
    dropped = candidates == own[:, None]
    dropped[~dropped.any(1), -1] = True
    return candidates[~dropped].reshape(len(own), count)


def order_photos(
    photos: int,
    own: NDArray[np.int64],
    neighbours: NDArray[np.int32] | None,
    size: int,
    select: int,
    seed: Sequence[int],
) -> NDArray[np.int64]:
    """An order of photos whose consecutive batches hold few photos of one aerial image.

    Args:
        photos: number of photos.
        own: (photo,) index of each photo's aerial image among those that have photos.
        neighbours: (photo, range) indices of neighbouring aerial images, nearest first; None for random batches.
        size: photos in a batch.
        select: neighbours that are added with each photo.
        seed: of the draws.
    """
    rng = np.random.default_rng([*seed])
    if neighbours is None:
        neighbours, select = np.zeros((photos, 0), np.int32), 0
    return neighbour_batches(rng.permutation(photos), own, neighbours, size, select, rng)
