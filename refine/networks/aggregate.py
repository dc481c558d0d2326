"""From feature maps to embeddings: attention with generalised mean pooling (UnifyGeo, eq. 2 and 3), or the mean."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Power of generalised mean pooling at the start, and the least value that is raised to it (Radenovic et al. 2019).
_POWER, _LEAST = 3.0, 1e-6


class AttentionGem(nn.Module):
    """Self-attention with a residual connection, then generalised mean pooling.

    One head, no positions: the embedding does not change if positions are permuted.

    Args:
        width: number of channels; queries, keys and values have half as many.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width // 2, bias=False) for _ in range(3))
        self.out = nn.Linear(width // 2, width, bias=False)
        self.power = nn.Parameter(torch.tensor(_POWER))

    def forward(self, features: Tensor) -> Tensor:
        """Embed feature maps.

        Args:
            features: (n, width, row, col).

        Returns:
            (n, width) float32 of unit length.
        """
        tokens = features.flatten(2).transpose(1, 2)  # (n, position, width)
        normalised = self.norm(tokens)
        query, key, value = self.query(normalised), self.key(normalised), self.value(tokens)
        attended = tokens + self.out(functional.scaled_dot_product_attention(query, key, value))
        return functional.normalize(generalised_mean(attended, self.power), dim=1)


class Mean(nn.Module):
    """The mean over positions, as an ablation."""

    def forward(self, features: Tensor) -> Tensor:
        """(n, width, row, col) to (n, width) float32 of unit length."""
        return functional.normalize(features.float().mean((2, 3)), dim=1)


def generalised_mean(tokens: Tensor, power: Tensor) -> Tensor:
    """Generalised mean over positions: mean(x^p)^(1/p) of values that are clamped to be positive.

    In float32 and through logarithms, since 1e-6 to the power of 3 is nothing in bfloat16.

    Args:
        tokens: (n, position, width).
        power: p, a scalar other than 0.

    Returns:
        (n, width) float32.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        logs, power = tokens.float().clamp(min=_LEAST).log(), power.float()
        mean = torch.logsumexp(power * logs, 1) - math.log(tokens.shape[1])
        return (mean / power).exp()
