"""Dashboards and bonnets: what does not move between the photos of a drive.

An edge that is in the same place, with the same contrast, in all photos belongs to the car or the lens. The gradients
of a drive's photos are averaged: where their mean is almost as long as they are on average, the edge is static. If
static edges cross most of the width, the picture below them is the car's. A bonnet as gray as the road has no edge and
is not found, and a drive of a few photos along a straight road has static edges of its own.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jzi.curate.quality import LOWER_SHAPE, lower_halves

#: Fewest photos of a drive. On drives made of 14 photos by zooming and panning, with a dashboard over the lower 40 %
#: in half of them, 20 photos and `STATIC` find 13 of 14 and no other; 10 photos, 3 others.
MIN_PHOTOS = 20

#: Length of the mean gradient over the mean length from which an edge is static.
STATIC = 0.9

#: Least mean gradient of an edge, 8-bit levels per pixel of `LOWER_SHAPE`.
EDGE = 4.0

#: Share of the width that static edges must cross.
CROSSED = 0.6

#: Most photos of a drive that are averaged, evenly spaced in time.
MOST = 400


def dashboard_shares(frame: pd.DataFrame) -> pd.Series:
    """(photo,) share of the picture below the static edges of its drive; nan without a drive of `MIN_PHOTOS` photos.

    Args:
        frame: columns drive and lower_half, in the order of time.
    """
    shares = pd.Series(np.nan, index=frame.index)
    for drive, rows in frame.groupby("drive", sort=False):
        if drive and len(rows) >= MIN_PHOTOS:
            chosen = np.linspace(0, len(rows) - 1, min(len(rows), MOST)).round().astype(int)
            shares[rows.index] = static_share(lower_halves(rows["lower_half"].iloc[chosen].tolist()))
    return shares


def static_share(lower: NDArray[np.uint8]) -> float:
    """Share of the picture, 0 to 0.5, below the edges that are static in all photos; 0 if they do not cross it.

    Args:
        lower: (photo, *LOWER_SHAPE) gray lower halves.
    """
    down, right = np.gradient(lower.astype(np.float32), axis=(1, 2))
    length = np.hypot(down, right).mean(0)
    static = (np.hypot(down.mean(0), right.mean(0)) > STATIC * length) & (length > EDGE)
    crossed = static.any(0)
    if crossed.mean() < CROSSED:
        return 0.0
    rows = LOWER_SHAPE[0]
    return float(0.5 * (rows - np.median(static.argmax(0)[crossed])) / rows)
