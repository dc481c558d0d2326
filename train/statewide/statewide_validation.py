"""Validation of state-wide retrieval: exact search of an area's cells (Fervers et al. 2024, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.encode.encoders.towers import Towers
from jzi.evaluate.retrieval import RADII, TOP, equivalent_ranks, matches
from jzi.retrieve.similarity import ROWS, fit_temperature
from jzi.store.geometry.pyramid import geodesic_distance
from jzi.train.run import Metrics
from jzi.train.statewide.statewide_data import Gallery, SampleReader

#: Images per forward pass, of photos or of cells with all their levels.
ENCODE_BATCH = 32

#: Photos whose similarities to all cells are in memory at once: 100 MB for 100 000 cells.
RANK_PHOTOS = 256

#: Photos of an area that the temperature is fitted on; each is compared with all cells 61 times.
TEMPERATURE_PHOTOS = 1024


@dataclass(frozen=True)
class EncodedGallery:
    """Embedded cells and photos of a gallery.

    Attributes:
        row: (cell,) rows of the grid, by key.
        col: (cell,) columns of the grid.
        reference: (cell, feature) float32 of unit length.
        query: (photo, feature) float32 of unit length, of photos that could be read and whose cell is in the gallery.
        latitude: (photo,) degrees.
        longitude: (photo,) degrees.
        truth: (photo,) index of the cell that contains each photo.
        left_out: number of other photos.
    """

    row: NDArray[np.int64]
    col: NDArray[np.int64]
    reference: Tensor
    query: Tensor
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    truth: NDArray[np.int64]
    left_out: int


def encode_gallery(towers: Towers, gallery: Gallery, reader: SampleReader) -> EncodedGallery | None:
    """Render and embed the cells of a gallery, and embed its photos; None if no photo is left."""
    crops, grid = gallery.area.crops, gallery.area.grid
    cells, reference = [], []
    for key, block in zip(gallery.keys, crops.blocks(gallery.keys), strict=True):
        on_device = block.to(towers.device)
        for start in range(0, len(block), ENCODE_BATCH):
            reference.append(towers.encode_cells(on_device[start : start + ENCODE_BATCH]).float())
        cells.append(np.stack([block.row + (key.rows.start or 0), block.col + (key.cols.start or 0)]))
    row, col = np.concatenate([np.empty((2, 0), np.int64), *cells], 1)
    kept, query = [], []
    photos = enumerate(reader.read_photos(gallery.photos.paths.tolist()))
    while batch := list(islice(photos, ENCODE_BATCH)):
        readable = [(index, photo) for index, photo in batch if photo is not None]
        if readable:
            kept += [index for index, _ in readable]
            query.append(towers.encode_photos(np.stack([photo for _, photo in readable])).float())
    if not (query and reference):
        return None
    order = np.lexsort((col, row))
    row, col = row[order], col[order]
    index = np.array(kept)
    latitude, longitude = gallery.photos.latitude[index], gallery.photos.longitude[index]
    truth = _find(row, col, *grid.cells_at(latitude, longitude))
    known = truth >= 0
    if not known.any():
        return None
    return EncodedGallery(
        row,
        col,
        torch.cat(reference)[torch.from_numpy(order)],
        torch.cat(query)[torch.from_numpy(known)],
        latitude[known],
        longitude[known],
        truth[known],
        len(gallery.photos) - int(known.sum()),
    )


def _find(
    row: NDArray[np.int64], col: NDArray[np.int64], of_row: NDArray[np.int64], of_col: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Indices of cells among sorted ones; -1 for others."""
    width = int(max(col.max(), of_col.max(initial=0))) + 1
    keys, wanted = row * width + col, of_row * width + of_col
    index = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where((keys[index] == wanted) & (of_row >= 0) & (of_col >= 0), index, -1)


def validate(towers: Towers, galleries: Sequence[Gallery], reader: SampleReader) -> Metrics:
    """Recall at 1, 10 and 100 cells within 25, 50 and 100 m, and the temperature of the softmax.

    Radii within which a photo may have no cell are left out. The temperature is fitted on the area with most photos.

    Args:
        towers: the towers.
        galleries: cells and photos of each area.
        reader: reads the photos.

    Returns:
        The metrics over all photos; empty if there is none.
    """
    encoded = [(gallery, each) for gallery in galleries if (each := encode_gallery(towers, gallery, reader))]
    if not encoded:
        return {}
    metrics: Metrics = {}
    for radius in radii_of(galleries):
        rank = np.concatenate([_ranks(gallery, each, radius) for gallery, each in encoded])
        metrics |= {f"recall@{k}<{radius:g}m": float((rank < k).mean()) for k in TOP}
    error = np.concatenate([_error(gallery, each) for gallery, each in encoded])
    largest = max((each for _, each in encoded), key=lambda each: len(each.query))
    chosen = np.linspace(0, len(largest.query) - 1, min(TEMPERATURE_PHOTOS, len(largest.query))).astype(int)
    truth = torch.from_numpy(largest.truth[chosen])
    return {
        **metrics,
        "median_error_m": float(np.median(error)),
        "temperature": fit_temperature(largest.query[torch.from_numpy(chosen)], largest.reference, truth),
        "val_photos": float(len(error)),
        "val_left_out": float(sum(each.left_out for _, each in encoded)),
        "val_cells": float(sum(len(each.reference) for _, each in encoded)),
    }


def radii_of(galleries: Sequence[Gallery]) -> list[float]:
    """Radii of recall, metres, within which every photo has a cell."""
    largest = max((gallery.area.grid.cell_size for gallery in galleries), default=0.0)
    return [radius for radius in RADII if radius and radius >= largest / 2**0.5]


def _ranks(gallery: Gallery, encoded: EncodedGallery, radius: float) -> NDArray[np.int64]:
    """(photo,) number of cells that are wrong but at least as similar as the most similar right one."""
    grid = gallery.area.grid
    mask = np.zeros(grid.shape, bool)
    mask[encoded.row, encoded.col] = True
    ranks = []
    for start in range(0, len(encoded.query), RANK_PHOTOS):
        part = slice(start, start + RANK_PHOTOS)
        similarity = (encoded.query[part] @ encoded.reference.T).cpu().numpy()
        right = matches(grid, mask, encoded.latitude[part], encoded.longitude[part], radius)
        of_right = similarity[right.photo, _find(encoded.row, encoded.col, right.row, right.col)]
        chunk = (encoded.row, encoded.col, similarity)
        ranks.append(equivalent_ranks([chunk], [right], [of_right], grid.shape[1])[0][0])
    return np.concatenate(ranks)


def _error(gallery: Gallery, encoded: EncodedGallery) -> NDArray[np.float64]:
    """(photo,) distance from each photo to the centre of the most similar cell, metres."""
    best = torch.cat([(rows @ encoded.reference.T).argmax(1).cpu() for rows in encoded.query.split(ROWS)]).numpy()
    latitude, longitude = gallery.area.grid.positions(encoded.row[best], encoded.col[best])
    return geodesic_distance(encoded.latitude, encoded.longitude, latitude, longitude)
