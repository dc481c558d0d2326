"""The report of single photos of a data set of pairs: aerial images with the answer and the true place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from jzi.encode.photo.pair_images import PairImages
from jzi.errors import ConfigError
from jzi.evaluate.cases import error_ranks, worst_and_best
from jzi.evaluate.pair_protocol import PairOutcome
from jzi.export.gallery.page import write_cards
from jzi.export.gallery.panels import PANEL, Point, panel
from jzi.export.gallery.pool import ImagePool
from jzi.locate.ranges import CASES
from jzi.store.geometry.lengths import distance_text

#: Height and width of panoramas, and width of other photos, pixels.
PANORAMA, PHOTO = (240, 960), 640


def write_pair_gallery(path: Path, outcome: PairOutcome, count: int, *, title: str) -> int:
    """Write the report of the photos with the greatest and with the smallest errors; returns its size, bytes.

    Args:
        path: file to write.
        outcome: what an evaluation has found.
        count: number of photos, 1..500.
        title: title of the report.

    Raises:
        ConfigError: `count` is out of range, or the network neither retrieves nor locates.
        ExportError: the file cannot be written.
    """
    CASES.check("the number of photos", count)
    if outcome.ranking is None and not outcome.located:
        raise ConfigError("the network was trained neither to retrieve images nor to locate photos: there is no answer")
    pool, images = ImagePool(), PairImages(outcome.dataset, PANORAMA, PHOTO, PANEL)
    error = outcome.errors()
    worst, best = worst_and_best(error, count)
    rank = error_ranks(error)
    chosen = [(int(each), each in worst) for each in np.concatenate([worst, best])]
    cards = [
        _card(outcome, images, pool, index, float(error[index]), int(rank[index]), is_worst)
        for index, is_worst in tqdm(chosen, unit="photo", desc="gallery")
    ]
    median = float(np.median(error))
    notes = [outcome.dataset.not_metric] if outcome.dataset.not_metric else []
    return write_cards(
        path,
        cards,
        pool,
        notes,
        title=title,
        pairs=True,
        photos=len(error),
        median=_distance(median) if outcome.metric else f"rank {median + 1:,.0f}",
        unit="m" if outcome.metric else "images",
        sure="Similarity" if outcome.ranking else "",
    )


def _card(
    outcome: PairOutcome, images: PairImages, pool: ImagePool, index: int, error: float, rank: int, worst: bool
) -> dict[str, Any]:
    dataset, ranking = outcome.dataset, outcome.ranking
    photo, path = images.photo(index), str(dataset.photos[index])
    chosen = int(outcome.answers.chosen[index])
    similarity = None
    if ranking is not None and (ranking.top[index] >= 0).any():
        similarity = float(ranking.similarity[index].max())
    if outcome.metric:
        text = _distance(error)
    else:
        text = "the right image is first" if not error else f"the right image has rank {error + 1:,.0f}"
    return {
        "name": Path(path).name,
        "rank": rank,
        "worst": worst,
        "error_m": round(error, 2) if np.isfinite(error) else 1e9,
        "error": text,
        "confidence": 0.0 if similarity is None else round(similarity, 4),
        "confidence_text": "" if similarity is None else f"{similarity:.2f}",
        "photo": None if photo is None else pool.add(Image.fromarray(photo), PHOTO),
        "shape": [4, 3] if photo is None else [photo.shape[1], photo.shape[0]],
        "missing": images.unreadable.get(path, ""),
        "panels": [
            part
            for reference in dict.fromkeys([chosen, int(dataset.positive[index])])
            if (part := _panel(outcome, images, pool, index, reference)) is not None
        ],
        "steps": [],
        "wrong": None,
    }


def _panel(
    outcome: PairOutcome, images: PairImages, pool: ImagePool, index: int, reference: int
) -> dict[str, Any] | None:
    """An aerial image, or the view of it, with the answer and the true place; None if it cannot be read."""
    dataset, answers, ranking = outcome.dataset, outcome.answers, outcome.ranking
    is_answer, is_true = reference == answers.chosen[index], reference == dataset.positive[index]
    view = dataset.view[index] if ranking is None else np.zeros(3)
    pixels = images.view(reference, view)
    if pixels is None:
        return None
    side = float(dataset.sides(np.array([reference]))[0])
    truth = answer = None
    if not dataset.not_metric:
        if ranking is None:
            truth = _at(dataset.in_view()[0][index], side)
        else:
            truth = _at(dataset.places(np.array([index]), np.array([reference]))[0, 0], side)
    if outcome.located and is_answer:
        answer = _at(answers.final[index] if ranking is not None else answers.place[index], side)
    title = "Answer, the right image" if is_answer and is_true else "Answer" if is_answer else "The right image"
    text = Path(str(dataset.references[reference])).name
    if ranking is not None and is_true:
        text += f", rank {int(ranking.rank[index]) + 1:,} of {ranking.references:,}"
    return panel(pool.add(Image.fromarray(pixels), PANEL), side, title, text, answer=answer, truth=truth)


def _distance(metres: float) -> str:
    """An error in words; in another city it is thousands of kilometres."""
    if not np.isfinite(metres):
        return "an unknown distance"
    return distance_text(metres, 1)


def _at(metres: NDArray[np.float64], side: float) -> Point:
    """Percent from the left and from above, of metres right and up of the centre."""
    right, up = (float(each) for each in metres)
    return round(50 + 100 * right / side, 2), round(50 - 100 * up / side, 2)
