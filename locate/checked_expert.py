"""Experts of strangers: what they return is checked before it is multiplied with other posteriors or answered."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.errors import ModelError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import Expert, Restrictable, WrappedExpert
from jzi.locate.posterior import Posterior

#: By how much probabilities may exceed 1 in total: rounding errors of float32 over many cells.
TOLERANCE = 1e-3


def checked(expert: Expert, label: str) -> CheckedExpert:
    """An expert that raises if a posterior of another one is none.

    Args:
        expert: of another package.
        label: names it in error messages.
    """
    return (RestrictableCheckedExpert if isinstance(expert, Restrictable) else CheckedExpert)(expert, label)


class CheckedExpert(WrappedExpert):
    """The expert of another package, whose posteriors are checked; arguments as of `checked`."""

    def __init__(self, expert: Expert, label: str) -> None:
        super().__init__(expert)
        self.label, self.weight = label, getattr(expert, "weight", 1.0)

    @property
    def cell_mask(self) -> NDArray[np.bool_]:
        """(row, col) whether each cell has imagery."""
        return self.expert.cell_mask

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """The expert's posterior.

        Args:
            query: (photo, feature) embeddings.
            options: passed to the expert.

        Raises:
            ModelError: its probabilities are not finite, negative, or more than 1 in total, or not of these photos and
                cells.
        """
        posterior = self.expert.posterior(query, options)
        if reason := _fault(posterior, len(query), self.area.shape):
            raise ModelError(f"{self.label} returned {reason}: ask its authors, or leave it out")
        return posterior

    def uncalibrated(self) -> CheckedExpert | None:
        """The same for the uncalibrated expert; None if there is none."""
        expert = self.expert.uncalibrated()
        return None if expert is None else checked(expert, self.label)


class RestrictableCheckedExpert(CheckedExpert):
    """The same for an expert that can search only some of the cells."""

    def restricted(self, cell_mask: NDArray[np.bool_]) -> CheckedExpert:
        """See `jzi.locate.expert.Restrictable`.

        Args:
            cell_mask: (row, col) the cells to search.
        """
        assert isinstance(self.expert, Restrictable)
        return checked(self.expert.restricted(cell_mask), self.label)


def _fault(posterior: Posterior, photos: int, shape: tuple[int, int]) -> str:
    """What is wrong with a posterior; empty if nothing is."""
    probability, residual, row, col = posterior.probability, posterior.residual, posterior.row, posterior.col
    cells = np.shape(probability)
    if len(cells) != 2 or cells[0] != photos or np.shape(row) != cells or np.shape(col) != cells:
        return f"probabilities of shape {cells} for {photos} photos"
    if np.shape(residual) != (photos,):
        return f"residuals of shape {np.shape(residual)} for {photos} photos"
    total = probability.sum(1) + residual
    wrong = ~(np.isfinite(total) & (probability >= 0).all(1) & (residual >= 0) & (total <= 1 + TOLERANCE))
    if wrong.any():
        photo = int(wrong.argmax())
        return (
            f"no probabilities for photo {photo + 1} of {photos}: they lie between {probability[photo].min():.3g} and "
            f"{probability[photo].max():.3g}, and are {total[photo]:.3g} in total"
        )
    if cells[1] and not ((row >= 0) & (row < shape[0]) & (col >= 0) & (col < shape[1])).all():
        return "cells that are not in the area"
    return ""
