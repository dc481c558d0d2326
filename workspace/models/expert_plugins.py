"""Experts of other packages, which the user names beside those of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jzi.encode.encoders.plugins import EXPERTS, installed, load_plugin
from jzi.errors import ModelError, first_line
from jzi.locate.expert import Restrictable
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from jzi.decode.tile_table import TileTable
    from jzi.locate.answer.location import LocateOptions
    from jzi.locate.expert import Expert
    from jzi.locate.posterior import Posterior
    from jzi.store.geometry.cell_grid import CellGrid

#: What an expert must have, see `jzi.Expert`.
_MEMBERS = ("name", "rules_out", "area", "encoder", "cell_mask", "posterior", "uncalibrated")

#: By how much probabilities may exceed 1 in total: rounding errors of float32 over many cells.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class ExpertContext:
    """What the expert of another package is made of: the model that it joins.

    Attributes:
        folder: the model folder, which may come from a stranger: check files of your own that you read there.
        area: pyramid of the cells.
        encoder: encoder of the photos.
        cell_mask: (row, col) whether each cell has imagery.
        table: embeddings of the map's tiles, on the device.
    """

    folder: Path
    area: Pyramid
    encoder: EncoderInfo
    cell_mask: NDArray[np.bool_]
    table: TileTable


def offered(name: str) -> bool:
    """Whether an installed package offers an expert of this name; imports none."""
    return name in installed(EXPERTS)


def load_expert(name: str, context: ExpertContext) -> Expert:
    """Make the expert that an installed package offers.

    Args:
        name: its name, as the user gave it.
        context: the model.

    Raises:
        ModelError: the package is broken, or what it offers is no expert of this area and encoder.

    Returns:
        The expert, which raises a ModelError if its posteriors are none.
    """
    factory, label = load_plugin(EXPERTS, name, ModelError)
    if not callable(factory):
        raise ModelError(f"{label} is a {type(factory).__name__}: it must be a function of an ExpertContext")
    try:
        expert: Expert = factory(context)
        missing = [member for member in _MEMBERS if not hasattr(expert, member)]
    except Exception as error:  # whatever its code raises
        raise ModelError(
            f"{label} cannot be made ({type(error).__name__}: {first_line(error)}): ask its authors"
        ) from error
    if missing:
        raise ModelError(f"{label} lacks {missing[0]!r}, which jzi.Expert describes: ask its authors")
    if expert.area != context.area or expert.encoder != context.encoder:
        raise ModelError(f"{label} has another area or encoder than {context.folder}: ask its authors")
    if expert.cell_mask.shape != context.cell_mask.shape:
        raise ModelError(f"{label} has cells of shape {expert.cell_mask.shape}, not {context.cell_mask.shape}")
    weight: Any = getattr(expert, "weight", 1.0)
    if not (isinstance(weight, Real) and 0 <= float(weight) < math.inf):
        raise ModelError(f"{label} has weight {weight!r:.40}: it must be a finite number, 0 or more; ask its authors")
    return checked(expert, label)


def checked(expert: Expert, label: str) -> CheckedExpert:
    """An expert that raises if a posterior of another one is none.

    Args:
        expert: of another package.
        label: names it in error messages.
    """
    return (RestrictableCheckedExpert if isinstance(expert, Restrictable) else CheckedExpert)(expert, label)


class CheckedExpert:
    """The expert of another package, whose posteriors are checked; arguments as of `checked`."""

    def __init__(self, expert: Expert, label: str) -> None:
        self.expert, self.label = expert, label
        self.name, self.rules_out, self.weight = expert.name, expert.rules_out, getattr(expert, "weight", 1.0)

    @property
    def area(self) -> CellGrid:
        """The grid of the cells."""
        return self.expert.area

    @property
    def encoder(self) -> EncoderInfo:
        """The encoder of the photos."""
        return self.expert.encoder

    @property
    def cell_mask(self) -> NDArray[np.bool_]:
        """(row, col) whether each cell has imagery."""
        return self.expert.cell_mask

    def posterior(self, query: Tensor, options: LocateOptions) -> Posterior:
        """The expert's posterior.

        Args:
            query: (photo, feature) embeddings.
            options: passed to the expert.

        Raises:
            ModelError: its probabilities are not finite, negative, or more than 1 in total, or not of these photos and
                cells.
        """
        posterior = self.expert.posterior(query, options)
        if reason := _fault(posterior, len(query), self.area.shape):
            raise ModelError(f"{self.label} returned {reason}: ask its authors, or leave it out")
        return posterior

    def uncalibrated(self) -> CheckedExpert | None:
        """The same for the uncalibrated expert; None if there is none."""
        expert = self.expert.uncalibrated()
        return None if expert is None else checked(expert, self.label)


class RestrictableCheckedExpert(CheckedExpert):
    """The same for an expert that can search only some of the cells."""

    def restricted(self, cell_mask: NDArray[np.bool_]) -> CheckedExpert:
        """See `jzi.locate.expert.Restrictable`.

        Args:
            cell_mask: (row, col) the cells to search.
        """
        assert isinstance(self.expert, Restrictable)
        return checked(self.expert.restricted(cell_mask), self.label)


def _fault(posterior: Posterior, photos: int, shape: tuple[int, int]) -> str:
    """What is wrong with a posterior; empty if nothing is."""
    import numpy as np

    probability, residual, row, col = posterior.probability, posterior.residual, posterior.row, posterior.col
    cells = np.shape(probability)
    if len(cells) != 2 or cells[0] != photos or np.shape(row) != cells or np.shape(col) != cells:
        return f"probabilities of shape {cells} for {photos} photos"
    if np.shape(residual) != (photos,):
        return f"residuals of shape {np.shape(residual)} for {photos} photos"
    total = probability.sum(1) + residual
    wrong = ~(np.isfinite(total) & (probability >= 0).all(1) & (residual >= 0) & (total <= 1 + TOLERANCE))
    if wrong.any():
        photo = int(wrong.argmax())
        return (
            f"no probabilities for photo {photo + 1} of {photos}: they lie between {probability[photo].min():.3g} and "
            f"{probability[photo].max():.3g}, and are {total[photo]:.3g} in total"
        )
    if cells[1] and not ((row >= 0) & (row < shape[0]) & (col >= 0) & (col < shape[1])).all():
        return "cells that are not in the area"
    return ""


def weight_of(expert: Expert) -> float:
    """Exponent of its posterior in a fusion: the attribute `weight`, by default 1, since none was fitted for it."""
    return float(getattr(expert, "weight", 1.0))
