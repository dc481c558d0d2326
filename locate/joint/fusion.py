"""Fusion of experts: a weighted product of their posteriors, with weights fitted on validation photos.

The fused log-probability of a cell is the sum of the experts' log-probabilities, each times its weight, normalised over
all cells with imagery (a logarithmic opinion pool; Genest and Zidek 1986). Weights are 0 or more, and their scale is
that of a temperature, so the fused posterior needs no other calibration. The probability that an expert assigns to
cells that it did not reach, its residual, is spread evenly over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import Expert
from jzi.locate.posterior import Posterior
from jzi.locate.priors.restricted import restrict
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.info import EncoderInfo

#: Share of each expert's probability that is spread evenly over the map, so that no trained expert rules out a cell.
FLOOR = 1e-4

#: Standard errors by which the gain of an expert must exceed zero to keep the expert.
CLEAR = 1.64

#: Most probable cells of each expert on which weights are fitted, and maximum number of steps of the fit.
FIT_CELLS, NEWTON_STEPS = 256, 30

#: Photos fused at once, as their cells, several thousand for each expert, are all in memory.
BATCH = 64

#: Smallest weight of an expert that is left alone: nearly uniform probabilities, but still a most probable cell.
LEAST_WEIGHT = 1e-3

#: Maximum number of cells in a fused posterior; the probability of the others becomes its residual.
MAX_CELLS = 8192

#: A residual below this is a rounding error.
ROUNDING = 1e-9


@dataclass(frozen=True)
class FusionWeights:
    """Weights of experts, and what each expert gains.

    Attributes:
        weights: exponent of each expert's posterior, by its name; 0 for an expert that was dropped.
        gains: decrease of the validation log-likelihood per photo without the expert, and its standard error.
        photos: number of validation photos.
    """

    weights: dict[str, float]
    gains: dict[str, tuple[float, float]] = field(default_factory=dict)
    photos: int = 0

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the experts that were not dropped."""
        return tuple(name for name, weight in self.weights.items() if weight > 0)


class FusedExpert:
    """Several experts as one.

    Args:
        experts: experts on the same cells, with the same encoder.
        weights: (expert,) exponent of each expert's posterior.
        share: share of the map's cells that the experts are restricted to.
    """

    name = "fused"
    rules_out = False

    def __init__(self, experts: Sequence[Expert], weights: Sequence[float], share: float = 1.0) -> None:
        self.experts, self.weights, self.share = tuple(experts), tuple(weights), share

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
        """The weighted product of the experts' posteriors; for "greedy", only its most probable cell.

        Args:
            query: (photo, feature) embeddings.
            options: passed to the experts.
        """
        greedy = options.estimate == "greedy"
        searched = replace(options, estimate="map") if greedy else options
        parts = []
        for photos in query.split(BATCH):
            posteriors = [each.posterior(photos, searched) for each in self.experts]
            fused = combine(self.experts, posteriors, self.weights, self.share)
            parts.append(fused.top(1) if greedy else fused)
        return Posterior.concatenate(parts)

    def uncalibrated(self) -> FusedExpert | None:
        """The product of the posteriors without weights."""
        return FusedExpert(self.experts, [1.0] * len(self.experts), self.share)

    def restricted(self, cell_mask: NDArray[np.bool_]) -> FusedExpert:
        """The fusion of the restricted experts, normalised over `cell_mask`; see `Restrictable`."""
        share = self.share * float((self.cell_mask & cell_mask).sum() / self.cell_mask.sum())
        return FusedExpert([restrict(each, cell_mask) for each in self.experts], self.weights, share)


