"""The sharpness of a fused posterior: its exponent for each photo, by how few cells the experts agree on.

One set of weights makes a product of experts too sure of photos that fit many places, and not sure enough of those that
fit one. Each photo's product is therefore raised to a power that falls with its effective number of cells, as the
temperature rises with the entropy in Balanya, Maroñas and Ramos (2024, "Adaptive temperature scaling for robust
calibration of deep neural networks"). That number is the reciprocal of the sum of the squared probabilities, on which
cells of little probability have no influence: products on all cells and on the most probable ones have the same power.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jzi.locate.joint.gain import MIN_PHOTOS, is_clear, mean_and_error
from jzi.locate.joint.spread import TINY, kernel

#: Greatest slope: with 1 the power halves where the number of cells doubles. Fits gave 0.08 to 0.18.
GREATEST_SLOPE = 1.0

#: Most probable entries of a photo that the fit takes singly, and groups of equally many of the others, whose entries
#: are as probable as their mean: a power changes how much all cells of little probability together weigh.
SINGLE, GROUPS = 256, 64

#: Steps of the fit, and bounds of a power: of a photo unlike all validation photos it is not extrapolated further.
STEPS, POWERS = 40, (0.25, 4.0)


@dataclass(frozen=True)
class Sharpness:
    """The power of a photo's product: exp(slope * (center - size)) of its size.

    Attributes:
        slope: how fast the power falls with the size; 0 for none.
        center: the size of a product that stays as it is: the logarithm of its effective number of cells as a share of
            the map's cells with imagery.
    """

    slope: float = 0.0
    center: float = 0.0

    def power(self, size: Tensor) -> Tensor:
        """(photo,) the power of products of sizes (photo,)."""
        return (self.slope * (self.center - size)).exp().clamp(*POWERS)


#: Products stay as they are.
UNIFORM = Sharpness()


def product_size(log: Tensor, base: Tensor, cells: int) -> Tensor:
    """(photo,) logarithm of the effective number of cells of products, as a share of the map's.

    Args:
        log: (photo, entry) normalised log-probability of one cell of each entry.
        base: (photo, entry) logarithm of the number of cells of an entry; -inf for padding.
        cells: number of the map's cells with imagery.
    """
    return -(2 * log + base).logsumexp(-1) - math.log(cells)


def fit_sharpness(product: Tensor, base: Tensor, truth: Tensor, spread: float, cells: int) -> Sharpness:
    """The sharpness with the greatest likelihood of the true cells; none without a clear gain.

    Args:
        product: (photo, entry) logarithm of the product of the experts' posteriors, for one cell of each entry.
        base: (photo, entry) logarithm of the number of cells of an entry; -inf for padding.
        truth: (photo, 9) the product for the `jzi.locate.joint.spread.neighbours` of the true cells.
        spread: spread of the product.
        cells: number of the map's cells with imagery.
    """
    if len(truth) < MIN_PHOTOS:
        return UNIFORM
    product, base = _grouped(product, base)
    normaliser = (product + base).logsumexp(-1, keepdim=True)
    product, truth = product - normaliser, truth - normaliser
    size = product_size(product, base, cells)
    mean = float(size.mean())
    moves = torch.from_numpy(kernel(spread)).clamp(min=TINY).log()

    def likelihood(log_factor: Tensor, slope: Tensor) -> Tensor:
        power = (log_factor + slope * (mean - size)).exp().clamp(*POWERS)[:, None]
        return (power * truth + moves).logsumexp(-1) - (power * product + base).logsumexp(-1)

    found = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([found], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -likelihood(*found).mean()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    log_factor, slope = found.detach()
    if not (bool(torch.isfinite(found).all()) and 0 < float(slope) <= GREATEST_SLOPE):
        return UNIFORM
    gain = likelihood(log_factor, slope) - likelihood(*torch.zeros(2, dtype=torch.float64))
    if not is_clear(*mean_and_error(gain)):
        return UNIFORM
    return Sharpness(float(slope), mean + float(log_factor / slope))


def _grouped(product: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """The most probable entries of each photo, and groups of the others; of the same shapes and meaning as given."""
    order = torch.where(base.isfinite(), product, -torch.inf).argsort(-1, descending=True)
    product, base = product.gather(-1, order), base.gather(-1, order)
    products, bases = [product[:, :SINGLE]], [base[:, :SINGLE]]
    for values, counts in zip(*(each[:, SINGLE:].tensor_split(GROUPS, -1) for each in (product, base)), strict=True):
        if counts.shape[1]:
            total = counts.logsumexp(-1, keepdim=True)
            share = (counts - total).exp().nan_to_num(0.0)
            products.append((share * values.where(counts.isfinite(), 0.0)).sum(-1, keepdim=True))
            bases.append(total)
    return torch.cat(products, -1), torch.cat(bases, -1)
