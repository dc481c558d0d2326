"""Contrastive losses: a batch's photos against its cells, or against the tiles of every level.

Two photos of one cell share their positive, so neither is a negative of the other. Where cells are not on a grid, a
photo and a cell are a negative pair if they are far enough apart.
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
    return infonce_of_pairs(query, reference, negatives(cells) | torch.diag(cells >= 0), scale, smoothing)


def infonce_of_pairs(query: Tensor, reference: Tensor, allowed: Tensor, scale: Tensor, smoothing: float) -> Tensor:
    """`symmetric_infonce` among the pairs (n, n) that are allowed; photos whose own pair is not are left out."""
    logits = scale * query @ reference.T
    return (_smoothed(logits, allowed, smoothing) + _smoothed(logits.T, allowed.T, smoothing)) / 2


def _smoothed(logits: Tensor, allowed: Tensor, smoothing: float) -> Tensor:
    """Mean over the rows; torch's own cross-entropy would spread the label over excluded pairs too."""
    log_share = logits.float().masked_fill(~allowed, -torch.inf).log_softmax(-1)
    spread = log_share.masked_fill(~allowed, 0.0).sum(-1) / allowed.sum(-1).clamp(min=1)
    valid = allowed.diagonal()
    loss = -(1 - smoothing) * log_share.diagonal() - smoothing * spread
    return loss.masked_fill(~valid, 0.0).sum() / valid.sum()


def soft_margin_triplet(query: Tensor, reference: Tensor, cells: Tensor, scale: Tensor, smoothing: float) -> Tensor:
    """log(1 + exp(alpha (negative - positive))) over all triplets of a batch, both ways (TransGeo, section 3.4).

    Args:
        query: (n, feature), of unit length.
        reference: (n, feature), of unit length; row i is the cell of photo i.
        cells: (n,) cell of each photo; -1 marks padding.
        scale: alpha.
        smoothing: unused, because triplets have no labels; part of the common signature of `LOSSES`.
    """
    return _soft_margins(scale * (query @ reference.T).float(), negatives(cells))


def _soft_margins(logits: Tensor, is_negative: Tensor) -> Tensor:
    positive = logits.diagonal()
    both = F.softplus(logits - positive[:, None]) + F.softplus(logits - positive[None])
    return both.masked_fill(~is_negative, 0.0).sum() / (2 * is_negative.sum().clamp(min=1))


def decoupled_contrast(logits: Tensor, pairs: Tensor, smoothing: float, *, decoupled: bool = True) -> Tensor:
    """Decoupled contrastive loss with label smoothing, both ways (Fervers et al. 2024, section 3.4).

    In the softmax of a pair, the denominator leaves out the pair itself (Yeh et al. 2022, "Decoupled Contrastive
    Learning"), for the pairs that get a share of the smoothed label as well. The loss has no lower bound, and is
    negative where photos and cells are easy to distinguish. A photo or cell without a negative contributes 0.

    Args:
        logits: (photo, cell), scaled similarities; pair (i, i) is the positive. Lower precision than float32 is
            computed with as float32.
        pairs: (photo, cell) bool, the pairs that count: the positive and the negatives. The positive of a padded row
            does not count.
        smoothing: share of the label that is spread over the negatives.
        decoupled: False for an ordinary softmax, whose denominator has all pairs.

    Returns:
        Mean over the rows and columns that are not padding, a scalar.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    one_way = [_decoupled_rows(*each, smoothing, decoupled) for each in ((logits, pairs), (logits.T, pairs.T))]
    return sum(one_way[1:], one_way[0]) / (2 * pairs.diagonal().sum().clamp(min=1))


def _decoupled_rows(logits: Tensor, pairs: Tensor, smoothing: float, decoupled: bool) -> Tensor:
    """Sum of the rows' losses; rows are masked, not selected, which would read their number from the device."""
    count = pairs.sum(1)
    left_out = ~(pairs.diagonal() & (count >= 2))[:, None]
    logits, pairs = logits.masked_fill(left_out, 0.0), pairs | left_out
    positive = torch.arange(len(logits), device=logits.device)
    masked = logits.masked_fill(~pairs, -torch.inf)
    log_sum = masked.logsumexp(1, keepdim=True)
    if decoupled:
        # log(exp(log_sum) - exp(logit)) loses all digits where one pair dominates, which can only be the row's largest
        largest = masked.argmax(1, keepdim=True)
        others = masked.scatter(1, largest, -torch.inf).logsumexp(1, keepdim=True)
        share = (masked - log_sum).scatter(1, largest, -torch.inf).exp()  # at most a half
        log_sum = (log_sum + torch.log1p(-share)).scatter(1, largest, others)
    log_share = (logits - log_sum).masked_fill(~pairs, 0.0)
    label = (
        (smoothing / (count - 1).clamp(min=1).to(logits.dtype))[:, None]
        .expand_as(logits)
        .scatter(1, positive[:, None], 1 - smoothing)
    )
    return -(label * log_share).masked_fill(left_out, 0.0).sum()


def soft_margins(logits: Tensor, pairs: Tensor) -> Tensor:
    """log(1 + exp(negative - positive)) over all triplets of a batch, both ways (Hu et al. 2018, "CVM-Net").

    Args:
        logits: (photo, cell), scaled similarities; pair (i, i) is the positive. With the squared distance of unit
            vectors, 2 - 2 cosine, as in SAFA (Shi et al. 2019), they are twice the scaled cosine.
        pairs: (photo, cell) bool, the pairs that count, as in `decoupled_contrast`.

    Returns:
        Mean over the triplets, a scalar.
    """
    return _soft_margins(logits.float(), pairs & ~torch.eye(len(pairs), dtype=torch.bool, device=pairs.device))


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
    photos, losses = torch.arange(len(places), device=places.device), []
    for codes, index in zip(photo_codes.unbind(1), places.unbind(1), strict=True):
        # The places of all photos, of which those that repeat an earlier one are left out: to select the distinct ones
        # would read their number from the device
        logits = (codes @ place_codes[index].T).float()  # (photo, place)
        same = index[:, None] == index
        repeats = same.tril(-1).any(1)
        target = torch.where(same, photos, len(photos)).amin(1)  # the first photo of the same place
        to_place = F.cross_entropy(logits.masked_fill(repeats, -torch.inf), target)
        share = same / same.sum(0)  # of each photo in its place
        to_photo = -(share * logits.log_softmax(0)).sum(0).masked_fill(repeats, 0.0).sum() / (~repeats).sum()
        losses.append((to_place + to_photo) / 2)
    return torch.stack(losses).mean()


LOSSES = {"infonce": symmetric_infonce, "triplet": soft_margin_triplet}
