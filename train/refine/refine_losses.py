"""Losses of refinement (UnifyGeo, arXiv 2505.07622, section III): where in a window a photo was taken, and in which.

Places and headings are weighted as `jzi.train.refine.refine_targets` says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from jzi.refine.outputs import RefinerOutput
from jzi.train.losses import infonce_of_pairs
from jzi.train.refine.refine_targets import false_negatives, heading_target, level_weights, normalised, place_target

#: Divisor of cosines in L_M and L_R; CCVPE's constant (Xia et al. 2023), which the paper's equation 8 takes over.
TAU = 0.1


@dataclass(frozen=True)
class LossWeights:
    """Factors of the losses in their sum (paper, section IV.C: alpha = 100, beta = 10, gamma = 1)."""

    decoder: float = 1.0
    retrieval: float = 100.0
    matching: float = 10.0
    rerank: float = 1.0


@dataclass(frozen=True)
class RefinerLosses:
    """The losses of a batch, unweighted means over its photos; scalars, 0 for one that is off.

    Attributes:
        decoder: L_D, cross-entropy of the place in the photo's own window.
        retrieval: L_G, InfoNCE of embeddings of photos and windows.
        matching: L_M, InfoNCE of the place and heading at each level of the photo's own window, summed over levels.
        rerank: L_R, the same at the coarsest level among all windows of the batch.
    """

    decoder: Tensor
    retrieval: Tensor
    matching: Tensor
    rerank: Tensor

    def total(self, weights: LossWeights) -> Tensor:
        """The weighted sum; a loss with weight 0 has no effect, whatever its value."""
        factors = {each.name: getattr(weights, each.name) for each in fields(weights)}
        terms = [factor * getattr(self, name) for name, factor in factors.items() if factor]
        return torch.stack(terms).sum()

    def values(self) -> Tensor:
        """(4,) the losses in the order of the fields, without gradient."""
        return torch.stack([getattr(self, each.name).detach().float() for each in fields(self)])


def decoder_loss(logits: Tensor, target: Tensor) -> Tensor:
    """L_D (equation 7): cross-entropy of the place, a mean over the photos.

    Args:
        logits: (n, P, P), -inf where there is no imagery.
        target: (n, P, P) of `place_target`.
    """
    log_share = logits.float().flatten(1).log_softmax(-1)
    return -_weighted(target.flatten(1), log_share).sum(-1).mean()


def matching_loss(
    levels: Sequence[Tensor], masks: Sequence[Tensor], weights: Sequence[Tensor], heading: Tensor, log_heading: Tensor
) -> Tensor:
    """L_M (equation 8): InfoNCE of the photo's place and heading at each level, summed over levels.

    With one roll, this is the paper's. With several, places of all rolls that the prior allows are the candidates
    (CCVPE), and where the heading is not known, the probability of a place is the sum over the rolls.

    Args:
        levels: (n, R, L_l, L_l) cosines of each level.
        masks: (n, L_l, L_l) bool, cells with any imagery, of each level.
        weights: (n, L_l, L_l) of `level_weights` for each level.
        heading: (n, R) of `heading_target`.
        log_heading: (n, R) log prior of the rolls.

    Returns:
        Mean over the photos, a scalar.
    """
    losses = []
    for cosines, allowed, weight in zip(levels, masks, weights, strict=True):
        losses.append(_places(cosines[:, None], allowed[:, None], weight[:, None], heading, log_heading))
    return torch.stack(losses).sum(0).mean()


def rerank_loss(cosines: Tensor, allowed: Tensor, weight: Tensor, heading: Tensor, log_heading: Tensor) -> Tensor:
    """L_R: InfoNCE of a photo's place at the coarsest level among the windows of all photos of the batch.

    The paper prints no formula. Equal to L_M's coarsest level if the batch is one photo.

    Args:
        cosines: (n, m, R, L, L) of photo b and window b'.
        allowed: (n, m, L, L) bool, the cells that count; those without imagery do not, nor do those of windows that are
            left out (`false_negatives`).
        weight: (n, m, L, L) of sum 1 over the windows: `level_weights` in the photo's own window.
        heading: (n, R) of `heading_target`.
        log_heading: (n, R) log prior of the rolls.

    Returns:
        Mean over the photos, a scalar.
    """
    return _places(cosines, allowed, weight, heading, log_heading).mean()


def retrieval_loss(query: Tensor, reference: Tensor, scale: Tensor, excluded: Tensor, smoothing: float) -> Tensor:
    """L_G: symmetric InfoNCE of embeddings (Sample4Geo), without the pairs that are left out.

    Args:
        query: (n, feature) of photos, of unit length.
        reference: (n, feature) of windows, of unit length; row i is the window of photo i.
        scale: reciprocal of the temperature.
        excluded: (n, n) bool, windows b' that show the place of photo b; the diagonal is never left out.
        smoothing: share of the label that is spread over all pairs of a row.
    """
    allowed = ~excluded | torch.eye(len(query), dtype=torch.bool, device=query.device)
    return infonce_of_pairs(query, reference, allowed, scale, smoothing)


def _places(cosines: Tensor, allowed: Tensor, weight: Tensor, heading: Tensor, log_heading: Tensor) -> Tensor:
    """(n,) cross-entropy of places and rolls, softmax over all windows, rolls and cells.

    Args:
        cosines: (n, m, R, L, L).
        allowed: (n, m, L, L) bool.
        weight: (n, m, L, L).
        heading: (n, R).
        log_heading: (n, R).
    """
    allowed_rolls = log_heading.isfinite()
    scores = cosines.float() / TAU + log_heading.float()[:, None, :, None, None]
    of_place = scores.logsumexp(2).masked_fill(~allowed, -math.inf)  # (n, m, L, L)
    nowhere = ~allowed.flatten(1).any(1)  # without any imagery, there is nothing to learn
    log_total = of_place.flatten(1).logsumexp(-1).masked_fill(nowhere, 0.0)
    prior = log_heading.float().masked_fill(~allowed_rolls, 0.0)
    expected = torch.einsum("nr,nmrij->nmij", heading, cosines.float()) / TAU
    expected = expected + (heading * prior).sum(-1)[:, None, None, None]
    known = (heading.sum(-1) > 0)[:, None, None, None]
    of_truth = torch.where(known, expected, of_place.masked_fill(~allowed, 0.0))
    return log_total * weight.flatten(1).sum(-1) - (weight * of_truth).flatten(1).sum(-1)


def _weighted(weight: Tensor, log_share: Tensor) -> Tensor:
    """weight * log_share, and 0 where the weight is 0, also of -inf."""
    return weight * log_share.masked_fill(weight == 0, 0.0)


@dataclass(frozen=True)
class PairTruth:
    """Where the photos of a batch were taken.

    Attributes:
        places: (n, m, 2) column and row of photo b in window b', from its centre, right and down positive, fractions of
            its side; window b is that of photo b.
        heading_deg: (n,) of the photos' centre columns, clockwise from the north of their windows; nan if not known.
        alike: (n, m) bool, whether photo b and window b' were flipped and turned alike, so that one may show the other;
            None if all were.
    """

    places: Tensor
    heading_deg: Tensor
    alike: Tensor | None = None

    @property
    def place(self) -> Tensor:
        """(n, 2) of each photo in its own window."""
        return self.places.diagonal(dim1=0, dim2=1).T


def refiner_losses(
    output: RefinerOutput,
    truth: PairTruth,
    sigma_px: float,
    *,
    cross: Tensor | None = None,
    embeddings: tuple[Tensor, Tensor, Tensor] | None = None,
    semi: str = "mask",
    smoothing: float = 0.1,
) -> RefinerLosses:
    """All losses of a batch.

    Args:
        output: of each photo and its own window.
        truth: where the photos were taken.
        sigma_px: standard deviation of the Gaussian around the true place, pixels.
        cross: (n, m, R, L, L) cosines of level 0 of photo b and window b'; None for no L_R.
        embeddings: (n, feature) of photos and of windows, of unit length, and the reciprocal of the temperature; None
            for no L_G.
        semi: "mask": windows of other photos that show a photo's place are no negatives; "positive": they are positives
            of L_R, at the place that they show.
        smoothing: label smoothing of L_G.
    """
    size, log_heading = output.mask.shape[-1], output.log_heading
    place = (truth.place + 0.5) * size
    heading = heading_target(truth.heading_deg, output.levels[0].shape[1], log_heading)
    weights = [level_weights(place, output.mask, sigma_px, level.shape[-1]) for level in output.levels]
    off = output.levels[0].new_zeros(())
    excluded = false_negatives(truth.places) & ~torch.eye(len(place), dtype=torch.bool, device=place.device)
    rerank = retrieval = off
    if cross is not None:
        side = cross.shape[-1]
        weight = torch.eye(len(place), device=place.device)[:, :, None, None] * weights[0][:, None]
        kept = ~excluded
        if semi == "positive":
            shown = excluded if truth.alike is None else excluded & truth.alike
            others = (truth.places + 0.5) * size
            every = level_weights(others, output.mask.expand(len(place), -1, -1, -1), sigma_px, side)
            weight = normalised(weight + every * shown[:, :, None, None], (-3, -2, -1))
            kept = kept | shown
        allowed = output.level_masks[0][None] & kept[:, :, None, None]
        rerank = rerank_loss(cross, allowed, weight, heading, log_heading)
    if embeddings is not None:
        retrieval = retrieval_loss(*embeddings, excluded, smoothing)
    return RefinerLosses(
        decoder=decoder_loss(output.logits, place_target(place, output.mask, sigma_px)),
        retrieval=retrieval,
        matching=matching_loss(output.levels, output.level_masks, weights, heading, log_heading),
        rerank=rerank,
    )
