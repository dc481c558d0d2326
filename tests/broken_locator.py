"""Opens a model that fails, in the process of a worker of the service."""

from __future__ import annotations

from pathlib import Path

import jzi
from jzi.locate.locator import Locator


class BrokenLocator(Locator):
    """Cannot embed a photo of the first batch."""

    failed = False

    def embed(self, pixels):
        """Fail once."""
        if not BrokenLocator.failed:
            BrokenLocator.failed = True
            raise ValueError("a secret of photo.jpg")
        return super().embed(pixels)


def open_broken(folder: Path) -> tuple[Locator, None, str]:
    """The model of a folder, as `jzi.serve.workers.Open`."""
    locator = jzi.load(folder)
    locator.__class__ = BrokenLocator
    return locator, None, ""
