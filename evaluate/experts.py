"""Evaluation of several experts and of their fusions on the same photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.evaluate.calibration import calibration_error, error_by_chance
from jzi.evaluate.intervals import effective_photos
from jzi.evaluate.metrics import RADII, Interval, error_intervals
from jzi.evaluate.photos import LabelledPhotos
from jzi.locate.answer.location import DEFAULT, LocateOptions
from jzi.locate.expert import Expert
from jzi.locate.joint.fusion import Fusion, combine
from jzi.locate.points.discs import most_probable_discs
from jzi.locate.posterior import Posterior
from jzi.locate.ranges import DISTANCE
from jzi.store.geometry.pyramid import geodesic_distance

#: Probability of a true cell, at least, in the log-likelihood.
TINY = 1e-12


@dataclass(frozen=True)
class ExpertFigures:
    """Accuracy and calibration of an expert's default answer.

    Attributes:
        recall: radius in metres to the share of photos whose answer lies within it.
        median_error: median distance from the true position to the answer, metres.
        nll: mean negative log-likelihood of the true cells, nats.
        confidence: mean confidence, 0..1.
        calibration_error: expected calibration error of the confidences, 0..1.
        error_by_chance: what it would be if the confidences were exactly right, see `jzi.evaluate.calibration`.
    """

    recall: dict[float, Interval]
    median_error: Interval
    nll: float
    confidence: float
    calibration_error: float
    error_by_chance: Interval


def evaluate_experts(
    experts: Mapping[str, Expert],
    fusions: Mapping[str, Fusion],
    photos: LabelledPhotos,
    *,
    radius: float = 50.0,
    radii: Sequence[float] = RADII,
    beams: int | None = None,
) -> dict[str, ExpertFigures]:
    """Locate photos with each of several experts and fusions; each expert's posterior is computed once.

    Args:
        experts: experts on the same cells, by name.
        fusions: fusions of the experts by name; an expert's own row is a fusion of one expert if there is one of its
            name.
        photos: held-out photos.
        radius: radius of the answer, metres.
        radii: radii of recall, metres.
        beams: see `LocateOptions`.

    Returns:
        The figures of each expert and of each fusion, by name.

    Raises:
        ConfigError: a radius or the number of beams is out of range.
    """
    options = LocateOptions(radius=radius, beams=beams)

    def posteriors(query: Tensor) -> dict[str, Posterior]:
        single = {name: expert.posterior(query, options) for name, expert in experts.items()}
        found = dict(single)
        for name, fusion in fusions.items():
            used = fusion.used
            if list(used) == ["zoom"]:  # calibrated by the temperatures of its steps
                found[name] = single["zoom"]
            else:
                found[name] = combine(
                    [experts[expert] for expert in used],
                    [single[expert] for expert in used],
                    list(used.values()),
                    fusion.spread,
                    sharpness=fusion.sharpness,
                )
        return found

    return evaluate_posteriors(posteriors, next(iter(experts.values())).cell_mask, photos, radius=radius, radii=radii)


def evaluate_posteriors(
    posteriors: Callable[[Tensor], Mapping[str, Posterior]],
    cell_mask: NDArray[np.bool_],
    photos: LabelledPhotos,
    *,
    radius: float = 50.0,
    radii: Sequence[float] = RADII,
) -> dict[str, ExpertFigures]:
    """Locate photos by several posteriors.

    Args:
        posteriors: the posteriors of photos with (photo, feature) embeddings, by name.
        cell_mask: (row, col) the cells with imagery.
        photos: held-out photos.
        radius: radius of the answer, metres.
        radii: radii of recall, metres.

    Returns:
        The figures of each posterior, by name.

    Raises:
        ConfigError: a radius is out of range.
    """
    DISTANCE.check("a radius of recall", *radii)
    errors: dict[str, list[NDArray[np.float64]]] = {}
    confidences: dict[str, list[NDArray[np.float64]]] = {}
    losses: dict[str, list[NDArray[np.float64]]] = {}
    for part in photos.batches("experts"):
        for name, posterior in posteriors(photos.query[part]).items():
            points = most_probable_discs(posterior, radius, mean=DEFAULT.estimate == "mean")
            latitude, longitude = posterior.area.unproject(points.x[:, 0], points.y[:, 0])
            error = geodesic_distance(photos.latitude[part], photos.longitude[part], latitude, longitude)
            loss = negative_log_likelihood(posterior, cell_mask, photos.row[part], photos.col[part])
            errors.setdefault(name, []).append(error)
            confidences.setdefault(name, []).append(np.minimum(points.probability[:, 0], 1.0))
            losses.setdefault(name, []).append(loss)
    figures = {}
    for name in errors:
        error, confidence = np.concatenate(errors[name]), np.concatenate(confidences[name])
        effective = effective_photos(photos.latitude, photos.longitude, error)
        recall, median = error_intervals(error, radii, effective=effective)
        figures[name] = ExpertFigures(
            recall,
            median,
            float(np.concatenate(losses[name]).mean()),
            float(confidence.mean()),
            calibration_error(confidence, error <= radius),
            error_by_chance(confidence),
        )
    return figures


def negative_log_likelihood(
    posterior: Posterior, cell_mask: NDArray[np.bool_], row: NDArray[np.int64], col: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(photo,) minus the log-probability of the true cells; the residual is spread over the cells not reached.

    Args:
        posterior: posterior of the photos.
        cell_mask: (row, col) whether each cell has imagery.
        row: (photo,) rows of the true cells.
        col: (photo,) columns of the true cells.
    """
    probability = posterior.at(row, col)
    unreached = np.maximum(1, cell_mask.sum() - (posterior.probability > 0).sum(1))
    probability = np.where(probability > 0, probability, posterior.residual / unreached)
    return -np.log(np.maximum(probability, TINY))
