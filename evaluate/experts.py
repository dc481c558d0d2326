"""Evaluation of several experts and of their fusions on the same photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jzi.evaluate.calibration import calibration_error
from jzi.evaluate.metrics import RADII, Interval, error_intervals
from jzi.evaluate.photos import LabelledPhotos
from jzi.locate.discs import most_probable_discs
from jzi.locate.expert import Expert
from jzi.locate.fusion import combine, positive
from jzi.locate.location import LocateOptions
from jzi.locate.posterior import Posterior
from jzi.locate.ranges import DISTANCE
from jzi.store.pyramid import geodesic_distance

#: Photos whose posteriors are computed at once.
BATCH = 64

#: Probability of a true cell, at least, in the log-likelihood.
TINY = 1e-12


@dataclass(frozen=True)
class ExpertFigures:
    """Accuracy and calibration of an expert's default answer, the point with the most probability within a radius.

    Attributes:
        recall: radius in metres to the share of photos whose answer lies within it.
        median_error: median distance from the true position to the answer, metres.
        nll: mean negative log-likelihood of the true cells, nats.
        calibration_error: expected calibration error of the confidences, 0..1.
    """

    recall: dict[float, Interval]
    median_error: Interval
    nll: float
    calibration_error: float


def evaluate_experts(
    experts: Mapping[str, Expert],
    fusions: Mapping[str, Mapping[str, float]],
    photos: LabelledPhotos,
    *,
    radius: float = 50.0,
    radii: Sequence[float] = RADII,
    beams: int | None = None,
) -> dict[str, ExpertFigures]:
    """Locate photos with each of several experts and fusions; each expert's posterior is computed once.

    Args:
        experts: experts on the same cells, by name.
        fusions: weights of experts by name, for each fusion by name; an expert's own row is a fusion of one expert if
            there is one of its name.
        photos: held-out photos.
        radius: radius of the answer, metres.
        radii: radii of recall, metres.
        beams: see `LocateOptions`.

    Returns:
        The figures of each expert and of each fusion, by name.

    Raises:
        ConfigError: a radius or the number of beams is out of range.
    """
    DISTANCE.check("a radius of recall", *radii)
    options = LocateOptions(radius=radius, beams=beams)
    names = [*experts, *(name for name in fusions if name not in experts)]
    errors: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    confidences: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    losses: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    batches = np.array_split(np.arange(len(photos)), range(BATCH, len(photos), BATCH))
    for part in tqdm(batches, unit_scale=BATCH, unit="photo", desc="experts"):
        posteriors = {name: expert.posterior(photos.query[part], options) for name, expert in experts.items()}
        single = dict(posteriors)
        for name, weights in fusions.items():
            used = positive(weights)
            if list(used) == ["zoom"]:  # calibrated by the temperatures of its steps
                posteriors[name] = single["zoom"]
            else:
                posteriors[name] = combine(
                    [experts[expert] for expert in used], [single[expert] for expert in used], list(used.values())
                )
        for name, posterior in posteriors.items():
            points = most_probable_discs(posterior, radius)
            latitude, longitude = posterior.area.unproject(points.x[:, 0], points.y[:, 0])
            errors[name].append(geodesic_distance(photos.latitude[part], photos.longitude[part], latitude, longitude))
            confidences[name].append(np.minimum(points.probability[:, 0], 1.0))
            mask = next(iter(experts.values())).cell_mask
            losses[name].append(negative_log_likelihood(posterior, mask, photos.row[part], photos.col[part]))
    figures = {}
    for name in names:
        error, confidence = np.concatenate(errors[name]), np.concatenate(confidences[name])
        recall, median = error_intervals(error, radii)
        calibration = calibration_error(confidence, error <= radius)
        figures[name] = ExpertFigures(recall, median, float(np.concatenate(losses[name]).mean()), calibration)
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
