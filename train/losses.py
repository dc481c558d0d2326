"""Contrastive losses: a batch's photos against its cells, or against the tiles of every level.

Two photos of one cell share their positive, so neither is a negative of the other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

#: TransGeo's factor of differences of cosine similarities (Zhu et al. 2022, section 3.4: alpha).
ALPHA = 20.0


def negatives(cells: Tensor) -> Tensor:
    """(photo, cell) bool: which pairs of a batch are negatives.

    Args:
        cells: (photo,) cell of each photo; -1 marks padding, which is in no pair.
    """
    valid = cells >= 0
    return (cells[:, None] != cells) & valid[:, None] & valid


def symmetric_infonce(query: Tensor, reference: Tensor, cells: Tensor, scale: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of each photo's cell among the batch's, and of each cell's photo (Sample4Geo, section 3.2).

    Args:
        query: (n, feature), of unit length.
        reference: (n, feature), of unit length; row i is the cell of photo i.
        cells: (n,) cell of each photo; -1 marks padding.
        scale: reciprocal of the temperature.
        smoothing: share of the label that is spread over all pairs of a row.
    """
    allowed = negatives(cells)
    allowed |= torch.diag(cells >= 0)
    logits = scale * query @ reference.T
    return (_smoothed(logits, allowed, smoothing) + _smoothed(logits.T, allowed.T, smoothing)) / 2


def _smoothed(logits: Tensor, allowed: Tensor, smoothing: float) -> Tensor:
    """Mean over the rows; torch's own cross-entropy would spread the label over excluded pairs too."""
    log_share = logits.float().masked_fill(~allowed, -torch.inf).log_softmax(-1)
    spread = log_share.masked_fill(~allowed, 0.0).sum(-1) / allowed.sum(-1).clamp(min=1)
    valid = allowed.diagonal()
    loss = -(1 - smoothing) * log_share.diagonal() - smoothing * spread
    return loss[valid].mean()


def soft_margin_triplet(query: Tensor, reference: Tensor, cells: Tensor, scale: Tensor, smoothing: float) -> Tensor:
    """log(1 + exp(alpha (negative - positive))) over all triplets of a batch, both ways (TransGeo, section 3.4).

    Args:
        query: (n, feature), of unit length.
        reference: (n, feature), of unit length; row i is the cell of photo i.
        cells: (n,) cell of each photo; -1 marks padding.
        scale: alpha.
        smoothing: unused, because triplets have no labels; part of the common signature of `LOSSES`.
    """
    similarity = (query @ reference.T).float()
    positive = similarity.diagonal()
    is_negative = negatives(cells)
    rows = F.softplus(scale * (similarity - positive[:, None]))[is_negative]
    cols = F.softplus(scale * (similarity - positive[None]))[is_negative]
    return (rows.sum() + cols.sum()) / (2 * is_negative.sum().clamp(min=1))


def level_contrast(photo_codes: Tensor, place_codes: Tensor, places: Tensor) -> Tensor:
    """InfoNCE at every level, both ways: each photo's place among the batch's, and each place's photos among them.

    Several photos of one place are equally likely to be its photo.

    Args:
        photo_codes: (photo, level, code), times the factor of similarities.
        place_codes: (place, code), of unit length.
        places: (photo, level) index of each photo's place.

    Returns:
        Mean over the levels, a scalar.
    """
    losses = []
    for codes, index in zip(photo_codes.unbind(1), places.unbind(1), strict=True):
        distinct, target = index.unique(return_inverse=True)
        logits = (codes @ place_codes[distinct].T).float()  # (photo, place)
        share = F.one_hot(target, len(distinct)).to(logits.dtype)
        share = share / share.sum(0)  # of each photo in its place
        to_photo = -(share * logits.log_softmax(0)).sum(0).mean()
        losses.append((F.cross_entropy(logits, target) + to_photo) / 2)
    return torch.stack(losses).mean()


LOSSES = {"infonce": symmetric_infonce, "triplet": soft_margin_triplet}
