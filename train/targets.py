"""What the decoder is to answer at a step: labels smoothed over children."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor

from jzi.train.config import TrainConfig


def next_action_loss(logits: Tensor, right: Tensor, config: TrainConfig) -> Tensor:
    """Cross-entropy of (photo, step, action) logits with (photo, step) right answers, smoothed as the settings say."""
    flat, wanted = logits.float().flatten(0, 1), right.flatten()
    if config.targets == "distance":
        labels = distance_labels(logits.shape[-1], config.label_smoothing, config.target_sigma)
        return F.cross_entropy(flat, labels.to(flat.device)[wanted])
    return F.cross_entropy(flat, wanted, label_smoothing=config.label_smoothing)


@lru_cache(maxsize=8)
def distance_labels(actions: int, smoothing: float, sigma: float) -> Tensor:
    """(action, action): the distribution that stands for each true action.

    A share of `smoothing` is spread over all children as a Gaussian of `sigma` child widths around the true one. As
    wide as can be it is the usual label smoothing (Szegedy et al. 2016), which knows nothing of where children lie.
    """
    grid = round(sqrt(actions))
    child = torch.arange(actions)
    place = torch.stack([child // grid, child % grid], -1).double()
    spread = torch.softmax(-torch.cdist(place, place).square() / (2 * sigma**2), -1)
    return ((1 - smoothing) * torch.eye(actions, dtype=torch.float64) + smoothing * spread).float()
