"""Options of the filters and of preparing photos, with their defaults.

Imports nothing but the standard library, so that `jzi --help` can show the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal

from jzi.errors import DatasetError

#: Kinds of cameras; a photo of another or of none is "unknown" to `FilterOptions.cameras`.
CAMERAS = ("perspective", "fisheye", "brown", "spherical", "unknown")

#: What may become of a panorama.
Panoramas = Literal["crop", "keep", "skip"]


@dataclass(frozen=True)
class FilterOptions:
    """Which photos are kept. None switches a filter off, and a photo without the value of a filter passes it.

    Shares are of the picture, 0 to 1. `jzi.curate.quality` says what is measured and how the thresholds were found.

    Attributes:
        position_error_m: most metres between the camera's GPS and the SfM position. Map It Anywhere (Ho et al. 2024)
            takes 3 m from the phones and cameras that it trusts; 15 m, the error of a phone between high buildings,
            keeps the others.
        require_sfm: whether photos without an SfM position are removed, since nothing verifies theirs.
        spacing_m: least metres between consecutive kept photos of a drive: 4 in the paper (section 3.1.1).
        since: first day.
        until: last day.
        devices_excluded: patterns of devices, such as "*dashcam*", in any case.
        cameras: kinds of cameras that are kept, of `CAMERAS`.
        min_side: least pixels of the shorter side, in the file: 480, of VGA.
        min_quality_score: least quality score of the service, 0 to 1.
        per_block: most photos in a square of the ground; those with the best scores are kept, the others at random.
        block_m: side of the squares.
        sharpness: least variance of the Laplacian. Of 14 street photos, one with motion blur has 306, the others 580 to
            5100; blurred by a Gaussian of a 500th of the longer side, all have 19 to 131. Motion blur leaves the edges
            along it: dragged by a 60th of the longer side, they have 20 to 605.
        dark_share: most of the picture that is black: 0 to 7 % of the 14, 51 % or more at a 256th of the light.
        bright_share: most of the picture that is burnt out: 0 to 9 % of the 14, 41 to 74 % at 16 times the light; white
            skies are burnt out too.
        sky_share: most of the picture that is sky: 0 to 51 % of the 14.
        occlusion_share: most of the upper two thirds that is smooth and not sky, such as a bus or a thumb before the
            lens: 0 to 18 % of the 14, 36 % or more with half of the picture covered.
        veil: most veiling glare: 0 to 0.04 of the 14, 0.35 or more behind white glare of 35 %, 0.2 behind 20 %.
            Fog has it too.
        dashboard_share: most of the picture below an edge that stays in place through a drive of at least 20 photos
            (`jzi.curate.dashboard`). Bonnets, which most dash cameras show, are below 25 % or so.
        duplicate_bits: most bits, of 64, in which the hashes of two photos differ that count as duplicates: 0 to 2 of
            photos saved again, 0 to 6 if a fifth brighter too, 22 or more between the 14.
    """

    position_error_m: float | None = 15.0
    require_sfm: bool = False
    spacing_m: float | None = 4.0
    since: date | None = None
    until: date | None = None
    devices_excluded: tuple[str, ...] = ()
    cameras: tuple[str, ...] | None = None
    min_side: int | None = 480
    min_quality_score: float | None = None
    per_block: int | None = None
    block_m: float = 100.0
    sharpness: float | None = 150.0
    dark_share: float | None = 0.5
    bright_share: float | None = 0.5
    sky_share: float | None = 0.7
    occlusion_share: float | None = 0.35
    veil: float | None = 0.25
    dashboard_share: float | None = 0.3
    duplicate_bits: int | None = 4

    def __post_init__(self) -> None:
        if unknown := set(self.cameras or ()) - set(CAMERAS):
            raise DatasetError(f"there is no camera {min(unknown)!r}: give some of {', '.join(CAMERAS)}")
        if self.since and self.until and self.since > self.until:
            raise DatasetError(f"since {self.since} is after until {self.until}: exchange them")


@dataclass(frozen=True)
class PrepareOptions:
    """How photos are prepared.

    Attributes:
        size: longest side of the prepared photo, pixels; smaller photos are not enlarged. None keeps their size. The
            default is about twice what encoders read.
        panoramas: "crop" them to perspective photos, "keep" them as panoramas, or "skip" them.
        crops: number of crops of a panorama.
        hfov_min_deg: least horizontal field of view of a crop, drawn uniformly. The defaults are those of the main
            cameras of phones to those of action cameras.
        hfov_max_deg: greatest.
        seed: of headings and fields of view of crops.
        undistort: whether lens distortion is removed where the camera's parameters are known.
    """

    size: int | None = 1024
    panoramas: Panoramas = "crop"
    crops: int = 1
    hfov_min_deg: float = 60.0
    hfov_max_deg: float = 100.0
    seed: int = 0
    undistort: bool = True

    def __post_init__(self) -> None:
        if self.hfov_min_deg > self.hfov_max_deg:
            raise DatasetError(
                f"the least field of view, {self.hfov_min_deg:g} degrees, is above the greatest, "
                f"{self.hfov_max_deg:g}: exchange them"
            )
