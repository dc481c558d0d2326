"""Weights of experts, fitted by maximum likelihood on validation photos; an expert without a clear gain has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.locate.joint.fusion import FLOOR, Stacked, reach_every_cell
from jzi.locate.joint.gain import MIN_PHOTOS, is_clear, mean_and_error
from jzi.locate.joint.sharpness import UNIFORM, Sharpness, fit_sharpness
from jzi.locate.joint.spread import fit_spread, neighbours
from jzi.locate.posterior import Posterior

#: Most probable cells of each expert on which weights are fitted, and maximum number of steps of the fit.
FIT_CELLS, NEWTON_STEPS = 256, 30

#: Largest number of probabilities of an expert that are kept for the fit of the power: all cells of 500 photos on a map
#: of 64 x 64.
FIT_VALUES = 2**21

#: Photos that the prior of the weights counts as: a normal distribution around equal weights whose sum is 1. Weights of
#: a handful of photos would otherwise be whatever makes these few certain.
PRIOR_PHOTOS = 5.0

#: Smallest weight of an expert that is left alone: nearly uniform probabilities, but still a most probable cell.
LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class FusionWeights:
    """Weights of experts, and what each expert gains.

    Attributes:
        weights: exponent of each expert's posterior, by its name; 0 for an expert that was dropped.
        gains: decrease of the validation log-likelihood per photo without the expert, and its standard error.
        photos: number of validation photos.
        spread: spread of the product; see `jzi.locate.joint.spread`.
        sharpness: power of the product; see `jzi.locate.joint.sharpness`.
    """

    weights: dict[str, float]
    gains: dict[str, tuple[float, float]] = field(default_factory=dict)
    photos: int = 0
    spread: float = 0.0
    sharpness: Sharpness = UNIFORM

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the experts that were not dropped."""
        return tuple(name for name, weight in self.weights.items() if weight > 0)


