"""Photos as refiners take them: tokens of a cache's projection, or pixels; with what is known of their view."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.encode.encoders.encoder import Encoder
from jzi.encode.encoders.families import IMAGENET
from jzi.encode.encoders.photo_encoder import PhotoEncoder
from jzi.encode.photo.photo_reader import PhotoReader
from jzi.encode.photo.photo_tokens import encode_photos_and_tokens
from jzi.encode.photo.photo_view import PhotoView, read_view
from jzi.encode.photo.photos import Photo, fit_size, read_photo
from jzi.errors import ConfigError, PhotoError
from jzi.locate.expert import Query
from jzi.refine.config import CachedRefinerConfig, UnifyGeoConfig
from jzi.refine.ray_config import RayConfig
from jzi.store.features.projection import Projection


class PhotoData(NamedTuple):
    """A photo.

    Attributes:
        tokens: (H', W', F), or None.
        pixels: (3, H, W) normalised as ImageNet's, or None.
        fill: share of the width that the photo fills, in the middle.
    """

    tokens: Tensor | None = None
    pixels: Tensor | None = None
    fill: float = 1.0


class PhotoSource(Protocol):
    """Where a refiner gets photos from.

    Attributes:
        reads_tokens: whether queries should have tokens.
    """

    reads_tokens: bool

    def __call__(self, query: Query, view: PhotoView) -> PhotoData | None:
        """The photo of a query; None if only its embedding is available.

        Raises:
            PhotoError: it cannot be read.
        """
        ...


class TokenPhotos:
    """Tokens of photos, as the cache has them (a `PhotoSource`).

    Args:
        projection: of the cache's photos.
        load_encoder: loads the encoder, for queries without tokens.
    """

    reads_tokens = True

    def __init__(self, projection: Projection, load_encoder: Callable[[], PhotoEncoder]) -> None:
        self.projection, self._load_encoder = projection, load_encoder

    def __call__(self, query: Query, view: PhotoView) -> PhotoData | None:
        """See `PhotoSource`."""
        tokens = query.tokens
        if tokens is None and query.photo is not None:
            tokens = self._encode(query.photo, query.name)
        if tokens is None:
            return None
        # Rounded as those that it was trained on
        values = self.projection.to_float(self.projection.quantise(tokens.float().cpu().numpy()))
        return PhotoData(tokens=torch.from_numpy(values))

    def _encode(self, photo: Photo, name: str) -> Tensor:
        encoder = self._load_encoder()
        if not isinstance(encoder, Encoder):
            raise ConfigError(f"{encoder.info.name} has no patch tokens, which refining photos needs: leave it out")
        reader = PhotoReader(encoder.photo_shape, encoder.resampling, fit=encoder.fit, subject=name)
        read = reader.read_one(photo)
        if read.pixels is None:
            raise PhotoError(read.error)
        return encode_photos_and_tokens(encoder, np.stack([read.pixels]))[1][0]


class PixelPhotos:
    """Pixels of photos, for refiners that make their own tokens (a `PhotoSource`).

    Args:
        config: of the refiner.
    """

    reads_tokens = False

    def __init__(self, config: UnifyGeoConfig | CachedRefinerConfig | RayConfig) -> None:
        self.config = config

    def __call__(self, query: Query, view: PhotoView) -> PhotoData | None:
        """See `PhotoSource`."""
        if query.photo is None:
            return None
        image, fill = read_pixels(query.photo, self.config, panorama=view.panorama, name=query.name)
        return PhotoData(pixels=normalised(image[None])[0], fill=fill)


def read_pixels(
    photo: Photo, config: UnifyGeoConfig | CachedRefinerConfig | RayConfig, *, panorama: bool, name: str = ""
) -> tuple[NDArray[np.uint8], float]:
    """Read a photo at the size of a refiner.

    Args:
        photo: a path, the bytes of a file, an open file or an image.
        config: of the refiner. UnifyGeo takes panoramas of one size, and other photos within another, on black; the
            trunk of a cached refiner takes all photos stretched to twice its height, and rays those of one size.
        panorama: whether the photo is a panorama.
        name: name of the photo in error messages.

    Returns:
        (height, width, 3) uint8, and the share of the width that the photo fills.

    Raises:
        PhotoError: it cannot be read.
        ConfigError: the refiner reads tokens.
    """
    if isinstance(config, UnifyGeoConfig):
        height, width = config.ground_height, config.ground_width if panorama else config.photo_width
        pixels, size = read_photo(photo, width, height, name=name, fit=not panorama)
        return pixels, 1.0 if panorama else fit_size(*size, width, height)[0] / width
    if isinstance(config, RayConfig):
        return read_photo(photo, config.photo_width, config.photo_height, name=name)[0], 1.0
    if config.photo_trunk is None:
        raise ConfigError("the refiner reads tokens of photos, not pixels: give it those of a cache")
    height = config.rows * config.photo_trunk.stride
    return read_photo(photo, 2 * height, height, name=name)[0], 1.0


def normalised(images: NDArray[np.uint8]) -> Tensor:
    """(n, row, col, 3) uint8 to (n, 3, row, col) float32, normalised as ImageNet's."""
    mean, deviation = (torch.tensor(each)[:, None, None] for each in IMAGENET)
    return (torch.tensor(images).permute(0, 3, 1, 2).float() / 255 - mean) / deviation


def view_of_query(query: Query) -> PhotoView:
    """What is known of a photo's view: from its metadata, and from the user, whose word counts."""
    view = PhotoView() if query.photo is None else read_view(query.photo, query.name)
    camera = query.camera
    if camera.panorama is not None:
        view = view.as_panorama() if camera.panorama else view.as_perspective()
    return view.with_heading(camera.heading_deg, camera.heading_sd_deg)
