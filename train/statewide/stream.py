"""The stream of training samples of state-wide retrieval: photos with turned and shifted cells, each photo once.

Every sample is a function of the seed and its number alone, so training resumes at any number, in any process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jzi.store.geometry.bands import RADIUS, move

# Purposes of random numbers, which follow the seed in the seeds of generators
_ROUND, _BUCKET, _CELL, _OTHER = range(4)


@dataclass(frozen=True)
class Samples:
    """Photos, each with a cell that contains it.

    Attributes:
        number: (n,) numbers in the stream.
        photo: (n,) indices of the photos.
        latitude: (n,) of the cells' centres, degrees.
        longitude: (n,) of the cells' centres, degrees.
        rotation_deg: (n,) direction that is up in the cells' images, degrees clockwise from north.
    """

    number: NDArray[np.int64]
    photo: NDArray[np.int64]
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    rotation_deg: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.number)

    def __getitem__(self, index: slice | NDArray[np.int64]) -> Samples:
        return Samples(
            self.number[index],
            self.photo[index],
            self.latitude[index],
            self.longitude[index],
            self.rotation_deg[index],
        )


class SampleStream:
    """Samples that visit sparsely and densely photographed places alike (Fervers et al. 2024, section 3.4).

    Photos are grouped in buckets of a few metres. A round takes one photo of every bucket, in random order; a bucket
    gives each of its photos once before it starts over. A photo's cell has a random rotation, and the photo lies
    uniformly in the cell without a margin on all sides.

    Args:
        latitude: (photo,) degrees.
        longitude: (photo,) degrees.
        cell_m: (photo,) side of the cell of each photo, metres, or one for all.
        bucket_m: side of a bucket, metres.
        margin_m: smallest distance from a photo to the edges of its cell, metres, because positions of photos have
            errors; the photo is at the centre of cells that are smaller than twice the margin.
        seed: seed of all draws.
    """

    def __init__(
        self,
        latitude: NDArray[np.float64],
        longitude: NDArray[np.float64],
        *,
        cell_m: ArrayLike,
        bucket_m: float,
        margin_m: float,
        seed: int,
    ) -> None:
        self.latitude, self.longitude, self.seed = latitude, longitude, seed
        self.reach = np.broadcast_to(np.maximum(0.0, np.asarray(cell_m, float) / 2 - margin_m), latitude.shape)
        bucket = buckets(latitude, longitude, bucket_m)
        self._photos = np.argsort(bucket, kind="stable")  # by bucket
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(bucket))])
        self._round = lru_cache(maxsize=2)(self._permute)

    @property
    def buckets(self) -> int:
        """Number of buckets, and so of samples in a round."""
        return len(self._starts) - 1

    def samples(self, numbers: NDArray[np.int64]) -> Samples:
        """The samples with given numbers, from 0; there is no last one."""
        photo = self._photos_of(numbers)
        draws = np.array([self._rng(_CELL, int(number)).random(3) for number in numbers]).reshape(-1, 3)
        rotation = 360 * draws[:, 0]
        up, right = (2 * draws[:, 1:].T - 1) * self.reach[photo]
        bearing = rotation + np.degrees(np.arctan2(right, up))
        latitude, longitude = move(self.latitude[photo], self.longitude[photo], np.hypot(up, right), bearing)
        return Samples(numbers, photo, latitude, longitude, rotation)

    def draws(self, numbers: NDArray[np.int64], purpose: int, count: int) -> NDArray[np.float32]:
        """(n, count) further uniform numbers in 0..1 of samples, others for each purpose."""
        draws = [self._rng(_OTHER, purpose, int(number)).random(count, np.float32) for number in numbers]
        return np.array(draws).reshape(-1, count)

    def _photos_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        rounds, positions = np.divmod(numbers, self.buckets)
        photo = np.empty(len(numbers), np.int64)
        for number in np.unique(rounds):
            index = np.flatnonzero(rounds == number)
            for each, bucket in zip(index, self._round(int(number))[positions[index]], strict=True):
                start, count = self._starts[bucket], self._starts[bucket + 1] - self._starts[bucket]
                cycle, turn = divmod(int(number), int(count))  # all photos of the bucket have been used in each cycle
                if count > 1:
                    turn = self._rng(_BUCKET, int(bucket), cycle).permutation(count)[turn]
                photo[each] = self._photos[start + turn]
        return photo

    def _permute(self, number: int) -> NDArray[np.int64]:
        return self._rng(_ROUND, number).permutation(self.buckets)

    def _rng(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *numbers])


def buckets(latitude: NDArray[np.float64], longitude: NDArray[np.float64], side_m: float) -> NDArray[np.int64]:
    """Number of the square of side `side_m` in bands along parallels that contains each position, (n,), from 0."""
    band = np.floor(np.radians(latitude) * RADIUS / side_m)
    cell = np.floor(np.cos(band * side_m / RADIUS) * np.radians(longitude) * RADIUS / side_m)
    return np.unique(np.stack([band, cell], 1), axis=0, return_inverse=True)[1].reshape(-1)
