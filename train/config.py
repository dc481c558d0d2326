"""Settings of training. Does not import torch, so commands that only read settings start quickly."""

from __future__ import annotations

from dataclasses import asdict
from functools import wraps
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from jzi.errors import ConfigError
from jzi.locate.ranges import MAX_SEED
from jzi.store.info import MAX_WIDTH
from jzi.store.setting_checks import first_invalid, setting_error

#: Largest number of photos, epochs and so on, and learning rate, width and so on.
MAX_COUNT, MAX_VALUE = 10**6, 1e9

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
NotNegative = Annotated[float, Field(ge=0, le=MAX_VALUE)]
Positive = Annotated[float, Field(gt=0, le=MAX_VALUE)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Share = Annotated[float, Field(ge=0, le=1)]

Precision = Literal["auto", "no", "fp16", "bf16"]
Method = Literal["sample4geo", "infonce", "transgeo"]
Class = TypeVar("Class", bound=type)

_strict = ConfigDict(extra="forbid")

#: Loss of each retrieval method, and whether it mines batches of neighbours.
METHODS = {
    "sample4geo": ("infonce", True),
    "infonce": ("infonce", False),
    "transgeo": ("triplet", False),
}


def _raises_config_error(cls: Class) -> Class:
    """Make a settings class raise ConfigError, in one sentence, if a value is out of range."""
    plain: Any = cls.__init__  # type: ignore[misc]

    @wraps(plain)
    def init(self: Any, *args: Any, **values: Any) -> None:
        try:
            plain(self, *args, **values)
        except ValidationError as error:
            first = first_invalid(error)
            name = f"{getattr(cls, 'section', cls.__name__)}.{first.name}".rstrip(".")
            raise setting_error(name, first.value, first.reason) from error

    cls.__init__ = init  # type: ignore[misc]
    return cls


@_raises_config_error
@dataclass(frozen=True, config=_strict)
class TrainingConfig:
    """Settings common to all training. Defaults are the paper's; weight decay is PyTorch's default.

    Attributes:
        epochs: passes over the training photos.
        batch_size: photos per step, over all processes.
        learning_rate: AdamW's learning rate after the warm-up.
        weight_decay: AdamW's weight decay.
        warmup: share of the steps over which the learning rate rises linearly; it then falls as a cosine.
        label_smoothing: label smoothing of the cross-entropy.
        clip: maximum norm of the gradient.
        seed: seed of all random numbers.
        precision: "no", "fp16", "bf16", or "auto": bf16 on GPUs that support it.
        trackers: Accelerate's trackers ("tensorboard", "wandb", ...) to log to beside metrics.jsonl.
        save_every_s: seconds between two saved states.
    """

    epochs: Count = 30
    batch_size: Count = 128
    learning_rate: NotNegative = 3e-4
    weight_decay: NotNegative = 0.01
    warmup: Share = 0.05
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    clip: NotNegative = 1.0
    seed: Seed = 0
    precision: Precision = "auto"
    trackers: tuple[str, ...] = ()
    save_every_s: Positive = 300.0

    section: ClassVar[str]

    def fingerprint(self) -> dict[str, Any]:
        """The settings that the outcome of a run depends on, by their names in jzi.toml."""
        settings = asdict(self)
        no_effect = ("trackers", "save_every_s")
        return {f"{self.section}.{name}": value for name, value in settings.items() if name not in no_effect}


@_raises_config_error
@dataclass(frozen=True, config=_strict)
class TrainConfig(TrainingConfig):
    """Settings for training the decoder from the cache.

    Attributes:
        init: model folder whose decoder to start from, such as a fine-tuned one; empty to start from scratch.
        views: maximum number of augmented views to draw from beside the plain photo, of those in the cache.
        save_every_s: seconds between two saved states, each after a whole epoch. Writing one for the paper's decoder
            takes half a second (`python -m benchmarks.train_decoder`).
    """

    init: str = ""
    views: Annotated[int, Field(ge=0, le=255)] = 255
    save_every_s: Positive = 10.0

    section: ClassVar[str] = "train"


@_raises_config_error
@dataclass(frozen=True, config=_strict)
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


@_raises_config_error
@dataclass(frozen=True, config=_strict)
class FinetuneConfig(EncoderTrainingConfig):
    """Settings for training encoder and decoder together. Defaults are the paper's; `blocks` 0 trains only the decoder.

    Attributes:
        init: model folder whose decoder to start from; empty to start from scratch.
        contrast: weight of a contrastive loss beside the decoder's: photos against the tiles of every level and the
            reference crops of terminal cells (`jzi.train.losses.level_contrast`); 0 for none.
        encoder_learning_rate: learning rate of the encoder's weights; `learning_rate` if None.
        accumulation: parts into which a batch is split for gradient accumulation, for small GPUs.
    """

    init: str = ""
    contrast: NotNegative = 0.0
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


@_raises_config_error
@dataclass(frozen=True, config=_strict)
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


@_raises_config_error
@dataclass(frozen=True, config=_strict)
class HeadsTrainingConfig(TrainingConfig):
    """Settings for training the heads of the experts cells and levels from the cache.

    Attributes:
        init: model folder whose heads to start from; empty to start from scratch.
        hidden: width of the hidden layer of each head.
        features: number of features of a code.
        dropout: dropout of the hidden layers.
        sigma: standard deviation of the Gaussian that spreads a photo's label over the cells around it, in cells.
        prototypes: whether the expert cells learns a prototype for each cell, for areas with many photos.
        sampled: maximum number of cells in the softmax of a step. On larger maps at most half of them are those that
            carry the labels of the batch; the rest is a uniform sample of the others, weighted by their number.
    """

    epochs: Count = 40
    batch_size: Count = 256
    learning_rate: NotNegative = 2e-3
    weight_decay: NotNegative = 0.05
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    save_every_s: Positive = 10.0
    init: str = ""
    hidden: Annotated[int, Field(ge=1, le=65_536)] = 256
    features: Annotated[int, Field(ge=1, le=MAX_WIDTH)] = 128
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    sigma: Positive = 0.5
    prototypes: bool = False
    sampled: Annotated[int, Field(ge=1, le=10**8)] = 65_536

    section: ClassVar[str] = "heads"