def positive(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights above 0; the first one if none is, with which the fusion is uniform."""
    used = {name: weight for name, weight in weights.items() if weight > 0}
    return used or dict([next(iter(weights.items()))])


def combine(
    experts: Sequence[Expert], posteriors: Sequence[Posterior], weights: Sequence[float], share: float = 1.0
) -> Posterior:
    """The weighted product of the posteriors of the same photos.

    Args:
        experts: the experts.
        posteriors: (expert,) their posteriors.
        weights: (expert,) exponents.
        share: share of the map's cells that the experts are restricted to.
    """
    floors = [0.0 if expert.rules_out else FLOOR * share for expert in experts]
    mask = experts[0].cell_mask
    complete = all((each.residual < ROUNDING).all() for each in posteriors)
    stacked = Stacked.of(posteriors, mask, floors, every_cell=complete and mask.size <= MAX_CELLS)
    return stacked.posterior(experts[0].area, weights)


@dataclass(frozen=True)
class Stacked:
    """Log-probabilities of several experts for the same photos, on the union of the cells that they reached.

    Attributes:
        key: (photo, cell) row * columns + column of each cell; arbitrary for padding.
        log: (expert, photo, cell) log-probabilities.
        outside: (expert, photo) log-probability of each single cell that no expert reached.
        valid: (photo, cell) whether an entry is a cell with imagery; False for padding.
        log_count: (photo,) logarithm of the number of cells that no expert reached; -inf if there is none.
        cols: number of columns of the map.
    """

    key: NDArray[np.int64]
    log: Tensor
    outside: Tensor
    valid: Tensor
    log_count: Tensor
    cols: int

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
        cols, count = cell_mask.shape[1], int(cell_mask.sum())
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
        return cls(key, log_t, outside_t, valid_t, count_t, cols)

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

    def posterior(self, area: CellGrid, weights: Sequence[float]) -> Posterior:
        """The weighted product as a posterior.

        Args:
            area: the grid of the cells.
            weights: (expert,).
        """
        log, _ = self.fused(torch.tensor(weights, dtype=torch.float64))
        best, index = log.exp().nan_to_num(0.0).topk(min(MAX_CELLS, log.shape[1]), dim=1)
        key = np.take_along_axis(self.key, index.numpy(), 1)
        residual = np.maximum(0.0, 1 - best.sum(1).numpy())
        residual[residual < ROUNDING] = 0.0
        return Posterior(area, key // self.cols, key % self.cols, best.numpy(), residual)

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
        match = torch.from_numpy(self.key == key[:, None]) & self.valid
        inside = log.gather(1, match.int().argmax(-1, keepdim=True))[:, 0]
        return torch.where(match.any(-1), inside, residual - self.log_count)


#: (photo, cell) keys, (photo, cell) whether each is a cell with imagery, and for each expert the (photo, cell) columns
#: of the cells of its posterior among them.
_Columns = tuple[NDArray[np.int64], NDArray[np.bool_], list[NDArray[np.int64]]]


def _union(posteriors: Sequence[Posterior], cell_mask: NDArray[np.bool_]) -> _Columns:
    """The cells that an expert reached, which differ by photo."""
    cols, padding = cell_mask.shape[1], cell_mask.size  # a key that no cell has, and that sorts last
    keys = [np.where(each.probability > 0, each.row * cols + each.col, padding) for each in posteriors]
    every = np.concatenate(keys, axis=1)
    order = np.argsort(every, axis=1, kind="stable")
    ordered = np.take_along_axis(every, order, 1)
    is_first = np.ones_like(ordered, bool)
    is_first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    rank = is_first.cumsum(1) - 1  # column of each sorted key in the union
    key = np.full((len(every), int(rank.max()) + 1), padding)
    np.put_along_axis(key, rank, ordered, 1)
    column = np.empty_like(rank)
    np.put_along_axis(column, order, rank, 1)
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


class FusionFit:
    """Fits the weights of trained experts, and of subsets of them, by maximum likelihood on validation photos.

    Args:
        names: names of the experts.
        posteriors: (expert,) their posteriors for the validation photos.
        cell_mask: (row, col) whether each cell has imagery.
        key: (photo,) row * columns + column of the true cells.
    """

    def __init__(
        self,
        names: Sequence[str],
        posteriors: Sequence[Posterior],
        cell_mask: NDArray[np.bool_],
        key: NDArray[np.int64],
    ) -> None:
        self.names, self.key = tuple(names), key
        self.stacked = Stacked.of([each.top(FIT_CELLS) for each in posteriors], cell_mask, [FLOOR] * len(names))
        self._fits: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def weights(self, names: Sequence[str] = ()) -> FusionWeights:
        """The weights of several of the experts.

        Does no harm: while there are experts whose gain does not exceed zero by `CLEAR` standard errors over the
        photos, the one with the least gain is dropped, and the others are fitted again. Where a single expert is more
        likely than those that remain, it replaces them.

        Args:
            names: names of the experts to fuse; all by default.
        """
        names = tuple(names) or self.names
        every = [self.names.index(name) for name in names]
        return clear_weights(names, lambda used: self._fit([every[expert] for expert in used]))

    def _fit(self, experts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(expert,) weights of several experts, and (photo,) log-likelihood with them; computed once."""
        if (index := tuple(experts)) not in self._fits:
            stacked = self.stacked.select(index)
            weights = _maximise(stacked, self.key)
            self._fits[index] = weights, stacked.log_likelihood(weights, self.key)
        return self._fits[index]


def clear_weights(names: Sequence[str], fit: Callable[[Sequence[int]], tuple[Tensor, Tensor]]) -> FusionWeights:
    """The weights of those experts that have a clear gain; see `FusionFit.weights`.

    Args:
        names: names of the experts.
        fit: weights (expert,) of some of them, given by their indices, and the log-likelihood (photo,) with them.
    """
    used, gains = list(range(len(names))), dict[str, tuple[float, float]]()
    while len(used) > 1:
        likelihood, unclear = fit(used)[1], dict[int, float]()
        for expert in used:
            gain = likelihood - fit([each for each in used if each != expert])[1]
            mean = float(gain.mean())
            error = float(gain.std() / len(gain) ** 0.5) if len(gain) > 1 else abs(mean)
            gains[names[expert]] = mean, error
            if not mean > CLEAR * error:
                unclear[expert] = mean
        if not unclear:
            break
        used.remove(min(unclear, key=unclear.__getitem__))
    best = max(([expert] for expert in range(len(names))), key=lambda single: float(fit(single)[1].mean()))
    if float(fit(best)[1].mean() - fit(used)[1].mean()) > 1e-9:
        used = best
    weights, likelihood = fit(used)
    fitted = {names[expert]: float(weight) for expert, weight in zip(used, weights, strict=True)}
    return FusionWeights({name: fitted.get(name, 0.0) for name in names}, gains, len(likelihood))


def fit_weights(
    names: Sequence[str], posteriors: Sequence[Posterior], cell_mask: NDArray[np.bool_], key: NDArray[np.int64]
) -> FusionWeights:
    """Fit the weights of experts; see `FusionFit`, whose arguments these are."""
    return FusionFit(names, posteriors, cell_mask, key).weights()


def _maximise(stacked: Stacked, key: NDArray[np.int64]) -> Tensor:
    """(expert,) the weights with the greatest likelihood of the true cells; see `maximise`."""
    photos = torch.arange(len(key))
    match = torch.from_numpy(stacked.key == key[:, None]) & stacked.valid
    inside = stacked.log[:, photos, match.int().argmax(-1)]
    truth = torch.where(match.any(-1), inside, stacked.outside)  # (expert, photo)
    features = torch.cat([stacked.log, stacked.outside[..., None]], -1)  # the last entry stands for the residual
    base = torch.where(stacked.valid, 0.0, -torch.inf)
    base = torch.cat([base, stacked.log_count[:, None]], -1)
    return maximise(features, base, truth)


def maximise(features: Tensor, base: Tensor, truth: Tensor) -> Tensor:
    """(expert,) the non-negative weights with the greatest likelihood, by a projected Newton's method (Bertsekas 1982).

    The log-likelihood is concave: its gradient is the experts' log-probability of the true cell minus its mean over the
    fused posterior, its Hessian minus their covariance. A weight that would be negative is 0 for as long as the
    gradient is negative. The last expert gets at least `LEAST_WEIGHT`.

    Args:
        features: (expert, photo, entry) log-probabilities of one cell of each entry.
        base: (photo, entry) logarithm of the number of cells of an entry; -inf for padding.
        truth: (expert, photo) log-probabilities of the true cells.
    """
    count = truth.shape[1]

    def likelihood(weights: Tensor) -> tuple[Tensor, Tensor]:
        used = weights > 0  # 0 times -inf is nan
        logits = torch.einsum("e,epc->pc", weights[used], features[used]) + base
        total = logits.logsumexp(-1, keepdim=True)
        return (weights[used] @ truth[used] - total[:, 0]).mean(), (logits - total).exp()

    weights = torch.full((len(features),), 1 / len(features), dtype=torch.float64)
    value, probability = likelihood(weights)
    for _ in range(NEWTON_STEPS):
        mean = torch.einsum("pc,epc->ep", probability, features)
        gradient = (truth - mean).mean(1)
        free = (weights > 0) | (gradient > 0)
        if not free.any():
            break
        moment = torch.einsum("pc,epc,fpc->ef", probability, features[free], features[free]) / count
        covariance = moment - mean[free] @ mean[free].T / count
        step = torch.zeros_like(weights)
        step[free] = torch.linalg.solve(covariance + 1e-6 * torch.eye(len(moment), dtype=moment.dtype), gradient[free])
        for _ in range(20):  # halve the step until the likelihood rises
            trial = (weights + step).clamp(min=0.0)
            trial_value, trial_probability = likelihood(trial)
            if trial_value >= value:
                break
            step = step / 2
        else:
            break
        converged = float(trial_value - value) < 1e-8
        weights, value, probability = trial, trial_value, trial_probability
        if converged:
            break
    if int((weights > 0).sum()) <= 1:
        best = int((weights if weights.any() else gradient).argmax())
        weights[best] = weights[best].clamp(min=LEAST_WEIGHT)
    return weights
