"""The area of layouts with imagery, where none is given: a square around the photos."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from jzi.errors import DatasetError
from jzi.publish.facts import unwrapped
from jzi.store.geometry.pyramid import Pyramid

#: Margin around photos, metres, since photos at the rim see beyond it; and what the side is rounded up to.
MARGIN_M, ROUND_M = 100.0, 100.0


def imagery_needed(rasters: Sequence[str], layout: str) -> None:
    """Raise if no imagery is given.

    Raises:
        DatasetError: there is none.
    """
    if not rasters:
        raise DatasetError(f"the layout {layout} has tiles of imagery: name it with --imagery map.tif")


def area_of(photos: pd.DataFrame) -> Pyramid:
    """The square around photos, with a margin, whose cells are at most 40 m.

    Raises:
        DatasetError: there are no photos.
    """
    if not len(photos):
        raise DatasetError("there are no photos: there is nothing to publish")
    latitude, longitude = photos["latitude"].to_numpy(float), unwrapped(photos["longitude"].to_numpy(float))
    middle = (latitude.min() + latitude.max()) / 2, (longitude.min() + longitude.max()) / 2
    middle = middle[0], (middle[1] + 180) % 360 - 180
    x, y = Pyramid.around(*middle, ROUND_M, levels=1).project(latitude, photos["longitude"].to_numpy(float))
    half = float(max(np.abs(x).max(), np.abs(y).max())) + MARGIN_M
    return Pyramid.around(*middle, math.ceil(2 * half / ROUND_M) * ROUND_M)
