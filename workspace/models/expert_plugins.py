"""Experts of other packages, which the user names beside those of the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jzi.encode.encoders.plugins import EXPERTS, installed, load_plugin
from jzi.errors import ModelError, first_line
from jzi.store.geometry.pyramid import Pyramid
from jzi.store.info import EncoderInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from jzi.decode.tile_table import TileTable
    from jzi.locate.expert import Expert

#: What an expert must have, see `jzi.Expert`.
_MEMBERS = ("name", "rules_out", "area", "encoder", "cell_mask", "posterior", "uncalibrated")


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
    from jzi.locate.checked_expert import checked

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


def weight_of(expert: Expert) -> float:
    """Exponent of its posterior in a fusion: the attribute `weight`, by default 1, since none was fitted for it."""
    return float(getattr(expert, "weight", 1.0))
