"""What a cache records about the tokens of its group `detail` and of its photos, in its headers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from jzi.errors import CacheError
from jzi.store.features.projection import MAX_FEATURES
from jzi.store.info import MAX_IMAGE_SIZE, MAX_WIDTH

#: Most bytes of the tokens of a tile or of a photo, which are one chunk.
MAX_CHUNK_BYTES = 2**26

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Count = Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class DetailInfo:
    """The tokens of the tiles of the last level, from images with more pixels than those of their embeddings.

    Attributes:
        pixels: side of a tile's image, a multiple of `patch`, so that the tokens of adjacent tiles are one grid.
        patch: side of a token in pixels.
        margin: pixels rendered around a tile; 0 if every tile was encoded alone.
        producer: "encoder": that of the cache; "refiner": the trained network of a refiner.
        fingerprint: SHA-256 of the producer.
        source_width: number of features of the producer's tokens.
        width: number of features that are stored.
        projection: digest of the projection from one to the other.

    Raises:
        CacheError: the numbers do not fit one another.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    pixels: Count
    patch: Count
    margin: Annotated[int, Field(ge=0, le=MAX_IMAGE_SIZE)] = 0
    producer: Literal["encoder", "refiner"] = "encoder"
    fingerprint: Digest
    source_width: Annotated[int, Field(ge=1, le=MAX_WIDTH)]
    width: Annotated[int, Field(ge=1, le=MAX_WIDTH)]
    projection: Digest

    def __post_init__(self) -> None:
        if self.pixels % self.patch or self.margin % self.patch:
            raise CacheError(f"{self.pixels} and {self.margin} pixels are not whole tokens of {self.patch} pixels")
        if self.width > self.source_width or self.side**2 * self.width > MAX_CHUNK_BYTES:
            raise CacheError(f"a tile of {self.side} x {self.side} tokens of {self.width} features cannot be stored")

    @property
    def side(self) -> int:
        """Number of tokens along a side of a tile."""
        return self.pixels // self.patch

    @property
    def label(self) -> str:
        """Tokens of a tile, producer and first digits of its fingerprint, for messages."""
        return f"{self.side} x {self.side} tokens of {self.width} features, {self.producer} {self.fingerprint[:8]}"


@dataclass(frozen=True, kw_only=True)
class PhotoTokensInfo:
    """The tokens of the photos.

    Attributes:
        rows: rows of tokens of a photo.
        cols: columns of tokens of a photo.
        source_width: number of features of the encoder's tokens.
        width: number of features that are stored.
        projection: digest of the projection from one to the other.

    Raises:
        CacheError: the numbers do not fit one another.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    rows: Count
    cols: Count
    source_width: Annotated[int, Field(ge=1, le=MAX_WIDTH)]
    width: Annotated[int, Field(ge=1, le=MAX_FEATURES)]
    projection: Digest

    def __post_init__(self) -> None:
        if self.width > self.source_width or self.rows * self.cols * self.width > MAX_CHUNK_BYTES:
            raise CacheError(f"a photo of {self.rows} x {self.cols} tokens of {self.width} features cannot be stored")

    @property
    def label(self) -> str:
        """Tokens of a photo, for messages."""
        return f"{self.rows} x {self.cols} tokens of {self.width} features"
