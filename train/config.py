"""Settings of training. Free of torch, so that commands which only read settings start at once."""

from __future__ import annotations

from functools import wraps
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from jzi.errors import ConfigError

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]

Precision = Literal["auto", "no", "fp16", "bf16"]
Method = Literal["sample4geo", "infonce", "transgeo"]
Class = TypeVar("Class", bound=type)

_strict = ConfigDict(extra="forbid")

#: The loss and the mining of each method.
METHODS = {
    "sample4geo": ("infonce", True),
    "infonce": ("infonce", False),
    "transgeo": ("triplet", False),
}


def _raises_config_error(made: Class) -> Class:
    """Has a settings class raise ConfigError, one sentence, where it is made with a value out of range."""
    plain: Any = made.__init__  # type: ignore[misc]

    @wraps(plain)
    def init(self: Any, *args: Any, **values: Any) -> None:
        try:
            plain(self, *args, **values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join([getattr(made, "section", made.__name__), *map(str, first["loc"])])
            raise ConfigError(
                f"the setting {name} = {first['input']!r} has no sensible value: {first['msg']}"
            ) from error

    made.__init__ = init  # type: ignore[misc]
    return made


@_raises_config_error
@dataclass(frozen=True, config=_strict)
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
        save_every_s: seconds between two states to resume from.
    """

    epochs: Count = 30
    batch_size: Count = 128
    learning_rate: NotNegative = 3e-4
    weight_decay: NotNegative = 0.01
    warmup: Share = 0.05
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    clip: NotNegative = 1.0
    seed: int = 0
    precision: Precision = "auto"
    trackers: tuple[str, ...] = ()
    save_every_s: Positive = 300.0

    section: ClassVar[str]


@_raises_config_error
@dataclass(frozen=True, config=_strict)
class TrainConfig(TrainingConfig):
    """How to train the decoder off the cache.

    Attributes:
        init: a model folder whose decoder to start from, such as a fine-tuned one; empty to start from scratch.
        views: how many augmented views of a photo to draw from beside the plain one, as far as the cache has them.
        save_every_s: seconds between two states to resume from, each after a whole epoch. Writing one of the paper's
            decoder takes half a second (`python -m benchmarks.train_decoder`).
    """

    init: str = ""
    views: Annotated[int, Field(ge=0, le=255)] = 255
    save_every_s: Positive = 10.0

    section: ClassVar[str] = "train"


@_raises_config_error
@dataclass(frozen=True, config=_strict)
class EncoderTrainingConfig(TrainingConfig):
    """How an encoder is trained, whatever the objective.

    Attributes:
        blocks: how many of the encoder's last blocks are trained, with the final layernorm; "all" trains the patch
            embedding too.
        augment: whether photos and tiles are augmented.
        checkpointing: compute activations again in the backward pass instead of keeping them, for small GPUs.
        save_every_s: seconds between two states to resume from; one is saved after every epoch too.
        val_photos: how many validation photos are located after an epoch, spread over all.
    """

    blocks: int | str = 4
    augment: bool = True
    checkpointing: bool = False
    val_photos: Count = 4096

    def __post_init__(self) -> None:
        if self.blocks != "all" and not (isinstance(self.blocks, int) and self.blocks >= 0):
            raise ConfigError(f"{self.section}.blocks is {self.blocks!r}: give a number of blocks, 0 or more, or all")


@_raises_config_error
@dataclass(frozen=True, config=_strict)
class FinetuneConfig(EncoderTrainingConfig):
    """How encoder and decoder are trained together. Defaults are the paper's.

    Attributes:
        init: a model folder whose decoder to start from; empty to start from scratch.
        encoder_learning_rate: of the encoder's weights; `learning_rate` if not given. No `blocks` train the decoder
            alone.
        accumulation: parts of a batch that go through one after the other, for small GPUs.
    """

    init: str = ""
    encoder_learning_rate: NotNegative | None = None
    accumulation: Count = 1

    section: ClassVar[str] = "finetune"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.accumulation:
            raise ConfigError(
                f"finetune.accumulation is {self.accumulation}, which does not divide finetune.batch_size, "
                f"{self.batch_size}"
            )


@_raises_config_error
@dataclass(frozen=True, config=_strict)
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

    learning_rate: NotNegative = 1e-4
    method: Method = "sample4geo"
    context: Annotated[float, Field(ge=1, le=64)] = 4.0
    temperature: Positive = 0.07
    neighbours: Annotated[int, Field(ge=2)] = 64
    neighbour_range: int = 128
    mine_every: Count = 4

    section: ClassVar[str] = "retriever"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks == 0:
            raise ConfigError("retriever.blocks is 0, and then there is nothing to train: give 1 or more, or all")
        if self.neighbours > self.neighbour_range:
            raise ConfigError(
                f"retriever.neighbours is {self.neighbours}, more than retriever.neighbour_range, "
                f"{self.neighbour_range}: half of them are drawn from that many"
            )

    @property
    def loss(self) -> str:
        """Which of `jzi.train.losses.LOSSES`."""
        return METHODS[self.method][0]

    @property
    def mines(self) -> bool:
        """Whether batches are made of neighbours."""
        return METHODS[self.method][1]
