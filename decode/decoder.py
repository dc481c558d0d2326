"""The zoom decoder: a small causal transformer that scores the children of each tile on the path to a photo.

Tokens are [query, tile_0, action_0, tile_1, action_1, ...]; the logits of step k are computed at the position of
tile_k, or of its last patch token if it has any (`jzi.decode.patch_tokens`). Blocks are pre-norm with RMSNorm, rotary
positions and SwiGLU, without biases; actions have an embedding table. Parameters are named as in the reference
implementation, so its checkpoints load unchanged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor, nn

from jzi.decode.config import DecoderConfig
from jzi.errors import ConfigError


class KeyValues:
    """Key/value cache of the tokens read so far.

    Args:
        pairs: keys and values of each block, (batch, head, token, feature of a head) each.
    """

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self.pairs = pairs

    @property
    def tokens(self) -> int:
        """Number of tokens read so far."""
        return self.pairs[0][0].shape[2] if self.pairs else 0

    def select(self, index: Tensor) -> KeyValues:
        """Select rows of the batch, which may repeat, such as the best hypotheses of a beam.

        Args:
            index: (n,) rows.
        """
        return KeyValues([(key[index], value[index]) for key, value in self.pairs])


def rotary(tokens: int, first: int, head: int, device: torch.device, theta: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Compute rotary position embeddings, half-split as in LLaMA.

    Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding".

    Args:
        tokens: number of tokens.
        first: position of the first token.
        head: features of a head.
        device: device of the result.
        theta: base of the frequencies.

    Returns:
        Cosines and signed sines, (token, feature of a head) each, for `rotate`.
    """
    half = head // 2
    frequency = theta ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
    angle = torch.arange(first, first + tokens, device=device)[:, None] * frequency  # (tokens, half)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (..., token, feature) queries or keys by the result of `rotary`."""
    return x * cos.to(x.dtype) + x.roll(x.shape[-1] // 2, dims=-1) * sin.to(x.dtype)


class SelfAttention(nn.Module):
    """Causal multi-head attention over new tokens and those in the key/value cache."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, config.width, bias=False)
        self.v_proj = nn.Linear(config.width, config.width, bias=False)
        self.out_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None, cos_sin: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Attend to earlier tokens.

        Args:
            x: (batch, token, feature).
            past: cached keys and values of the tokens before them, if any.
            cos_sin: from `rotary`.

        Returns:
            Output of the shape of `x`, and the keys and values of all tokens.
        """
        first = past[0].shape[2] if past else 0
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(torch.stack([q, k]), *cos_sin)  # both at once: fewer operations to launch
        if past:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        new, total = q.shape[2], k.shape[2]
        mask = None if first == 0 else torch.ones(new, total, dtype=torch.bool, device=x.device).tril(first)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=first == 0)
        return self.out_proj(out.transpose(1, 2).flatten(2)), (k, v)


class FeedForward(nn.Module):
    """SwiGLU feed-forward layers (Shazeer 2020, "GLU Variants Improve Transformer")."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.width, config.hidden, bias=False)
        self.w2 = nn.Linear(config.hidden, config.width, bias=False)
        self.w3 = nn.Linear(config.width, config.hidden, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., feature) to the same shape."""
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
        self, x: Tensor, past: tuple[Tensor, Tensor] | None, cos_sin: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As `SelfAttention.forward`."""
        attended, present = self.self_attn(self.norm1(x), past, cos_sin)
        x = x + self.dropout(attended)
        return x + self.dropout(self.ffn(self.norm2(x))), present


class ZoomDecoder(nn.Module):
    """Transformer that scores the children of the tiles along a path.

    Args:
        config: the architecture.

    Raises:
        ConfigError: the width is not divisible by twice the number of heads.

    Example:
        >>> decoder = ZoomDecoder(DecoderConfig(width=64, layers=2)).eval()
        >>> query, tiles, actions = torch.randn(3, 64), torch.randn(3, 4, 64), torch.randint(16, (3, 4))
        >>> decoder(query, tiles, actions).shape
        torch.Size([3, 4, 16])
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        check_heads(config)
        self.config = config
        self.action_embed = nn.Embedding(config.actions, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = nn.RMSNorm(config.width, eps=1e-6)
        self.output_head = nn.Linear(config.width, config.actions, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.apply(_initialise)

    def forward(self, query: Tensor, tiles: Tensor, actions: Tensor) -> Tensor:
        """Score all steps at once, teacher-forced.

        Args:
            query: (batch, feature) embeddings of photos.
            tiles: (batch, step, feature) tiles along the true path, or (batch, step, 1 + k, feature), each tile's
                embedding followed by its patch tokens.
            actions: (batch, step) int64 true actions; the last one is not used.

        Returns:
            (batch, step, action) logits.
        """
        tiles = tiles if tiles.ndim == 4 else tiles[:, :, None]  # (batch, step, 1 + k, feature)
        before = torch.cat([query[:, None], self.action_embed(actions[:, :-1])], dim=1)  # (batch, step, feature)
        groups = torch.cat([before[:, :, None], tiles], dim=2)  # query, tile_0, ...; action_0, tile_1, ...; ...
        hidden, _ = self._run(groups.flatten(1, 2), None)
        return self.output_head(hidden.unflatten(1, groups.shape[1:3])[:, :, -1])

    def prefill(self, query: Tensor, tile: Tensor) -> tuple[Tensor, KeyValues]:
        """Score the first step.

        Args:
            query: (batch, feature) embeddings of photos.
            tile: (batch, feature) of the tile of level 0, or (batch, 1 + k, feature) with its patch tokens.

        Returns:
            (batch, action) logits and the key/value cache for `step`.
        """
        return self._step(query, tile, None)

    def step(self, action: Tensor, tile: Tensor, past: KeyValues) -> tuple[Tensor, KeyValues]:
        """Score the next step.

        Args:
            action: (batch,) int64 action taken in the previous step.
            tile: (batch, feature) of the tile entered, or (batch, 1 + k, feature) with its patch tokens.
            past: key/value cache of the previous step.

        Returns:
            As from `prefill`.
        """
        return self._step(self.action_embed(action), tile, past)

    def _step(self, before: Tensor, tile: Tensor, past: KeyValues | None) -> tuple[Tensor, KeyValues]:
        group = torch.cat([before[:, None], tile if tile.ndim == 3 else tile[:, None]], dim=1)
        hidden, present = self._run(group, past)
        return self.output_head(hidden[:, -1]), present

    def _run(self, tokens: Tensor, past: KeyValues | None) -> tuple[Tensor, KeyValues]:
        x = self.dropout(tokens)
        head = self.config.width // self.config.heads
        cos_sin = rotary(tokens.shape[1], past.tokens if past else 0, head, tokens.device)
        pairs = []
        for index, block in enumerate(self.blocks):
            x, pair = block(x, past.pairs[index] if past else None, cos_sin)
            pairs.append(pair)
        return self.final_norm(x), KeyValues(pairs)


def check_heads(config: DecoderConfig) -> None:
    """Raise ConfigError if the width is not divisible by twice the number of heads."""
    if config.width % (2 * config.heads):
        raise ConfigError(
            f"decoder.heads is {config.heads}: twice that must divide the encoder's {config.width} features"
        )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)  # as in GPT-2, for pre-norm blocks
