"""How good retrieval's answers are, off the cache, by the zoom's protocol (DESIGN 7) and by rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from jzi.errors import TrainingError
from jzi.evaluate.evaluate import RADII, Evaluation, score
from jzi.retrieve.retriever import Retriever
from jzi.retrieve.search import CellIndex, probabilities
from jzi.store.photo_features import ENCODED

#: Cells that are looked at for the rank of the true one, at least the last of `jzi.evaluate.evaluate.RANKS`.
COUNT = 64


def evaluate_retriever(
    folder: Path,
    split: str | None = None,
    *,
    radii: Sequence[float] = RADII,
    approximate: bool = False,
) -> tuple[str, int, Evaluation]:
    """Evaluate a retriever on the photos of its cache.

    Args:
        folder: the retriever, with an index and photos.
        split: "train", "val" or "test"; by default test, or val where there is no test photo.
        radii: metres.
        approximate: search the HNSW graph rather than all cells.

    Returns:
        The split, how many of its photos lie where the map has no imagery, and the evaluation.

    Raises:
        ModelError: there is no retriever, or no index.
        CacheError: the index cannot be used.
        TrainingError: no photo of the split is encoded.
    """
    retriever = Retriever.load(folder)
    index = CellIndex.load(retriever, approximate=approximate)
    cache = retriever.open_cache()
    frame, pyramid = cache.queries.frame(), retriever.pyramid
    frame = frame[frame["status"] == ENCODED]
    side = pyramid.tiles_per_side(pyramid.levels)
    number = np.full((side, side), -1)  # of each cell in the index
    number[index.row, index.col] = np.arange(len(index))
    for name in [split] if split else ["test", "val"]:
        photos = frame[frame["split"] == name]
        latitude, longitude = photos["latitude"].to_numpy(float), photos["longitude"].to_numpy(float)
        paths = pyramid.paths(latitude, longitude).reshape(-1, pyramid.levels)
        truth = np.where(paths[:, 0] >= 0, number[pyramid.path_to_tile(np.maximum(paths, 0))], -1)
        keep = truth >= 0
        if not keep.any():
            continue
        query = cache.queries.embedding(photos.index.to_numpy(np.int64)[keep])[:, 0]
        similarity, cells = index.search(query, COUNT)
        evaluation = score(
            pyramid,
            pyramid.cell_to_path(index.row[cells[:, 0]], index.col[cells[:, 0]]),
            probabilities(similarity, cells, retriever.temperature)[:, 0],
            latitude[keep],
            longitude[keep],
            rank=_rank(cells, truth[keep]),
            radii=radii,
        )
        return name, int((~keep).sum()), evaluation
    wanted = f"split {split!r}" if split else "split 'test' or 'val'"
    raise TrainingError(
        f"{cache.path} has no photo with {wanted} to evaluate on: run `jzi encode-queries --retriever {folder}`"
    )


def _rank(cells: NDArray[np.int64], truth: NDArray[np.int64]) -> NDArray[np.int64]:
    """(photo,) how many cells come before the true one; all that were looked at where it is not among them."""
    hit = cells == truth[:, None]
    return np.where(hit.any(1), hit.argmax(1), cells.shape[1])
