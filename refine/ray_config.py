"""Settings of the refiner that looks along rays, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from jzi.errors import ConfigError
from jzi.store.info import MAX_IMAGE_SIZE, MAX_WIDTH
from jzi.store.plain import plain
from jzi.store.setting_checks import check_settings

_STRICT = ConfigDict(extra="forbid")

#: Pixels of the map along a side of a token, and of a photo along a side of its features.
MAP_STRIDE, PHOTO_STRIDE = 4, 8

#: Most rings at which a ray is sampled, and longest ray: windows are read with that much around them.
MAX_RINGS, MAX_REACH_M = 64, 1000.0

#: Largest side of a window with its margin, tokens.
MAX_OUTER = 512

Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
Blocks = Annotated[int, Field(ge=0, le=64)]
PhotoSide = Annotated[int, Field(ge=PHOTO_STRIDE, le=MAX_IMAGE_SIZE, multiple_of=PHOTO_STRIDE)]
Distance = Annotated[float, Field(ge=0, le=MAX_REACH_M)]


@dataclass(frozen=True)
class RayTrunkConfig:
    """The network from pixels of the map to tokens: patches of 4 x 4 pixels, and residual blocks.

    Attributes:
        width: channels of the blocks.
        blocks: number of residual blocks of two 3 x 3 convolutions.
        features: number F of features of a token, which the cache stores.

    Raises:
        ConfigError: the type or the range of a value is wrong.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    width: Width = 48
    blocks: Blocks = 2
    features: Width = 32

    stride: ClassVar[int] = MAP_STRIDE

    def __post_init__(self) -> None:
        check_settings("refine.rays.trunk", self)

    @property
    def receptive_field(self) -> int:
        """Side of the square of pixels, around its own, that a token depends on."""
        return self.stride + 2 * self.margin

    @property
    def margin(self) -> int:
        """Pixels to render around an image so that its tokens depend on no border: a multiple of the stride."""
        return 2 * self.blocks * self.stride


@dataclass(frozen=True)
class RayConfig:
    """Architecture of the refiner that compares columns of a photo with rays on the map. Defaults: 0.7 million weights.

    Attributes:
        side: tokens along a side of a window; in jzi.toml it follows from `refine.window_m`.
        token_m: side of a token, metres: 4 pixels of the map.
        distances: metres from a place at which tokens along a ray are read, ascending.
        bins: sectors of azimuth, and headings that are compared; a multiple of 4, so that quarter turns are exact.
        fine: points along a side of a token at which the answer is computed.
        trunk: the network that makes the map's tokens.
        hidden: hidden features of the descriptor of a ray.
        width: features of the descriptor of a ray.
        photo_height: height of photos, pixels.
        photo_width: width of photos, pixels.
        photo_channels: channels of the photo's network: of its first two convolutions, and of its residual blocks.
        photo_blocks: residual blocks of the photo's network.
        dropout: probability of dropout of features of the photo's columns.

    Raises:
        ConfigError: the type or the range of a value is wrong, or values do not fit one another.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    side: Annotated[int, Field(ge=1, le=256)] = 32
    token_m: Annotated[float, Field(gt=0, le=100)] = 2.0
    distances: Annotated[tuple[Distance, ...], Field(min_length=1, max_length=MAX_RINGS)] = (
        0.0, 2.0, 4.0, 7.0, 10.0, 14.0, 19.0, 25.0, 31.0,
    )  # fmt: skip
    bins: Annotated[int, Field(ge=4, le=360, multiple_of=4)] = 36
    fine: Literal[1, 2, 3, 4] = 2
    trunk: RayTrunkConfig = field(default_factory=RayTrunkConfig)
    hidden: Width = 64
    width: Width = 32
    photo_height: PhotoSide = 112
    photo_width: PhotoSide = 224
    photo_channels: tuple[Width, Width] = (32, 96)
    photo_blocks: Blocks = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def __post_init__(self) -> None:
        check_settings("refine.rays", self)
        if any(near >= far for near, far in zip(self.distances, self.distances[1:], strict=False)):
            raise ConfigError(f"refine.rays.distances are {self.distances}: give them in ascending order")
        if self.outer > MAX_OUTER:
            raise ConfigError(
                f"a window of {self.side} tokens with rays of {self.distances[-1]:g} m around it has {self.outer} "
                f"tokens along a side, more than {MAX_OUTER}: give shorter rays or a smaller window"
            )

    @property
    def margin(self) -> int:
        """Tokens around a window that its rays reach, and one more, between which tokens are interpolated."""
        return math.ceil(self.distances[-1] / self.token_m) + 1

    @property
    def margin_m(self) -> float:
        """Metres around a window that are read."""
        return self.margin * self.token_m

    @property
    def outer(self) -> int:
        """Tokens along a side of a window with its margin."""
        return self.side + 2 * self.margin

    @property
    def rolls(self) -> int:
        """Number R of headings that are compared."""
        return self.bins

    @property
    def pixels(self) -> int:
        """Side P of the density over a window, pixels."""
        return self.side * self.fine

    def to_dict(self) -> dict[str, Any]:
        """Return the entries for the refiner's file and for run fingerprints."""
        return plain(self)
