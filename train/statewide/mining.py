"""Hard-example mining in a stream of samples, without a pass over all photos (Fervers et al. 2024, section 3.5).

From time to time the next samples of the stream, the pool, are embedded with the model as it is, and grouped into
batches of samples that look alike to it. The pool grows as the model gets better.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.store.geometry.bands import RADIUS, haversine

#: Largest pool whose similarities are computed all at once, 1.6 GB of float32; the paper's has 16 384 samples. In
#: larger ones they are computed photo by photo. The two round differently, so free memory does not decide.
ALL_PAIRS = 20_000

#: Rows of similarities per matrix product.
ROWS = 2048

#: Metres by which the search for near cells is widened, against rounding.
SLACK_M = 1.0


class MiningSchedule:
    """When to scan how many samples, and the batches that the last scan made.

    The first scan comes after `first_scan` samples, with a pool of two batches. Once its batches are used up, the next
    scan follows; the pool is doubled if `first_scan` samples have been trained on since it last was.

    Args:
        batch_size: samples in a batch.
        first_scan: samples to train on before the first scan, and between two doublings of the pool.
        pool_max: largest pool, samples; at least two batches if there is mining.
        mining: False to take all batches from the stream in order.

    Attributes:
        position: number of the next sample of the stream.
        pool: batches in the pool.
    """

    def __init__(self, batch_size: int, first_scan: int, pool_max: int, *, mining: bool = True) -> None:
        self.batch_size, self.first_scan, self.mining = batch_size, first_scan, mining
        self.largest = pool_max // batch_size
        self.position, self.pool = 0, 1
        self._since = batch_size  # samples since the pool was last doubled, those of the coming step included
        self._started = False
        self._queue: deque[NDArray[np.int64]] = deque()

    def is_due(self) -> bool:
        """Whether a scan must come before the next batch."""
        return self.mining and not self._queue and (self._since >= self.first_scan or self.pool > 1)

    def begin_scan(self) -> NDArray[np.int64]:
        """Numbers of the samples to scan; `finish_scan` must follow."""
        self._started = True
        if self._since >= self.first_scan:
            self.pool, self._since = min(2 * self.pool, self.largest), 0
        numbers = self._next_samples(self.pool)
        self.position += len(numbers)
        return numbers

    def finish_scan(self, numbers: NDArray[np.int64]) -> None:
        """Queue the scanned samples, in the order of `cluster`, as batches."""
        self._queue.extend(numbers.reshape(-1, self.batch_size))

    def upcoming(self) -> Iterator[NDArray[np.int64]]:
        """The batches until the next scan, (batch_size,) sample numbers each; without end if nothing is mined."""
        if self._started:
            yield from list(self._queue)
            return
        until_scan = math.ceil((self.first_scan - self._since) / self.batch_size)
        for number in range(until_scan) if self.mining else count():
            yield self._next_samples(1) + number * self.batch_size

    def take(self) -> NDArray[np.int64]:
        """Remove the next batch, which exists unless a scan is due."""
        self._since += self.batch_size
        if self._started:
            return self._queue.popleft()
        numbers = self._next_samples(1)
        self.position += len(numbers)
        return numbers

    def _next_samples(self, batches: int) -> NDArray[np.int64]:
        return self.position + np.arange(batches * self.batch_size)

    def state(self) -> dict[str, Any]:
        """Plain values and tensors from which `load` restores this schedule."""
        queue = np.array(self._queue, np.int64).reshape(-1, self.batch_size)
        return {
            "position": self.position,
            "pool": self.pool,
            "since": self._since,
            "started": self._started,
            "queue": torch.from_numpy(queue),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.position, self.pool = state["position"], state["pool"]
        self._since, self._started = state["since"], state["started"]
        self._queue = deque(state["queue"].numpy())


def cluster(
    query: Tensor,
    reference: Tensor,
    photos: tuple[NDArray[np.float64], NDArray[np.float64]],
    cells: tuple[NDArray[np.float64], NDArray[np.float64]],
    size: int,
    distance_m: float,
) -> NDArray[np.int64]:
    """Group samples so that each group is hard to distinguish.

    A group starts with the first sample that is in none. The sample is added whose cell is most similar to the mean
    of the group's photos, until there are `size`. A cell within `distance_m` of a photo of the group is no negative
    of that photo, so its sample is passed over while there are others.

    Memory is the embeddings and, for pools of up to `ALL_PAIRS` samples, all similarities.

    Args:
        query: (n, feature) embeddings of the photos.
        reference: (n, feature) embeddings of the cells; sample i is photo i and cell i.
        photos: (n,) latitudes and (n,) longitudes of the photos, degrees.
        cells: (n,) latitudes and (n,) longitudes of the cells' centres, degrees.
        size: samples in a group; a divisor of n.
        distance_m: smallest distance from a photo to a negative cell, metres.

    Returns:
        (n,) indices of the samples, group by group.
    """
    similarities = _Similarities(query, reference)
    near = _NearCells(photos, cells, distance_m)
    free = np.ones(len(query), bool)
    order = np.empty(len(query), np.int64)
    first = 0
    for start in range(0, len(order), size):
        first += int(free[first:].argmax())
        group = first
        allowed = free.copy()
        total = np.zeros(len(order), np.float32)
        for place in range(start, start + size):
            if place > start:
                group = int(np.where(allowed, total, -np.inf).argmax()) if allowed.any() else int(free.argmax())
            order[place] = group
            free[group] = allowed[group] = False
            allowed[near(group)] = False
            if place + 1 < start + size:
                total += similarities.of(group, free)
    return order


class _Similarities:
    """Similarities of a photo to all cells, computed at once or, in large pools, for the free cells alone."""

    def __init__(self, query: Tensor, reference: Tensor) -> None:
        self.query, self.reference, self.all = query.float(), reference.float(), None
        self._kept = np.arange(len(reference))
        if len(query) <= ALL_PAIRS:
            self.all = np.empty((len(query), len(reference)), np.float32)
            for start in range(0, len(query), ROWS):
                self.all[start : start + ROWS] = (self.query[start : start + ROWS] @ self.reference.T).cpu().numpy()

    def of(self, photo: int, free: NDArray[np.bool_]) -> NDArray[np.float32]:
        """(n,) similarities of a photo to the cells; those of cells that are not free are arbitrary."""
        if self.all is not None:
            return self.all[photo]
        if 2 * np.count_nonzero(free[self._kept]) < len(self._kept):
            self.reference = self.reference[torch.from_numpy(free[self._kept]).to(self.reference.device)]
            self._kept = self._kept[free[self._kept]]
        result = np.zeros(len(free), np.float32)
        result[self._kept] = (self.reference @ self.query[photo]).cpu().numpy()
        return result


class _NearCells:
    """Cells within a distance of a photo."""

    def __init__(
        self,
        photos: tuple[NDArray[np.float64], NDArray[np.float64]],
        cells: tuple[NDArray[np.float64], NDArray[np.float64]],
        distance_m: float,
    ) -> None:
        self.latitude, self.longitude = photos
        self.order = np.argsort(cells[0])
        self.cell_latitude, self.cell_longitude = (each[self.order] for each in cells)
        self.distance_m = distance_m
        self.margin = np.degrees((distance_m + SLACK_M) / RADIUS)

    def __call__(self, photo: int) -> NDArray[np.int64]:
        """Indices of the cells whose distance from a photo is not more than the distance."""
        latitude = self.latitude[photo]
        low, high = np.searchsorted(self.cell_latitude, (latitude - self.margin, latitude + self.margin))
        part = slice(low, high)
        distance = haversine(latitude, self.longitude[photo], self.cell_latitude[part], self.cell_longitude[part])
        return self.order[part][distance <= self.distance_m]
