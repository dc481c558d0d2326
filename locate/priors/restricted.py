"""Experts that search only some of the cells, as a prior requires.

A restricted expert does not normalise over the cells that are left: its probabilities are in the proportions of the
unrestricted expert, and their sum, with the residual, is at most 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import Expert, Restrictable, WrappedExpert
from jzi.locate.posterior import Posterior


class RestrictedExpert(WrappedExpert):
    """An expert that searches the whole map, and of whose posterior only some cells are kept.

    Args:
        expert: any expert.
        cell_mask: (row, col) the cells to keep.
    """

    def __init__(self, expert: Expert, cell_mask: NDArray[np.bool_]) -> None:
        super().__init__(expert)
        self.cell_mask = expert.cell_mask & cell_mask

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """The kept cells; the residual is the share of the expert's residual that is due to kept cells.

        Args:
            query: (photo, feature) embeddings.
            options: passed to the expert.
        """
        whole = self.expert.posterior(query, options)
        return keep_cells(whole, self.cell_mask, int(self.expert.cell_mask.sum()))

    def uncalibrated(self) -> RestrictedExpert | None:
        """The same for the uncalibrated expert; None if there is none."""
        expert = self.expert.uncalibrated()
        return None if expert is None else RestrictedExpert(expert, self.cell_mask)


def restrict(expert: Expert, cell_mask: NDArray[np.bool_]) -> Expert:
    """The expert restricted to some cells, by its own method if it has one.

    Args:
        expert: any expert.
        cell_mask: (row, col) the cells to keep.
    """
    if isinstance(expert, Restrictable):
        return expert.restricted(cell_mask)
    return RestrictedExpert(expert, cell_mask)


def keep_cells(posterior: Posterior, cell_mask: NDArray[np.bool_], cells: int) -> Posterior:
    """Some cells of a posterior, with the share of its residual that is due to them; not normalised.

    Args:
        posterior: posterior of the photos.
        cell_mask: (row, col) the cells to keep.
        cells: number of cells with imagery of the posterior's map; the residual is spread evenly over those that
            search did not reach.
    """
    reached = posterior.probability > 0
    kept = reached & cell_mask[posterior.row, posterior.col]
    unreached, kept_unreached = cells - reached.sum(1), cell_mask.sum() - kept.sum(1)
    share = np.divide(kept_unreached, unreached, out=np.zeros(len(posterior)), where=unreached > 0)
    probability = np.where(kept, posterior.probability, 0.0)
    width = max(1, int(kept.sum(1).max(initial=0)))
    ordered = Posterior.from_cells(posterior.area, posterior.row, posterior.col, probability).top(width)
    return Posterior(ordered.area, ordered.row, ordered.col, ordered.probability, posterior.residual * share)
