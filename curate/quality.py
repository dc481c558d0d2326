"""What simple statistics can say of a photo's quality: blur, exposure, sky, occlusion, veiling glare, a hash."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

#: The columns that `Quality.to_columns` fills.
QUALITY_COLUMNS = (
    "sharpness", "dark_share", "bright_share", "sky_share", "occlusion_share", "veil", "phash", "lower_half"
)  # fmt: skip


@dataclass(frozen=True)
class Quality:
    """What was measured of a photo. Shares are of the picture, 0 to 1.

    Attributes:
        sharpness: variance of the Laplacian of the gray picture at a fixed size.
        dark_share: black.
        bright_share: burnt out.
        sky_share: sky by day.
        occlusion_share: smooth, and no sky.
        veil: veiling glare, 0 to 1: how bright the darkest parts are.
        phash: perceptual hash of 64 bits, 16 hexadecimal digits.
        lower_half: the lower half, small and gray, as text; drives are searched for dashboards by it.
    """

    sharpness: float
    dark_share: float
    bright_share: float
    sky_share: float
    occlusion_share: float
    veil: float
    phash: str
    lower_half: str

    def to_columns(self) -> dict[str, float | str]:
        """The values of `QUALITY_COLUMNS`, by their names."""
        return {name: getattr(self, name) for name in QUALITY_COLUMNS}


def measure(image: Image.Image) -> Quality:
    """Measure a photo.

    Args:
        image: upright, RGB, of any size.

    Raises:
        DatasetError: OpenCV is not installed.
    """
    raise NotImplementedError
