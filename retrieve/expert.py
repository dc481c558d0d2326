"""From photos to places by retrieval, with the zoom's answers: the same candidates, estimates, files and service."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.encode.encoder import Encoder
from jzi.locate.locator import DEFAULT, LocateOptions, Locator
from jzi.locate.posterior import Posterior
from jzi.retrieve.retriever import Retriever
from jzi.retrieve.search import CellIndex, probabilities
from jzi.store.info import EncoderInfo
from jzi.store.pyramid import Pyramid

#: The most similar cells, whose similarities become probabilities; the others' share is next to nothing.
CELLS = 4096


class RetrievalLocator(Locator):
    """Locates photos by the cells that look most like them.

    Example:
        >>> locator = RetrievalLocator.open("retriever")  # doctest: +SKIP
        >>> print(locator.locate("photo.jpg").candidates)  # doctest: +SKIP
    """

    def __init__(self, retriever: Retriever, index: CellIndex, device: str) -> None:
        self.retriever, self.index, self.device = retriever, index, device

    @classmethod
    def open(cls, folder: str | Path, device: str | None = None, *, approximate: bool = False) -> RetrievalLocator:
        """From a retriever's folder. The encoder is loaded when the first photo comes.

        Args:
            folder: the retriever.
            device: where to encode; by default the best there is.
            approximate: search the HNSW graph rather than all cells.

        Raises:
            ModelError: the folder is no retriever, or has no index.
            CacheError: the index cannot be used.
        """
        from jzi.encode.device import best_device

        retriever = Retriever.load(folder)
        return cls(retriever, CellIndex.load(retriever, approximate=approximate), device or best_device())

    @cached_property
    def encoder(self) -> Encoder:
        """The retriever's."""
        return self.retriever.load_encoder(self.device)

    @property
    def folder(self) -> Path:
        """Of the retriever."""
        return self.retriever.folder

    @property
    def encoder_info(self) -> EncoderInfo:
        """Of the retriever's encoder, without loading it."""
        return self.retriever.encoder

    @property
    def pyramid(self) -> Pyramid:
        """Whose cells are retrieved."""
        return self.retriever.pyramid

    @cached_property
    def cell_mask(self) -> NDArray[np.bool_]:
        """(row, col) whether each cell has imagery."""
        side = self.pyramid.tiles_per_side(self.pyramid.levels)
        there = np.zeros((side, side), bool)
        there[self.index.row, self.index.col] = True
        return there

    def posterior(self, query: Tensor, options: LocateOptions = DEFAULT) -> Posterior:
        """Softmax of the similarities of the `CELLS` most similar cells; of the one alone for the greedy estimate."""
        similarity, cells = self.index.search(query.cpu().numpy(), CELLS)
        share = probabilities(similarity, cells, self.retriever.temperature)
        if options.estimate == "greedy":
            cells, share = cells[:, :1], share[:, :1]
        cells = np.maximum(cells, 0)
        found = [
            Posterior.from_cells(self.pyramid, self.index.row[own], self.index.col[own], mass)
            for own, mass in zip(cells, share, strict=True)
        ]
        return Posterior(
            self.pyramid,
            np.concatenate([each.paths for each in found]),
            np.concatenate([each.steps for each in found]),
            np.concatenate([each.residual for each in found]),
        )
