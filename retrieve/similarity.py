"""Similarities of photos to cells: nearest cells, rank of the true cell, and temperature of the softmax."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from numpy.typing import NDArray
from torch import Tensor

from jzi.locate.ranges import RANKS

#: Queries per matrix product: similarities of 1024 x 65 536 in float32 take 0.27 GB.
ROWS = 1024


def nearest(query: Tensor, reference: Tensor, count: int) -> NDArray[np.int32]:
    """The references with the greatest inner product with each query.

    Args:
        query: (query, feature).
        reference: (cell, feature).
        count: number of references; at most all.

    Returns:
        (query, count) indices of references, the greatest product first.

    Raises:
        ConfigError: `count` is out of range.
    """
    RANKS.check("count", count)
    count = min(count, len(reference))
    parts = [(rows.float() @ reference.float().T).topk(count).indices.int().cpu() for rows in query.split(ROWS)]
    return torch.cat(parts).numpy()


def ranks(query: Tensor, reference: Tensor, truth: Tensor) -> NDArray[np.int64]:
    """(query,) number of references that are more similar to each query than its true one.

    Args:
        query: (query, feature), of unit length.
        reference: (cell, feature), of unit length.
        truth: (query,) index of the true reference.
    """
    parts = []
    for rows, true_index in zip(query.split(ROWS), truth.to(query.device).split(ROWS), strict=True):
        similarity = rows @ reference.T
        parts.append((similarity > similarity.gather(1, true_index[:, None])).sum(1).cpu())
    return torch.cat(parts).numpy()


def fit_temperature(query: Tensor, reference: Tensor, truth: Tensor) -> float:
    """The temperature of the softmax over all cells that minimizes the cross-entropy of the true cells.

    The best of 61 values from 0.005 to 5. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".

    Args:
        query: (query, feature) of held-out photos, of unit length.
        reference: (cell, feature), of unit length.
        truth: (query,) index of the true reference.
    """
    temperatures = torch.logspace(np.log10(0.005), np.log10(5), 61).tolist()
    loss = torch.zeros(len(temperatures), dtype=torch.float64)
    for rows, true_index in zip(query.split(ROWS), truth.to(query.device).split(ROWS), strict=True):
        similarity = rows @ reference.T
        for index, temperature in enumerate(temperatures):
            loss[index] += float(F.cross_entropy(similarity / temperature, true_index, reduction="sum"))
    return temperatures[int(loss.argmin())]
