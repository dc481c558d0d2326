"""Settings of training. Free of torch, so that commands which only read settings start at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jzi.errors import ConfigError

#: The loss and the mining of each method.
METHODS = {
    "sample4geo": ("infonce", True),
    "infonce": ("infonce", False),
    "transgeo": ("triplet", False),
}


@dataclass(frozen=True)
class TrainingConfig:
    """How to train, with the encoder or off the cache. Defaults are the paper's, but for weight decay: PyTorch's.

    Attributes:
        epochs: passes over the training photos.
        batch_size: photos to a step, all processes together.
        learning_rate: of AdamW, after the warm-up.
        weight_decay: of AdamW.
        warmup: share of the steps over which the learning rate rises; it then falls as a cosine.
        label_smoothing: of the cross-entropy.
        clip: largest norm of the gradient.
        seed: of all that is random.
        precision: "no", "fp16", "bf16", or "auto": bf16 on GPUs that are good at it.
        trackers: of Accelerate ("tensorboard", "wandb", ...), beside metrics.jsonl.
    """

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    warmup: float = 0.05
    label_smoothing: float = 0.1
    clip: float = 1.0
    seed: int = 0
    precision: str = "auto"
    trackers: tuple[str, ...] = ()

    section: ClassVar[str]

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("learning_rate", 0), ("weight_decay", 0), ("clip", 0)):
            if not getattr(self, name) >= low:
                raise ConfigError(f"{self.section}.{name} is {getattr(self, name)}: it must be at least {low}")
        if not (0 <= self.label_smoothing < 1 and 0 <= self.warmup <= 1):
            raise ConfigError(f"{self.section}.label_smoothing and {self.section}.warmup are shares, 0..1")
        if self.precision not in ("auto", "no", "fp16", "bf16"):
            raise ConfigError(f"{self.section}.precision {self.precision!r} is none of auto, no, fp16, bf16")


@dataclass(frozen=True)
class TrainConfig(TrainingConfig):
    """How to train the decoder off the cache.

    Attributes:
        init: a model folder whose decoder to start from, such as a fine-tuned one; empty to start from scratch.
        views: how many augmented views of a photo to draw from beside the plain one, as far as the cache has them.
        save_every_s: seconds between two states to resume from, each after a whole epoch. Writing one of the paper's
            decoder takes half a second (`python -m benchmarks.train_decoder`).
    """

    init: str = ""
    views: int = 255
    save_every_s: float = 10.0

    section: ClassVar[str] = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.views <= 255:
            raise ConfigError(f"train.views is {self.views}: it must be 0 to 255")
        if self.save_every_s <= 0:
            raise ConfigError(f"train.save_every_s is {self.save_every_s}: it must be more than 0")


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
        accumulation: parts of a batch that go through one after the other, for small GPUs.
    """

    init: str = ""
    encoder_learning_rate: float | None = None
    accumulation: int = 1

    section: ClassVar[str] = "finetune"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ConfigError(
                f"finetune.accumulation is {self.accumulation}, which does not divide finetune.batch_size, "
                f"{self.batch_size}"
            )
        if self.encoder_learning_rate is not None and not self.encoder_learning_rate >= 0:
            raise ConfigError(f"finetune.encoder_learning_rate is {self.encoder_learning_rate}: it must be at least 0")


@dataclass(frozen=True)
class RetrieverConfig(EncoderTrainingConfig):
    """How an encoder is trained for retrieval.

    Attributes:
        method: "sample4geo" (symmetric InfoNCE; batches of neighbours, first on the map, then by similarity; Deuser et
            al. 2023), "infonce" (the same with random batches), or "transgeo" (soft-margin triplets of all pairs of a
            batch; Zhu et al. 2022). `label_smoothing` is the InfoNCE's: triplets have none.
        context: side of the piece of map that stands for a cell, in cells; the cell is its middle.
        temperature: what cosine similarities are divided by at first; InfoNCE learns it, triplets keep 1 / 20.
        neighbours: photos that are drawn into a batch with each photo, half of them the nearest; Sample4Geo's K.
        neighbour_range: how many nearest the other half is drawn from.
        mine_every: epochs between two minings by similarity; before the first, neighbours are those on the map.
    """

    learning_rate: float = 1e-4
    method: str = "sample4geo"
    context: float = 4.0
    temperature: float = 0.07
    neighbours: int = 64
    neighbour_range: int = 128
    mine_every: int = 4

    section: ClassVar[str] = "retriever"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise ConfigError(f"retriever.method {self.method!r} is none of {', '.join(METHODS)}")
        if self.blocks == 0:
            raise ConfigError("retriever.blocks is 0, and then there is nothing to train: give 1 or more, or all")
        if not 1 <= self.context <= 64 or not self.temperature > 0:
            raise ConfigError("retriever.context must be 1..64 cells and retriever.temperature more than 0")
        if self.mine_every < 1 or not 2 <= self.neighbours <= self.neighbour_range:
            raise ConfigError(
                "retriever.mine_every must be at least 1, and retriever.neighbours 2..retriever.neighbour_range"
            )

    @property
    def loss(self) -> str:
        """Which of `jzi.train.losses.LOSSES`."""
        return METHODS[self.method][0]

    @property
    def mines(self) -> bool:
        """Whether batches are made of neighbours."""
        return METHODS[self.method][1]
