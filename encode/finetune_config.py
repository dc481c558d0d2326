"""What fine-tuning can be told. Free of torch, so that commands which only read settings start at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jzi.decode.config import TrainingConfig
from jzi.errors import ConfigError


@dataclass(frozen=True)
class EncoderTrainingConfig(TrainingConfig):
    """How an encoder is trained, whatever the objective.

    Attributes:
        blocks: how many of the encoder's last blocks are trained, with the final layernorm; "all" trains the patch
            embedding too.
        augment: whether photos and tiles are augmented.
        checkpointing: compute activations again in the backward pass instead of keeping them, for small GPUs.
        save_every_s: seconds between two states to resume from; one is kept after every epoch too.
        val_photos: how many validation photos are located after an epoch, spread over all.
    """

    blocks: int | str = 4
    augment: bool = True
    checkpointing: bool = False
    save_every_s: float = 300.0
    val_photos: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks != "all" and not (isinstance(self.blocks, int) and self.blocks >= 0):
            raise ConfigError(f"{self.section}.blocks is {self.blocks!r}: give a number of blocks, 0 or more, or all")
        if self.save_every_s <= 0 or self.val_photos < 1:
            raise ConfigError(f"{self.section}.save_every_s and {self.section}.val_photos must be more than 0")


@dataclass(frozen=True)
class FinetuneConfig(EncoderTrainingConfig):
    """How encoder and decoder are trained together. Defaults are the paper's.

    Attributes:
        init: a model folder whose decoder to start from; empty to start from scratch.
        encoder_learning_rate: of the encoder's weights; `learning_rate` if not given. No `blocks` train the decoder
            alone.
        contrast: weight of an InfoNCE loss between a photo and its tiles of every level, beside the zoom's own loss;
            the paper has none.
        accumulation: parts of a batch that go through one after the other, for small GPUs.
    """

    init: str = ""
    encoder_learning_rate: float | None = None
    contrast: float = 0.0
    accumulation: int = 1

    section: ClassVar[str] = "finetune"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ConfigError(
                f"finetune.accumulation is {self.accumulation}, which does not divide finetune.batch_size, "
                f"{self.batch_size}"
            )
        if not self.contrast >= 0:
            raise ConfigError(f"finetune.contrast is {self.contrast}: it must be at least 0")
        if self.encoder_learning_rate is not None and not self.encoder_learning_rate >= 0:
            raise ConfigError(f"finetune.encoder_learning_rate is {self.encoder_learning_rate}: it must be at least 0")
