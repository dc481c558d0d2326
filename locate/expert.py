"""The two interfaces that the answer is composed of: experts, which meet at the posterior, and stages after it.

An expert says how probable each cell is; what it is made of (a decoder, an index of cells, known photos) is not
visible here, and no expert knows another. A stage takes candidates and gives better ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.locate.location import Candidate, LocateOptions
from jzi.locate.posterior import Posterior
from jzi.store.cell_grid import CellGrid
from jzi.store.info import EncoderInfo


class Expert(Protocol):
    """Probabilities of cells for embedded photos, off the cache: no image is opened.

    Attributes:
        name: what reports call it, such as "zoom".
        area: the cells that it speaks of.
        encoder: which encoder its photos are embedded with.
        cell_mask: (row, col) whether each cell has imagery; the others have probability 0.
    """

    name: str

    @property
    def area(self) -> CellGrid:
        """See above."""
        ...

    @property
    def encoder(self) -> EncoderInfo:
        """See above."""
        ...

    @property
    def cell_mask(self) -> NDArray[np.bool_]:
        """See above."""
        ...

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """The posterior of photos.

        Args:
            query: (photo, feature) embeddings, on any device.
            options: `beams` bounds the search; with the estimate "greedy" the one cell that a greedy search ends in is
                enough.
        """
        ...

    def uncalibrated(self) -> Expert | None:
        """The same expert without its fitted temperature, to compare with; None where it has none."""
        ...


@runtime_checkable
class StepAccuracy(Protocol):
    """An expert that decides step by step, which evaluation reports too."""

    def step_accuracy(self, query: Tensor, row: NDArray[np.int64], col: NDArray[np.int64]) -> tuple[float, ...]:
        """Share of photos whose step k is right when those before it are given, k = 1..L.

        Args:
            query: (photo, feature) embeddings.
            row: (photo,) true cells.
            col: likewise.
        """
        ...


@runtime_checkable
class CellRanks(Protocol):
    """An expert that ranks cells, which evaluation reports as recall at k."""

    def cell_ranks(
        self, query: Tensor, row: NDArray[np.int64], col: NDArray[np.int64], count: int
    ) -> NDArray[np.int64]:
        """(photo,) how many cells are preferred to the true one; `count` where it is not among the first `count`.

        Args:
            query: (photo, feature) embeddings.
            row: (photo,) true cells.
            col: likewise.
            count: how many cells to look at.
        """
        ...


@dataclass(frozen=True)
class Query:
    """One photo as a stage takes it.

    Attributes:
        name: what the answer calls it.
        embedding: (feature,) as the experts took it.
        photo: what it was read from (a path, bytes, an open file or an image); None where only its embedding is known.
    """

    name: str
    embedding: Tensor
    photo: Any = None


class Stage(Protocol):
    """What follows the posterior: a refiner or a re-ranker."""

    name: str

    def __call__(self, query: Query, posterior: Posterior, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Better candidates, the most probable first.

        Args:
            query: the photo.
            posterior: its own (one photo).
            candidates: the most probable first.
        """
        ...
