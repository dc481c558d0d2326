"""The rasters on which a town is drawn before they become a scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from jzi.synth.scene import Scene


@dataclass(frozen=True)
class Canvas:
    """Writable rasters of a scene, (rows, cols) and (rows, cols, 3); see `Scene`.

    `bare` is bool (rows, cols): ground where no tree is planted.
    """

    height: np.ndarray
    top: np.ndarray
    side: np.ndarray
    facade: np.ndarray
    bare: np.ndarray
    resolution: float

    @classmethod
    def blank(cls, n: int, resolution: float) -> Canvas:
        """Return flat ground of n x n pixels, black except for stone-coloured vertical faces (quays and kerbs)."""
        return cls(
            height=np.zeros((n, n), np.float32),
            top=np.zeros((n, n, 3), np.uint8),
            side=np.full((n, n, 3), (148, 143, 134), np.uint8),
            facade=np.zeros((n, n), np.uint8),
            bare=np.zeros((n, n), bool),
            resolution=resolution,
        )

    def paint(self, where: np.ndarray, colour: np.ndarray | tuple[int, int, int]) -> None:
        """Set the colour of the tops where the mask is set."""
        self.top[where] = colour

    def scene(self) -> Scene:
        """Return the rasters as a scene; memory is shared, not copied."""
        return Scene(
            height=torch.from_numpy(self.height),
            top=torch.from_numpy(self.top),
            side=torch.from_numpy(self.side),
            resolution=self.resolution,
            facade=torch.from_numpy(self.facade),
        )
