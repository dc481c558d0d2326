"""Batches of neighbouring photos, which are hard negatives of one another (Sample4Geo, section 3.3)."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.retrieve.similarity import ROWS


def nearest_on_map(cells: Tensor, count: int) -> NDArray[np.int32]:
    """The other cells that are nearest to each cell.

    Args:
        cells: (cell, 2) float row and column of each cell.
        count: number of neighbours; at most all other cells.

    Returns:
        (cell, count) indices of cells, nearest first.
    """
    count = min(count, len(cells) - 1)
    parts = []
    for start in range(0, len(cells), ROWS):
        rows = cells[start : start + ROWS]
        distance = torch.cdist(rows, cells)
        distance[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = torch.inf
        parts.append(distance.topk(count, largest=False).indices.int().cpu())
    return torch.cat(parts).numpy()


def neighbour_batches(
    order: NDArray[np.int64],
    cell: NDArray[np.int64],
    neighbours: NDArray[np.int32],
    size: int,
    select: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """An order of photos in which every `size` consecutive photos form a batch of neighbours.

    Each photo is followed by photos of `select` neighbouring cells: the nearest half of them, and as many drawn at
    random from its other neighbours. Each photo occurs once, and no cell occurs twice in a batch, except in the last
    batches, once too few cells are left.

    Args:
        order: (photo,) the photos, shuffled.
        cell: (photo,) index of the cell that each was taken in, among the cells that have photos.
        neighbours: (photo, range) indices of neighbouring cells, nearest first.
        size: photos in a batch.
        select: neighbouring cells drawn for each photo.
        rng: source of the random draws.

    Returns:
        (photo,) the reordered photos.
    """
    remaining = _RemainingPhotos(order, cell)
    batches: list[int] = []
    while remaining.queue:
        batch, deferred = _next_batch(remaining, neighbours, size, select, rng)
        deferred = [photo for photo in deferred if not remaining.used[photo]]
        fill = [] if remaining.queue else deferred[: size - len(batch)]
        for photo in fill:
            remaining.take(photo)
        batches += batch + fill
        remaining.queue.extendleft(reversed(deferred[len(fill) :]))
    return np.array(batches, np.int64)


class _RemainingPhotos:
    """Photos that are in no batch yet. `queue` may still contain photos that have been used since."""

    def __init__(self, order: NDArray[np.int64], cell: NDArray[np.int64]) -> None:
        self.cell = cell
        self.queue = deque(order.tolist())
        self.used = np.zeros(len(cell), bool)
        self._by_cell: list[list[int]] = [[] for _ in range(int(cell.max()) + 1)]
        for photo in order[::-1]:  # photos are taken from the end, so in the given order
            self._by_cell[cell[photo]].append(int(photo))

    def take(self, photo: int) -> None:
        self.used[photo] = True
        self._by_cell[self.cell[photo]].remove(photo)

    def take_from(self, cell: int) -> int | None:
        """The first remaining photo of a cell; None if there is none."""
        if not self._by_cell[cell]:
            return None
        photo = self._by_cell[cell].pop()
        self.used[photo] = True
        return photo


def _next_batch(
    remaining: _RemainingPhotos, neighbours: NDArray[np.int32], size: int, select: int, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """A batch, and the photos that were passed over because their cell was in it already."""
    batch: list[int] = []
    cells: set[int] = set()
    deferred: list[int] = []
    while remaining.queue and len(batch) < size:
        photo = remaining.queue.popleft()
        cell = int(remaining.cell[photo])
        if remaining.used[photo]:
            continue
        if cell in cells:
            deferred.append(photo)
            continue
        remaining.take(photo)
        batch.append(photo)
        cells.add(cell)
        for neighbour in _draw_neighbours(neighbours[photo], select, rng):
            if len(batch) == size:
                break
            if neighbour in cells or (other := remaining.take_from(neighbour)) is None:
                continue
            batch.append(other)
            cells.add(neighbour)
    return batch, deferred


def _draw_neighbours(nearest: NDArray[np.int32], select: int, rng: np.random.Generator) -> list[int]:
    half = select // 2
    others = rng.permutation(nearest[half:])[:half]
    return [*nearest[:half].tolist(), *others.tolist()]
