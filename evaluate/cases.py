"""The photos whose answers are worst and best, with their locations, for a report of single photos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from jzi.evaluate.photos import BATCH, LabelledPhotos
from jzi.locate.answer.location import DEFAULT, LocateOptions, Location, to_locations
from jzi.locate.expert import Expert
from jzi.locate.points.discs import check_radius, most_probable_discs
from jzi.locate.ranges import CASES
from jzi.store.geometry.pyramid import geodesic_distance


@dataclass(frozen=True)
class Case:
    """A photo with a known position, and its answer.

    Attributes:
        index: of the photo among those that were located.
        rank: of its error, the greatest is 1.
        worst: whether it is one of the worst photos, rather than of the best.
        latitude: where the photo was taken, degrees (WGS 84).
        longitude: degrees.
        error: distance from there to the answer, metres.
        location: the answer, with its posterior.
    """

    index: int
    rank: int
    worst: bool
    latitude: float
    longitude: float
    error: float
    location: Location


@dataclass(frozen=True)
class Cases:
    """The worst and best photos of a split.

    Attributes:
        photos: the photos that were located.
        error: (photo,) distances from the true positions to the answers, metres.
        shown: the chosen photos, the worst first.
    """

    photos: LabelledPhotos
    error: NDArray[np.float64]
    shown: tuple[Case, ...]

    @classmethod
    def choose(
        cls,
        photos: LabelledPhotos,
        error: NDArray[np.float64],
        count: int,
        locate: Callable[[NDArray[np.int64]], Iterable[Location]],
    ) -> Cases:
        """Choose the photos with the greatest and the smallest errors.

        Args:
            photos: the photos that were located.
            error: (photo,) their errors, metres.
            count: number of photos to choose, at most.
            locate: locates photos by their indices once more.
        """
        worst, best = worst_and_best(error, count)
        chosen, rank = np.concatenate([worst, best]), error_ranks(error)
        names = photos.ids or tuple(str(index) for index in range(len(photos)))
        shown = tuple(
            Case(
                index,
                int(rank[index]),
                number < len(worst),
                latitude=float(photos.latitude[index]),
                longitude=float(photos.longitude[index]),
                error=float(error[index]),
                location=replace(location, photo=names[index]),
            )
            for number, (index, location) in enumerate(zip(chosen.tolist(), locate(chosen), strict=True))
        )
        return cls(photos, error, shown)


def worst_and_best(error: NDArray[np.float64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Photos with the greatest and with the smallest errors, about half of `count` each, all by descending error.

    Args:
        error: (photo,) metres.
        count: number of photos, at most.
    """
    order = np.argsort(-error, kind="stable")
    count = min(count, len(order))
    return order[: count - count // 2], order[len(order) - count // 2 :]


def error_ranks(error: NDArray[np.float64]) -> NDArray[np.int64]:
    """(photo,) ranks of errors, 1 for the greatest."""
    return np.asarray(np.argsort(np.argsort(-error, kind="stable"), kind="stable") + 1)


def find_cases(
    expert: Expert, photos: LabelledPhotos, count: int, *, radius: float = 50.0, beams: int | None = None
) -> Cases:
    """Locate photos with the default estimate, and choose those with the greatest and the smallest errors.

    Args:
        expert: the expert to evaluate.
        photos: held-out photos.
        count: number of photos to choose, 1..500.
        radius: radius of the answer, metres.
        beams: see `LocateOptions`.

    Raises:
        ConfigError: a number is out of range.
    """
    CASES.check("the number of photos", count)
    check_radius(expert.area, radius)
    options = LocateOptions(radius=radius, beams=beams)
    errors = []
    for part in photos.batches("answers"):
        points = most_probable_discs(
            expert.posterior(photos.query[part], options), radius, mean=DEFAULT.estimate == "mean"
        )
        latitude, longitude = expert.area.unproject(points.x[:, 0], points.y[:, 0])
        errors.append(geodesic_distance(photos.latitude[part], photos.longitude[part], latitude, longitude))

    def locate(chosen: NDArray[np.int64]) -> Iterator[Location]:
        for part in np.array_split(chosen, range(BATCH, len(chosen), BATCH)):
            query = photos.query[torch.from_numpy(part).to(photos.query.device)]
            yield from to_locations(expert.posterior(query, options), options, [""] * len(part))

    return Cases.choose(photos, np.concatenate(errors), count, locate)
