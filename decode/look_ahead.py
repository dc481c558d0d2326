"""Look-ahead head: score children by their own embeddings, in addition to their action number.

The reference's output head has one row per action, so it learns what a child shows only after entering it. With all
embeddings in the tile table, the children's are a look-up away.
"""

from __future__ import annotations

from math import sqrt

from torch import Tensor, nn

from jzi.decode.config import DecoderConfig

#: Features of the space in which hidden states and children are compared.
WIDTH = 64


class LookAhead(nn.Module):
    """Attention-like scores of children, to be added to the decoder's logits; zero at initialisation.

    Args:
        config: of the decoder.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.query_proj = nn.Linear(config.width, WIDTH, bias=False)
        self.key_proj = nn.Linear(config.width, WIDTH, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.zeros_(self.query_proj.weight)
        nn.init.normal_(self.key_proj.weight, std=0.02)

    def forward(self, hidden: Tensor, children: Tensor) -> Tensor:
        """Score the children of tiles.

        Args:
            hidden: (..., feature) output of the decoder's last block at the tiles.
            children: (..., action, feature) embeddings; zeros where there are none.

        Returns:
            (..., action) scores; zero for children without embedding.
        """
        keys = self.key_proj(self.dropout(self.norm(children)))
        return (keys @ self.query_proj(hidden)[..., None]).squeeze(-1) / sqrt(WIDTH)
