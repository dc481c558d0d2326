"""How far confidences can be believed: answers of every estimate on held-out photos, and their calibration error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from jzi.evaluate.photos import LabelledPhotos
from jzi.locate.expert import Expert
from jzi.locate.location import ESTIMATES, LocateOptions
from jzi.locate.posterior import Points, Posterior, most_probable_cells, most_probable_discs
from jzi.store.pyramid import geodesic_distance

#: Photos whose posteriors are computed at once.
BATCH = 32

#: Bins of the calibration error, as in Guo et al. 2017.
BINS = 15

#: Shares of the photos, the most confident ones, whose recall is reported.
COVERAGES = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1)


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Expected calibration error over `BINS` bins of equal width: the mean gap of confidence and share right."""
    return sum(abs(bin.confidence - bin.right) * bin.photos for bin in reliability(confidence, right)) / len(right)


@dataclass(frozen=True)
class Bin:
    """Photos of about the same confidence: their number, mean confidence, and the share that was right."""

    photos: int
    confidence: float
    right: float


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> list[Bin]:
    """Bins of equal width that hold any photo, from unsure to sure."""
    which = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        Bin(int((which == bin).sum()), float(confidence[which == bin].mean()), float(right[which == bin].mean()))
        for bin in np.unique(which)
    ]


@dataclass(frozen=True)
class Answers:
    """One answer to each of several photos.

    Attributes:
        error: (photo,) metres from where they were taken.
        confidence: (photo,) 0..1 that they were taken there: in the cell, or within the radius.
    """

    error: NDArray[np.float64]
    confidence: NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """How true the confidences of an expert are on held-out photos.

    Attributes:
        photos: how many.
        radius: metres; what confidences of the default estimate are about.
        answers: of each estimate.
        uncalibrated: of the default estimate, without the fitted temperatures; None where the expert has none.
        residual: mean probability that search did not reach.
    """

    photos: int
    radius: float
    answers: dict[str, Answers]
    uncalibrated: Answers | None
    residual: float

    def recall(self, estimate: str, radius: float) -> float:
        """Share of photos whose answer lies within a radius."""
        return float((self.answers[estimate].error <= radius).mean())

    @property
    def error_before(self) -> float | None:
        """Expected calibration error of the default estimate without temperatures; None where there are none."""
        if self.uncalibrated is None:
            return None
        return calibration_error(self.uncalibrated.confidence, self.uncalibrated.error <= self.radius)

    @property
    def error_after(self) -> float:
        """The same with them."""
        answers = self.answers["radius"]
        return calibration_error(answers.confidence, answers.error <= self.radius)

    def abstaining(self, confidence: float) -> tuple[float, float]:
        """Coverage and recall within the radius where answers of less confidence are withheld; nan if all are."""
        answers = self.answers["radius"]
        kept = answers.confidence >= confidence
        return float(kept.mean()), float((answers.error[kept] <= self.radius).mean()) if kept.any() else float("nan")

    def covering(self, share: float) -> tuple[float, float]:
        """The least confidence among the most confident photos of a share, and their recall within the radius."""
        answers = self.answers["radius"]
        order = (-answers.confidence).argsort(kind="stable")[: max(1, round(share * self.photos))]
        return float(answers.confidence[order].min()), float((answers.error[order] <= self.radius).mean())

    def to_dict(self, radii: tuple[float, ...]) -> dict[str, Any]:
        """The figures as JSON has them."""
        covered = {f"{share:g}": dict(zip(("confidence", "recall"), self.covering(share), strict=True))
                   for share in COVERAGES}  # fmt: skip
        return {
            "photos": self.photos,
            "radius_m": self.radius,
            "estimates": {
                name: {f"recall@{radius:g}m": self.recall(name, radius) for radius in radii} for name in self.answers
            },
            "calibration_error_before": self.error_before,
            "calibration_error": self.error_after,
            "coverage": covered,
            "residual": self.residual,
        }


def calibrate(expert: Expert, photos: LabelledPhotos, *, radius: float = 50.0, beams: int | None = None) -> Calibration:
    """Answer held-out photos with every estimate, and compare with where they were taken.

    Args:
        expert: gives the posteriors.
        photos: held out.
        radius: metres, of the default estimate.
        beams: as in `LocateOptions`.
    """
    answers: dict[str, list[Answers]] = {name: [] for name in ESTIMATES}
    before: list[Answers] = []
    residual = []
    plain_expert = expert.uncalibrated()
    options, greedy_options = LocateOptions(radius=radius, beams=beams), LocateOptions("greedy", radius=radius)
    batches = np.array_split(np.arange(len(photos)), range(BATCH, len(photos), BATCH))
    for part in tqdm(batches, unit_scale=BATCH, unit="photo", desc="posterior"):
        query, truth = photos.query[part], (photos.latitude[part], photos.longitude[part])
        posterior, greedy = expert.posterior(query, options), expert.posterior(query, greedy_options)
        residual.append(posterior.residual)
        answers["greedy"].append(_answers(greedy, most_probable_cells(greedy), truth))
        answers["map"].append(_answers(posterior, most_probable_cells(posterior), truth))
        answers["radius"].append(_answers(posterior, most_probable_discs(posterior, radius), truth))
        if plain_expert is not None:
            plain = plain_expert.posterior(query, options)
            before.append(_answers(plain, most_probable_discs(plain, radius), truth))
    return Calibration(
        photos=len(photos),
        radius=radius,
        answers={name: _joined(parts) for name, parts in answers.items()},
        uncalibrated=_joined(before) if before else None,
        residual=float(np.concatenate(residual).mean()),
    )


def _answers(posterior: Posterior, points: Points, truth: tuple[NDArray[np.float64], NDArray[np.float64]]) -> Answers:
    latitude, longitude = posterior.area.unproject(points.x[:, 0], points.y[:, 0])
    return Answers(geodesic_distance(*truth, latitude, longitude), np.minimum(points.probability[:, 0], 1.0))


def _joined(parts: list[Answers]) -> Answers:
    return Answers(np.concatenate([each.error for each in parts]), np.concatenate([each.confidence for each in parts]))
