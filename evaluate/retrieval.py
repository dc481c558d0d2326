"""Recall of retrieval over the cells of a state, by the equivalent rank (Fervers et al. 2024, section 4).

A photo is found at k within r if the centre of one of the k most similar cells lies within r of it. That is so exactly
if fewer than k cells without such a centre are at least as similar as the best cell with one: their number is counted
over the cells in any order and in chunks, so that an exact evaluation needs neither an index nor a sorted list.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jzi.errors import ConfigError
from jzi.evaluate.intervals import Interval, effective_photos, share_interval
from jzi.evaluate.moments import groups_by_time
from jzi.locate.ranges import DISTANCE, RANKS
from jzi.store.geometry.bands import haversine
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.geometry.pyramid import geodesic_distance
from jzi.store.geometry.scale import largest_scale
from jzi.vectors.store import TIE

#: Radii, metres, and ranks of the paper's tables; radius 0 stands for the photo's own cell.
RADII, TOP = (0.0, 25.0, 50.0, 100.0), (1, 10, 100)

#: How distances are measured: on the WGS 84 ellipsoid, or on the sphere, as the published figures were.
Distance = Literal["ellipsoid", "sphere"]
DISTANCES: tuple[Distance, ...] = ("ellipsoid", "sphere")

#: Pairs of a photo and a right cell whose embeddings are in memory at once.
PAIRS = 8192

#: Distances on the sphere are at most 0.7 % longer than on the ellipsoid, within which cells are looked up first.
_MARGIN = 1.01


def check_radii(radii: Sequence[float], cell_m: float) -> None:
    """Raise an error unless every photo of a region has a cell within each radius; radius 0 is the photo's own cell.

    Raises:
        ConfigError: a radius is not a distance, or is less than half of a cell's diagonal.
    """
    for radius in radii:
        if radius == 0:
            continue
        DISTANCE.check("a radius of recall", radius)
        if radius < cell_m / math.sqrt(2):
            raise ConfigError(
                f"recall within {radius:g} m cannot be measured on cells of {cell_m:g} m: a photo in a cell's corner "
                f"is {cell_m / math.sqrt(2):.1f} m from the nearest centre; give at least that radius, or 0 for the "
                "photo's own cell"
            )


@dataclass(frozen=True)
class Matches:
    """The cells that count as right for each photo, for one radius.

    Attributes:
        radius: metres; 0 for the cell that contains the photo.
        photo: (pair,) index of the photo, ascending.
        row: (pair,) row of a cell whose centre lies within the radius.
        col: (pair,) its column.
        found: (photo,) whether the photo has any such cell.
    """

    radius: float
    photo: NDArray[np.int64]
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    found: NDArray[np.bool_]


def matches(
    area: CellGrid,
    cell_mask: NDArray[np.bool_],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    radius: float,
    distance: Distance = "ellipsoid",
) -> Matches:
    """Find the cells within a radius of photos.

    Args:
        area: the grid of the cells.
        cell_mask: (row, col) whether a cell is encoded.
        latitude: (photo,) degrees (WGS 84).
        longitude: (photo,) degrees.
        radius: metres; 0 for the cell that contains a photo.
        distance: "ellipsoid" or "sphere".

    Raises:
        ConfigError: the radius is less than half of a cell's diagonal.
    """
    check_radii([radius], area.cell_size)
    if radius == 0:
        row, col = area.cells_at(latitude, longitude)
        photo = np.flatnonzero(row >= 0)
        row, col = row[photo], col[photo]
    else:
        photo, row, col = area.within(latitude, longitude, radius * largest_scale(area, latitude, longitude) * _MARGIN)
        metres = haversine if distance == "sphere" else geodesic_distance
        center = area.unproject(*area.cell_centers(row, col))
        near = metres(latitude[photo], longitude[photo], *center) <= radius
        photo, row, col = photo[near], row[near], col[near]
    kept = cell_mask[row, col]
    photo, row, col = photo[kept], row[kept], col[kept]
    found = np.zeros(len(latitude), bool)
    found[photo] = True
    return Matches(radius, photo, row, col, found)


def equivalent_ranks(
    chunks: Iterable[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.floating[Any]]]],
    found: Sequence[Matches],
    similarity: Sequence[NDArray[np.floating[Any]]],
    cols: int,
) -> tuple[NDArray[np.int64], int]:
    """The number of wrong cells that are at least as similar as each photo's best right one.

    Cells whose similarities differ by rounding alone (`TIE`) are equally similar: those of water, or all cells to a
    network that has learned nothing. Else rounding would decide which of them is the first.

    Args:
        chunks: row (cell,), column (cell,) and similarity (photo, cell) of cells, each cell in one chunk.
        found: the right cells for each radius.
        similarity: (pair,) similarity of each right cell, for each radius; that in the chunks, but for rounding.
        cols: number of columns of the grid.

    Returns:
        (radius, photo) ranks from 0, and the number of cells. The rank of a photo without a right cell is that number.
    """
    photos = len(found[0].found)
    best = np.full((len(found), photos), -np.inf)
    for number, (each, values) in enumerate(zip(found, similarity, strict=True)):
        np.maximum.at(best[number], each.photo, values)
    best -= TIE
    ranks, cells = np.zeros((len(found), photos), np.int64), 0
    for row, col, values in chunks:
        cells += len(row)
        key = row * cols + col
        order = key.argsort()
        ordered = key[order]
        for number, each in enumerate(found):
            ranks[number] += (values >= best[number][:, None]).sum(1)
            wanted = each.row * cols + each.col
            at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
            here = ordered[at] == wanted
            photo, cell = each.photo[here], order[at[here]]
            right = values[photo, cell] >= best[number][photo]
            ranks[number] -= np.bincount(photo[right], minlength=photos)
    return ranks, cells


@dataclass(frozen=True)
class Group:
    """Photos of one year or hour, with their recall.

    Attributes:
        name: such as "2021", or "06".
        photos: number of photos.
        recall: radius in metres to {k: share of the photos}; empty if there are fewer photos than the minimum.
    """

    name: str
    photos: int
    recall: dict[float, dict[int, float]]


@dataclass(frozen=True)
class RetrievalEvaluation:
    """Recall at k within radii.

    Attributes:
        photos: number of photos, those left out not counted.
        effective_photos: number of independent photos that intervals count them as (`jzi.evaluate.intervals`).
        left_out: reason to the number of photos that were left out: "outside of the region", "no imagery".
        cells: number of cells among which photos were searched.
        recall: radius in metres (0: the photo's own cell) to k to the share of photos.
        rank_shares: radius to the share of photos whose rank is below 1, 0.1 and 0.01 % of the cells.
        median_rank: radius to the median number of wrong cells before the first right one.
        by: "year" and "hour" to groups of photos, with those of unknown time under "unknown".
        distance: "ellipsoid" or "sphere".
    """

    photos: int
    effective_photos: float
    left_out: dict[str, int]
    cells: int
    recall: dict[float, dict[int, Interval]]
    rank_shares: dict[float, dict[float, float]]
    median_rank: dict[float, float]
    by: dict[str, tuple[Group, ...]] = field(default_factory=dict)
    distance: Distance = "ellipsoid"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; "recall@k<r" as in the paper."""
        return {
            "photos": self.photos,
            "effective_photos": self.effective_photos,
            "left_out": self.left_out,
            "cells": self.cells,
            "distance": self.distance,
            **{
                f"recall@{k}<{radius:g}m": asdict(interval)
                for radius, by_k in self.recall.items()
                for k, interval in by_k.items()
            },
            **{
                f"recall@{share:g}%<{radius:g}m": value
                for radius, shares in self.rank_shares.items()
                for share, value in shares.items()
            },
            **{f"median_rank<{radius:g}m": value for radius, value in self.median_rank.items()},
            **{
                f"by_{name}": [
                    {
                        name: group.name,
                        "photos": group.photos,
                        **{
                            f"recall@{k}<{radius:g}m": value
                            for radius, by_k in group.recall.items()
                            for k, value in by_k.items()
                        },
                    }
                    for group in groups
                ]
                for name, groups in self.by.items()
            },
        }


def summarise(
    ranks: NDArray[np.int64],
    radii: Sequence[float],
    cells: int,
    *,
    top: Sequence[int] = TOP,
    left_out: dict[str, int] | None = None,
    groups: dict[str, NDArray[Any]] | None = None,
    min_photos: int = 1,
    distance: Distance = "ellipsoid",
    effective: float | None = None,
) -> RetrievalEvaluation:
    """Recall from equivalent ranks.

    Args:
        ranks: (radius, photo) from `equivalent_ranks`, of photos that have a right cell.
        radii: (radius,) metres.
        cells: number of cells.
        top: the numbers k.
        left_out: see `RetrievalEvaluation`.
        groups: name of a breakdown to the (photo,) names of the groups, from `jzi.evaluate.moments`.
        min_photos: fewest photos of a group whose recall is reported.
        distance: how distances were measured.
        effective: number of independent photos that they count as; all by default.

    Raises:
        ConfigError: a number is out of range, or no photo is left.
    """
    RANKS.check("k", *top)
    RANKS.check("the fewest photos of a group", min_photos)
    if not ranks.shape[1]:
        raise ConfigError("no photo lies in a cell of the region with imagery: give photos of the region")

    def shares(chosen: NDArray[np.bool_]) -> dict[float, dict[int, float]]:
        return {radius: {k: float((rank[chosen] < k).mean()) for k in top}
                for radius, rank in zip(radii, ranks, strict=True)}  # fmt: skip

    by = {}
    for name, labels in (groups or {}).items():
        members = [(str(label), labels == label) for label in np.unique(labels)]
        by[name] = tuple(
            Group(label, int(chosen.sum()), shares(chosen) if chosen.sum() >= min_photos else {})
            for label, chosen in members
        )
    return RetrievalEvaluation(
        photos=ranks.shape[1],
        effective_photos=effective or ranks.shape[1],
        left_out=left_out or {},
        cells=cells,
        recall={
            radius: {k: share_interval(rank < k, effective) for k in top}
            for radius, rank in zip(radii, ranks, strict=True)
        },
        rank_shares={
            radius: {percent: float((rank < cells * percent / 100).mean()) for percent in (1.0, 0.1, 0.01)}
            for radius, rank in zip(radii, ranks, strict=True)
        },
        median_rank={radius: float(np.median(rank)) for radius, rank in zip(radii, ranks, strict=True)},
        by=by,
        distance=distance,
    )


def reachable(
    area: CellGrid, cell_mask: NDArray[np.bool_], latitude: NDArray[np.float64], longitude: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Which photos can be found, and the number of the others by reason.

    A photo on a cell without imagery is left out although a cell beside it may have some.

    Args:
        area: the grid of the cells.
        cell_mask: (row, col) whether a cell is encoded.
        latitude: (photo,) degrees (WGS 84).
        longitude: (photo,) degrees.
    """
    row, col = area.cells_at(latitude, longitude)
    inside = row >= 0
    covered = inside & cell_mask[row, col]
    return covered, {"outside of the region": int((~inside).sum()), "no imagery": int((inside & ~covered).sum())}


class CellStore(Protocol):
    """Embeddings of cells, read a block at a time."""

    def blocks(
        self, mask: NDArray[np.bool_] | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.floating[Any]]]]:
        """Rows (cell,), columns (cell,) and embeddings (cell, feature) of the encoded cells."""
        ...

    def gather(self, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        """(cell, feature) embeddings of some cells."""
        ...


def evaluate_retrieval(
    area: CellGrid,
    cell_mask: NDArray[np.bool_],
    store: CellStore,
    query: NDArray[np.float32],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    *,
    radii: Sequence[float] = RADII,
    top: Sequence[int] = TOP,
    distance: Distance = "ellipsoid",
    frame: pd.DataFrame | None = None,
    timezone: str | None = None,
    min_photos: int = 1,
    batch: int = 4096,
) -> RetrievalEvaluation:
    """Search every cell for every photo, exactly, in one pass over the cells for each batch of photos.

    Args:
        area: the grid of the cells.
        cell_mask: (row, col) whether a cell is encoded.
        store: the embeddings of those cells.
        query: (photo, feature) embeddings of photos.
        latitude: (photo,) degrees (WGS 84).
        longitude: (photo,) degrees.
        radii: metres; 0 for the photo's own cell.
        top: the numbers k.
        distance: "ellipsoid", or "sphere" as in the published figures.
        frame: (photo,) columns `captured_at` and `hour`, for the breakdown by `groups_by_time`; None for none.
        timezone: IANA name of the photos' time zone.
        min_photos: fewest photos of a year or an hour whose recall is reported.
        batch: photos that are searched in one pass over the cells.

    Raises:
        ConfigError: a number is out of range, a radius is less than half of a cell's diagonal, there is no such time
            zone, or no photo lies in a cell with imagery.
    """
    check_radii(radii, area.cell_size)
    groups = {} if frame is None else groups_by_time(frame, timezone)
    kept, left_out = reachable(area, cell_mask, latitude, longitude)
    cells, cols, ranks = int(cell_mask.sum()), area.shape[1], [np.zeros((len(radii), 0), np.int64)]
    index = np.flatnonzero(kept)
    for part in np.split(index, range(batch, len(index), batch)):
        if not len(part):
            continue
        photos = query[part].astype(np.float32)
        found = [matches(area, cell_mask, latitude[part], longitude[part], radius, distance) for radius in radii]
        wanted, place = np.unique(np.concatenate([each.row * cols + each.col for each in found]), return_inverse=True)
        vectors = store.gather(*np.divmod(wanted, cols)).astype(np.float32)
        places = np.split(place, np.cumsum([len(each.row) for each in found])[:-1])
        right = [_similarities(photos, each.photo, vectors, at) for each, at in zip(found, places, strict=True)]
        chunks = ((row, col, photos @ block.astype(np.float32).T) for row, col, block in store.blocks())
        ranks.append(equivalent_ranks(chunks, found, right, cols)[0])
    every = np.concatenate(ranks, 1)
    return summarise(
        every,
        radii,
        cells,
        top=top,
        left_out=left_out,
        groups={name: labels[kept] for name, labels in groups.items()},
        min_photos=min_photos,
        distance=distance,
        effective=effective_photos(latitude[index], longitude[index], every[-1]) if len(index) else None,
    )


def _similarities(
    photos: NDArray[np.float32], photo: NDArray[np.int64], cells: NDArray[np.float32], cell: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(pair,) similarity of pairs of a photo and a cell, some thousand at a time."""
    parts = np.split(np.arange(len(photo)), range(PAIRS, len(photo), PAIRS))
    return np.concatenate([np.einsum("pf,pf->p", photos[photo[part]], cells[cell[part]]) for part in parts])
