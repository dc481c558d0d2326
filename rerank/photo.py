"""Photos as judges see them."""

from __future__ import annotations

from jzi.encode.photo.photos import Photo, fit_size, open_photo, resize_photo
from jzi.rerank.question import Picture

#: Width of a panorama over its height, from which a photo counts as one, and how much wider than others it is shown.
PANORAMA, WIDER = 1.8, 4 / 3


def picture(photo: Photo, longest: int, name: str = "") -> Picture:
    """A photo, upright, never stretched, at most so many pixels wide or high; a panorama a third wider.

    Args:
        photo: a path, the bytes of a file, an open file or an image.
        longest: pixels.
        name: of the photo in errors; its path by default.

    Raises:
        PhotoError: it cannot be read.
    """
    image = open_photo(photo, name)
    if image.width >= PANORAMA * image.height:
        longest = round(longest * WIDER)
    if max(image.size) <= longest:
        width, height = image.size
    else:
        width, height = fit_size(*image.size, longest, longest)
    return Picture(resize_photo(image, width, height))
