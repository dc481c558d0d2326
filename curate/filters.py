"""The filters of the paper's section 3.1.1: which photos become part of a data set, and why the others do not.

What metadata can decide is decided before a photo is downloaded or opened (`filter_records`), the rest by what
`jzi.curate.quality` has measured (`filter_images`). A photo counts for the first filter that removes it. The result
does not depend on the order of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from jzi.curate.folder import FilterCount, Rejection
from jzi.curate.options import FilterOptions as FilterOptions


@dataclass(frozen=True)
class FilterResult:
    """What filters have kept and removed.

    Attributes:
        photos: the kept rows, in their order, with a new index.
        rejected: the others, in their order.
        counts: one per filter that was on, in the order in which they ran, also of those that removed nothing.
    """

    photos: pd.DataFrame
    rejected: list[Rejection]
    counts: list[FilterCount]


def filter_records(frame: pd.DataFrame, options: FilterOptions, now: datetime | None = None) -> FilterResult:
    """Filter photos by their metadata: position, time, SfM, age, device, camera, size, score, spacing, blocks.

    Args:
        frame: columns id, latitude and longitude; optionally gps_latitude, gps_longitude, computed_latitude,
            computed_longitude, captured_at (ISO 8601 or a number, as `jzi.store.splits.capture_seconds`), drive,
            device (or make and model), camera, width, height, quality_score. Ids are distinct texts.
        options: thresholds.
        now: the time beyond which clocks are wrong; that of the machine by default.

    Returns:
        The kept photos, with a column position_error_m (metres, nan if unknown) where SfM positions are given.
    """
    raise NotImplementedError


def filter_images(frame: pd.DataFrame, options: FilterOptions) -> FilterResult:
    """Filter photos by what was measured of them: blur, exposure, sky, occlusion, veil, dashboard, duplicates.

    Args:
        frame: columns id and `jzi.curate.quality.QUALITY_COLUMNS` (as of `Quality.to_columns`); optionally drive,
            captured_at, width, height and quality_score.
        options: thresholds.

    Returns:
        The kept photos; dashboard_share is filled, and `lower_half`, which it is computed from, dropped.
    """
    raise NotImplementedError
