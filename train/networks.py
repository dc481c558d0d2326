"""The networks of encoder training: the trained part of an encoder, alone, with a decoder, or with a scale.

The encoder is taken apart at its first trained block: what comes before, the frozen trunk, runs without gradient.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jzi.decode.decoder import ZoomDecoder
from jzi.encode.encoder import Encoder
from jzi.encode.families import blocks_of
from jzi.errors import ConfigError

#: CLIP's limit for what cosine similarities are multiplied with (Radford et al. 2021, section 2.5).
MAX_SCALE = 100.0


class TrainedEncoder(nn.Module):
    """The trained part of an encoder.

    Args:
        encoder: its weights are the ones that are trained.
        blocks: how many of its last blocks are trained, with the final layernorm; "all" trains everything.
        checkpointing: compute activations again in the backward pass.
        trunk_dtype: of the trunk's output, and so of the residual stream of the trained blocks.

    Raises:
        ConfigError: the encoder has fewer blocks.
    """

    def __init__(
        self,
        encoder: Encoder,
        blocks: int | str,
        *,
        checkpointing: bool = False,
        trunk_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.model: Any = encoder.model
        self.family, self.size, self.device = encoder.family, encoder.image_size, encoder.device
        self.checkpointing, self.trunk_dtype = checkpointing, trunk_dtype
        layers = blocks_of(self.model)
        if isinstance(blocks, int) and blocks > len(layers):
            raise ConfigError(f"blocks is {blocks}: the encoder has {len(layers)} blocks (or give all)")
        self.has_trunk = not isinstance(blocks, str)
        self._first = len(layers) - blocks if isinstance(blocks, int) else 0  # trained block
        self._frozen = [self.model] if isinstance(blocks, int) else []
        self._trained = [] if blocks == 0 else [self.model]
        if isinstance(blocks, int):
            self._trained = list(layers[self._first :])
            if blocks:
                self._trained += [getattr(self.model, name) for name in self.family.final]
        self.model.requires_grad_(False)
        for part in self._trained:
            part.requires_grad_(True)
        for name, parameter in self.model.named_parameters():
            if name.endswith("mask_token"):  # nothing is masked: it would never have a gradient
                parameter.requires_grad_(False)
        self._context: dict[str, Any] | None = None

    def train(self, mode: bool = True) -> Self:
        """Dropout, where a config has any, in the trained parts only."""
        super().train(mode)
        if self.has_trunk:
            self.model.eval()
            for part in self._trained:
                part.train(mode)
        return self

    def embed(self, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) normalised pixels to (n, feature) float32 embeddings."""
        tokens, context = self._trunk(pixels), self._block_context()
        for block in blocks_of(self.model)[self._first :]:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False, **context)
            else:
                tokens = block(tokens, **context)
        return self.family.pool(self.model, tokens).float()

    def embed_both(self, pixels: Tensor, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of photos, (photo, feature), and of the distinct tiles that they see, (tile, feature).

        Args:
            pixels: of the photos' squares, photo by photo, then of the distinct tiles, normalised.
            tiles: (photo, ...) which of those tiles each photo sees.
        """
        squares = len(pixels) - int(tiles.max()) - 1
        embedding = self.embed(pixels)
        return embedding[:squares].unflatten(0, (len(tiles), -1)).mean(1), embedding[squares:]

    def _trunk(self, pixels: Tensor) -> Tensor:
        """(n, token, feature) out of the last frozen block."""
        if not self.has_trunk:
            return self.family.tokens(self.model, pixels)
        with torch.no_grad():
            tokens, context = self.family.tokens(self.model, pixels), self._block_context()
            for block in blocks_of(self.model)[: self._first]:
                tokens = block(tokens, **context)
            return tokens.to(self.trunk_dtype)

    def _block_context(self) -> dict[str, Any]:
        if self._context is None:
            self._context = self.family.context(self.model, self._blank())
        return self._context

    def _blank(self) -> Tensor:
        return torch.zeros(1, 3, self.size, self.size, device=self.device)


class JointModel(TrainedEncoder):
    """The trained part of an encoder, and a zoom decoder.

    Args:
        encoder: its weights are the ones that are trained.
        decoder: of the encoder's width.
        blocks: as `TrainedEncoder`.
        options: as `TrainedEncoder`.
    """

    def __init__(self, encoder: Encoder, decoder: ZoomDecoder, blocks: int | str, **options: Any) -> None:
        super().__init__(encoder, blocks, **options)
        self.decoder = decoder

    def forward(self, pixels: Tensor, tiles: Tensor, actions: Tensor) -> Tensor:
        """The decoder's logits, (photo, step, action); every image goes through the encoder once.

        Args:
            pixels: of the photos' squares, photo by photo, then of the distinct tiles, normalised.
            tiles: (photo, step) which of those tiles each photo sees.
            actions: (photo, step) true actions.
        """
        query, seen = self.embed_both(pixels, tiles)
        return self.decoder(query, seen[tiles], actions)


class ContrastiveEncoder(TrainedEncoder):
    """The trained part of an encoder, and what cosine similarities are multiplied with.

    Args:
        encoder: its weights are the ones that are trained.
        blocks: as `TrainedEncoder`.
        scale: at first.
        learned: whether the scale is trained too.
        options: as `TrainedEncoder`.
    """

    def __init__(self, encoder: Encoder, blocks: int | str, scale: float, learned: bool, **options: Any) -> None:
        super().__init__(encoder, blocks, **options)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), device=self.device), requires_grad=learned)

    def forward(self, pixels: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of unit length.

        Args:
            pixels: of the photos' squares, photo by photo, then of the distinct cells, normalised.
            cells: (photo,) which of those cells each photo is in.

        Returns:
            (photo, feature) of the photos and of their cells, and the scale.
        """
        query, seen = self.embed_both(pixels, cells)
        return F.normalize(query, dim=-1), F.normalize(seen[cells], dim=-1), self.log_scale.exp().clamp(max=MAX_SCALE)


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Those that have a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
