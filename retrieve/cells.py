"""Cells as an expert: a softmax over the similarities of a photo to every cell of the map.

A cell is described by the embedding of its own reference crop and by those of the tiles that contain it, several scales
of one position (Fervers et al. 2024), and optionally by a learned prototype.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jzi.errors import ConfigError, ModelError, first_line
from jzi.retrieve.dense import DenseExpert
from jzi.retrieve.heads import HeadsConfig, SimilarityHeads, cell_scales
from jzi.store.info import EncoderInfo
from jzi.store.map_embeddings import NODATA, MapEmbeddings
from jzi.store.pyramid import Pyramid


class CellsExpert(DenseExpert):
    """Heads, and the codes of all cells.

    Args:
        area: pyramid of the cells.
        encoder: encoder of the photos.
        cell_mask: (row, col) whether each cell has imagery.
        heads: heads in eval mode, on the device.
        codes: (cell, code) codes of the cells with imagery in row-major order, on the device.
    """

    name = "cells"

    def __init__(
        self, area: Pyramid, encoder: EncoderInfo, cell_mask: NDArray[np.bool_], heads: SimilarityHeads, codes: Tensor
    ) -> None:
        super().__init__(area, encoder, cell_mask, codes.device)
        self.heads, self.codes = heads, codes.float()

    def log_probabilities(self, query: Tensor) -> Tensor:
        """(photo, cell) similarities times the learned factor."""
        return self.heads.photo_codes(query)[:, 0] @ self.codes.T

    def entries(self) -> dict[str, Any]:
        """What config.json records of the expert."""
        return asdict(self.heads.config)

    def save(self, path: Path) -> None:
        """Write heads and codes as one safetensors file."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.heads.state_dict().items()}
        tensors.pop("prototypes", None)  # the codes contain them
        save_file({**tensors, "codes": self.codes.half().cpu().contiguous()}, path)

    @classmethod
    def from_map(cls, features: MapEmbeddings, encoder: EncoderInfo, heads: SimilarityHeads) -> CellsExpert:
        """The expert for a map, from trained heads without prototypes.

        Args:
            features: the map with its cells.
            encoder: encoder of the map and the photos.
            heads: heads in eval mode; the codes are computed on their device.
        """
        cell_mask = features.status[-1] != NODATA
        scales = cell_scales(features, *np.nonzero(cell_mask)).to(heads.log_scale.device)
        return cls(features.pyramid, encoder, cell_mask, heads, heads.encode_places(scales))

    @classmethod
    def load(
        cls,
        path: Path,
        entries: dict[str, Any],
        area: Pyramid,
        encoder: EncoderInfo,
        cell_mask: NDArray[np.bool_],
        device: str | torch.device,
    ) -> CellsExpert:
        """Read what `save` wrote.

        Args:
            path: the file.
            entries: as returned by `entries`.
            area: pyramid of the cells.
            encoder: encoder of the photos.
            cell_mask: (row, col) whether each cell has imagery.
            device: device to compute on.

        Raises:
            ModelError: the file cannot be read, or does not fit the model.
        """
        tensors, heads = load_heads(path, entries, encoder, prototypes=0)
        codes = tensors.get("codes")
        expected = (int(cell_mask.sum()), heads.config.features)
        if codes is None or tuple(codes.shape) != expected:
            raise ModelError(
                f"{path} does not hold {expected[0]} codes of {expected[1]} features: copy the model again"
            )
        return cls(area, encoder, cell_mask, heads.to(device), codes.to(device))


def load_heads(
    path: Path, entries: dict[str, Any], encoder: EncoderInfo, **changes: int
) -> tuple[dict[str, Tensor], SimilarityHeads]:
    """Read heads, in eval mode, and the other tensors of their file.

    Args:
        path: the file.
        entries: the entries of `HeadsConfig`.
        encoder: the encoder, whose width the heads must have.
        changes: entries to replace.

    Raises:
        ModelError: the file cannot be read, or does not fit the model.
    """
    try:
        config = HeadsConfig(**{**entries, **changes})
        if config.width != encoder.width:
            raise ModelError(f"{path} is for embeddings of {config.width} features, not {encoder.width}")
        tensors = load_file(path)
        with torch.device("meta"):  # allocates nothing, whatever the sizes in config.json
            heads = SimilarityHeads(config)
        heads.load_state_dict({name: tensors.pop(name).float() for name in heads.state_dict()}, assign=True)
    except (ConfigError, OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} cannot be used ({first_line(error)}): copy the model again") from error
    return tensors, heads.eval()
