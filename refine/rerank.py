"""Re-ranking of retrieved windows by how well the photo fits the best place in each (UnifyGeo, eq. 4)."""

from __future__ import annotations

from torch import Tensor


def rerank_scores(similarity: Tensor, level0_max: Tensor) -> Tensor:
    """Scores of candidates by eq. 4: the cosine of retrieval and the greatest cosine of level 0, summed.

    Args:
        similarity: (..., k) cosines of the embeddings of photo and candidates.
        level0_max: (..., k) of `RefinerOutput.level0_max`.

    Returns:
        (..., k) in [-2, 2]; the candidate with the greatest is decoded.
    """
    return similarity + level0_max
