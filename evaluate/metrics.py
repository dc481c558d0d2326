"""Recall within a radius, median error and accuracy of paths, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.evaluate.intervals import Interval, effective_photos, median_interval, share_interval
from jzi.evaluate.nearest import RecallByDistance, recall_by_distance
from jzi.evaluate.published import Published, published_apart, published_for
from jzi.locate.ranges import DISTANCE, RESAMPLES, SEED
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.geometry.pyramid import Pyramid, geodesic_distance

#: Radii of the paper's tables, metres.
RADII = (40.0, 50.0, 100.0)

#: Ranks at which recall of ranked cells is reported.
RANKS = (1, 5, 10)


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of an expert's answers.

    Attributes:
        photos: number of photos located.
        effective_photos: number of independent photos that intervals count them as (`jzi.evaluate.intervals`).
        recall: radius in metres to the share of photos whose answer lies within it.
        median_error: median distance from the true position to the answer, metres.
        sequence_accuracy: share of photos whose cell is right (all L actions of a zoom).
        prefix_accuracy: share of photos for which the first k actions are right, k = 1..L.
        step_accuracy: share of photos for which action k is right given those before it, k = 1..L; empty if the expert
            does not decide step by step.
        error: (photo,) distance from the true position to the answer, metres.
        confidence: (photo,) probability of the answer's cell.
        recall_at: k to the share of photos whose true cell is among the first k; empty if the expert does not rank
            cells.
        gallery: "all" or "occupied", see `jzi.evaluate.gallery`.
        gallery_cells: number of cells of the gallery; 0 if unknown.
        by_training_distance: recall by distance to the nearest training photo; None if there is no training photo, or
            training photos are evaluated.
        published: published results for the same area and gallery, if there are any.
        published_apart: published results that do not compare, of another gallery or of a part of the map.
    """

    photos: int
    effective_photos: float
    recall: dict[float, Interval]
    median_error: Interval
    sequence_accuracy: Interval
    prefix_accuracy: tuple[float, ...]
    step_accuracy: tuple[float, ...]
    error: NDArray[np.float64]
    confidence: NDArray[np.float64]
    recall_at: dict[int, Interval] = field(default_factory=dict)
    gallery: str = "all"
    gallery_cells: int = 0
    by_training_distance: RecallByDistance | None = None
    published: tuple[Published, ...] = ()
    published_apart: tuple[Published, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without those of single photos."""
        return {
            "photos": self.photos,
            "effective_photos": self.effective_photos,
            "gallery": self.gallery,
            "gallery_cells": self.gallery_cells,
            **{f"recall@{radius:g}m": asdict(interval) for radius, interval in self.recall.items()},
            **{f"recall@{k}": asdict(interval) for k, interval in self.recall_at.items()},
            "median_error_m": asdict(self.median_error),
            "sequence_accuracy": asdict(self.sequence_accuracy),
            "prefix_accuracy": list(self.prefix_accuracy),
            "step_accuracy": list(self.step_accuracy),
            "by_training_distance": self.by_training_distance and self.by_training_distance.to_dict(),
            "published": [_published(result) for result in self.published],
            "published_apart": [_published(result) for result in self.published_apart],
        }


def score(
    area: CellGrid,
    row: NDArray[np.int64],
    col: NDArray[np.int64],
    confidence: NDArray[np.float64],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    *,
    rank: NDArray[np.int64] | None = None,
    step_accuracy: tuple[float, ...] = (),
    radii: Sequence[float] = RADII,
    resamples: int = 1000,
    seed: int = 0,
    training_distance: NDArray[np.float64] | None = None,
    gallery: str = "all",
    gallery_cells: int = 0,
) -> Evaluation:
    """Compare predicted cells with the true positions.

    Args:
        area: the grid of the cells.
        row: (photo,) rows of the predicted cells.
        col: (photo,) columns of the predicted cells.
        confidence: (photo,) probability of each predicted cell.
        latitude: (photo,) of the true positions, degrees.
        longitude: (photo,) of the true positions, degrees.
        rank: (photo,) number of cells that rank before the true one; None if the expert does not rank cells.
        step_accuracy: see `Evaluation`.
        radii: radii of recall, metres.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.
        training_distance: (photo,) distance to the nearest training photo, metres; None if there is none.
        gallery: see `Evaluation`.
        gallery_cells: see `Evaluation`.

    Raises:
        ConfigError: a radius, the number of resamples or the seed is out of range.
    """
    check_bootstrap(radii, resamples, seed)
    error = cell_error(area, row, col, latitude, longitude)
    true_row, true_col = area.cells_at(latitude, longitude)
    correct = ((row == true_row) & (col == true_col))[:, None]
    if isinstance(area, Pyramid):
        correct = area.cell_to_path(row, col) == area.paths(latitude, longitude)
    rng = np.random.default_rng(seed)
    effective = effective_photos(latitude, longitude, error)
    recall, median = error_intervals(error, radii, resamples, rng, effective)

    return Evaluation(
        photos=len(error),
        effective_photos=effective,
        recall=recall,
        median_error=median,
        sequence_accuracy=share_interval(correct.all(1), effective),
        prefix_accuracy=tuple(np.logical_and.accumulate(correct, axis=1).mean(0).tolist()),
        step_accuracy=step_accuracy,
        error=error,
        confidence=confidence,
        recall_at={} if rank is None else {k: share_interval(rank < k, effective) for k in RANKS},
        gallery=gallery,
        gallery_cells=gallery_cells,
        by_training_distance=None if training_distance is None else recall_by_distance(training_distance, error, radii),
        published=published_for(area, gallery) if isinstance(area, Pyramid) else (),
        published_apart=published_apart(area, gallery) if isinstance(area, Pyramid) else (),
    )


def error_intervals(
    error: NDArray[np.float64],
    radii: Sequence[float] = RADII,
    resamples: int = 1000,
    rng: np.random.Generator | None = None,
    effective: float | None = None,
) -> tuple[dict[float, Interval], Interval]:
    """Recall within radii, and the median error, with 95 % intervals.

    Args:
        error: (photo,) distances from the true positions to the answers, metres.
        radii: metres.
        resamples: number of bootstrap resamples.
        rng: source of the resamples; seeded with 0 by default.
        effective: number of independent photos that they count as; all by default.

    Raises:
        ConfigError: a radius or the number of resamples is out of range.
    """
    check_bootstrap(radii, resamples)
    rng = rng or np.random.default_rng(0)
    recall = {float(radius): share_interval(error <= radius, effective) for radius in radii}
    return recall, median_interval(error, resamples, rng, effective)


def check_bootstrap(radii: Sequence[float], resamples: int = 1000, seed: int = 0) -> None:
    """Raise a ConfigError if a radius of recall, the number of resamples or their seed is out of range."""
    DISTANCE.check("a radius of recall", *radii)
    RESAMPLES.check("resamples", resamples)
    SEED.check("seed", seed)


def cell_error(
    area: CellGrid,
    row: NDArray[np.int64],
    col: NDArray[np.int64],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(photo,) geodesic distance in metres from true positions, in degrees, to the centres of cells."""
    return geodesic_distance(latitude, longitude, *area.unproject(*area.cell_centers(row, col)))


def _published(result: Published) -> dict[str, Any]:
    recall = {f"recall@{radius:g}m": value for radius, value in zip(RADII, result.recall, strict=True)}
    return {"method": result.method, "gallery": result.gallery, "note": result.note, **recall}
