"""Settings of training state-wide retrievers."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from jzi.encode.encoders.towers_config import CONVNEXT, DEIT
from jzi.errors import ConfigError
from jzi.train.config.training import RunConfig
from jzi.train.config.values import (
    MAX_COUNT,
    MAX_DISTANCE_M,
    STRICT,
    Count,
    ImageSize,
    NotNegative,
    PixelSize,
    Share,
    raises_config_error,
)

#: Settings of state-wide retrieval that depend on the method, unless they are given (Fervers et al. 2024, section 4.2,
#: and supplement, section S1, where the other methods have one aerial image of twice the cell).
STATEWIDE_METHODS: dict[str, dict[str, Any]] = {
    "statewide": {
        "photo_model": CONVNEXT,
        "map_model": CONVNEXT,
        "steps": 200_000,
        "batch_size": 30,
        "learning_rate": 1e-4,
        "lods_m": (0.2, 0.4, 0.8, 1.6),
        "pooling": "attention",
        "decoupled": True,
        "mining": True,
    },
    "sample4geo": {
        "photo_model": CONVNEXT,
        "map_model": CONVNEXT,
        "steps": 66_000,
        "batch_size": 90,
        "learning_rate": 3e-4,
        "lods_m": (),
        "pooling": "sample4geo",
        "decoupled": False,
        "mining": True,
    },
    "safa": {
        "photo_model": CONVNEXT,
        "map_model": CONVNEXT,
        "steps": 200_000,
        "batch_size": 30,
        "learning_rate": 1e-4,
        "lods_m": (),
        "pooling": "safa",
        "decoupled": False,
        "mining": False,
    },
    "transgeo": {
        "photo_model": DEIT,
        "map_model": DEIT,
        "steps": 200_000,
        "batch_size": 30,
        "learning_rate": 3e-5,
        "lods_m": (),
        "pooling": "class",
        "decoupled": False,
        "mining": True,
    },
}

_BY_METHOD: Any = None


@raises_config_error
@dataclass(frozen=True, config=STRICT)
class StatewideConfig(RunConfig):
    """Settings of state-wide retrieval, its model and its training. Defaults are those of Fervers et al. 2024.

    Settings named in `STATEWIDE_METHODS` follow the method unless they are given.

    Attributes:
        precision: "no", "bf16", or "auto": bf16 on GPUs that support it. CPUs without AVX-512 are slow in bf16.
        method: "statewide" (Fervers et al. 2024: decoupled contrastive loss), or a method that it is compared with:
            "sample4geo" (Deuser et al. 2023: symmetric cross-entropy), "safa" (Shi et al. 2019) or "transgeo" (Zhu et
            al. 2022; both with soft-margin triplets).
        photo_model: Hugging Face id or folder of the photos' encoder to start from.
        map_model: the same of the map's encoder.
        lods_m: size of a pixel of each level of detail, metres; empty for one image of twice the cell.
        image_size: side of an image of a cell, pixels.
        photo_size: width and height of a photo, pixels.
        width: features of an embedding.
        pooling: how tokens become an embedding: "attention", "mean", "safa", "smd", "sample4geo" or "class".
        heads: heads of the pooling.
        scale: factor of cosine similarities, the reciprocal of the temperature.
        negative_distance_m: distance beyond which a photo and a cell are a negative pair, metres. The published
            weights have 30, the paper says 100.
        offset_margin_m: smallest distance from a photo to the edges of its cell in training, metres.
        bucket_m: side of the squares of which a round of the stream takes one photo each, metres.
        decoupled: whether the denominator of the contrastive loss leaves out the pair itself.
        mining: whether batches are groups of similar samples.
        first_scan: samples before the first scan for hard examples, and between two doublings of the pool.
        pool_max: largest pool to mine, samples. The published code has 491 520.
        augment: whether colours are jittered.
        steps: steps of the optimizer.
        warmup_steps: steps over which the learning rate rises linearly; it then falls as a cosine.
        final_lr_share: share of the learning rate at the end.
        validate_every: steps between two validations.
        val_photos: maximum number of validation photos of each area, evenly spaced.
        val_cells: maximum number of cells of each area to search in a validation; of larger areas, blocks of cells
            around validation photos are searched.
    """

    batch_size: Annotated[int, Field(ge=2, le=MAX_COUNT)] = _BY_METHOD
    learning_rate: NotNegative = _BY_METHOD
    precision: Literal["auto", "no", "bf16"] = "auto"
    method: Literal["statewide", "sample4geo", "safa", "transgeo"] = "statewide"
    photo_model: Annotated[str, Field(max_length=4096)] = _BY_METHOD
    map_model: Annotated[str, Field(max_length=4096)] = _BY_METHOD
    lods_m: Annotated[tuple[PixelSize, ...], Field(max_length=8)] = _BY_METHOD
    image_size: ImageSize = 384
    photo_size: tuple[ImageSize, ImageSize] = (640, 480)
    width: Annotated[int, Field(ge=1, le=65_536)] = 1024
    pooling: Literal["attention", "mean", "safa", "smd", "sample4geo", "class"] = _BY_METHOD
    heads: Annotated[int, Field(ge=1, le=65_536)] = 64
    scale: Annotated[float, Field(gt=0, le=1000)] = 36.0
    negative_distance_m: Annotated[float, Field(ge=0, le=MAX_DISTANCE_M)] = 30.0
    offset_margin_m: Annotated[float, Field(ge=0, le=MAX_DISTANCE_M)] = 5.0
    bucket_m: Annotated[float, Field(ge=0.01, le=MAX_DISTANCE_M)] = 5.0
    decoupled: bool = _BY_METHOD
    mining: bool = _BY_METHOD
    first_scan: Count = 5000
    pool_max: Count = 16_384
    augment: bool = True
    steps: Annotated[int, Field(ge=1, le=10**8)] = _BY_METHOD
    warmup_steps: Annotated[int, Field(ge=0, le=10**8)] = 1000
    final_lr_share: Share = 0.1
    validate_every: Annotated[int, Field(ge=1, le=10**8)] = 10_000
    val_photos: Count = 4096
    val_cells: Annotated[int, Field(ge=1, le=10**8)] = 100_000

    section: ClassVar[str] = "statewide"

    def __post_init__(self) -> None:
        for name, value in STATEWIDE_METHODS[self.method].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.mining and self.pool_max < 2 * self.batch_size:
            raise ConfigError(
                f"statewide.pool_max is {self.pool_max}: a pool to mine has at least two batches, "
                f"{2 * self.batch_size} samples; give more, or statewide.mining = false"
            )
        if self.batch_size % self.cluster_size:
            raise ConfigError(
                f"statewide.batch_size is {self.batch_size}: give a multiple of {self.cluster_size}, the size of "
                f"{self.method}'s groups"
            )
        if self.decoupled and self.triplets:
            raise ConfigError(
                f"statewide.decoupled has no effect on the triplets of {self.method}: leave it out, or choose the "
                "method statewide or sample4geo"
            )

    @property
    def epochs(self) -> int:
        """Number of validations of a run."""
        return -(-self.steps // self.validate_every)

    def schedule(self, steps: int) -> tuple[int, float]:
        """Number of steps of the warm-up, and the share of the learning rate at the end."""
        return self.warmup_steps, self.final_lr_share

    @property
    def triplets(self) -> bool:
        """Whether the loss is that of soft-margin triplets."""
        return self.method in ("safa", "transgeo")

    @property
    def factor(self) -> float:
        """Factor of cosine similarities in the loss: SAFA's distances are squared ones, 2 - 2 cosine."""
        return self.scale * (2 if self.method == "safa" else 1)

    @property
    def cluster_size(self) -> int:
        """Samples in a group of similar ones: a batch, but pairs for TransGeo."""
        return 2 if self.method == "transgeo" else self.batch_size

    def lods(self, cell_m: float) -> tuple[float, ...]:
        """Size of a pixel of each level of detail, metres, for cells of a side in metres."""
        return self.lods_m or (2 * cell_m / self.image_size,)
