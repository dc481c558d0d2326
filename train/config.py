"""Settings of training. Does not import torch, so commands that only read settings start quickly."""

from __future__ import annotations

from dataclasses import asdict
from functools import wraps
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from jzi.encode.encoders.towers_config import CONVNEXT, DEIT
from jzi.errors import ConfigError
from jzi.locate.ranges import MAX_SEED
from jzi.store.disk.memory import memory_bytes
from jzi.store.info import MAX_IMAGE_SIZE, MAX_WIDTH
from jzi.store.setting_checks import first_invalid, setting_error

#: Largest number of photos, epochs and so on, and learning rate, width and so on.
MAX_COUNT, MAX_VALUE = 10**6, 1e9

#: Longest distance between a photo and a cell, metres; areas are not much larger.
MAX_DISTANCE_M = 1e6

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
NotNegative = Annotated[float, Field(ge=0, le=MAX_VALUE)]
Positive = Annotated[float, Field(gt=0, le=MAX_VALUE)]
ImageSize = Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]
PixelSize = Annotated[float, Field(gt=0, le=1000)]
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
class RunConfig:
    """Settings common to all training runs. Defaults are those of Just Zoom In; weight decay is PyTorch's default.

    Attributes:
        batch_size: photos per step, over all processes.
        learning_rate: AdamW's learning rate after the warm-up.
        weight_decay: AdamW's weight decay.
        label_smoothing: label smoothing of the cross-entropy.
        clip: maximum norm of the gradient.
        seed: seed of all random numbers.
        precision: "no", "fp16", "bf16", or "auto": bf16 on GPUs that support it. CPUs without AVX-512 are slow in bf16.
        trackers: Accelerate's trackers ("tensorboard", "wandb", ...) to log to beside metrics.jsonl.
        save_every_s: seconds between two saved states.
    """

    batch_size: Count = 128
    learning_rate: NotNegative = 3e-4
    weight_decay: NotNegative = 0.01
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    clip: NotNegative = 1.0
    seed: Seed = 0
    precision: Precision = "auto"
    trackers: tuple[str, ...] = ()
    save_every_s: Positive = 300.0

    section: ClassVar[str]

    @property
    def epochs(self) -> int:
        """Number of validations of a run, between which lie epochs."""
        raise NotImplementedError

    def schedule(self, steps: int) -> tuple[int, float]:
        """Number of steps of the warm-up, of all steps, and the share of the learning rate at the end."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """The settings that the outcome of a run depends on, by their names in jzi.toml."""
        settings = asdict(self)
        no_effect = ("trackers", "save_every_s", "memory")
        return {f"{self.section}.{name}": value for name, value in settings.items() if name not in no_effect}


@_raises_config_error
@dataclass(frozen=True, config=_strict)
class TrainingConfig(RunConfig):
    """Settings common to training in epochs.

    Attributes:
        epochs: passes over the training photos.
        warmup: share of the steps over which the learning rate rises linearly; it then falls as a cosine.
    """

    epochs: Count = 30
    warmup: Share = 0.05

    def schedule(self, steps: int) -> tuple[int, float]:
        """Number of steps of the warm-up, of all steps, and 0: the learning rate falls to zero."""
        return max(1, round(self.warmup * steps)), 0.0


@_raises_config_error
@dataclass(frozen=True, config=_strict)
class TrainConfig(TrainingConfig):
    """Settings for training the decoder from the cache.

    Attributes:
        init: model folder whose decoder to start from, such as a fine-tuned one; empty to start from scratch.
        views: maximum number of augmented views to draw from beside the plain photo, of those in the cache.
        compile: whether to compile a step of training with torch.compile, which needs a C++ compiler: true, false, or
            "auto": on a CUDA GPU, if there are at least 10 000 steps. It changes the last digits of a loss, and what
            dropout drops.
        validate_every: epochs between two validations; the last epoch is validated too.
        save_every_s: seconds between two saved states, each after a whole epoch. Writing one for the paper's decoder
            takes half a second (`python -m benchmarks.train_decoder`).
        memory: memory that the embeddings of the training photos may take, such as "4GB"; "auto" is a quarter of what
            is free. More photos are read from the cache in shuffled shards.
    """

    init: str = ""
    views: Annotated[int, Field(ge=0, le=255)] = 255
    compile: bool | Literal["auto"] = "auto"
    validate_every: Count = 1
    save_every_s: Positive = 10.0
    memory: str = "auto"

    section: ClassVar[str] = "train"

    def __post_init__(self) -> None:
        memory_bytes(self.memory, "train.memory")

    def fingerprint(self) -> dict[str, Any]:
        """The settings that the outcome of a run depends on, but for the last digits."""
        fingerprint = super().fingerprint()
        del fingerprint["train.compile"]
        if self.validate_every == 1:  # as in runs from before there was a choice
            del fingerprint["train.validate_every"]
        return fingerprint


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
            reference crops of terminal cells; 0 for none.
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


@_raises_config_error
@dataclass(frozen=True, config=_strict)
class RefinerTrainingConfig(TrainingConfig):
    """Settings for training a refiner. Learning rate, decay and weights of the losses are UnifyGeo's.

    Attributes:
        init: folder of a refiner whose weights to start from; empty to start from scratch.
        offsets: where windows of training photos lie: "cell", as candidates of a search by cells will, or "uniform".
            They are never centred on the photo.
        semi: what to do with windows of other photos that show the photo's place too: leave them out of the negatives
            ("mask"), or count them as positives ("positive").
        sigma_m: standard deviation of the Gaussian around the true place, metres; at least a pixel. CCVPE's.
        decoder: weight of the loss of the place in the window.
        retrieval: weight of the loss between windows; for refiners that have embeddings of windows.
        matching: weight of the loss of the place at each level.
        rerank: weight of the loss of the place among all windows of a batch.
        heading_known: share of the photos with a known heading for which the refiner is given it, with noise.
        augment: whether pairs are flipped and turned, and tokens or parts of images dropped.
        gsd_jitter: factor by which the pixels of windows are enlarged at most, at random, when it is trained on images:
            for maps that may be coarser than that of the training; 1 for none.
        patience: epochs without a lower validation loss after which training ends.
        val_photos: maximum number of validation photos, evenly spaced.
    """

    epochs: Count = 40
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    learning_rate: NotNegative = 4.5e-4
    weight_decay: NotNegative = 0.04
    save_every_s: Positive = 30.0
    init: str = ""
    offsets: Literal["cell", "uniform"] = "cell"
    semi: Literal["mask", "positive"] = "mask"
    sigma_m: Positive = 0.55
    decoder: NotNegative = 1.0
    retrieval: NotNegative = 100.0
    matching: NotNegative = 10.0
    rerank: NotNegative = 1.0
    heading_known: Share = 0.5
    augment: bool = True
    gsd_jitter: Annotated[float, Field(ge=1, le=100)] = 1.0
    patience: Count = 8
    val_photos: Count = 2048

    section: ClassVar[str] = "refiner"


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


@_raises_config_error
@dataclass(frozen=True, config=_strict)
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
