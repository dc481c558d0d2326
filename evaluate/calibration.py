"""Calibration of confidences: answers of every estimate on held-out photos, and their calibration error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jzi.evaluate.gallery import GalleryExpert
from jzi.evaluate.intervals import Interval, effective_photos
from jzi.evaluate.metrics import error_intervals
from jzi.evaluate.photos import LabelledPhotos
from jzi.locate.answer.location import DEFAULT, ESTIMATES, LocateOptions
from jzi.locate.expert import Expert
from jzi.locate.points.discs import check_radius, most_probable_discs
from jzi.locate.posterior import Points, Posterior, most_probable_cells
from jzi.locate.ranges import DISTANCE, SHARE
from jzi.store.geometry.pyramid import geodesic_distance

#: Bins of the calibration error, as in Guo et al. 2017.
BINS = 15

#: Draws of outcomes for `error_by_chance`: the ends of its interval differ by 0.002 at most between seeds.
DRAWS = 1000

#: Shares of the photos, the most confident ones, whose recall is reported.
COVERAGES = (1.0, 0.9, 0.75, 0.5, 0.25, 0.1)

#: Radii at which estimates are compared, metres, besides those that are asked for: estimates that agree within 50 m
#: may differ within 20 m.
COMPARED = (20.0, 50.0, 100.0)


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Expected calibration error over `BINS` bins of equal width: the mean gap of confidence and accuracy.

    Args:
        confidence: (photo,) 0..1.
        right: (photo,) whether the answer is right.
    """
    return sum(abs(bin.confidence - bin.right) * bin.photos for bin in reliability(confidence, right)) / len(right)


@dataclass(frozen=True)
class Bin:
    """Photos of similar confidence: their number, mean confidence, and the share with a right answer."""

    photos: int
    confidence: float
    right: float


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> list[Bin]:
    """The nonempty bins of equal width, by ascending confidence; arguments as `calibration_error`."""
    bin_index = bins(confidence)
    return [
        Bin(int(members.sum()), float(confidence[members].mean()), float(right[members].mean()))
        for members in (bin_index == bin for bin in np.unique(bin_index))
    ]


