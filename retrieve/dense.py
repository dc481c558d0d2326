"""The base of experts that compute a log-probability for every cell of the map."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.encode.device import to_host
from jzi.errors import ModelError
from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import Expert
from jzi.locate.posterior import Posterior, require_finite
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo

#: Maximum number of a photo's cells in its posterior; the probability of the others is its residual.
MAX_CELLS = 8192

#: Log-probabilities computed at once: 64 MB in float32.
ENTRIES = 2**24


class DenseExpert(ABC):
    """An expert that computes the log-probabilities of all cells with imagery.

    Args:
        area: pyramid of the cells.
        encoder: encoder of the photos.
        cell_mask: (row, col) whether each cell has imagery.
        device: device to compute on.

    Raises:
        ModelError: no cell has imagery.
    """

    name: str
    rules_out = False

    def __init__(self, area: Pyramid, encoder: EncoderInfo, cell_mask: NDArray[np.bool_], device: torch.device) -> None:
        self.area, self.encoder, self.cell_mask, self.device = area, encoder, cell_mask, device
        self.row, self.col = np.nonzero(cell_mask)
        self.cells = len(self.row)  # of `log_probabilities`
        if not self.cells:
            raise ModelError(f"the map has no imagery, which the expert {self.name} needs: encode rasters of the area")
        self.columns: Tensor | None = None  # (cell,) the searched cells among them; None for all

    @abstractmethod
    def log_probabilities(self, query: Tensor) -> Tensor:
        """(photo, cell) log-probabilities of the cells with imagery in row-major order, up to a constant per photo.

        Args:
            query: (photo, feature) float32 embeddings on the device.
        """

    @torch.inference_mode()
    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """The `MAX_CELLS` most probable cells; for "greedy", only the first.

        Args:
            query: (photo, feature) embeddings.
            options: only the estimate is used.

        Raises:
            ModelError: a probability is not finite.
        """
        count = 1 if options.estimate == "greedy" else min(MAX_CELLS, len(self.row))
        parts = []
        for part in query.to(self.device).float().split(max(1, ENTRIES // self.cells)):
            probability = self.log_probabilities(part).double().softmax(-1)
            if self.columns is None:
                total = torch.ones(len(part), dtype=probability.dtype, device=self.device)
            else:
                probability = probability[:, self.columns]
                total = probability.sum(1)
            parts.append((*probability.topk(count, dim=1), total))
        share, cell, whole = to_host(*(torch.cat(each) for each in zip(*parts, strict=True)))
        require_finite(self.name, share)
        residual = np.maximum(0.0, whole - share.sum(1)) if count < len(self.row) else np.zeros(len(cell))
        return Posterior(self.area, self.row[cell], self.col[cell], share, residual)

    def restricted(self, cell_mask: NDArray[np.bool_]) -> Self:
        """The same expert for some of its cells; see `jzi.locate.expert.Restrictable`.

        Args:
            cell_mask: (row, col) the cells.
        """
        expert, kept = copy.copy(self), cell_mask[self.row, self.col]
        columns = torch.arange(self.cells, device=self.device) if self.columns is None else self.columns
        expert.cell_mask, expert.row, expert.col = self.cell_mask & cell_mask, self.row[kept], self.col[kept]
        expert.columns = columns[torch.from_numpy(kept).to(self.device)]
        return expert

    @abstractmethod
    def entries(self) -> dict[str, Any]:
        """What config.json records of the expert."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the expert's file."""

    def uncalibrated(self) -> Expert | None:
        """None: the temperature is learned in training."""
        return None
