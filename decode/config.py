"""What stage two can be told. Free of torch, so that commands which only read settings start at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from jzi.errors import ConfigError

#: What the decoder may see of what lies below a tile.
LOOK_AHEAD = ("none", "children", "cells")


@dataclass(frozen=True)
class DecoderConfig:
    """The decoder's architecture. Defaults are the paper's.

    Attributes:
        width: d, that of the encoder's embeddings.
        actions: g*g.
        layers: number of blocks.
        heads: attention heads.
        dropout: on embeddings, attention, residual and feed-forward.
        patch_tokens: k, how many patch tokens of a tile the decoder reads beside its embedding: those that are most
            similar to the photo. The cache must hold them (`jzi encode-map --tokens`).
        look_ahead: "none", the paper's; "children" scores each child by its own embedding too; "cells" does so in the
            last step too, whose children are the terminal cells: the cache must hold them.
    """

    width: int = 768
    actions: int = 16
    layers: int = 6
    heads: int = 8
    dropout: float = 0.1
    patch_tokens: int = 0
    look_ahead: str = "none"

    def __post_init__(self) -> None:
        if self.patch_tokens < 0:
            raise ConfigError(f"decoder.patch_tokens is {self.patch_tokens}: it must be 0 or more")
        if self.look_ahead not in LOOK_AHEAD:
            raise ConfigError(f"decoder.look_ahead {self.look_ahead!r} is none of {', '.join(LOOK_AHEAD)}")
        if self.layers < 1 or self.heads < 1 or not 0 <= self.dropout < 1:
            raise ConfigError(
                "decoder.layers and decoder.heads must be at least 1 and decoder.dropout in 0..1, not "
                f"{self.layers}, {self.heads} and {self.dropout}"
            )

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward: int(2d/3) rounded up to a multiple of 256, as in the reference."""
        return -(-int(2 * self.width / 3) // 256) * 256

    def batch(self, plain: int) -> int:
        """How many photos take as much memory as `plain` ones do without patch tokens; at least one."""
        return max(1, 2 * plain // (2 + self.patch_tokens))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; what is off is left out, so that a decoder without it is known as it always was."""
        off = (("patch_tokens", 0), ("look_ahead", "none"))
        return {name: value for name, value in asdict(self).items() if (name, value) not in off}


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
        targets: how the share that `label_smoothing` takes from the true child is spread: "uniform", the paper's, or
            "distance": a Gaussian around it.
        target_sigma: of that Gaussian, in widths of a child.
        own_turns: share of the turns that are the decoder's own, 0 (the paper's) in the first epoch and so many in the
            last.
        save_every_s: seconds between two states to resume from, each after a whole epoch. Writing one of the paper's
            decoder takes half a second (`python -m benchmarks.train_decoder`).
    """

    init: str = ""
    views: int = 255
    targets: str = "uniform"
    target_sigma: float = 1.0
    own_turns: float = 0.0
    save_every_s: float = 10.0

    section: ClassVar[str] = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.views <= 255:
            raise ConfigError(f"train.views is {self.views}: it must be 0 to 255")
        if self.targets not in ("uniform", "distance"):
            raise ConfigError(f"train.targets {self.targets!r} is neither uniform nor distance")
        if not self.target_sigma > 0 or not 0 <= self.own_turns <= 1:
            raise ConfigError(
                "train.target_sigma must be more than 0 and train.own_turns in 0..1, not "
                f"{self.target_sigma} and {self.own_turns}"
            )
        if self.save_every_s <= 0:
            raise ConfigError(f"train.save_every_s is {self.save_every_s}: it must be more than 0")
