"""Similarities of photos to cells: the nearest, the rank of the true one, and the temperature of their softmax."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from numpy.typing import NDArray
from torch import Tensor

#: Rows whose similarities are worked out at once: 1024 x 65 536 in float32 take 0.27 GB.
ROWS = 1024


def nearest(query: Tensor, reference: Tensor, count: int) -> NDArray[np.int32]:
    """(query, count) which references have the greatest inner product with each query, the greatest first."""
    count = min(count, len(reference))
    parts = [(rows.float() @ reference.float().T).topk(count).indices.int().cpu() for rows in query.split(ROWS)]
    return torch.cat(parts).numpy()


def ranks(query: Tensor, reference: Tensor, truth: Tensor) -> NDArray[np.int64]:
    """(query,) how many references are more similar to each query than its own.

    Args:
        query: (query, feature), of unit length.
        reference: (cell, feature), of unit length.
        truth: (query,) which reference is its own.
    """
    found = []
    for rows, own in zip(query.split(ROWS), truth.to(query.device).split(ROWS), strict=True):
        similarity = rows @ reference.T
        found.append((similarity > similarity.gather(1, own[:, None])).sum(1).cpu())
    return torch.cat(found).numpy()


def fit_temperature(query: Tensor, reference: Tensor, truth: Tensor) -> float:
    """What similarities are divided by, so that their softmax over all cells is as likely as it can be.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks". The best of 61 values from 0.005 to 5.

    Args:
        query: as in `ranks`, of held-out photos; as the next two.
        reference: likewise.
        truth: likewise.
    """
    temperatures = torch.logspace(np.log10(0.005), np.log10(5), 61).tolist()
    loss = torch.zeros(len(temperatures), dtype=torch.float64)
    for rows, own in zip(query.split(ROWS), truth.to(query.device).split(ROWS), strict=True):
        similarity = rows @ reference.T
        for place, temperature in enumerate(temperatures):
            loss[place] += float(F.cross_entropy(similarity / temperature, own, reduction="sum"))
    return temperatures[int(loss.argmin())]