def bins(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    """(photo,) the bin of each confidence, `BINS` of equal width."""
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def error_by_chance(confidence: NDArray[np.float64]) -> Interval:
    """The calibration error of answers whose confidences are exactly right, since they are not infinitely many.

    A calibration error above the interval is evidence of miscalibration. Source: consistency resampling, Bröcker and
    Smith, "Increasing the reliability of reliability diagrams", 2007.

    Args:
        confidence: (photo,) 0..1.

    Returns:
        Mean and 95 % interval over outcomes drawn with these confidences.
    """
    rng, bin_index = np.random.default_rng(0), bins(confidence)
    expected = np.bincount(bin_index, confidence, BINS)
    errors = np.empty(DRAWS)
    for draw in range(DRAWS):
        right = np.bincount(bin_index[rng.random(len(confidence)) < confidence], minlength=BINS)
        errors[draw] = np.abs(expected - right).sum() / len(confidence)
    return Interval.of(float(errors.mean()), errors)


@dataclass(frozen=True)
class Answers:
    """One answer to each of several photos.

    Attributes:
        error: (photo,) distance to the true position, metres.
        confidence: (photo,) probability that the photo was taken in the cell, or within the radius, 0..1.
        effective_photos: number of independent photos that intervals count them as (`jzi.evaluate.intervals`); None for
            all.
    """

    error: NDArray[np.float64]
    confidence: NDArray[np.float64]
    effective_photos: float | None = None


@dataclass(frozen=True)
class EstimateFigures:
    """Accuracy of the answers of one estimate: recall by radius, metres, and the median error, metres."""

    recall: dict[float, Interval]
    median_error: Interval


@dataclass(frozen=True)
class Calibration:
    """Accuracy and confidence of an expert's answers on held-out photos.

    Attributes:
        photos: number of photos.
        radius: radius that confidences of the default estimate refer to, metres.
        answers: name of each estimate to its answers.
        uncalibrated: answers of the default estimate without the fitted temperatures; None if the expert has none.
        residual: mean probability that search did not reach.
    """

    photos: int
    radius: float
    answers: dict[str, Answers]
    uncalibrated: Answers | None
    residual: float

    @property
    def default(self) -> Answers:
        """Answers of the default estimate, to which confidences and calibration refer."""
        return self.answers[DEFAULT.estimate]

    def recall(self, estimate: str, radius: float) -> float:
        """Share of photos whose answer lies within a radius.

        Raises:
            ConfigError: the radius is out of range.
        """
        DISTANCE.check("radius", radius)
        return float((self.answers[estimate].error <= radius).mean())

    def estimates(self, radii: Sequence[float]) -> dict[str, EstimateFigures]:
        """Accuracy of every estimate by its name, with 95 % intervals, within `radii` and `COMPARED`, metres.

        Raises:
            ConfigError: a radius is out of range.
        """
        every = sorted({*(float(radius) for radius in radii), *COMPARED})
        return {
            name: EstimateFigures(*error_intervals(each.error, every, effective=each.effective_photos))
            for name, each in self.answers.items()
        }

    @property
    def error_before(self) -> float | None:
        """Expected calibration error of the default estimate without temperatures; None if the expert has none."""
        if self.uncalibrated is None:
            return None
        return calibration_error(self.uncalibrated.confidence, self.uncalibrated.error <= self.radius)

    @property
    def error_after(self) -> float:
        """Expected calibration error of the default estimate with temperatures."""
        answers = self.default
        return calibration_error(answers.confidence, answers.error <= self.radius)

    @property
    def error_by_chance(self) -> Interval:
        """Calibration error of as many answers of these confidences if they were exactly right."""
        return error_by_chance(self.default.confidence)

    def abstaining(self, confidence: float) -> tuple[float, float]:
        """Coverage, and recall within the radius (nan if none is left), if less confident answers are withheld.

        Raises:
            ConfigError: the confidence does not lie between 0 and 1.
        """
        SHARE.check("confidence", confidence)
        answers = self.default
        given = answers.confidence >= confidence
        return float(given.mean()), float((answers.error[given] <= self.radius).mean()) if given.any() else float("nan")

    def covering(self, share: float) -> tuple[float, float]:
        """Lowest confidence and recall within the radius of a share of the photos, the most confident ones.

        Raises:
            ConfigError: the share does not lie between 0 and 1.
        """
        SHARE.check("share", share)
        answers = self.default
        order = (-answers.confidence).argsort(kind="stable")[: max(1, round(share * self.photos))]
        return float(answers.confidence[order].min()), float((answers.error[order] <= self.radius).mean())

    def to_dict(self, radii: tuple[float, ...]) -> dict[str, Any]:
        """Plain values for JSON, with the median error and the recall of each estimate, see `estimates`."""
        covered = {f"{share:g}": dict(zip(("confidence", "recall"), self.covering(share), strict=True))
                   for share in COVERAGES}  # fmt: skip
        return {
            "photos": self.photos,
            "radius_m": self.radius,
            "estimates": {
                name: {
                    **{f"recall@{radius:g}m": asdict(each) for radius, each in figures.recall.items()},
                    "median_error_m": asdict(figures.median_error),
                }
                for name, figures in self.estimates(radii).items()
            },
            "calibration_error_before": self.error_before,
            "calibration_error": self.error_after,
            "calibration_error_by_chance": asdict(self.error_by_chance),
            "coverage": covered,
            "residual": self.residual,
        }


def calibrate(expert: Expert, photos: LabelledPhotos, *, radius: float = 50.0, beams: int | None = None) -> Calibration:
    """Locate held-out photos with every estimate, and compare with their true positions.

    Args:
        expert: the expert to evaluate.
        photos: held-out photos.
        radius: radius of the default estimate, metres.
        beams: see `LocateOptions`.

    Raises:
        ConfigError: the radius or the number of beams is out of range.
    """
    check_radius(expert.area, radius)
    restricted = isinstance(expert, GalleryExpert)  # its greedy estimate is the most probable cell
    answers: dict[str, list[Answers]] = {name: [] for name in ESTIMATES if not (restricted and name == "greedy")}
    before: list[Answers] = []
    residual = []
    plain_expert = expert.uncalibrated()
    options, greedy_options = LocateOptions(radius=radius, beams=beams), LocateOptions("greedy", radius=radius)
    for part in photos.batches("posterior"):
        query, truth = photos.query[part], (photos.latitude[part], photos.longitude[part])
        posterior = expert.posterior(query, options)
        residual.append(posterior.residual)
        if "greedy" in answers:
            greedy = expert.posterior(query, greedy_options)
            answers["greedy"].append(_answers(greedy, most_probable_cells(greedy), truth))
        answers["map"].append(_answers(posterior, most_probable_cells(posterior), truth))
        for name in ("radius", "mean"):
            points = most_probable_discs(posterior, radius, mean=name == "mean")
            answers[name].append(_answers(posterior, points, truth))
        if plain_expert is not None:
            plain = plain_expert.posterior(query, options)
            points = most_probable_discs(plain, radius, mean=DEFAULT.estimate == "mean")
            before.append(_answers(plain, points, truth))
    return Calibration(
        photos=len(photos),
        radius=radius,
        answers={name: _concatenate(parts, photos) for name, parts in answers.items()},
        uncalibrated=_concatenate(before, photos) if before else None,
        residual=float(np.concatenate(residual).mean()),
    )


def _answers(posterior: Posterior, points: Points, truth: tuple[NDArray[np.float64], NDArray[np.float64]]) -> Answers:
    latitude, longitude = posterior.area.unproject(points.x[:, 0], points.y[:, 0])
    return Answers(geodesic_distance(*truth, latitude, longitude), np.minimum(points.probability[:, 0], 1.0))


def _concatenate(parts: list[Answers], photos: LabelledPhotos) -> Answers:
    error, confidence = (np.concatenate([getattr(part, name) for part in parts]) for name in ("error", "confidence"))
    return Answers(error, confidence, effective_photos(photos.latitude, photos.longitude, error))
