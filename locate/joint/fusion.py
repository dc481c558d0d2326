"""Fusion of experts: a weighted product of their posteriors, with weights fitted on validation photos.

The fused log-probability of a cell is the sum of the experts' log-probabilities, each times its weight, normalised over
all cells with imagery (a logarithmic opinion pool; Genest and Zidek 1986). Weights are 0 or more, and their scale is
that of a temperature. The probability that an expert assigns to cells that it did not reach, its residual, is spread
evenly over them. The product is raised to a power that depends on the photo (`jzi.locate.joint.sharpness`), and errors
that the experts share are in its spread (`jzi.locate.joint.spread`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import Expert
from jzi.locate.joint.sharpness import UNIFORM, Sharpness, product_size
from jzi.locate.joint.spread import spread_all, spread_best
from jzi.locate.keys import distinct
from jzi.locate.posterior import Posterior
from jzi.locate.priors.restricted import restrict
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.info import EncoderInfo

#: Share of each expert's probability that is spread evenly over the map, so that no trained expert rules out a cell.
FLOOR = 1e-4

#: Photos fused at once, as their cells, several thousand for each expert, are all in memory.
BATCH = 64

#: Maximum number of cells in a fused posterior; the probability of the others becomes its residual.
MAX_CELLS = 8192

#: A residual below this is a rounding error.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Fusion:
    """How the posteriors of several experts become one.

    Attributes:
        weights: exponent of each expert's posterior, by its name.
        spread: spread of their product; see `jzi.locate.joint.spread`.
        sharpness: power of their product; see `jzi.locate.joint.sharpness`.
    """

    weights: Mapping[str, float]
    spread: float = 0.0
    sharpness: Sharpness = UNIFORM

    @property
    def used(self) -> dict[str, float]:
        """The weights above 0; the first one if none is, with which the fusion is uniform."""
        used = {name: weight for name, weight in self.weights.items() if weight > 0}
        return used or dict([next(iter(self.weights.items()))])


class FusedExpert:
    """Several experts as one.

    Args:
        experts: experts on the same cells, with the same encoder.
        weights: (expert,) exponent of each expert's posterior.
        spread: spread of their product; see `jzi.locate.joint.spread`.
        share: share of the map's cells that the experts are restricted to.
        sharpness: power of their product; see `jzi.locate.joint.sharpness`.
    """

    name = "fused"
    rules_out = False

    def __init__(
        self,
        experts: Sequence[Expert],
        weights: Sequence[float],
        spread: float = 0.0,
        share: float = 1.0,
        sharpness: Sharpness = UNIFORM,
    ) -> None:
        self.experts, self.weights, self.spread, self.share = tuple(experts), tuple(weights), spread, share
        self.sharpness = sharpness

    @property
    def area(self) -> CellGrid:
        """The grid of the cells."""
        return self.experts[0].area

    @property
    def encoder(self) -> EncoderInfo:
        """The encoder of the photos."""
        return self.experts[0].encoder

    @property
    def cell_mask(self) -> NDArray[np.bool_]:
        """(row, col) whether each cell has imagery."""
        return self.experts[0].cell_mask

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """The spread product of the experts' posteriors; for "greedy", only its most probable cell.

        Args:
            query: (photo, feature) embeddings.
            options: passed to the experts.
        """
        greedy = options.estimate == "greedy"
        searched = replace(options, estimate="map") if greedy else options
        parts = []
        for photos in query.split(BATCH):
            posteriors = [each.posterior(photos, searched) for each in self.experts]
            fused = combine(self.experts, posteriors, self.weights, self.spread, self.share, self.sharpness)
            parts.append(fused.top(1) if greedy else fused)
        return Posterior.concatenate(parts)

    def uncalibrated(self) -> FusedExpert | None:
        """The product of the posteriors without weights, power and spread."""
        return FusedExpert(self.experts, [1.0] * len(self.experts), share=self.share)

    def restricted(self, cell_mask: NDArray[np.bool_]) -> FusedExpert:
        """The fusion of the restricted experts, normalised over `cell_mask`; see `Restrictable`."""
        share = self.share * float((self.cell_mask & cell_mask).sum() / self.cell_mask.sum())
        experts = [restrict(each, cell_mask) for each in self.experts]
        return FusedExpert(experts, self.weights, self.spread, share, self.sharpness)


def combine(
    experts: Sequence[Expert],
    posteriors: Sequence[Posterior],
    weights: Sequence[float],
    spread: float = 0.0,
    share: float = 1.0,
    sharpness: Sharpness = UNIFORM,
) -> Posterior:
    """The weighted product of the posteriors of the same photos, raised to a power and spread.

    Args:
        experts: the experts.
        posteriors: (expert,) their posteriors.
        weights: (expert,) exponents.
        spread: spread of their product; see `jzi.locate.joint.spread`.
        share: share of the map's cells that the experts are restricted to.
        sharpness: power of their product; see `jzi.locate.joint.sharpness`.
    """
    floors = [0.0 if expert.rules_out else FLOOR * share for expert in experts]
    mask = experts[0].cell_mask
    stacked = Stacked.of(posteriors, mask, floors, every_cell=reach_every_cell(posteriors, mask))
    if any(expert.rules_out for expert in experts):
        spread = 0.0  # nothing moves to a cell that is ruled out
    return stacked.posterior(experts[0].area, weights, spread, sharpness)


def reach_every_cell(posteriors: Sequence[Posterior], cell_mask: NDArray[np.bool_]) -> bool:
    """Whether the posteriors leave no residual on a map of at most `MAX_CELLS`, all of which can be stacked then.

    Args:
        posteriors: the posteriors of several experts.
        cell_mask: (row, col) whether each cell has imagery.
    """
    return cell_mask.size <= MAX_CELLS and all((each.residual < ROUNDING).all() for each in posteriors)


@dataclass(frozen=True)
class Stacked:
    """Log-probabilities of several experts for the same photos, on the union of the cells that they reached.

    Attributes:
        key: (photo, cell) row * columns + column of each cell; arbitrary for padding.
        log: (expert, photo, cell) log-probabilities.
        outside: (expert, photo) log-probability of each single cell that no expert reached.
        valid: (photo, cell) whether an entry is a cell with imagery; False for padding.
        log_count: (photo,) logarithm of the number of cells that no expert reached; -inf if there is none.
        cell_mask: (row, col) whether each cell of the map has imagery.
        every_cell: whether the cells are all of the map, in the same order for each photo, and one of padding.
    """

    key: NDArray[np.int64]
    log: Tensor
    outside: Tensor
    valid: Tensor
    log_count: Tensor
    cell_mask: NDArray[np.bool_]
    every_cell: bool = False

    @classmethod
    def of(
        cls,
        posteriors: Sequence[Posterior],
        cell_mask: NDArray[np.bool_],
        floors: Sequence[float],
        *,
        every_cell: bool = False,
    ) -> Stacked:
        """Stack the posteriors of several experts.

        Args:
            posteriors: posterior of each expert for the same photos.
            cell_mask: (row, col) whether each cell has imagery.
            floors: (expert,) share of the probability to spread evenly over the map.
            every_cell: whether all cells with imagery are included, which is faster if most are reached.
        """
        count = int(cell_mask.sum())
        key, valid, columns = (_every_cell if every_cell else _union)(posteriors, cell_mask)
        photos, width = key.shape
        log, outside = np.empty((len(posteriors), photos, width)), np.empty((len(posteriors), photos))
        with np.errstate(divide="ignore"):
            for number, (posterior, floor) in enumerate(zip(posteriors, floors, strict=True)):
                reached = posterior.probability > 0
                residual = np.where(posterior.residual < ROUNDING, 0.0, posterior.residual)
                spread = residual / np.maximum(1, count - reached.sum(1))
                probability = np.repeat(spread[:, None], width, 1)
                photo, cell = np.nonzero(reached)
                probability[photo, columns[number][photo, cell]] = posterior.probability[photo, cell]
                log[number] = np.log((1 - floor) * probability + floor / count)
                outside[number] = np.log((1 - floor) * spread + floor / count)
            log_count = np.log(np.maximum(0, count - valid.sum(1)))
        log_t, outside_t, valid_t, count_t = (torch.from_numpy(each) for each in (log, outside, valid, log_count))
        return cls(key, log_t, outside_t, valid_t, count_t, cell_mask, every_cell)

    @property
    def entry_count(self) -> Tensor:
        """(photo, cell + 1) logarithm of the number of cells of each entry; -inf for padding.

        The last entry stands for the cells that no expert reached.
        """
        return torch.cat([torch.where(self.valid, 0.0, -torch.inf), self.log_count[:, None]], -1)

    def fused(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised log-probabilities of the weighted product.

        Args:
            weights: (expert,) float64.

        Returns:
            (photo, cell) of the cells, and (photo,) of the residual.
        """
        used = weights.detach() > 0  # 0 times -inf is nan
        log = torch.einsum("e,epc->pc", weights[used], self.log[used]).masked_fill(~self.valid, -torch.inf)
        outside = torch.einsum("e,ep->p", weights[used], self.outside[used]) + self.log_count
        total = torch.logaddexp(log.logsumexp(-1), outside)
        return log - total[:, None], outside - total

    def sharpened(self, log: Tensor, outside: Tensor, sharpness: Sharpness) -> tuple[Tensor, Tensor]:
        """What `fused` returns, each photo's product raised to its power, and normalised again.

        Args:
            log: (photo, cell) of `fused`.
            outside: (photo,) of `fused`.
            sharpness: power of the product.
        """
        if not sharpness.slope:
            return log, outside
        each = (outside - self.log_count).nan_to_num(0.0, neginf=-torch.inf)  # of a cell that no expert reached
        size = product_size(torch.cat([log, each[:, None]], -1), self.entry_count, int(self.cell_mask.sum()))
        power = sharpness.power(size)
        log, outside = power[:, None] * log, power * each + self.log_count
        total = torch.logaddexp(log.logsumexp(-1), outside)
        return log - total[:, None], outside - total

    def posterior(
        self, area: CellGrid, weights: Sequence[float], spread: float = 0.0, sharpness: Sharpness = UNIFORM
    ) -> Posterior:
        """The weighted product as a posterior, raised to a power and spread.

        Args:
            area: the grid of the cells.
            weights: (expert,).
            spread: spread of their product; see `jzi.locate.joint.spread`.
            sharpness: power of their product; see `jzi.locate.joint.sharpness`.
        """
        log, outside = self.sharpened(*self.fused(torch.tensor(weights, dtype=torch.float64)), sharpness)
        key, probability = self.key, log.exp().nan_to_num(0.0)
        if spread and self.every_cell:
            probability[:, :-1] = spread_all(key[0, :-1], probability[:, :-1], self.cell_mask, spread)
        elif spread:
            other = (outside - self.log_count).exp().nan_to_num(0.0)  # of each cell that was not reached
            key, probability = spread_best(key, probability, other, self.cell_mask, spread)
        best, index = probability.topk(min(MAX_CELLS, probability.shape[1]), dim=1)
        key = np.take_along_axis(key, index.numpy(), 1)
        residual = np.maximum(0.0, 1 - best.sum(1).numpy())
        residual[residual < ROUNDING] = 0.0
        row, col = np.divmod(key, self.cell_mask.shape[1])
        return Posterior(area, row, col, best.numpy(), residual)

    def select(self, experts: Sequence[int]) -> Stacked:
        """The same cells with some of the experts, given by their indices."""
        index = list(experts)
        return replace(self, log=self.log[index], outside=self.outside[index])

    def log_likelihood(self, weights: Tensor, key: NDArray[np.int64]) -> Tensor:
        """(photo,) log-probability of the true cells.

        Args:
            weights: (expert,) float64.
            key: (photo,) row * columns + column of the true cells.
        """
        log, residual = self.fused(weights)
        return self._at(key, log, residual - self.log_count)

    def of_cells(self, key: NDArray[np.int64]) -> Tensor:
        """(expert, photo) log-probability that each expert gives to one cell of each photo.

        Args:
            key: (photo,) row * columns + column of the cells.
        """
        return self._at(key, self.log, self.outside)

    def _at(self, key: NDArray[np.int64], log: Tensor, outside: Tensor) -> Tensor:
        """(..., photo) values of one cell of each photo: of (..., photo, cell), or `outside` if it is not there."""
        match = torch.from_numpy(self.key == key[:, None]) & self.valid
        inside = log[..., torch.arange(len(key)), match.int().argmax(-1)]
        return torch.where(match.any(-1), inside, outside)


