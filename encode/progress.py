"""What counts the tiles and photos that have been encoded."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A bar of tqdm, or the counter of a process that works for another one."""

    def update(self, n: int = 1) -> object:
        """Count more."""
