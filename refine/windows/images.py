"""Windows rendered from imagery, for refiners that see pixels of the map."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.encode.rasters.imagery import Imagery
from jzi.refine.photos import normalised
from jzi.refine.windows.window import Windows
from jzi.store.geometry.cell_grid import Bounds


class WindowImages:
    """Renders windows of a map.

    Args:
        imagery: the map, whose area is that of the windows.
    """

    def __init__(self, imagery: Imagery) -> None:
        self.imagery = imagery

    def read(self, windows: Windows, side: int) -> tuple[Tensor, NDArray[np.bool_]]:
        """Render windows.

        Args:
            windows: of the imagery's area.
            side: side of the result, pixels.

        Returns:
            (window, 3, side, side) float32, normalised as ImageNet's, and (window, side, side) whether there is
            imagery.

        Raises:
            ImageryError: the imagery cannot be read.
        """
        rendered = [self.imagery.render(Bounds(*bounds), side) for bounds in windows.bounds.tolist()]
        return normalised(np.stack([image for image, _ in rendered])), np.stack([mask for _, mask in rendered])
