"""Read the images of a data set of pairs at the sizes of a network: photos, and aerial images or views of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jzi.encode.photo.photos import read_photo
from jzi.encode.prefetch import prefetch, reader_threads
from jzi.errors import PhotoError
from jzi.store.photos.pairs import PairDataset, from_view

#: A panorama is at least that many times as wide as high.
PANORAMA = 1.9

#: Largest side at which an aerial image is read to cut a view from it, pixels.
MAX_SIDE = 8192

Pixels = NDArray[np.uint8]


@dataclass
class PairImages:
    """Reads photos and views of aerial images of a data set; safe to call from several threads.

    Attributes:
        dataset: the data set.
        panorama: height and width of panoramas, which are stretched, pixels.
        photo_width: width of other photos, pixels; they keep their aspect ratio, on black.
        aerial: side of aerial images and views, pixels.
        unreadable: path of each image that could not be used, to the reason.
    """

    dataset: PairDataset
    panorama: tuple[int, int]
    photo_width: int
    aerial: int
    unreadable: dict[str, str] = field(default_factory=dict)

    def photo(self, index: int) -> Pixels | None:
        """A photo, (height, width, 3); None if it cannot be read or is none of the data set's kind."""
        path = str(self.dataset.photos[index])
        height, width = self.panorama
        whole = self.dataset.hfov_deg[index] >= 360
        try:
            pixels, size = read_photo(path, width if whole else self.photo_width, height, fit=not whole)
        except PhotoError as error:
            self.unreadable[path] = str(error)
            return None
        if whole and size[0] < PANORAMA * size[1]:
            self.unreadable[path] = f"{path} is {size[0]} x {size[1]} pixels, which is no panorama"
            return None
        return pixels

    def view(self, reference: int, view: NDArray[np.float64]) -> Pixels | None:
        """A view of an aerial image, (side, side, 3); None if the image cannot be read.

        Args:
            reference: index of the aerial image.
            view: (3,) as a row of `PairDataset.view`. Beyond the image's edge, the view is black.
        """
        path = str(self.dataset.references[reference])
        side_m, view_m = self.dataset.side_m[reference], self.dataset.view_side_m
        try:
            if view_m is None and not view.any():
                return read_photo(path, self.aerial, self.aerial)[0]
            pixel_m = (view_m or side_m) / self.aerial
            side = min(MAX_SIDE, max(1, round(side_m / pixel_m)))
            return cut_view(read_photo(path, side, side)[0], side_m, view, view_m or side_m, self.aerial)
        except PhotoError as error:
            self.unreadable[path] = str(error)
            return None

    def photos(self, index: Iterable[int]) -> Iterator[Pixels | None]:
        """Photos in order, read ahead."""
        return prefetch(self.photo, index, reader_threads())

    def views(self, views: Iterable[tuple[int, NDArray[np.float64]]]) -> Iterator[Pixels | None]:
        """Views of aerial images in order, read ahead; arguments as of `view`."""
        return prefetch(lambda each: self.view(*each), views, reader_threads())


def cut_view(
    image: Pixels, side_m: float, view: NDArray[np.float64], view_side_m: float, pixels: int
) -> NDArray[np.uint8]:
    """Cut a view from an aerial image of about the same size of a pixel, with linear interpolation.

    Args:
        image: (side, side, 3), up is north.
        side_m: side of the image, metres.
        view: (3,) as a row of `PairDataset.view`.
        view_side_m: side of the view, metres.
        pixels: side of the view, pixels.

    Returns:
        (pixels, pixels, 3); black beyond the image's edge.
    """
    corners = np.array([[-0.5, 0.5], [0.5, 0.5], [-0.5, -0.5]]) * view_side_m  # of the view, right and up
    right, up = from_view(corners, np.broadcast_to(view, (3, 3))).T
    col, row = (right / side_m + 0.5) * image.shape[1], (0.5 - up / side_m) * image.shape[0]
    a, d = (col[1] - col[0]) / pixels, (row[1] - row[0]) / pixels  # a step to the right in the view
    b, e = (col[2] - col[0]) / pixels, (row[2] - row[0]) / pixels  # a step down
    data = (float(a), float(b), float(col[0]), float(d), float(e), float(row[0]))
    affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).transform((pixels, pixels), affine, data, bilinear))
