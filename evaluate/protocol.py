"""The evaluation protocol of all experts: the greedy answer for each embedded photo."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jzi.evaluate.gallery import GalleryExpert
from jzi.evaluate.metrics import RADII, RANKS, Evaluation, check_bootstrap, score
from jzi.evaluate.photos import LabelledPhotos
from jzi.locate.answer.location import LocateOptions
from jzi.locate.expert import CellRanks, Expert, StepAccuracy

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
    """Locate photos with the expert's greedy estimate, as in the paper, and compare with their true positions.

    Args:
        expert: the expert to evaluate.
        photos: held-out photos.
        radii: radii of recall, metres.
        resamples: number of bootstrap resamples.
        seed: seed of the bootstrap.

    Raises:
        ConfigError: a radius, the number of resamples or the seed is out of range.
    """
    check_bootstrap(radii, resamples, seed)
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
        training_distance=photos.training_distance,
        gallery="occupied" if isinstance(expert, GalleryExpert) else "all",
        gallery_cells=int(expert.cell_mask.sum()),
    )
