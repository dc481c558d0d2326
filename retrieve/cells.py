"""Cells as an expert: a softmax over the similarities of a photo to every cell of the map.

A cell is described by the embedding of its own reference crop and by those of the tiles that contain it, several scales
of one position (Fervers et al. 2024), and optionally by a learned prototype.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jzi.encode.device import shapes_only
from jzi.errors import ConfigError, ModelError, first_line
from jzi.locate.inside import Hidden
from jzi.retrieve.dense import ENTRIES, DenseExpert
from jzi.retrieve.heads import HeadsConfig, SimilarityHeads, cell_scales
from jzi.store.features.map_embeddings import NODATA, MapEmbeddings
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo
from jzi.store.tensors import check_finite, check_header

#: Similarities are cosines times a factor below this; a cell with its negative is as good as left out.
MAX_SIMILARITY = 1e4


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

    @torch.inference_mode()
    def evidence(self, query: Tensor, hidden: Hidden | None = None) -> NDArray[np.float64]:
        """(photo,) logarithm of the mean over the cells of exp(similarity times the factor); see `Evidence`.

        Args:
            query: (photo, feature) embeddings.
            hidden: places whose cells are left out.
        """
        x, y = self.area.cell_centers(self.row, self.col)
        parts, size = [], max(1, ENTRIES // self.cells)
        for first in range(0, len(query), size):
            photos = slice(first, first + size)
            log = self.log_probabilities(query[photos].to(self.device).float()).double()
            if hidden is not None:
                covered = torch.from_numpy(hidden.of(photos).covers(x, y)).to(self.device)
                log = log.masked_fill(covered, -MAX_SIMILARITY)
            parts.append((log.logsumexp(-1) - math.log(self.cells)).cpu().numpy())
        return np.concatenate(parts)

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
        codes = (int(cell_mask.sum()), entries.get("features", 0))
        tensors, heads = load_heads(path, entries, encoder, {"codes": codes}, prototypes=0)
        if (heads.config.scales, heads.config.spaces) != (area.levels, 1):
            raise ModelError(f"{path} is of another number of levels than {area.levels}: copy the model again")
        return cls(area, encoder, cell_mask, heads.to(device), tensors["codes"].to(device))


def load_heads(
    path: Path,
    entries: dict[str, Any],
    encoder: EncoderInfo,
    others: dict[str, tuple[int, ...]] | None = None,
    types: dict[str, tuple[str, ...]] | None = None,
    unread: Collection[str] = (),
    **changes: int,
) -> tuple[dict[str, Tensor], SimilarityHeads]:
    """Read heads, in eval mode, and the other tensors of their file.

    Args:
        path: the file.
        entries: the entries of `HeadsConfig`.
        encoder: the encoder, whose width the heads must have.
        others: shapes of the other tensors; not checked by default.
        types: types of those that are not floating-point (`jzi.store.tensors.check_header`).
        unread: names of tensors to check, but not to read.
        changes: entries to replace.

    Raises:
        ModelError: the file cannot be read, or does not fit the model.
    """
    try:
        config = HeadsConfig(**{**entries, **changes})
        if config.width != encoder.width:
            raise ModelError(f"{path} is for embeddings of {config.width} features, not {encoder.width}")
        with shapes_only():  # allocates nothing, whatever the sizes in config.json
            heads = SimilarityHeads(config)
        names = heads.state_dict()
        if others is not None:
            check_header(path, {**{name: tuple(each.shape) for name, each in names.items()}, **others}, types)
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if name not in unread}  # noqa: SIM118
        check_finite(path, tensors)
        heads.load_state_dict({name: tensors.pop(name).float() for name in names}, assign=True)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        raise ModelError(f"{path} cannot be used ({first_line(error)}): copy the model again") from error
    return tensors, heads.eval()
