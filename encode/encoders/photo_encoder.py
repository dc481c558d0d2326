"""What photos are embedded by, whatever its architecture."""

from __future__ import annotations

from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.store.info import EncoderInfo


class PhotoEncoder(Protocol):
    """Embeds photos of one size: `jzi.encode.encoders.encoder.Encoder` and `jzi.encode.encoders.towers.Towers`."""

    @property
    def device(self) -> torch.device:
        """Device of the embeddings."""

    @property
    def width(self) -> int:
        """Number of features of an embedding."""

    @property
    def photo_shape(self) -> tuple[int, int]:
        """Height and width of its photos, pixels."""

    @property
    def resampling(self) -> str:
        """How photos are resized, one of `jzi.encode.photo.photos.RESAMPLINGS`."""

    @property
    def fit(self) -> bool:
        """Whether photos keep their aspect ratio, on black."""

    @property
    def info(self) -> EncoderInfo:
        """Name, fingerprint and preprocessing, as caches and models record them."""

    def to(self, device: str, /) -> Self:
        """Move it to a device, and return it, as `torch.nn.Module.to` does."""

    def encode_photos(self, photos: NDArray[np.uint8]) -> Tensor:
        """Embed (n, height, width, 3) uint8 photos of `photo_shape`; return (n, feature) float32 on the device."""

    def to_storage(self, embedding: Tensor) -> NDArray[np.float16]:
        """Convert embeddings to the cache's float16."""
