"""Settings of training runs, of the decoder and of the heads."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from jzi.store.disk.memory import memory_bytes
from jzi.store.info import MAX_WIDTH
from jzi.train.config.values import (
    STRICT,
    Count,
    NotNegative,
    Positive,
    Seed,
    Share,
    raises_config_error,
)

Precision = Literal["auto", "no", "fp16", "bf16"]


@raises_config_error
@dataclass(frozen=True, config=STRICT)
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


@raises_config_error
@dataclass(frozen=True, config=STRICT)
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


@raises_config_error
@dataclass(frozen=True, config=STRICT)
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


@raises_config_error
@dataclass(frozen=True, config=STRICT)
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
            carry the labels of the batch; the rest is a uniform sample of the others, weighted by their number. It must
            be larger than `batch_size`.
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
