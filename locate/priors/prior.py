"""An expert times a prior: what is known of a position before the photo is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.errors import ConfigError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import Expert, WrappedExpert
from jzi.locate.posterior import Posterior
from jzi.locate.priors.restricted import restrict

#: Maximum number of cells of a prior that are all part of the posterior, whether or not search reached them.
MAX_CELLS = 8192


class PriorExpert(WrappedExpert):
    """The product of an expert's posterior and a prior, normalised; cells whose weight is 0 are excluded.

    Args:
        expert: any expert; it searches only cells with weight.
        weight: (row, col) relative weight of each cell, 0 or more.

    Attributes:
        cell_mask: (row, col) the cells with imagery and weight.
        weight: (row, col) the prior probability of each cell.
        likelihood: the expert, restricted to those cells, without the weights.

    Raises:
        ConfigError: a weight is negative or not finite, or no cell with imagery has any.
    """

    def __init__(self, expert: Expert, weight: NDArray[np.floating[Any]]) -> None:
        weight = np.asarray(weight)
        if weight.dtype != np.float32:  # float32 stays as it is: of a state in float64 there is no room for copies
            weight = weight.astype(np.float64)
        if weight.shape != expert.cell_mask.shape:
            raise ConfigError(f"a prior needs a weight for each of {expert.cell_mask.shape} cells, not {weight.shape}")
        rows, cols = window = _window(weight)
        inside = weight[window]
        if not (np.isfinite(inside).all() and (inside >= 0).all()):
            raise ConfigError("the weights of a prior must be finite, and 0 or more")
        inside = np.where(np.asarray(expert.cell_mask[rows])[:, cols], inside, 0.0)
        if not inside.any():
            raise ConfigError("the prior leaves no cell with imagery: give a larger one, or none")
        inside /= inside.max()  # so that the sum is finite
        inside /= inside.sum(dtype=np.float64)
        super().__init__(expert)
        self.rules_out = True
        # Of a district of a large map, only pages of the district take memory
        self.weight: NDArray[np.floating[Any]] = np.zeros(weight.shape, inside.dtype)
        self.cell_mask: NDArray[np.bool_] = np.zeros(weight.shape, bool)
        self.weight[window], self.cell_mask[window] = inside, inside > 0
        self.likelihood = restrict(expert, self.cell_mask)
        self._count = int(self.cell_mask.sum())
        self._key = np.flatnonzero(self.cell_mask) if self._count <= MAX_CELLS else np.empty(0, np.int64)

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """The product; for "greedy", only its most probable cell.

        Args:
            query: (photo, feature) embeddings.
            options: passed to the expert, which for "greedy" searches as for "map".
        """
        greedy = options.estimate == "greedy"
        searched = replace(options, estimate="map") if greedy else options
        product = self.weighted(self.likelihood.posterior(query, searched))
        return product.top(1) if greedy else product

    def weighted(self, likelihood: Posterior) -> Posterior:
        """The normalised product of the prior and a posterior over the cells with weight.

        If the posterior is 0 in all of them, the product is the prior. If there are at most `MAX_CELLS` of them, the
        product has no residual.

        Args:
            likelihood: posterior of photos; it need not be normalised.
        """
        reached = likelihood.probability > 0
        unreached = self._count - reached.sum(1)
        each = likelihood.residual / np.maximum(1, unreached)  # of a cell that search did not reach
        if len(self._key):
            cols = self.cell_mask.shape[1]
            probability = np.repeat(each[:, None], self._count, 1)
            photo, cell = np.nonzero(reached)
            key = likelihood.row[photo, cell] * cols + likelihood.col[photo, cell]
            at = np.minimum(np.searchsorted(self._key, key), self._count - 1)
            known = self._key[at] == key
            probability[photo[known], at[known]] = likelihood.probability[photo, cell][known]
            row, col = np.divmod(self._key, cols)
            probability = probability * self.weight[row, col]
            rest = np.zeros(len(likelihood))
        else:
            row, col = likelihood.row, likelihood.col
            prior = np.where(reached, self.weight[row, col], 0.0)
            probability = likelihood.probability * prior
            rest = each * np.maximum(0.0, 1 - prior.sum(1)) * (unreached > 0)
        total = probability.sum(1) + rest
        if not (total > 0).all():
            return self._replace_empty(likelihood, total > 0)
        product = Posterior.from_cells(self.area, row, col, probability / total[:, None])
        return replace(product, residual=rest / total)

    def _replace_empty(self, likelihood: Posterior, supported: NDArray[np.bool_]) -> Posterior:
        """`weighted`, with a likelihood that is the same everywhere for photos that have no support."""
        probability = np.where(supported[:, None], likelihood.probability, 0.0)
        residual = np.where(supported, likelihood.residual, 1.0)
        return self.weighted(Posterior(likelihood.area, likelihood.row, likelihood.col, probability, residual))

    def uncalibrated(self) -> PriorExpert | None:
        """The product with the uncalibrated expert; None if there is none."""
        expert = self.expert.uncalibrated()
        return None if expert is None else PriorExpert(expert, self.weight)


def _window(weight: NDArray[np.floating[Any]]) -> tuple[slice, slice]:
    """The smallest window that contains all weights other than 0; nan is one."""
    rows = np.flatnonzero(weight.any(1))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    inside = slice(int(rows[0]), int(rows[-1]) + 1)
    cols = np.flatnonzero(weight[inside].any(0))
    return inside, slice(int(cols[0]), int(cols[-1]) + 1)
