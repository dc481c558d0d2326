"""The networks that train an encoder: its trained part, alone, with a decoder, or with a scale of similarities.

The encoder is split at its first trained block: the blocks before it, the frozen trunk, run without gradients.
"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jzi.decode.decoder import ZoomDecoder
from jzi.encode.encoders.encoder import Encoder
from jzi.encode.encoders.families import blocks_of
from jzi.encode.encoders.towers import Towers
from jzi.errors import ConfigError
from jzi.retrieve.heads import SimilarityHeads

#: CLIP's upper bound for the factor of cosine similarities (Radford et al. 2021, section 2.5).
MAX_SCALE = 100.0


class TrainedEncoder(nn.Module):
    """The trained part of an encoder.

    Args:
        encoder: the encoder to train, in place.
        blocks: number of its last blocks to train, with the final layernorm; "all" trains everything.
        checkpointing: whether to recompute activations in the backward pass.
        trunk_dtype: data type of the trunk's output, and so of the residual stream of the trained blocks.

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
        photo = torch.empty(1, 3, *encoder.photo_shape, device="meta")
        self._squares = encoder.squares(photo).shape[1]  # of a photo
        layers = blocks_of(self.model)
        if isinstance(blocks, int) and blocks > len(layers):
            raise ConfigError(
                f"blocks is {blocks}: the encoder has {len(layers)} blocks; give at most that many, or all"
            )
        self.has_trunk = not isinstance(blocks, str)
        self._first = len(layers) - blocks if isinstance(blocks, int) else 0  # first trained block
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
            if name.endswith("mask_token"):  # unused without masking, so it never gets a gradient
                parameter.requires_grad_(False)
        self._context: dict[str, Any] | None = None

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of the trained parts; the trunk stays in evaluation mode."""
        super().train(mode)
        if self.has_trunk:
            self.model.eval()
            for part in self._trained:
                part.train(mode)
        return self

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings, (n, feature) float32, of normalised pixels, (n, 3, S, S)."""
        tokens, context = self._trunk(pixels), self._block_context()
        for block in blocks_of(self.model)[self._first :]:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False, **context)
            else:
                tokens = block(tokens, **context)
        return self.family.pool(self.model, tokens).float()

    def embed_both(self, pixels: Tensor, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of photos, (photo, feature), and of their distinct tiles, (tile, feature).

        Args:
            pixels: (square + tile, 3, S, S) normalised: the photos' squares, photo by photo, then the distinct tiles.
            tiles: (photo, ...) indices of each photo's tiles among the distinct tiles.
        """
        squares, embedding = len(tiles) * self._squares, self.embed(pixels)
        return embedding[:squares].unflatten(0, (len(tiles), -1)).mean(1), embedding[squares:]

    def _trunk(self, pixels: Tensor) -> Tensor:
        """(n, token, feature) output of the last frozen block."""
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
    """The trained part of an encoder, a zoom decoder, and optionally heads for a contrast of photos with places.

    Args:
        encoder: the encoder to train, in place.
        decoder: a decoder of the encoder's width.
        blocks: see `TrainedEncoder`.
        heads: heads with a space for each level 1..L; None for no contrast.
        options: keyword arguments of `TrainedEncoder`.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: ZoomDecoder,
        blocks: int | str,
        heads: SimilarityHeads | None = None,
        **options: Any,
    ) -> None:
        super().__init__(encoder, blocks, **options)
        self.decoder, self.heads = decoder, heads

    def forward(self, pixels: Tensor, places: Tensor, actions: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """The decoder's logits, and the codes of photos and places; every image is encoded once.

        Args:
            pixels: (square + place, 3, S, S) normalised: the photos' squares, photo by photo, then the distinct tiles,
                and with heads the distinct terminal cells.
            places: (photo, step) indices of each photo's tiles among the distinct places; with heads (photo, step + 1),
                the last of its cell.
            actions: (photo, step) true actions.

        Returns:
            (photo, step, action) logits; with heads also (photo, level, code) and (place, code), else None.
        """
        query, seen = self.embed_both(pixels, places)
        logits = self.decoder(query, seen[places[:, : actions.shape[1]]], actions)
        return logits, None if self.heads is None else self.heads(query, seen)


class ContrastiveEncoder(TrainedEncoder):
    """The trained part of an encoder, and a scale of cosine similarities.

    Args:
        encoder: the encoder to train, in place.
        blocks: see `TrainedEncoder`.
        scale: initial scale.
        learned: whether the scale is trained too.
        options: keyword arguments of `TrainedEncoder`.
    """

    def __init__(self, encoder: Encoder, blocks: int | str, scale: float, learned: bool, **options: Any) -> None:
        super().__init__(encoder, blocks, **options)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), device=self.device), requires_grad=learned)

    def forward(self, pixels: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of photos and of their cells.

        Args:
            pixels: (square + cell, 3, S, S) normalised: the photos' squares, photo by photo, then the distinct cells.
            cells: (photo,) index of each photo's cell among the distinct cells.

        Returns:
            (photo, feature) of the photos and of their cells, both of unit length, and the scale, a scalar.
        """
        query, seen = self.embed_both(pixels, cells)
        return F.normalize(query, dim=-1), F.normalize(seen[cells], dim=-1), self.log_scale.exp().clamp(max=MAX_SCALE)


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that require a gradient."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


class TrainedTowers(nn.Module):
    """Towers with all of their weights trained, as one network, so that processes average all gradients at once.

    Args:
        towers: the towers to train, in place.
        autocast: whether their encoders compute in bfloat16.
    """

    def __init__(self, towers: Towers, *, autocast: bool = False) -> None:
        super().__init__()
        self.towers, self.autocast = towers.requires_grad_(True), autocast
        for name, parameter in towers.named_parameters():
            if name.endswith("mask_token"):  # unused without masking, so it never gets a gradient
                parameter.requires_grad_(False)

    def forward(self, photos: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Embed photos and cells.

        Args:
            photos: (n, 3, height, width), normalised.
            cells: (n, level, 3, S, S), normalised.

        Returns:
            (n, feature) float32 of unit length, of photos and of cells.
        """
        query: Tensor = self.towers.photo_tower(photos[:, None], self.autocast)
        reference: Tensor = self.towers.map_tower(cells, self.autocast)
        return query, reference

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Kernels of convolutions and matrices of linear layers; and the other parameters, without weight decay."""
        modules = [module for module in self.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        kernels = {id(module.weight) for module in modules}
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [
            {"params": [parameter for parameter in trained if id(parameter) in kernels]},
            {"params": [parameter for parameter in trained if id(parameter) not in kernels], "weight_decay": 0.0},
        ]