class FusionFit:
    """Fits the weights of trained experts, and of subsets of them, by maximum likelihood on validation photos.

    Args:
        names: names of the experts.
        posteriors: (expert,) their posteriors for the validation photos.
        cell_mask: (row, col) whether each cell has imagery.
        key: (photo,) row * columns + column of the true cells.
        prior: photos that the prior of the weights counts as.
        fewest: photos below which no expert is dropped.
    """

    def __init__(
        self,
        names: Sequence[str],
        posteriors: Sequence[Posterior],
        cell_mask: NDArray[np.bool_],
        key: NDArray[np.int64],
        *,
        prior: float = PRIOR_PHOTOS,
        fewest: int = MIN_PHOTOS,
    ) -> None:
        self.names, self.key, self.prior, self.fewest = tuple(names), key, prior, fewest
        self._posteriors, floors = tuple(posteriors), [FLOOR] * len(names)
        self.stacked = Stacked.of([each.top(FIT_CELLS) for each in posteriors], cell_mask, floors)
        self._fits: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    @cached_property
    def _best(self) -> _Entries:
        """The most probable cells of each expert, on which the weights are fitted."""
        return _Entries.of(self.stacked, self.key)

    @cached_property
    def _whole(self) -> _Entries:
        """All cells that the posteriors have, for the power, which decides what cells of little probability weigh."""
        mask, floors = self.stacked.cell_mask, [FLOOR] * len(self.names)
        every_cell = reach_every_cell(self._posteriors, mask)
        return _Entries.of(Stacked.of(self._posteriors, mask, floors, every_cell=every_cell), self.key)

    def weights(self, names: Sequence[str] = ()) -> FusionWeights:
        """The weights of several of the experts, and the spread and the power of their product.

        Args:
            names: names of the experts to fuse; all by default.
        """
        fitted = self.product(names)
        used = [self.names.index(name) for name in fitted.used]
        weights = torch.tensor([fitted.weights[name] for name in fitted.used], dtype=torch.float64)
        factor, spread = fit_spread(*self._best.product(used, weights))
        scaled = {name: factor * weight for name, weight in fitted.weights.items()}
        cells = int(self.stacked.cell_mask.sum())
        sharpness = fit_sharpness(*self._whole.product(used, factor * weights), spread, cells)
        return replace(fitted, weights=scaled, spread=spread, sharpness=sharpness)

    def product(self, names: Sequence[str] = ()) -> FusionWeights:
        """The weights of several of the experts, whose product is not spread.

        Does no harm: while there are experts whose gain is not clear (`jzi.locate.joint.gain`), the one with the least
        gain is dropped, and the others are fitted again. Where a single expert is more likely than those that remain,
        it replaces them. On fewer than `fewest` photos all are kept, near equal weights.

        Args:
            names: names of the experts to fuse; all by default.
        """
        names = tuple(names) or self.names
        every = [self.names.index(name) for name in names]
        return clear_weights(names, lambda used: self._fit([every[expert] for expert in used]), self.fewest)

    def _fit(self, experts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(expert,) weights of several experts, and (photo,) log-likelihood with them; computed once."""
        if (index := tuple(experts)) not in self._fits:
            stacked = self.stacked.select(index)
            weights = _maximise(stacked, self.key, self.prior)
            self._fits[index] = weights, stacked.log_likelihood(weights, self.key)
        return self._fits[index]


@dataclass(frozen=True)
class _Entries:
    """What spread and power are fitted on.

    Attributes:
        features: (expert, photo, entry) log-probabilities of one cell of each entry.
        base: (photo, entry) logarithm of the number of cells of an entry; -inf for padding.
        near: (expert, photo, 9) log-probabilities of the true cells and their neighbours.
    """

    features: Tensor
    base: Tensor
    near: Tensor

    @classmethod
    def of(cls, stacked: Stacked, key: NDArray[np.int64]) -> Self:
        """The entries of stacked posteriors, of photos whose true cells are `key`."""
        keys = neighbours(key, stacked.cell_mask)
        return cls(*_entries(stacked), torch.stack([stacked.of_cells(each) for each in keys.T], -1))

    def product(self, used: Sequence[int], weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of the product of several experts, (photo, entry); `base`; and those of `near`, (photo, 9)."""
        index = list(used)
        product, near = (torch.einsum("e,epc->pc", weights, each[index]) for each in (self.features, self.near))
        return product, self.base, near


def clear_weights(
    names: Sequence[str], fit: Callable[[Sequence[int]], tuple[Tensor, Tensor]], fewest: int = MIN_PHOTOS
) -> FusionWeights:
    """The weights of those experts that have a clear gain; see `FusionFit.product`.

    Args:
        names: names of the experts.
        fit: weights (expert,) of some of them, given by their indices, and the log-likelihood (photo,) with them.
        fewest: photos below which all experts are kept.
    """
    used, gains = list(range(len(names))), dict[str, tuple[float, float]]()
    few = len(fit(used)[1]) < fewest
    while len(used) > 1:
        likelihood, unclear = fit(used)[1], dict[int, float]()
        for expert in used:
            gain = mean_and_error(likelihood - fit([each for each in used if each != expert])[1])
            gains[names[expert]] = gain
            if not is_clear(*gain):
                unclear[expert] = gain[0]
        if few or not unclear:
            break
        used.remove(min(unclear, key=unclear.__getitem__))
    best = max(([expert] for expert in range(len(names))), key=lambda single: float(fit(single)[1].mean()))
    if not few and float(fit(best)[1].mean() - fit(used)[1].mean()) > 1e-9:
        used = best
    weights, likelihood = fit(used)
    fitted = {names[expert]: float(weight) for expert, weight in zip(used, weights, strict=True)}
    return FusionWeights({name: fitted.get(name, 0.0) for name in names}, gains, len(likelihood))


def fit_weights(
    names: Sequence[str], posteriors: Sequence[Posterior], cell_mask: NDArray[np.bool_], key: NDArray[np.int64]
) -> FusionWeights:
    """Fit the weights of experts; see `FusionFit`, whose arguments these are."""
    return FusionFit(names, posteriors, cell_mask, key).weights()


def _maximise(stacked: Stacked, key: NDArray[np.int64], prior: float) -> Tensor:
    """(expert,) the weights with the greatest likelihood of the true cells; see `maximise`."""
    return maximise(*_entries(stacked), stacked.of_cells(key), prior)


def _entries(stacked: Stacked) -> tuple[Tensor, Tensor]:
    """(expert, photo, entry) log-probabilities, and (photo, entry) logarithm of the number of cells of each entry.

    The last entry stands for the cells that no expert reached.
    """
    return torch.cat([stacked.log, stacked.outside[..., None]], -1), stacked.entry_count


def maximise(features: Tensor, base: Tensor, truth: Tensor, prior: float = 0.0) -> Tensor:
    """(expert,) the non-negative weights with the greatest likelihood, by a projected Newton's method (Bertsekas 1982).

    The log-likelihood is concave: its gradient is the experts' log-probability of the true cell minus its mean over the
    fused posterior, its Hessian minus their covariance. A weight that would be negative is 0 for as long as the
    gradient is negative. The last expert gets at least `LEAST_WEIGHT`.

    Args:
        features: (expert, photo, entry) log-probabilities of one cell of each entry.
        base: (photo, entry) logarithm of the number of cells of an entry; -inf for padding.
        truth: (expert, photo) log-probabilities of the true cells.
        prior: photos that a normal prior around equal weights with the sum 1 counts as.
    """
    count, equal = truth.shape[1], 1 / len(features)
    prior /= count

    def likelihood(weights: Tensor) -> tuple[Tensor, Tensor]:
        used = weights > 0  # 0 times -inf is nan
        logits = torch.einsum("e,epc->pc", weights[used], features[used]) + base
        total = logits.logsumexp(-1, keepdim=True)
        value = (weights[used] @ truth[used] - total[:, 0]).mean() - prior / 2 * (weights - equal).square().sum()
        return value, (logits - total).exp()

    weights = torch.full((len(features),), equal, dtype=torch.float64)
    value, probability = likelihood(weights)
    for _ in range(NEWTON_STEPS):
        mean = torch.einsum("pc,epc->ep", probability, features)
        gradient = (truth - mean).mean(1) - prior * (weights - equal)
        free = (weights > 0) | (gradient > 0)
        if not free.any():
            break
        moment = torch.einsum("pc,epc,fpc->ef", probability, features[free], features[free]) / count
        covariance = moment - mean[free] @ mean[free].T / count
        step = torch.zeros_like(weights)
        damping = (prior + 1e-6) * torch.eye(len(moment), dtype=moment.dtype)
        step[free] = torch.linalg.solve(covariance + damping, gradient[free])
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
