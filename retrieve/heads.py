"""Small heads on frozen embeddings whose codes of photos and of places can be compared by inner product."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from pydantic import Field
from torch import Tensor, nn

from jzi.store.features.map_embeddings import MapEmbeddings
from jzi.store.geometry.pyramid import MAX_SIDE
from jzi.store.info import MAX_WIDTH
from jzi.store.setting_checks import check_settings

#: Upper bound of the factor of cosine similarities (Radford et al. 2021, section 2.5), and its initial value.
MAX_SCALE, INITIAL_SCALE = 100.0, 20.0

#: Places whose codes are computed at once.
PLACES = 65_536


@dataclass(frozen=True)
class HeadsConfig:
    """Architecture of a pair of heads.

    Attributes:
        width: number of features of an embedding.
        scales: number of embeddings that describe a place, concatenated.
        hidden: width of the hidden layer.
        features: number of features of a code.
        dropout: dropout of the hidden layer.
        spaces: number of codes of a photo; codes of places of space k are compared with the photo's code k.
        prototypes: number of places with a learned prototype; 0 for none.

    Raises:
        ConfigError: the type or the range of a value is wrong.
    """

    width: Annotated[int, Field(ge=1, le=MAX_WIDTH)]
    scales: Annotated[int, Field(ge=1, le=64)] = 1
    hidden: Annotated[int, Field(ge=1, le=65_536)] = 256
    features: Annotated[int, Field(ge=1, le=MAX_WIDTH)] = 128
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    spaces: Annotated[int, Field(ge=1, le=64)] = 1
    prototypes: Annotated[int, Field(ge=0, le=MAX_SIDE**2)] = 0

    def __post_init__(self) -> None:
        check_settings("heads", self)


class SimilarityHeads(nn.Module):
    """A head for photos and one for places, each a layernorm and a small MLP, and a factor for their similarities.

    Example:
        >>> heads = SimilarityHeads(HeadsConfig(width=32, scales=3)).eval()
        >>> heads.photo_codes(torch.randn(5, 32)).shape, heads.place_codes(torch.randn(7, 96)).shape
        (torch.Size([5, 1, 128]), torch.Size([7, 128]))
    """

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.config = config
        self.photo_head = _head(config.width, config.features * config.spaces, config)
        self.place_head = _head(config.width * config.scales, config.features, config)
        self.log_scale = nn.Parameter(torch.full((config.spaces,), math.log(INITIAL_SCALE)))
        if config.prototypes:
            self.prototypes = nn.Parameter(torch.zeros(config.prototypes, config.features))

    def photo_codes(self, embedding: Tensor) -> Tensor:
        """Codes of photos, times the factor of their space.

        Args:
            embedding: (photo, feature).

        Returns:
            (photo, space, code), of length `scale`.
        """
        codes = self.photo_head(embedding).unflatten(-1, (self.config.spaces, self.config.features))
        return F.normalize(codes, dim=-1) * self.scale[:, None]

    def place_codes(self, scales: Tensor, index: Tensor | None = None) -> Tensor:
        """Codes of places.

        Args:
            scales: (place, scale * feature) embeddings.
            index: (place,) indices of the places among the prototypes; None if `scales` holds all of them.

        Returns:
            (place, code) of unit length.
        """
        codes = F.normalize(self.place_head(scales), dim=-1)
        if not self.config.prototypes:
            return codes
        prototypes = self.prototypes if index is None else self.prototypes[index]
        return F.normalize(codes + prototypes, dim=-1)

    def forward(self, embedding: Tensor, scales: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`photo_codes` and `place_codes`, the two arguments of the inner product."""
        return self.photo_codes(embedding), self.place_codes(scales, index)

    @torch.inference_mode()
    def encode_places(self, scales: Tensor) -> Tensor:
        """Codes of all places, of any number.

        Args:
            scales: (place, scale * feature) embeddings in any precision.

        Returns:
            (place, code) of unit length.
        """
        index = torch.arange(len(scales), device=scales.device).split(PLACES)
        return torch.cat([self.place_codes(scales[part].float(), part) for part in index])

    @property
    def scale(self) -> Tensor:
        """(space,) factor of cosine similarities."""
        return self.log_scale.exp().clamp(max=MAX_SCALE)


def cell_scales(features: MapEmbeddings, row: np.ndarray, col: np.ndarray) -> Tensor:
    """Embeddings that describe cells at several scales, as in Fervers et al. 2024.

    Args:
        features: a map with its cells.
        row: (cell,) rows of cells with imagery.
        col: (cell,) columns of the cells.

    Returns:
        (cell, scale * feature) float32: the cell's own crop, then the tiles of levels L-1..1 that contain the cell.
    """
    pyramid = features.pyramid
    assert features.cells is not None
    parts = [features.cells[row, col]]
    for level in range(pyramid.levels - 1, 0, -1):
        side = pyramid.grid ** (pyramid.levels - level)
        parts.append(features.embedding[level][row // side, col // side])
    return torch.from_numpy(np.nan_to_num(np.concatenate(parts, axis=1)).astype(np.float32))


def _head(inputs: int, outputs: int, config: HeadsConfig) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(inputs),
        nn.Linear(inputs, config.hidden),
        nn.GELU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.hidden, outputs),
    )
