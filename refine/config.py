"""Settings of refiners, without torch, so that commands that only read settings start fast."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from jzi.errors import ConfigError
from jzi.refine.ray_config import RayConfig
from jzi.store.info import MAX_IMAGE_SIZE, MAX_WIDTH
from jzi.store.plain import plain
from jzi.store.setting_checks import check_settings

_strict = ConfigDict(extra="forbid")

#: Number of levels of matching of a decoder; each has twice the resolution of the one before.
LEVELS = 4

#: Pixels of the stem of a ConvNeXt, and of each pixel of its last feature map.
STEM, STRIDE = 4, 32

#: Largest side of the tokens of a window, and number of headings that are compared: more exceed any memory.
MAX_SIDE, MAX_BINS = 128, 360

Kind = Literal["cached", "unifygeo", "rays"]
Source = Literal["tokens", "detail", "trained"]

Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
Depth = Annotated[int, Field(ge=0, le=64)]
Bins = Annotated[int, Field(ge=1, le=MAX_BINS)]
ImageSide = Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
LayerScale = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=1e-3, le=10)]
Channels = tuple[Width, Width, Width, Width]


@dataclass(frozen=True)
class UnifyGeoConfig:
    """Architecture of UnifyGeo (arXiv 2505.07622). Defaults are the paper's: 57 683 043 parameters.

    Attributes:
        ground_height: height of photos, pixels. The layers of the ground descriptors depend on it.
        ground_width: width of panoramas, pixels; a multiple of 32.
        photo_width: width of photos that are no panoramas, pixels; a multiple of 32.
        aerial: side of windows, pixels; a multiple of 32.
        widths: channels of the four stages of a ConvNeXt. In reverse order they are those of the decoder's levels, and
            each is a multiple of `bins`.
        depths: blocks of the three stages that both heads share.
        head_blocks: blocks of each head.
        bins: sectors of azimuth of a descriptor.
        aggregator: how the features of an image become its embedding: attention and generalised mean (GeM), or the mean
            as an ablation.
        circular: whether photos of 360 degrees are padded circularly and the layer norm of the ground descriptors is
            the same for all azimuths. Then a rotated panorama has a rotated descriptor (not in the paper).
        aligned: whether the heading of each photo is known to be 0, so that descriptors are compared at no other. If
            not, they are compared at `bins` headings (as in CCVPE, not in the paper).
        layer_scale: initial scale of the residual branch of blocks. 1e-6 suits pretrained weights; with random ones
            blocks do nothing at first, and 1.0 learns.
        temperature: divisor of cosines, by which a prior of headings is weighted against them.

    Raises:
        ConfigError: the type or the range of a value is wrong, or values do not fit one another.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _strict

    ground_height: ImageSide = 384
    ground_width: ImageSide = 768
    photo_width: ImageSide = 512
    aerial: ImageSide = 384
    widths: Channels = (96, 192, 384, 768)
    depths: tuple[Depth, Depth, Depth] = (3, 3, 9)
    head_blocks: Depth = 1
    bins: Bins = 24
    aggregator: Literal["attention-gem", "mean"] = "attention-gem"
    circular: bool = False
    aligned: bool = True
    layer_scale: LayerScale = 1e-6
    temperature: Temperature = 0.1

    def __post_init__(self) -> None:
        check_settings("refine", self)
        _check_multiples("widths", self.widths, self.bins, "bins")
        sides = (self.ground_width, self.photo_width, self.aerial)
        _check_multiples("ground_width, photo_width and aerial", sides, STRIDE, "the network's stride")
        if self.rows < 1:
            raise ConfigError(f"refine.ground_height is {self.ground_height} pixels: give at least {STRIDE}")

    @property
    def channels(self) -> Channels:
        """Channels of the decoder's levels, coarse to fine; also the lengths of the ground descriptors."""
        return self.widths[::-1]

    @property
    def rolls(self) -> int:
        """Number R of headings at which descriptors are compared."""
        return 1 if self.aligned else self.bins

    @property
    def rows(self) -> int:
        """Height H' of the ground branch's last feature map; strided convolutions leave out what does not fill one."""
        rows = self.ground_height // STEM
        for _ in range(3):
            rows //= 2
        return rows

    @property
    def pixels(self) -> int:
        """Side P of the density over a window, pixels."""
        return self.aerial

    def to_dict(self) -> dict[str, Any]:
        """Return the entries for the refiner's file and for run fingerprints."""
        return plain(self)


