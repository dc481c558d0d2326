"""The stage that refines candidates: windows around their cells, and a refiner that looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from jzi.encode.photo.photo_view import PhotoView
from jzi.locate.answer.location import Candidate
from jzi.locate.expert import Query
from jzi.locate.posterior import Posterior
from jzi.locate.ranges import CANDIDATES
from jzi.refine.azimuth import log_heading_prior
from jzi.refine.config import RefineConfig, UnifyGeoConfig
from jzi.refine.info import RefinerInfo
from jzi.refine.networks.files import Refiner
from jzi.refine.outputs import PhotoInput, RefinerOutput
from jzi.refine.photos import PhotoData, PhotoSource, view_of_query
from jzi.refine.ray_config import RayConfig
from jzi.refine.windows.answer import FixOptions, RefineCalibration, refine_candidates
from jzi.refine.windows.fuse import WindowWeights
from jzi.refine.windows.proposals import propose
from jzi.refine.windows.window import Windows

#: The note of answers that a refiner left as they were.
NO_WEIGHT = "the refiner was no gain on validation photos and has no weight: this is the answer without it"
NO_HEADING = (
    "its heading is not known, and without headings the refiner was no gain on validation photos: this is the answer "
    "without it (--heading)"
)


class WindowSource(Protocol):
    """Where a refiner gets windows of the map from: `jzi.refine.windows.tokens` or `jzi.refine.windows.images`."""

    def read(self, windows: Windows, side: int) -> tuple[Any, NDArray[np.bool_]]:
        """What the refiner takes of each window, `side` points wide, and (window, side, side) where it has imagery."""
        ...


@dataclass(frozen=True)
class StageOptions:
    """How candidates are refined.

    Attributes:
        top: most candidates that are refined.
        fix: how probabilities become a point.
        hfov_deg: field of view of photos that do not record it, degrees.
        heading_sd_deg: standard deviation of headings that refer to true north, degrees.
        magnetic_sd_deg: standard deviation of headings that refer to magnetic north, degrees.

    Raises:
        ConfigError: a number is out of range.
    """

    top: int = 5
    fix: FixOptions = field(default_factory=FixOptions)
    hfov_deg: float = 70.0
    heading_sd_deg: float = 10.0
    magnetic_sd_deg: float = 20.0

    def __post_init__(self) -> None:
        CANDIDATES.check("refine-top", self.top)

    @classmethod
    def of(cls, config: RefineConfig) -> StageOptions:
        """The options that the section [refine] of jzi.toml has."""
        return cls(
            config.top,
            FixOptions(radius=config.radius),
            config.hfov,
            config.heading_sd_deg,
            config.magnetic_sd_deg,
        )


class RefineStage:
    """A `Stage` of a `Locator`. Off a cache it opens no image but the photo.

    Args:
        refiner: the network.
        info: what its folder records.
        windows: reads windows of the map.
        photos: reads photos.
        options: how candidates are refined.
        warnings: about the map, for the notes of all answers.
    """

    name = "refine"

    def __init__(
        self,
        refiner: Refiner,
        info: RefinerInfo,
        windows: WindowSource,
        photos: PhotoSource,
        options: StageOptions | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        self.refiner, self.info, self.windows, self.photos = refiner, info, windows, photos
        self.options, self.warnings = options or StageOptions(), tuple(warnings)
        self.device = next(refiner.parameters()).device

    def calibration(self, view: PhotoView) -> RefineCalibration:
        """What was fitted on validation photos; the weights are others for photos whose heading is known."""
        fusion = self.info.fusion_unknown if view.heading_deg is None else self.info.fusion
        weights = WindowWeights(*fusion) if fusion else WindowWeights()
        return RefineCalibration(self.info.temperature, self.info.heading_temperature, weights)

    def with_fusion(self, known: WindowWeights, unknown: WindowWeights) -> Self:
        """The same stage with other weights for photos whose heading is known, and for others."""
        other = copy(self)
        other.info = replace(self.info, fusion=known[:], fusion_unknown=unknown[:])
        return other

    @property
    def reads_tokens(self) -> bool:
        """Whether queries should have tokens."""
        return self.photos.reads_tokens

    @property
    def top(self) -> int:
        """Most candidates that are refined."""
        return self.options.top

    def __call__(self, query: Query, posterior: Posterior, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
        """Refined candidates, the most probable first, then those of `candidates` that lie elsewhere; as many.

        Candidates are returned as they are if the refiner has no weight (it was no gain on validation photos), the
        photo is not at hand, or there is no imagery around them.

        Raises:
            PhotoError: the photo cannot be read.
            CacheError: the cache lacks tokens of a window.
        """
        options = self.options
        place = candidates[0].latitude, candidates[0].longitude
        view = view_of_query(query).from_true_north(*place)
        calibration = self.calibration(view)
        if not calibration.weights.refines:
            return candidates
        view = view.completed(options.hfov_deg, options.heading_sd_deg, options.magnetic_sd_deg)
        photo = self.photos(query, view)
        if photo is None:
            return candidates
        proposals = propose(candidates, posterior, self.info.window_m, self.refiner.config.pixels, options.top)
        output = self.match(photo, view, proposals.windows)
        single = candidates[0].source in ("map", "greedy")  # the most probable place, not that of a disc
        fix = replace(options.fix, estimate="map") if single else options.fix
        refined = refine_candidates(output, proposals, calibration, fix)
        if not any(each.fix for each in refined):
            return candidates
        scale = float(proposals.windows.scale.mean())
        others = [each for each in candidates if all(_apart(each, other, scale) for other in refined)]
        return [*refined, *others][: max(1, len(candidates))]

    def notes(self, query: Query, candidates: Sequence[Candidate]) -> Sequence[str]:
        """That the refiner has no weight, or what is wrong with the map, and the field of view if it was assumed."""
        view = view_of_query(query)
        if not self.calibration(view).weights.refines:
            helps = self.calibration(replace(view, heading_deg=0.0)).weights.refines
            return (NO_HEADING if view.heading_deg is None and helps else NO_WEIGHT,)
        if not any(each.fix for each in candidates) or view.hfov_deg is not None:
            return self.warnings
        return (
            *self.warnings,
            f"it records no focal length: the refiner assumed that it shows {self.options.hfov_deg:g}° of the horizon "
            "(refine.hfov)",
        )

    @torch.inference_mode()
    def match(self, photo: PhotoData, view: PhotoView, windows: Windows) -> RefinerOutput:
        """Density of a photo over each of several windows.

        Args:
            photo: the photo.
            view: completed with defaults.
            windows: (window,).
        """
        config, count = self.refiner.config, len(windows)
        tokens, mask = self._read(windows)
        batch = lambda value: None if value is None else value[None]  # noqa: E731 - a batch of one
        one = PhotoInput(
            hfov_deg=torch.tensor([view.hfov_deg], dtype=torch.float32),
            panorama=torch.tensor([view.panorama]),
            log_heading=torch.zeros(1, config.rolls),
            tokens=batch(photo.tokens),
            pixels=batch(photo.pixels),
            fill=torch.tensor([photo.fill], dtype=torch.float32),
        )
        ground = self.refiner.ground(one.to(self.device)).select(
            torch.zeros(count, dtype=torch.long, device=self.device)
        )
        ground = replace(ground, log_heading=self._prior(view, windows))
        aerial = self.refiner.aerial(torch.as_tensor(tokens).to(self.device))
        return self.refiner.match(ground, aerial, torch.from_numpy(mask).to(self.device))

    def _read(self, windows: Windows) -> tuple[Any, NDArray[np.bool_]]:
        """What the refiner takes of windows."""
        config = self.refiner.config
        if isinstance(config, RayConfig):
            around = replace(windows, side_m=windows.side_m * config.outer / config.side)
            return self.windows.read(around, config.outer)
        return self.windows.read(windows, config.pixels if isinstance(config, UnifyGeoConfig) else config.side)

    def _prior(self, view: PhotoView, windows: Windows) -> torch.Tensor:
        """(window, R) log prior of headings from each window's grid north."""
        rolls = self.refiner.config.rolls
        heading = np.full(len(windows), np.nan if view.heading_deg is None else view.heading_deg)
        sd = np.full(len(windows), view.heading_sd_deg or 1.0)
        if rolls == 1:
            return torch.zeros(len(windows), 1, device=self.device)
        grid = torch.from_numpy(np.asarray(windows.grid_heading(heading), np.float32))
        return log_heading_prior(grid, torch.from_numpy(sd.astype(np.float32)), rolls).to(self.device)


def _apart(one: Candidate, other: Candidate, scale: float) -> bool:
    """Whether a candidate is of another cell, and lies outside of the radius of the probability of both."""
    reach = max(one.radius_m or 0.0, other.radius_m or 0.0) * scale
    return one.cell != other.cell and bool(np.hypot(one.x - other.x, one.y - other.y) > reach)
