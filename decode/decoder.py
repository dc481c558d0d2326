"""The zoom decoder: a small causal transformer that reads photo and tiles and says which child to enter (DESIGN 6).

Tokens are [query, tile_0, action_0, tile_1, action_1, ...]; the logits of step k are read at tile_k's position. A tile
may bring patch tokens along (`jzi.decode.patch_tokens`); then they are read at the last of these.
Notable: RMSNorm before each part, rotary positions, SwiGLU, no biases anywhere, an embedding table for the actions.
Parameters have the names of the reference implementation, whose checkpoints fit as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor, nn

from jzi.decode.config import DecoderConfig
from jzi.decode.look_ahead import LookAhead
from jzi.errors import ConfigError


class KeyValues:
    """Keys and values of the tokens so far, one pair per block, each (batch, heads, tokens, width of a head)."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self.pairs = pairs

    @property
    def tokens(self) -> int:
        """How many tokens have been read."""
        return self.pairs[0][0].shape[2] if self.pairs else 0

    def select(self, index: Tensor) -> KeyValues:
        """Rows of the batch, repeated or dropped: how a beam follows its best hypotheses."""
        return KeyValues([(key[index], value[index]) for key, value in self.pairs])


def rotary(tokens: int, first: int, head: int, device: torch.device, theta: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (tokens, head) each, of rotary positions from `first` on; half-split, as in LLaMA."""
    half = head // 2
    frequency = theta ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
    angle = torch.arange(first, first + tokens, device=device)[:, None] * frequency  # (tokens, half)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(batch, heads, tokens, head) turned by what `rotary` gives."""
    return x * cos.to(x.dtype) + x.roll(x.shape[-1] // 2, dims=-1) * sin.to(x.dtype)


class SelfAttention(nn.Module):
    """Causal multi-head attention, over the tokens given and those in the cache before them."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, config.width, bias=False)
        self.v_proj = nn.Linear(config.width, config.width, bias=False)
        self.out_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None, turn: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(batch, token, feature), keys and values before them and `rotary`, to the same and all keys and values."""
        first = past[0].shape[2] if past else 0
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *turn), rotate(k, *turn)
        if past:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        new, total = q.shape[2], k.shape[2]
        mask = None if first == 0 else torch.ones(new, total, dtype=torch.bool, device=x.device).tril(first)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=first == 0)
        return self.out_proj(out.transpose(1, 2).flatten(2)), (k, v)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.width, config.hidden, bias=False)
        self.w2 = nn.Linear(config.hidden, config.width, bias=False)
        self.w3 = nn.Linear(config.width, config.hidden, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., feature) to the same."""
        return self.w2(self.dropout(F.silu(self.w1(x)) * self.w3(x)))


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.width, eps=1e-6)
        self.self_attn = SelfAttention(config)
        self.norm2 = nn.RMSNorm(config.width, eps=1e-6)
        self.ffn = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None, turn: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `SelfAttention.forward`."""
        attended, present = self.self_attn(self.norm1(x), past, turn)
        x = x + self.dropout(attended)
        return x + self.dropout(self.ffn(self.norm2(x))), present


class ZoomDecoder(nn.Module):
    """Scores the children of the tiles along a zoom.

    Raises:
        ConfigError: the heads do not divide the width.

    Example:
        >>> decoder = ZoomDecoder(DecoderConfig(width=64, layers=2)).eval()
        >>> query, tiles, actions = torch.randn(3, 64), torch.randn(3, 4, 64), torch.randint(16, (3, 4))
        >>> decoder(query, tiles, actions).shape
        torch.Size([3, 4, 16])
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        if config.width % (2 * config.heads):
            raise ConfigError(
                f"decoder.heads is {config.heads}: twice that must divide the encoder's {config.width} features"
            )
        self.config = config
        self.action_embed = nn.Embedding(config.actions, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.output_head = nn.Linear(config.width, config.actions, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.apply(_initialise)
        self.look_ahead = None if config.look_ahead == "none" else LookAhead(config)

    def forward(self, query: Tensor, tiles: Tensor, actions: Tensor, below: Tensor | None = None) -> Tensor:
        """All steps at once, teacher-forced.

        Args:
            query: (batch, feature).
            tiles: (batch, step, feature), the tiles along the true path; or (batch, step, 1 + k, feature), each tile's
                embedding and then its patch tokens.
            actions: (batch, step) int64, the true actions; the last one is not looked at.
            below: (batch, step, action, feature), what `TileTable.below` gives for the tiles, where the decoder looks
                ahead.

        Returns:
            (batch, step, action) logits.
        """
        tiles = tiles if tiles.ndim == 4 else tiles[:, :, None]  # (batch, step, 1 + k, feature)
        before = torch.cat([query[:, None], self.action_embed(actions[:, :-1])], dim=1)  # (batch, step, feature)
        groups = torch.cat([before[:, :, None], tiles], dim=2)  # query, tile_0, ...; action_0, tile_1, ...; ...
        hidden, _ = self._run(groups.flatten(1, 2), None)
        return self._score(hidden.unflatten(1, groups.shape[1:3])[:, :, -1], below)

    def prefill(self, query: Tensor, tile: Tensor, below: Tensor | None = None) -> tuple[Tensor, KeyValues]:
        """Step 0: (batch, feature) of the photo and of the whole map's tile to (batch, action) logits and a cache.

        The tile may be (batch, 1 + k, feature) with its patch tokens, here and in `step`.
        """
        return self._step(query, tile, None, below)

    def step(
        self, action: Tensor, tile: Tensor, past: KeyValues, below: Tensor | None = None
    ) -> tuple[Tensor, KeyValues]:
        """The next step: (batch,) the action taken and (batch, feature) the tile that it led to."""
        return self._step(self.action_embed(action), tile, past, below)

    def _step(
        self, before: Tensor, tile: Tensor, past: KeyValues | None, below: Tensor | None
    ) -> tuple[Tensor, KeyValues]:
        group = torch.cat([before[:, None], tile if tile.ndim == 3 else tile[:, None]], dim=1)
        hidden, present = self._run(group, past)
        return self._score(hidden[:, -1], below), present

    def _score(self, hidden: Tensor, below: Tensor | None) -> Tensor:
        logits = self.output_head(hidden)
        return logits if self.look_ahead is None else logits + self.look_ahead(hidden, below)

    def _run(self, tokens: Tensor, past: KeyValues | None) -> tuple[Tensor, KeyValues]:
        x = self.dropout(tokens)
        head = self.config.width // self.config.heads
        turn = rotary(tokens.shape[1], past.tokens if past else 0, head, tokens.device)  # the same for all blocks
        pairs = []
        for index, block in enumerate(self.blocks):
            x, pair = block(x, past.pairs[index] if past else None, turn)
            pairs.append(pair)
        return self.final_norm(x), KeyValues(pairs)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)  # GPT-2's, which suits pre-norm blocks
