"""Galleries: the cells among which an evaluation lets experts choose.

By default these are all cells of the map. GeoMoE (arXiv 2608.01060) is evaluated among the cells that hold a photo of
the evaluated split, which is easier: results of the two do not compare.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.evaluate.photos import LabelledPhotos
from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import CellRanks, Expert, WrappedExpert
from jzi.locate.posterior import Posterior
from jzi.locate.priors.restricted import keep_cells
from jzi.locate.ranges import RANKS

#: Names of the galleries.
GALLERIES = ("all", "occupied")

#: Photos whose full posteriors are computed at once for greedy estimates.
BATCH = 256


class GalleryExpert(WrappedExpert):
    """An expert whose answers are restricted to some of the cells.

    The probabilities of other cells are removed with their share of the residual, and the rest divided by what remains.
    The greedy estimate is the most probable remaining cell. If none of a photo's remaining cells has any probability,
    its first cell is the remaining one nearest to the expert's most probable cell, with probability 0.

    Args:
        expert: any expert.
        mask: (row, col) whether each cell is in the gallery.
    """

    def __init__(self, expert: Expert, mask: NDArray[np.bool_]) -> None:
        super().__init__(expert)
        self._mask = mask & expert.cell_mask

    @property
    def cell_mask(self) -> NDArray[np.bool_]:
        """(row, col) whether each cell is in the gallery and has imagery."""
        return self._mask

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """The expert's posterior, restricted to the gallery.

        Args:
            query: (photo, feature) embeddings.
            options: as for the expert; for the estimate "greedy" there is one cell.
        """
        if options.estimate != "greedy":
            return self._restrict(self.expert.posterior(query, options))
        full = replace(options, estimate="map")
        best = [self._restrict(self.expert.posterior(part, full)) for part in query.split(BATCH)]
        row, col, probability = (
            np.concatenate([getattr(part, name)[:, :1] for part in best]) for name in ("row", "col", "probability")
        )
        return Posterior.from_cells(self.area, row, col, probability)

    def uncalibrated(self) -> GalleryExpert | None:
        """The same without the expert's fitted temperature; None if it has none."""
        expert = self.expert.uncalibrated()
        return None if expert is None else type(self)(expert, self._mask)

    def _restrict(self, posterior: Posterior) -> Posterior:
        kept = keep_cells(posterior, self._mask, int(self.expert.cell_mask.sum()))
        total = kept.probability.sum(1) + kept.residual
        some = np.where(total > 0, total, 1.0)
        row, col = kept.row.copy(), kept.col.copy()
        for photo in np.flatnonzero(~(kept.probability > 0).any(1)):
            row[photo, 0], col[photo, 0] = self._nearest(posterior.row[photo, 0], posterior.col[photo, 0])
        residual = np.where(total > 0, kept.residual / some, 1.0)
        return Posterior(self.area, row, col, kept.probability / some[:, None], residual)

    def _nearest(self, row: int, col: int) -> tuple[int, int]:
        rows, cols = np.nonzero(self._mask)
        nearest = ((rows - row) ** 2 + (cols - col) ** 2).argmin()
        return int(rows[nearest]), int(cols[nearest])


class RankedGalleryExpert(GalleryExpert):
    """The same for an expert that ranks cells."""

    def cell_ranks(
        self, query: Tensor, row: NDArray[np.int64], col: NDArray[np.int64], count: int
    ) -> NDArray[np.int64]:
        """(photo,) number of cells of the gallery more probable than the true one; at most `count`.

        Args:
            query: (photo, feature) embeddings.
            row: (photo,) rows of the true cells.
            col: (photo,) columns of the true cells.
            count: the rank of cells that are not among the first `count`, or that the expert's posterior lacks.

        Raises:
            ConfigError: `count` is out of range.
        """
        RANKS.check("count", count)
        ranks = []
        for part in np.split(np.arange(len(query)), range(BATCH, len(query), BATCH)):
            posterior = self.posterior(query[part], LocateOptions("map"))
            hit = (posterior.row == row[part, None]) & (posterior.col == col[part, None]) & (posterior.probability > 0)
            ranks.append(np.where(hit.any(1), np.minimum(hit.argmax(1), count), count))
        return np.concatenate(ranks)


def restrict_to_occupied(expert: Expert, photos: LabelledPhotos) -> GalleryExpert:
    """Restrict an expert to the cells that hold a photo.

    Args:
        expert: any expert.
        photos: the photos of the evaluated split.
    """
    mask = np.zeros(expert.area.shape, bool)
    mask[photos.row, photos.col] = True
    return (RankedGalleryExpert if isinstance(expert, CellRanks) else GalleryExpert)(expert, mask)
