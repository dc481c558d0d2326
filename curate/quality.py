"""What simple statistics can say of a photo's quality: blur, exposure, sky, occlusion, veiling glare, a hash.

They are measured at one size, so that they can be compared between cameras. None of them knows what it sees: sky is
what is blue or white and reaches the top of the picture, and what is smooth and not sky may be a bus or a wall.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jzi.errors import DatasetError

if TYPE_CHECKING:
    from types import ModuleType

#: The columns that `Quality.to_columns` fills.
QUALITY_COLUMNS = (
    "sharpness", "dark_share", "bright_share", "sky_share", "occlusion_share", "veil", "phash", "lower_half"
)  # fmt: skip

#: Increases when the same photo gets other values.
VERSION = 1

#: Longest side at which photos are measured, pixels: about that at which encoders see them.
SIDE = 512

#: Side of the cells that sky and occlusion consist of, pixels.
CELL = 16

#: Values, 0 to 255, of black and of burnt out pixels: all of their channels are below, or above.
BLACK, BURNT = 16, 250

#: Rows and columns of `Quality.lower_half`.
LOWER_SHAPE = (24, 32)

#: Mean gradient, 8-bit levels per pixel, below which a cell is smooth, and above which it is no sky: clouds have
#: gradients up to about 10. On 14 photos, 0 to 18 % of the upper two thirds are smooth and not sky, 36 % or more with a
#: bus drawn over half of them, 50 % or more with a thumb over 40 %.
SMOOTH, CLOUDY = 2.0, 12.0

#: Sky is blue and brighter than the first, or gray and brighter than the second, and at least this share as bright as
#: the sky at the top: on an evening's photo a blue road was 0.52 of it.
_BLUE_SKY, _GRAY_SKY, _AS_TOP = 90, 150, 0.6

#: Saturation below which sky is gray.
_GRAY = 0.18


@dataclass(frozen=True)
class Quality:
    """What was measured of a photo. Shares are of the picture, 0 to 1.

    Attributes:
        sharpness: variance of the Laplacian of the gray picture at `SIDE`.
        dark_share: black.
        bright_share: burnt out.
        sky_share: sky by day.
        occlusion_share: smooth, and no sky, of the upper two thirds; roads are smooth too.
        veil: veiling glare, 0 to 1: the darkest channel in the darkest tenth of the cells below the sky. A windscreen
            that scatters light, fog and a greasy lens add light everywhere; a sharp reflection is not found.
        phash: perceptual hash of 64 bits, 16 hexadecimal digits: signs of the low frequencies of a DCT against their
            median (Zauner 2010). Photos saved again differ in 0 to 2 bits, other photos in 22 or more (91 pairs).
        lower_half: the lower half, `LOWER_SHAPE` and gray, as text; drives are searched for dashboards by it.
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
    cv2 = import_opencv()
    scale = SIDE / max(image.size)
    size = tuple(max(CELL, round(side * scale)) for side in image.size)
    pixels = cv2.resize(np.asarray(image), size, interpolation=cv2.INTER_AREA)  # (height, width, 3)
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    red, green, blue = cv2.split(pixels)
    darkest, brightest = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
    cells = _Cells.of(pixels, gray, darkest, cv2)
    sky = _sky(cells, cv2)
    upper = slice(0, max(1, 2 * len(sky) // 3))
    smooth = (cells.gradient < SMOOTH) & ~sky
    ground = cells.darkest[~sky]
    return Quality(
        sharpness=round(float(cv2.Laplacian(gray, cv2.CV_32F).var()), 2),
        dark_share=round(float((brightest < BLACK).mean()), 4),
        bright_share=round(float((darkest > BURNT).mean()), 4),
        sky_share=round(float(sky.mean()), 4),
        occlusion_share=round(float(smooth[upper].mean()), 4),
        veil=round(float(np.quantile(ground, 0.1)) / 255, 4) if ground.size else 0.0,
        phash=f"{_hash(gray, cv2):016x}",
        lower_half=_lower_half(gray, cv2),
    )


def import_opencv() -> ModuleType:
    """Import OpenCV, an optional dependency.

    Raises:
        DatasetError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise DatasetError("photos are measured and undistorted with OpenCV: pip install 'jzi[dataset]'") from error
    return cv2


def lower_halves(columns: list[str]) -> NDArray[np.uint8]:
    """(photo, *LOWER_SHAPE) the gray lower halves of photos, from the column `lower_half`.

    Raises:
        ValueError: a text is none of `measure`.
    """
    values = [np.frombuffer(base64.b64decode(each, validate=True), np.uint8) for each in columns]
    return np.stack(values).reshape(-1, *LOWER_SHAPE)


@dataclass(frozen=True)
class _Cells:
    """Means over cells, each (row, column): gradient, channels; and the darkest value of any channel."""

    gradient: NDArray[np.float32]
    red: NDArray[np.float32]
    green: NDArray[np.float32]
    blue: NDArray[np.float32]
    darkest: NDArray[np.uint8]

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], gray: NDArray[np.uint8], darkest: NDArray[np.uint8], cv2: Any) -> _Cells:
        rows, columns = (side // CELL for side in gray.shape)
        whole = slice(0, rows * CELL), slice(0, columns * CELL)  # pixels beyond the last whole cell are left out
        x, y = (cv2.Sobel(gray, cv2.CV_32F, *axis, ksize=3, scale=1 / 8) for axis in ((1, 0), (0, 1)))
        gradient, channels = (
            cv2.resize(each[whole], (columns, rows), interpolation=cv2.INTER_AREA)
            for each in (cv2.magnitude(x, y), pixels.astype(np.float32))
        )
        red, green, blue = cv2.split(channels)
        eroded = cv2.erode(darkest[whole], np.ones((CELL, CELL), np.uint8), anchor=(0, 0))  # minimum of each cell
        gradient, red, green, blue = (each.reshape(rows, columns) for each in (gradient, red, green, blue))
        return cls(gradient, red, green, blue, eroded[::CELL, ::CELL])


def _sky(cells: _Cells, cv2: Any) -> NDArray[np.bool_]:
    """(row, column) whether a cell is sky: it looks like it, and so do neighbours up to the top of the picture."""
    high = np.maximum(np.maximum(cells.red, cells.green), cells.blue)
    low = np.minimum(np.minimum(cells.red, cells.green), cells.blue)
    blue = (cells.blue >= cells.red) & (cells.blue >= cells.green - 2) & (high > _BLUE_SKY)
    gray = (high - low < _GRAY * high) & (high > _GRAY_SKY)
    like = (blue | gray) & (cells.gradient < CLOUDY)
    top = slice(0, max(1, len(high) // 4))
    if like[top].any():
        like &= high > _AS_TOP * np.median(high[top][like[top]])
    _, label = cv2.connectedComponents(like.astype(np.uint8), connectivity=4)
    return np.isin(label, np.setdiff1d(label[0], 0))


def _hash(gray: NDArray[np.uint8], cv2: Any) -> int:
    small = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[1:9, 1:9].ravel()  # without the mean and the slopes, which exposure changes
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def _lower_half(gray: NDArray[np.uint8], cv2: Any) -> str:
    rows, columns = LOWER_SHAPE
    lower = cv2.resize(gray[len(gray) // 2 :], (columns, rows), interpolation=cv2.INTER_AREA)
    return base64.b64encode(lower.tobytes()).decode()
