"""Recall by distance to the nearest training photo.

A photo that was taken beside a training photo is located more easily than one in a street without any.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jzi.locate.ranges import DISTANCE
from jzi.store.geometry.pyramid import geodesic_distance
from jzi.store.geometry.space import bucket, in_space

#: Limits of the bins, metres.
LIMITS = (0.0, 10.0, 25.0, 50.0, 100.0, math.inf)

#: Sides of the buckets that are searched first, cubes of space, metres, and photos that are searched at once.
BUCKETS_M, BATCH = (16.0, 64.0, 256.0), 64

#: Offsets to a bucket and its neighbours.
_AROUND = np.array([*itertools.product((-1, 0, 1), repeat=3)])


@dataclass(frozen=True)
class DistanceBin:
    """Photos whose nearest training photo is at least `low` and less than `high` metres away.

    Attributes:
        low: metres.
        high: metres; inf for the last bin.
        photos: number of photos.
        recall: radius in metres to the share of these photos whose answer lies within it; empty if there is no photo.
    """

    low: float
    high: float
    photos: int
    recall: dict[float, float]


@dataclass(frozen=True)
class RecallByDistance:
    """Recall by distance to the nearest training photo.

    Attributes:
        median: median distance of the photos to the nearest training photo, metres.
        bins: the photos by that distance, the nearest first.
    """

    median: float
    bins: tuple[DistanceBin, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `to_m` of the last bin is None."""
        return {
            "median_m": self.median,
            "bins": [
                {
                    "from_m": each.low,
                    "to_m": each.high if math.isfinite(each.high) else None,
                    "photos": each.photos,
                    **{f"recall@{radius:g}m": share for radius, share in each.recall.items()},
                }
                for each in self.bins
            ],
        }


def recall_by_distance(
    distance: NDArray[np.float64], error: NDArray[np.float64], radii: Sequence[float]
) -> RecallByDistance:
    """Group photos by the distance to their nearest training photo.

    Args:
        distance: (photo,) to the nearest training photo, metres.
        error: (photo,) distance from the true position to the answer, metres.
        radii: radii of recall, metres.

    Raises:
        ConfigError: a radius is out of range.
    """
    DISTANCE.check("a radius of recall", *radii)
    bins = []
    for low, high in itertools.pairwise(LIMITS):
        inside = error[(distance >= low) & (distance < high)]
        recall = {float(radius): float((inside <= radius).mean()) for radius in radii} if len(inside) else {}
        bins.append(DistanceBin(low, high, len(inside), recall))
    return RecallByDistance(float(np.median(distance)), tuple(bins))


def nearest_distance(
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    to_latitude: NDArray[np.float64],
    to_longitude: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(photo,) geodesic distance in metres from each position to the nearest of other positions, in degrees (WGS 84).

    Args:
        latitude: (photo,).
        longitude: (photo,).
        to_latitude: (other,), at least one.
        to_longitude: (other,).
    """
    photos, others = in_space(latitude, longitude), in_space(to_latitude, to_longitude)
    nearest = np.zeros(len(photos), np.int64)
    pending = np.arange(len(photos))
    for side in BUCKETS_M:
        buckets = bucket(np.floor(others / side).astype(np.int64))
        order = buckets.argsort(kind="stable")
        in_order = buckets[order]
        far = [pending[:0]]
        for part in np.split(pending, range(BATCH, len(pending), BATCH)):
            index, metres = _nearest_around(photos[part], others, order, in_order, side)
            nearest[part] = index
            far.append(part[metres > side])  # one in a bucket further away may be nearer
        pending = np.concatenate(far)
    for part in np.split(pending, range(BATCH, len(pending), BATCH)):  # exhaustively
        distance = torch.cdist(
            torch.from_numpy(photos[part]), torch.from_numpy(others), compute_mode="donot_use_mm_for_euclid_dist"
        )
        nearest[part] = distance.argmin(1).numpy()
    return geodesic_distance(latitude, longitude, to_latitude[nearest], to_longitude[nearest])


def _nearest_around(
    photos: NDArray[np.float64],
    others: NDArray[np.float64],
    order: NDArray[np.int64],
    buckets: NDArray[np.int64],
    side: float,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Index of the nearest of the others in the buckets around each photo, and its distance; inf if there is none."""
    keys = bucket(np.floor(photos / side).astype(np.int64)[:, None] + _AROUND).ravel()
    start, stop = np.searchsorted(buckets, keys, "left"), np.searchsorted(buckets, keys, "right")
    counts = stop - start
    first = np.repeat(start - (counts.cumsum() - counts), counts)
    index = order[first + np.arange(counts.sum())]
    photo = np.repeat(np.repeat(np.arange(len(photos)), len(_AROUND)), counts)
    metres = np.linalg.norm(photos[photo] - others[index], axis=1)
    nearest, least = np.zeros(len(photos), np.int64), np.full(len(photos), np.inf)
    by_distance = metres.argsort(kind="stable")[::-1]
    nearest[photo[by_distance]] = index[by_distance]  # the last assignment is the nearest
    np.minimum.at(least, photo, metres)
    return nearest, least
