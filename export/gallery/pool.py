"""The images of a page, each of them once, as rules of a style sheet."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

#: Part of the colour map of similarities and attention, as that of posteriors; and least and greatest opacity.
_COLOURS = colormaps["inferno"](np.linspace(0.15, 1.0, 256))
FAINT, OPAQUE = 0.1, 0.8

#: Quality of photos and tiles in WebP: artefacts are not seen at the size at which they are shown.
QUALITY = 78


class ImagePool:
    """Images by the name of a CSS class; equal images, such as the coarsest tile of all photos, are stored once."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def add(self, image: Image.Image, side: int, *, exact: bool = False) -> str:
        """The class of an image.

        Args:
            image: the image.
            side: longest side that is stored, pixels; smaller images are not enlarged.
            exact: store all pixels as they are, in PNG.
        """
        image = image.copy() if exact else image.convert("RGB")
        image.thumbnail((side, side))
        file = io.BytesIO()
        if exact:
            image.save(file, "PNG", optimize=True)
        else:
            image.save(file, "WEBP", quality=QUALITY, method=4)
        kind = "png" if exact else "webp"
        url = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
        return self._names.setdefault(url, f"i{len(self._names)}")

    def heat(self, values: NDArray[np.floating[Any]]) -> str:
        """The class of a map of similarities: colours from the least to the greatest value; nan is transparent.

        Args:
            values: (row, col).
        """
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        share = np.nan_to_num((values - low) / max(high - low, 1e-12))
        rgba = np.array(_COLOURS[(share * 255).astype(int)])
        rgba[..., 3] = np.where(np.isnan(values), 0.0, FAINT + (OPAQUE - FAINT) * share)
        return self.add(Image.fromarray((rgba * 255).round().astype(np.uint8), "RGBA"), 4096, exact=True)

    def rules(self) -> str:
        """A rule for each class."""
        return "\n".join(f".{name}{{background-image:url({url})}}" for url, name in self._names.items())
