"""Several areas located as one: a forest, whose trees are the maps of several models.

Each area has a posterior of its own, in its own CRS. The probability of an area, the root of its tree, is proportional
to its share of the ground that is searched. If every model has a detector (`jzi.locate.inside`), it is also
proportional to the odds that the photo was taken in the area. A cell's probability is that of its area
times that in its area, so all cells of all areas, and the residuals, have a sum of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.errors import ConfigError
from jzi.locate.answer.location import Candidate, LocateOptions, Location, to_locations
from jzi.locate.answer.photo_notes import PhotoRecord
from jzi.locate.inside import probability_inside
from jzi.locate.locator import Locator
from jzi.store.geometry.scale import units_per_metre
from jzi.store.plain import share_text


class ForestLocator(Locator):
    """Locates photos in several areas; the encoder embeds a photo once.

    A location has the posterior of the area of its answer, with the other areas in the residual, and the candidates of
    all areas. Those in other areas have no `path`, their `cell` is (-1, -1), and x and y are in the CRS of the answer's
    area.

    Args:
        trees: locators of the areas, at least two, without stages.

    Raises:
        ConfigError: they have different encoders, or stages.
    """

    def __init__(self, trees: Sequence[Locator]) -> None:
        first = trees[0]
        super().__init__(first.expert, lambda: first.encoder, name=" + ".join(tree.name for tree in trees))
        self.trees = tuple(trees)
        for tree in trees[1:]:
            if tree.expert.encoder.fingerprint != first.expert.encoder.fingerprint:
                raise ConfigError(
                    f"{tree.name} has another encoder than {first.name}: areas that are searched together need models "
                    "of the same encoder"
                )
        if any(tree.stages for tree in trees):
            raise ConfigError("candidates of several areas cannot be refined or compared: locate in one area")
        areas = [tree.expert.area for tree in trees]
        cell_m = np.array([area.cell_size / units_per_metre(area) for area in areas])
        cells = np.array([float(tree.expert.cell_mask.sum()) for tree in trees]) * cell_m**2
        self.shares = cells / cells.sum()

    @property
    def by_fit(self) -> bool:
        """Whether areas are weighed by how well a photo fits them, or by their size alone."""
        return all(tree.detector is not None for tree in self.trees)

    def log_odds(self, query: Tensor) -> NDArray[np.float64]:
        """(photo, area) logarithm of each area's share times the odds that the photo is from it.

        Args:
            query: (photo, feature) embeddings.
        """
        log = np.repeat(np.log(np.maximum(self.shares, 1e-300))[None], len(query), 0)
        if self.by_fit:
            log += np.stack([tree.detector.log_odds(query) for tree in self.trees if tree.detector], 1)
        return log

    def roots(self, query: Tensor) -> NDArray[np.float64]:
        """(photo, area) probability of each area; sums to 1.

        Args:
            query: (photo, feature) embeddings.
        """
        log = self.log_odds(query)
        root = np.exp(log - log.max(1, keepdims=True))
        return np.asarray(root / root.sum(1, keepdims=True))

    def _locations(
        self, query: Tensor, options: LocateOptions, names: Sequence[str], records: Sequence[PhotoRecord]
    ) -> list[Location]:
        root, located = self.roots(query), []
        for number, tree in enumerate(self.trees):
            posterior = tree.posterior(query, options)
            probability = posterior.probability * root[:, number, None]
            scaled = replace(posterior, probability=probability, residual=np.maximum(0.0, 1 - probability.sum(1)))
            located.append(to_locations(scaled, options, names))
        inside: Sequence[float | None] = [None] * len(query)
        if self.by_fit and options.elsewhere > 0:
            log_odds = np.logaddexp.reduce(self.log_odds(query), axis=1) + [record.log_odds for record in records]
            inside = probability_inside(log_odds, options.elsewhere).tolist()
        return [
            replace(self._merged([each[photo] for each in located], root[photo], options), inside=inside[photo])
            for photo in range(len(query))
        ]

    def _merged(self, locations: Sequence[Location], root: NDArray[np.float64], options: LocateOptions) -> Location:
        """The location of one photo, of those in each area."""
        best = max(range(len(locations)), key=lambda number: locations[number].best.probability)
        answer, area = locations[best], locations[best].posterior.area
        moved = [
            _in_area(each, area)
            for number, other in enumerate(locations)
            if number != best
            for each in other.candidates
        ]
        chosen: list[Candidate] = []
        distance = options.radius * units_per_metre(area)
        for each in sorted([*answer.candidates, *moved], key=lambda each: -each.probability):
            apart = (np.hypot(each.x - one.x, each.y - one.y) > distance for one in chosen)
            if len(chosen) < options.top and all(apart):
                chosen.append(each)
        how = "by how well the photo fits each, and their sizes" if self.by_fit else "by their sizes alone"
        parts = ", ".join(f"{tree.name} {share_text(share)}" for tree, share in zip(self.trees, root, strict=True))
        note = f"in the area of {self.trees[best].name}; probabilities of the areas, {how}: {parts}"
        return replace(answer, candidates=tuple(chosen), notes=(*answer.notes, note))

    # What needs one area

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise ConfigError(
            "several areas are searched for single photos, without a prior or stages: name one model for the others"
        )

    with_prior = with_stage = posterior = locate_together = locate_track = _refuse


def _in_area(candidate: Candidate, area: Any) -> Candidate:
    """A candidate of another area, as of this one."""
    x, y = area.project(candidate.latitude, candidate.longitude)
    return replace(candidate, x=float(x), y=float(y), cell=(-1, -1), path=(), step_probabilities=())
