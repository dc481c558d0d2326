"""From the output of a refiner to fixes: point, ellipse, radii, further modes and heading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jzi.errors import ConfigError
from jzi.locate.fix import Fix
from jzi.locate.location import Candidate
from jzi.locate.posterior import Posterior
from jzi.locate.ranges import DISTANCE
from jzi.refine.fuse import RankWeights
from jzi.refine.window import Windows

if TYPE_CHECKING:
    from jzi.refine.outputs import RefinerOutput  # type: ignore[import-not-found, unused-ignore]

_Floats = NDArray[np.float64]

#: The most probable pixel, the point with the most probability within a radius, or the mean.
ESTIMATES = ("map", "radius", "mean")


@dataclass(frozen=True)
class FixOptions:
    """How the probabilities of pixels become a point.

    Attributes:
        estimate: "map": the most probable pixel (the paper's); "radius": the point with the most probability within
            `radius`; "mean": the mean.
        radius: metres; the confidence of an answer is the probability within it.

    Raises:
        ConfigError: there is no such estimate, or the radius is out of range.
    """

    estimate: str = "radius"
    radius: float = 5.0

    def __post_init__(self) -> None:
        if self.estimate not in ESTIMATES:
            raise ConfigError(f"there is no estimate {self.estimate!r} of a fix: it is one of {', '.join(ESTIMATES)}")
        DISTANCE.check("radius", self.radius)


@dataclass(frozen=True)
class RefineCalibration:
    """Numbers fitted on validation photos.

    Attributes:
        temperature: T_D, by which logits of pixels are divided.
        heading_temperature: T_h, by which matches of level 3 are divided.
        weights: of the fusion with the front end.
    """

    temperature: float = 1.0
    heading_temperature: float = 0.1
    weights: RankWeights = field(default_factory=RankWeights)


def to_density(logits: Tensor, mask: Tensor, temperature: float = 1.0) -> _Floats:
    """(n, P, P) probabilities of pixels: their sum is 1; exactly 0 where masked, and everywhere without coverage.

    Args:
        logits: (n, P, P).
        mask: (n, P, P) whether there is imagery.
        temperature: T_D.
    """
    raise NotImplementedError


def to_headings(
    output: RefinerOutput, density: _Floats, temperature: float, log_heading: Tensor | None = None
) -> _Floats:
    """(n, R) probabilities of headings from grid north: sum_x D(x) softmax_r(M3_r(x) / T_h).

    Args:
        output: of the refiner.
        density: (n, P, P) of `to_density`.
        temperature: T_h.
        log_heading: (n, R) log prior of the rolls; -inf excludes.
    """
    raise NotImplementedError


def to_fixes(
    output: RefinerOutput,
    windows: Windows,
    temperature: float = 1.0,
    heading_temperature: float = 0.1,
    options: FixOptions | None = None,
    log_heading: Tensor | None = None,
) -> list[Fix | None]:
    """The fix of each window alone, as for evaluation on windows that contain their photo; None without coverage.

    Args:
        output: of the refiner, one window per photo.
        windows: (n,) the windows.
        temperature: T_D.
        heading_temperature: T_h.
        options: the point.
        log_heading: (n, R) log prior of the rolls.
    """
    raise NotImplementedError


def refine_candidates(
    output: RefinerOutput,
    windows: Windows,
    cells: NDArray[np.int64],
    posterior: Posterior,
    calibration: RefineCalibration,
    options: FixOptions | None = None,
    log_heading: Tensor | None = None,
    score: _Floats | None = None,
) -> list[Candidate]:
    """The candidates of one photo with their fixes, the most probable first.

    A window without coverage has no fix, and its probability stays on its cell.

    Args:
        output: of the refiner, one window per candidate.
        windows: (t,) the windows around the candidates' cells.
        cells: (t, 2) rows and columns of the cells, distinct, in the order of the front end.
        posterior: the front end's, of this photo.
        calibration: fitted numbers.
        options: the point.
        log_heading: (t, R) log prior of the rolls.
        score: (t,) s_t; the logarithm of the cells' probabilities by default.
    """
    raise NotImplementedError


def fit_temperature(logits: Tensor, mask: Tensor, u: Sequence[float], v: Sequence[float]) -> float:
    """T_D with the greatest likelihood of true positions, 0.05..20 (Guo et al. 2017).

    Args:
        logits: (n, P, P) of validation photos, on any device.
        mask: (n, P, P).
        u: (n,) true positions in the windows, pixels; photos outside of coverage are left out.
        v: (n,).
    """
    raise NotImplementedError


def fit_heading_temperature(
    output: RefinerOutput, density: _Floats, grid_heading_deg: Sequence[float], log_heading: Tensor | None = None
) -> float:
    """T_h with the greatest likelihood of true headings, 0.001..10.

    Args:
        output: of validation photos.
        density: (n, P, P) of `to_density`.
        grid_heading_deg: (n,) true headings as azimuths from grid north; nan leaves a photo out.
        log_heading: (n, R) log prior of the rolls.
    """
    raise NotImplementedError
