"""The interfaces of experts, which return posteriors, and of stages, which refine candidates.

An expert returns the probability of each cell, by whatever means (a decoder, an index of cells); experts are
independent of one another. A stage takes the candidates of a posterior and returns better ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.locate.answer.location import Camera, Candidate, LocateOptions
from jzi.locate.posterior import Posterior
from jzi.store.geometry.cell_grid import CellGrid
from jzi.store.info import EncoderInfo


class Expert(Protocol):
    """Computes probabilities of cells for embedded photos; opens no image.

    Attributes:
        name: name in reports, such as "zoom".
        area: the grid of the cells.
        encoder: info of the encoder that photos are embedded with.
        cell_mask: (row, col) whether each cell has imagery; cells without have probability 0.
        rules_out: whether a probability of 0 excludes a cell (a prior), or only means that it is small.
    """

    name: str
    rules_out: bool

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
            options: `beams` bounds the search; for the estimate "greedy", only the cell that a greedy search ends in
                is needed.
        """
        ...

    def uncalibrated(self) -> Expert | None:
        """The same expert without its fitted temperature, for comparison; None if it has none."""
        ...


class WrappedExpert:
    """What an expert that changes the posteriors of another one has from it: name, grid of the cells and encoder.

    Args:
        expert: the other one.
    """

    def __init__(self, expert: Expert) -> None:
        self.expert, self.name, self.rules_out = expert, expert.name, expert.rules_out

    @property
    def area(self) -> CellGrid:
        """The grid of the cells."""
        return self.expert.area

    @property
    def encoder(self) -> EncoderInfo:
        """The encoder of the photos."""
        return self.expert.encoder


@runtime_checkable
class Restrictable(Protocol):
    """An expert that can search only some of the cells; needed where it does not reach all cells of a large map."""

    def restricted(self, cell_mask: NDArray[np.bool_]) -> Expert:
        """The same expert for some of its cells.

        Probabilities stay in the proportions of the whole map: with the residual of the cells in `cell_mask` their sum
        is at most 1.

        Args:
            cell_mask: (row, col) the cells to search; those without imagery are ignored.
        """
        ...


@runtime_checkable
class StepAccuracy(Protocol):
    """An expert that decides step by step; evaluation reports the accuracy of its steps."""

    def step_accuracy(self, query: Tensor, row: NDArray[np.int64], col: NDArray[np.int64]) -> tuple[float, ...]:
        """Share of photos whose step k is right given those before it, k = 1..L.

        Args:
            query: (photo, feature) embeddings.
            row: (photo,) rows of the true cells.
            col: (photo,) columns of the true cells.
        """
        ...


@runtime_checkable
class CellRanks(Protocol):
    """An expert that ranks cells; evaluation reports its recall at k."""

    def cell_ranks(
        self, query: Tensor, row: NDArray[np.int64], col: NDArray[np.int64], count: int
    ) -> NDArray[np.int64]:
        """(photo,) number of cells that rank before the true one; `count` if it is not among the first `count`.

        Args:
            query: (photo, feature) embeddings.
            row: (photo,) rows of the true cells.
            col: (photo,) columns of the true cells.
            count: number of cells to rank.
        """
        ...


@dataclass(frozen=True)
class Query:
    """A photo as the input of a stage.

    Attributes:
        name: name of the photo in the answer.
        embedding: (feature,) its embedding.
        photo: its source (a path, bytes, an open file or an image); None if only the embedding is available.
        tokens: (row, col, feature) its tokens, as `jzi.encode.photo.photo_tokens` makes them in the forward pass of the
            embedding, if a stage reads them.
        camera: what the user knows of how it was taken.
    """

    name: str
    embedding: Tensor
    photo: Any = None
    tokens: Tensor | None = None
    camera: Camera = field(default_factory=Camera)


class Stage(Protocol):
    """A step after the posterior: a refiner or a re-ranker.

    With an attribute `reads_tokens` that is true, its queries have tokens. With an attribute `top`, it is given that
    many candidates or more, however many the answer lists. If it is a `Commentator`, its notes become those of the
    answer.
    """

    name: str

    def __call__(self, query: Query, posterior: Posterior, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Better candidates, the most probable first.

        Args:
            query: the photo.
            posterior: the posterior of this photo.
            candidates: its candidates, the most probable first.
        """
        ...


@runtime_checkable
class Commentator(Protocol):
    """A stage that has notes about its answers, such as what it assumed of a photo."""

    def notes(self, query: Query, candidates: Sequence[Candidate]) -> Sequence[str]:
        """Notes about an answer, for `Location.notes`.

        Args:
            query: the photo.
            candidates: what the stage returned for it.
        """
        ...
