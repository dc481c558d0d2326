"""What counts the tiles, cells and photos that are encoded, and units of them that another process encodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tqdm import tqdm

from jzi.store.features.cell_features import Unit


class Progress(Protocol):
    """A bar of tqdm, or the counter of a process that works for another one."""

    def update(self, n: int = 1) -> object:
        """Count more."""


@dataclass(frozen=True)
class UnitTask:
    """Chunks or shards of an array for another process to encode.

    Attributes:
        units: rows and columns of each.
    """

    units: tuple[Unit, ...]

    def __len__(self) -> int:
        """Number of cells or tiles."""
        return sum(map(unit_size, self.units))


#: Encodes units elsewhere, counting their cells or tiles.
UnitRunner = Callable[[list[UnitTask], tqdm], object]


def unit_size(unit: Unit) -> int:
    """Number of cells or tiles of a unit."""
    rows, cols = unit
    return (rows.stop - rows.start) * (cols.stop - cols.start)


def unit_tasks(units: Sequence[Unit], size: int) -> list[UnitTask]:
    """Join units of equal size, in their order, to tasks of at most `size` cells or tiles, or of one unit."""
    count = max(1, size // unit_size(units[0])) if units else 1
    return [UnitTask(tuple(units[start : start + count])) for start in range(0, len(units), count)]
