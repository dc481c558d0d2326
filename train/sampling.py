"""Which photos share a batch: neighbours are the hard negatives (Sample4Geo, section 3.3)."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.retrieve.similarity import ROWS


def nearest_on_map(place: Tensor, count: int) -> NDArray[np.int32]:
    """(place, count) which of the other places (n, 2) are nearest to each, the nearest first."""
    count = min(count, len(place) - 1)
    parts = []
    for start in range(0, len(place), ROWS):
        rows = place[start : start + ROWS]
        distance = torch.cdist(rows, place)
        distance[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = torch.inf
        parts.append(distance.topk(count, largest=False).indices.int().cpu())
    return torch.cat(parts).numpy()


def neighbour_batches(
    order: NDArray[np.int64],
    place: NDArray[np.int64],
    neighbours: NDArray[np.int32],
    size: int,
    select: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """An order of photos whose every `size` make a batch of neighbours; each photo comes once.

    A photo brings along photos of `select` places: the nearest half of them, and as many that are drawn from the rest
    of its neighbours. No place comes twice in a batch, until nothing else is left.

    Args:
        order: (photo,) the photos, shuffled.
        place: (photo,) where each was taken: an index into the places that have photos.
        neighbours: (photo, range) places, the nearest first.
        size: photos to a batch.
        select: places that a photo brings along.
        rng: draws them.
    """
    waiting: list[list[int]] = [[] for _ in range(int(place.max()) + 1)]
    for photo in order[::-1]:
        waiting[place[photo]].append(int(photo))  # taken from the end, in the order given
    used = np.zeros(len(place), bool)
    pool, batches = deque(order.tolist()), []
    while pool:
        batch: list[int] = []
        taken: set[int] = set()
        aside: list[int] = []
        while pool and len(batch) < size:
            photo = pool.popleft()
            if used[photo]:
                continue
            if place[photo] in taken:
                aside.append(photo)
                continue
            group = [int(place[photo]), *_drawn(neighbours[photo], select, rng)]
            for number, where in enumerate(group):
                if len(batch) == size:
                    break
                if where in taken:
                    continue
                if number == 0:
                    waiting[where].remove(photo)
                    chosen = photo
                elif waiting[where]:
                    chosen = waiting[where].pop()
                else:
                    continue
                used[chosen] = True
                taken.add(where)
                batch.append(chosen)
        rest = [photo for photo in aside if not used[photo]]
        fill = rest[: size - len(batch)] if not pool else []
        for photo in fill:
            used[photo] = True
            waiting[place[photo]].remove(photo)
        batches += batch + fill
        pool.extendleft(reversed(rest[len(fill) :]))
    return np.array(batches, np.int64)


def _drawn(near: NDArray[np.int32], select: int, rng: np.random.Generator) -> list[int]:
    half = select // 2
    far = rng.permutation(near[half:])[:half]
    return [*near[:half].tolist(), *far.tolist()]
