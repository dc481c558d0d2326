"""A head that sees the tiles below: a child is scored by what it looks like, not by its place alone.

Off a cache a tile's children cost a look-up. The reference's head knows a child by its number only, and learns what is
there when it has been entered.
"""

from __future__ import annotations

from math import sqrt

from torch import Tensor, nn

from jzi.decode.config import DecoderConfig

#: Width in which what is looked for and what is there are compared.
WIDTH = 64


class LookAhead(nn.Module):
    """Scores children by their embeddings, to be added to the reference's logits; it starts at zero."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.wanted = nn.Linear(config.width, WIDTH, bias=False)
        self.found = nn.Linear(config.width, WIDTH, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.zeros_(self.wanted.weight)
        nn.init.normal_(self.found.weight, std=0.02)

    def forward(self, hidden: Tensor, children: Tensor) -> Tensor:
        """(..., feature) and (..., action, feature) to (..., action); zero for children that are zeros."""
        found = self.found(self.dropout(self.norm(children)))
        return (found @ self.wanted(hidden)[..., None]).squeeze(-1) / sqrt(WIDTH)