#: (photo, cell) keys, (photo, cell) whether each is a cell with imagery, and for each expert the (photo, cell) columns
#: of the cells of its posterior among them.
_Columns = tuple[NDArray[np.int64], NDArray[np.bool_], list[NDArray[np.int64]]]


def _union(posteriors: Sequence[Posterior], cell_mask: NDArray[np.bool_]) -> _Columns:
    """The cells that an expert reached, which differ by photo."""
    cols, padding = cell_mask.shape[1], cell_mask.size  # a key that no cell has, and that sorts last
    keys = [np.where(each.probability > 0, each.row * cols + each.col, padding) for each in posteriors]
    key, column = distinct(np.concatenate(keys, axis=1), padding)
    valid = key < padding
    key[~valid] = 0
    valid &= cell_mask[key // cols, key % cols]
    return key, valid, np.split(column, np.cumsum([each.shape[1] for each in keys])[:-1], axis=1)


def _every_cell(posteriors: Sequence[Posterior], cell_mask: NDArray[np.bool_]) -> _Columns:
    """All cells with imagery, and a last column for what experts say of cells without."""
    cols, key = cell_mask.shape[1], np.append(np.flatnonzero(cell_mask), 0)
    column = np.full(cell_mask.size, len(key) - 1)
    column[key[:-1]] = np.arange(len(key) - 1)
    shape = len(posteriors[0]), len(key)
    valid = np.broadcast_to(np.arange(len(key)) < len(key) - 1, shape).copy()
    return np.broadcast_to(key, shape), valid, [column[each.row * cols + each.col] for each in posteriors]
