"""Settings of training UnifyGeo on pairs of photos and aerial images."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from jzi.errors import ConfigError
from jzi.train.config.training import TrainingConfig
from jzi.train.config.values import MAX_COUNT, STRICT, Count, NotNegative, Positive, Share, raises_config_error


@raises_config_error
@dataclass(frozen=True, config=STRICT)
class PairTrainingConfig(TrainingConfig):
    """Settings for training UnifyGeo on pairs. Defaults are the paper's, or Sample4Geo's where it says nothing.

    Attributes:
        clip: maximum absolute value in the gradient (Sample4Geo).
        temperature: initial divisor of cosines of embeddings, which is learned.
        sigma_m: standard deviation of the Gaussian around the true place, metres; at least a pixel. CCVPE's.
        decoder: weight of the loss of the place in the aerial image (L_D); 0 leaves it out.
        retrieval: weight of the loss of embeddings (L_G).
        matching: weight of the loss of the place at each level (L_M).
        rerank: weight of the loss of the place among all aerial images of a batch (L_R).
        semi: what to do with aerial images of other photos that show a photo's place too: leave them out of the
            negatives ("mask"), or count them as positives of L_R ("positive").
        sampling: whether batches consist of neighbours, at first by position and later by similarity (Sample4Geo), or
            are random. Two photos of one aerial image are never in a batch.
        neighbours: photos of neighbouring aerial images that are added to a batch with each photo.
        neighbour_range: number of nearest neighbours that half of them are drawn from.
        mine_every: epochs between two minings by similarity.
        augment: whether pairs are flipped and turned, colours changed and parts dropped.
        val_photos: maximum number of validation photos, evenly spaced.
    """

    epochs: Count = 40
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 64
    learning_rate: NotNegative = 4.5e-4
    weight_decay: NotNegative = 0.04
    warmup: Share = 0.025
    clip: NotNegative = 100.0
    temperature: Positive = 0.07
    sigma_m: Positive = 0.55
    decoder: NotNegative = 1.0
    retrieval: NotNegative = 100.0
    matching: NotNegative = 10.0
    rerank: NotNegative = 1.0
    semi: Literal["mask", "positive"] = "mask"
    sampling: Literal["neighbours", "random"] = "neighbours"
    neighbours: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 64
    neighbour_range: Count = 128
    mine_every: Count = 4
    augment: bool = True
    val_photos: Count = 2048

    section: ClassVar[str] = "refiner"

    def __post_init__(self) -> None:
        if not (self.retrieves or self.locates):
            raise ConfigError(
                "refiner.retrieval, decoder and matching are all 0, which leaves nothing to train: give one a weight"
            )
        if self.rerank and not self.locates:
            raise ConfigError(
                f"refiner.rerank is {self.rerank:g} without the losses of the place, decoder and matching: set it to 0 "
                "too, or give them weights"
            )
        if self.neighbours > self.neighbour_range:
            raise ConfigError(
                f"refiner.neighbours is {self.neighbours}: it must be at most refiner.neighbour_range, "
                f"{self.neighbour_range}, because half of the neighbours are drawn from that range"
            )

    @property
    def retrieves(self) -> bool:
        """Whether embeddings are trained."""
        return self.retrieval > 0

    @property
    def locates(self) -> bool:
        """Whether the matching or the decoder is trained."""
        return self.decoder > 0 or self.matching > 0

    def fingerprint(self) -> dict[str, Any]:
        """As `RunConfig.fingerprint`; settings of neighbours have no effect on random batches."""
        values = super().fingerprint()
        unused = () if self.sampling == "neighbours" else ("neighbours", "neighbour_range", "mine_every")
        return {name: value for name, value in values.items() if name.partition(".")[2] not in unused}
