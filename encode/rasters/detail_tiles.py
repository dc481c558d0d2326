"""Images of the tiles of the last level for the tokens that refiners read, and the networks that make these tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jzi.encode.encoders.encoder import Encoder
from jzi.encode.rasters.imagery import Imagery
from jzi.errors import ConfigError
from jzi.store.geometry.cell_grid import Bounds
from jzi.store.geometry.pyramid import TileKey
from jzi.store.info import MAX_IMAGE_SIZE

#: Largest side of a square of tiles that is rendered at once, pixels: that takes about 0.5 GB.
UNIT_PIXELS = 4096

#: A tile's image has this many times the side of the encoder's input by default: 756 pixels, or 54 tokens of 2.9 m, of
#: the paper's tiles of 156 m.
ENLARGEMENT = 2


class TokenProducer(Protocol):
    """A network that makes tokens of images of the map: the cache's encoder, or the trained one of a refiner."""

    @property
    def kind(self) -> Literal["encoder", "refiner"]:
        """Which of the two."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its weights and settings."""
        ...

    @property
    def patch(self) -> int:
        """Side of a token, pixels."""
        ...

    @property
    def width(self) -> int:
        """Number of features of a token."""
        ...

    @property
    def margin(self) -> int:
        """Pixels around a tile that its tokens depend on; 0 if tiles are encoded alone."""
        ...

    @property
    def device(self) -> torch.device:
        """Device that it computes on."""
        ...

    def to(self, device: str) -> Self:
        """Move it to a device, and return it, as `torch.nn.Module.to` does."""
        ...

    def tokens(self, images: NDArray[np.uint8]) -> Tensor:
        """(n, S + 2 margin, S + 2 margin, 3) uint8 images to (n, S / patch, S / patch, feature) float32 tokens."""
        ...


class EncoderTokens:
    """The patch tokens of an encoder, a `TokenProducer`.

    Args:
        encoder: the encoder.
    """

    kind: Literal["encoder", "refiner"] = "encoder"
    margin = 0

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.fingerprint, self.patch, self.width = encoder.fingerprint, encoder.patch, encoder.width

    @property
    def device(self) -> torch.device:
        """See `TokenProducer`."""
        return self.encoder.device

    def to(self, device: str) -> Self:
        """See `TokenProducer`."""
        self.encoder.to(device)
        return self

    def tokens(self, images: NDArray[np.uint8]) -> Tensor:
        """See `TokenProducer`."""
        side = images.shape[1] // self.patch
        return self.encoder.encode_tiles_and_patches(images)[1].unflatten(1, (side, side))


def detail_pixels(producer: TokenProducer, image_size: int, wanted: int | None = None) -> int:
    """Side of a tile's image, pixels: a multiple of the producer's patch.

    Args:
        producer: the network.
        image_size: side of the encoder's input, from which the default follows.
        wanted: the setting `map.detail_px`; None for the default.

    Raises:
        ConfigError: it is less than a patch, or more than an image may have.
    """
    pixels = (ENLARGEMENT * image_size if wanted is None else wanted) // producer.patch * producer.patch
    if not producer.patch <= pixels <= MAX_IMAGE_SIZE or (wanted is not None and pixels != wanted):
        raise ConfigError(
            f"map.detail_px is {wanted or pixels}: give a multiple of {producer.patch}, the side of a token in pixels, "
            f"up to {MAX_IMAGE_SIZE}"
        )
    return pixels


class DetailTiles:
    """Images of tiles of the last level, with a margin, and where they have imagery.

    Args:
        imagery: the map.
        pixels: side of a tile, pixels.
        producer: the network that makes tokens of them.

    Raises:
        ConfigError: a tile is no whole number of tokens.
    """

    def __init__(self, imagery: Imagery, pixels: int, producer: TokenProducer) -> None:
        self.imagery, self.pixels, self.margin, self.patch = imagery, pixels, producer.margin, producer.patch
        self.pyramid = imagery.pyramid
        detail_pixels(producer, pixels, pixels)

    def render(self, row: int, col: int, count: int) -> list[DetailTile]:
        """The tiles of a square.

        Args:
            row: row of its north-west tile.
            col: column of its north-west tile.
            count: tiles along its side.

        Raises:
            ImageryError: the imagery cannot be read.
        """
        together = count if count * self.pixels <= UNIT_PIXELS else 1
        starts = range(0, count, together)
        return [tile for down in starts for right in starts for tile in self._cut(row + down, col + right, together)]

    def _cut(self, row: int, col: int, count: int) -> Iterator[DetailTile]:
        """Render a square of tiles at once, and cut it."""
        first = self.pyramid.tile_bounds(TileKey(self.pyramid.levels - 1, row, col))
        side = count * (first.east - first.west)
        border = self.margin * side / (count * self.pixels)
        bounds = Bounds(first.west - border, first.north - side - border, first.west + side + border,
                        first.north + border)  # fmt: skip
        image, covered = self.imagery.render(bounds, count * self.pixels + 2 * self.margin)
        inner, outer, tokens = self.pixels, self.pixels + 2 * self.margin, self.pixels // self.patch
        for down in range(count):
            for right in range(count):
                y, x = down * inner, right * inner
                own = covered[y + self.margin : y + self.margin + inner, x + self.margin : x + self.margin + inner]
                mask = np.asarray(own.reshape(tokens, self.patch, tokens, self.patch).any((1, 3)))
                yield DetailTile((row + down, col + right), image[y : y + outer, x : x + outer], mask)


@dataclass(frozen=True)
class DetailTile:
    """A rendered tile.

    Attributes:
        key: row and column.
        image: (S + 2 margin, S + 2 margin, 3) uint8, north up.
        mask: (token, token) whether any pixel of a token has imagery.
    """

    key: tuple[int, int]
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
