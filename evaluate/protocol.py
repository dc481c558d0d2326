"""The protocol by which every expert is evaluated: its greedy answer for each photo, off the cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jzi.evaluate.metrics import RADII, RANKS, Evaluation, score
from jzi.evaluate.photos import LabelledPhotos
from jzi.locate.expert import CellRanks, Expert, StepAccuracy
from jzi.locate.location import LocateOptions

#: Photos whose greedy answers are computed at once.
BATCH = 4096


def evaluate(
    expert: Expert,
    photos: LabelledPhotos,
    *,
    radii: Sequence[float] = RADII,
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Answer photos with the expert's greedy cell, the paper's protocol, and compare with where they were taken.

    Args:
        expert: the zoom, a retriever, or anything else that gives posteriors.
        photos: held out.
        radii: metres.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    greedy = LocateOptions(estimate="greedy")
    parts = [expert.posterior(query, greedy) for query in photos.query.split(BATCH)]
    row, col, confidence = (
        np.concatenate([getattr(part, name)[:, 0] for part in parts]) for name in ("row", "col", "probability")
    )
    rank: NDArray[np.int64] | None = None
    steps: tuple[float, ...] = ()
    if isinstance(expert, CellRanks):
        rank = expert.cell_ranks(photos.query, photos.row, photos.col, max(RANKS))
    if isinstance(expert, StepAccuracy):
        steps = expert.step_accuracy(photos.query, photos.row, photos.col)
    return score(
        expert.area,
        row,
        col,
        confidence,
        photos.latitude,
        photos.longitude,
        rank=rank,
        step_accuracy=steps,
        radii=radii,
        resamples=resamples,
        seed=seed,
    )