@dataclass(frozen=True)
class TrunkConfig:
    """A small fully convolutional network like a ConvNeXt, from pixels to tokens. Defaults: 1.2 million parameters.

    Attributes:
        widths: channels of each stage; the first has a stride of 4 pixels, each further one twice that.
        depths: blocks of each stage.
        kernel: side of the depthwise convolutions, an odd number.
        features: number F of features of a token.
        layer_scale: initial scale of the residual branch of blocks.

    Raises:
        ConfigError: the type or the range of a value is wrong, or there are not as many depths as widths.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _strict

    widths: Annotated[tuple[Width, ...], Field(min_length=1, max_length=5)] = (48, 96, 192)
    depths: Annotated[tuple[Depth, ...], Field(min_length=1, max_length=5)] = (2, 2, 3)
    kernel: Annotated[int, Field(ge=1, le=31)] = 7
    features: Width = 128
    layer_scale: LayerScale = 1.0

    def __post_init__(self) -> None:
        check_settings("refine.trunk", self)
        if len(self.widths) != len(self.depths):
            raise ConfigError(
                f"refine.trunk has {len(self.widths)} widths and {len(self.depths)} depths: give one of each per stage"
            )
        if self.kernel % 2 == 0:
            raise ConfigError(f"refine.trunk.kernel is {self.kernel}: give an odd number")

    @property
    def stride(self) -> int:
        """Pixels from one token to the next: token i is at the pixels from i * stride to (i + 1) * stride."""
        return STEM * 2 ** (len(self.widths) - 1)

    @property
    def receptive_field(self) -> int:
        """Side of the square of pixels, around its own, that a token depends on."""
        return self.stride + 2 * self._reach

    @property
    def margin(self) -> int:
        """Pixels to render around an image so that its tokens depend on no border: a multiple of the stride."""
        return -(-self._reach // self.stride) * self.stride

    @property
    def _reach(self) -> int:
        return sum(self.kernel // 2 * depth * STEM * 2**stage for stage, depth in enumerate(self.depths))


@dataclass(frozen=True)
class CachedRefinerConfig:
    """Architecture of the refiner that works on tokens of a cache. Defaults: 2.6 million parameters.

    Attributes:
        source: where tokens come from: "tokens" and "detail" are those of a frozen encoder, at the resolution of the
            zoom's tiles and at a finer one; "trained" those of two small networks that are part of the refiner.
        features: number F of features of the map's tokens.
        photo_features: number of features of a photo's tokens.
        rows: number H' of rows of a photo's tokens. The layers of the ground descriptors depend on it.
        side: tokens of a side of a window.
        width: channels of the blocks.
        blocks: ConvNeXt blocks of each branch.
        channels: channels of the decoder's levels, coarse to fine, each a multiple of `bins`.
        bins: sectors of azimuth of a descriptor, and headings at which descriptors are compared.
        dropout: probability of dropout of tokens' features and of the decoder's channels, below 1.
        layer_scale: initial scale of the residual branch of blocks.
        temperature: divisor of cosines, by which a prior of headings is weighted against them.
        trunk: the network that makes the map's tokens, if the source is "trained"; its `features` are F.
        photo_trunk: the network that makes a photo's tokens, if the source is "trained".

    Raises:
        ConfigError: the type or the range of a value is wrong, or values do not fit one another.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _strict

    features: Width = 128
    photo_features: Width = 128
    rows: Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)] = 27
    side: Annotated[int, Field(ge=1, le=MAX_SIDE)] = 16
    width: Width = 192
    blocks: Depth = 2
    channels: Channels = (384, 192, 96, 48)
    bins: Bins = 24
    dropout: Dropout = 0.1
    layer_scale: LayerScale = 1.0
    temperature: Temperature = 0.1
    source: Source = "detail"
    trunk: TrunkConfig | None = None
    photo_trunk: TrunkConfig | None = None

    def __post_init__(self) -> None:
        check_settings("refine", self)
        _check_multiples("channels", self.channels, self.bins, "bins")
        trunks = (self.trunk, self.photo_trunk)
        if any((trunk is not None) != (self.source == "trained") for trunk in trunks):
            raise ConfigError(
                f"refine.source is {self.source!r}, and a refiner has trunks only if it is 'trained': give both or none"
            )
        if self.trunk and self.photo_trunk:
            widths = (self.trunk.features, self.photo_trunk.features)
            if widths != (self.features, self.photo_features):
                raise ConfigError(
                    f"the trunks make tokens of {widths[0]} and {widths[1]} features, but the refiner reads "
                    f"{self.features} and {self.photo_features}: give the same numbers"
                )

    @property
    def rolls(self) -> int:
        """Number R of headings at which descriptors are compared."""
        return self.bins

    @property
    def pixels(self) -> int:
        """Side P of the density over a window, pixels."""
        return self.side * 2 ** (LEVELS - 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the entries for the refiner's file and for run fingerprints."""
        return plain(self)


@dataclass(frozen=True)
class RefineConfig:
    """The refiner, and how candidates are refined to metres (the section [refine]).

    Attributes:
        kind: "cached" refines off the cache, "unifygeo" from images, "rays" off tokens of its own in the cache.
        source: where a cached refiner's tokens come from: the frozen encoder, at a fine resolution ("detail") or at
            that of the zoom's tiles ("tokens"), or two small networks of its own ("trained").
        window_m: side of the window around a candidate, true metres: a cell and 20 m around it at the default grid.
        top: number of candidates that are refined.
        hfov: horizontal field of view of photos that do not record it, degrees; their answers have a note.
        heading_sd_deg: standard deviation of headings in EXIF that refer to true north.
        magnetic_sd_deg: standard deviation of those that refer to magnetic north, where the declination is not known.
        radius: radius within which the estimated point has most probability, metres.
        bins: sectors of azimuth of a descriptor.
        side: tokens of a side of a window, of a cached refiner.
        width: channels of the blocks, of a cached refiner.
        channels: channels of the decoder's levels, of a cached refiner.
        blocks: ConvNeXt blocks of each branch, of a cached refiner.
        dropout: probability of dropout, of a cached refiner.
        trunk: the network that makes the map's tokens where the source is "trained".
        photo_trunk: the network that makes a photo's tokens where the source is "trained".
        rays: architecture of the refiner of kind "rays"; `side` follows from `window_m`.

    Raises:
        ConfigError: the type or the range of a value is wrong.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _strict

    kind: Kind = "cached"
    source: Source = "detail"
    window_m: Annotated[float, Field(ge=1, le=10_000)] = 80.0
    top: Annotated[int, Field(ge=1, le=1000)] = 5
    hfov: Annotated[float, Field(ge=1, le=360)] = 70.0
    heading_sd_deg: Annotated[float, Field(gt=0, le=360)] = 10.0
    magnetic_sd_deg: Annotated[float, Field(gt=0, le=360)] = 20.0
    radius: Annotated[float, Field(gt=0, le=1000)] = 5.0
    bins: Bins = 24
    side: Annotated[int, Field(ge=1, le=MAX_SIDE)] = 16
    width: Width = 192
    channels: Channels = (384, 192, 96, 48)
    blocks: Depth = 2
    dropout: Dropout = 0.1
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    photo_trunk: TrunkConfig = field(default_factory=TrunkConfig)
    rays: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        check_settings("refine", self)
        if self.kind == "cached":
            _check_multiples("channels", self.channels, self.bins, "bins")
        if self.kind == "rays":
            self.ray_config()

    def ray_config(self) -> RayConfig:
        """Architecture of a refiner of kind "rays".

        Raises:
            ConfigError: the window is no whole number of tokens, or has too many.
        """
        side = round(self.window_m / self.rays.token_m)
        if abs(side * self.rays.token_m - self.window_m) > 1e-6 * self.window_m or not side:
            raise ConfigError(
                f"refine.window_m is {self.window_m:g}: give a multiple of refine.rays.token_m, {self.rays.token_m:g}"
            )
        return replace(self.rays, side=side)

    def cached(self, features: int, photo_features: int, rows: int) -> CachedRefinerConfig:
        """Architecture of a cached refiner.

        Args:
            features: number of features of the map's tokens; where they are trained, that of the trunk is taken.
            photo_features: number of features of a photo's tokens; where they are trained, that of the trunk is taken.
            rows: number of rows of a photo's tokens.

        Raises:
            ConfigError: values do not fit one another.
        """
        trained = self.source == "trained"
        return CachedRefinerConfig(
            features=self.trunk.features if trained else features,
            photo_features=self.photo_trunk.features if trained else photo_features,
            rows=rows,
            side=self.side,
            width=self.width,
            blocks=self.blocks,
            channels=self.channels,
            bins=self.bins,
            dropout=self.dropout,
            source=self.source,
            trunk=self.trunk if trained else None,
            photo_trunk=self.photo_trunk if trained else None,
        )


def _check_multiples(name: str, values: tuple[int, ...], divisor: int, of: str) -> None:
    if any(value % divisor for value in values):
        raise ConfigError(f"refine.{name} are {values}: each must be a multiple of {divisor}, {of}")
