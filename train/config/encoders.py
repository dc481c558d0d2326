"""Settings of training encoders: with the zoom, and by flat retrieval."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from jzi.errors import ConfigError
from jzi.train.config.training import TrainingConfig
from jzi.train.config.values import (
    MAX_COUNT,
    STRICT,
    Count,
    NotNegative,
    Positive,
    raises_config_error,
)

Method = Literal["sample4geo", "infonce", "transgeo"]

#: Loss of each retrieval method, and whether it mines batches of neighbours.
METHODS = {
    "sample4geo": ("infonce", True),
    "infonce": ("infonce", False),
    "transgeo": ("triplet", False),
}


@raises_config_error
@dataclass(frozen=True, config=STRICT)
class EncoderTrainingConfig(TrainingConfig):
    """Settings common to all training of encoders.

    Attributes:
        blocks: number of the encoder's last blocks to train, with the final layernorm; "all" trains everything,
            including the patch embedding.
        augment: whether photos and tiles are augmented.
        checkpointing: recompute activations in the backward pass instead of storing them, for small GPUs.
        save_every_s: seconds between two saved states; one is also saved after every epoch.
        val_photos: maximum number of validation photos to locate after each epoch, evenly spaced.
    """

    blocks: int | str = 4
    augment: bool = True
    checkpointing: bool = False
    val_photos: Count = 4096

    def __post_init__(self) -> None:
        if self.blocks != "all" and not (isinstance(self.blocks, int) and self.blocks >= 0):
            raise ConfigError(f"{self.section}.blocks is {self.blocks!r}: give a number of blocks (0 or more) or all")


@raises_config_error
@dataclass(frozen=True, config=STRICT)
class FinetuneConfig(EncoderTrainingConfig):
    """Settings for training encoder and decoder together. Defaults are the paper's; `blocks` 0 trains only the decoder.

    Attributes:
        init: model folder whose decoder to start from; empty to start from scratch.
        contrast: weight of a contrastive loss beside the decoder's: photos against the tiles of every level and the
            reference crops of terminal cells; 0 for none. It counts in the validation loss, which then selects the
            epoch.
        mirror: share of the batches whose photos, tiles, reference crops and actions are mirrored left to right.
        encoder_learning_rate: learning rate of the encoder's weights; `learning_rate` if unset.
        accumulation: parts into which a batch is split for gradient accumulation, for small GPUs.
    """

    init: str = ""
    contrast: NotNegative = 0.0
    mirror: Annotated[float, Field(ge=0, le=1)] = 0.0
    encoder_learning_rate: NotNegative | None = None
    accumulation: Count = 1

    section: ClassVar[str] = "finetune"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.accumulation:
            raise ConfigError(
                f"finetune.accumulation is {self.accumulation}, which does not divide finetune.batch_size, "
                f"{self.batch_size}: give a divisor of it"
            )


@raises_config_error
@dataclass(frozen=True, config=STRICT)
class RetrieverConfig(EncoderTrainingConfig):
    """Settings for training an encoder for retrieval.

    Attributes:
        method: "sample4geo" (symmetric InfoNCE on batches of neighbours, at first on the map, later by similarity;
            Deuser et al. 2023), "infonce" (the same on random batches), or "transgeo" (soft-margin triplets of all
            pairs of a batch; Zhu et al. 2022). `label_smoothing` applies to InfoNCE only.
        context: side of a cell's reference crop, in cells; the cell is at its centre.
        temperature: initial divisor of cosine similarities; InfoNCE learns it, triplets use a constant 1 / 20.
        neighbours: photos of neighbouring cells that are added to a batch with each photo, half of them the nearest
            (Sample4Geo's K).
        neighbour_range: number of nearest neighbours that the other half is drawn from.
        mine_every: epochs between two minings by similarity; before the first, neighbours are those on the map.
    """

    learning_rate: NotNegative = 1e-4
    method: Method = "sample4geo"
    context: Annotated[float, Field(ge=1, le=64)] = 4.0
    temperature: Positive = 0.07
    neighbours: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 64
    neighbour_range: Count = 128
    mine_every: Count = 4

    section: ClassVar[str] = "retriever"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks == 0:
            raise ConfigError("retriever.blocks is 0, which leaves nothing to train: give 1 or more, or all")
        if self.neighbours > self.neighbour_range:
            raise ConfigError(
                f"retriever.neighbours is {self.neighbours}: it must be at most retriever.neighbour_range, "
                f"{self.neighbour_range}, because half of the neighbours are drawn from that range"
            )

    @property
    def loss(self) -> str:
        """Name of the loss in `jzi.train.losses.LOSSES`."""
        return METHODS[self.method][0]

    @property
    def mines(self) -> bool:
        """Whether batches consist of neighbours."""
        return METHODS[self.method][1]
