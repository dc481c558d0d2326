"""What a retriever can be told. Free of torch, so that commands which only read settings start at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jzi.encode.finetune_config import EncoderTrainingConfig
from jzi.errors import ConfigError

#: The loss and the mining of each method.
METHODS = {
    "sample4geo": ("infonce", True),
    "infonce": ("infonce", False),
    "transgeo": ("triplet", False),
}


@dataclass(frozen=True)
class RetrieverConfig(EncoderTrainingConfig):
    """How an encoder is trained for retrieval.

    Attributes:
        method: "sample4geo" (symmetric InfoNCE; batches of neighbours, first on the map, then by similarity; Deuser et
            al. 2023), "infonce" (the same with random batches), or "transgeo" (soft-margin triplets of all pairs of a
            batch; Zhu et al. 2022). `label_smoothing` is the InfoNCE's: triplets have none.
        surroundings: side of the piece of map that stands for a cell, in cells; the cell is its middle.
        temperature: what cosine similarities are divided by at first; InfoNCE learns it, triplets keep 1 / 20.
        neighbours: photos that are drawn into a batch with each photo, half of them the nearest; Sample4Geo's K.
        neighbour_range: how many nearest the other half is drawn from.
        mine_every: epochs between two minings by similarity; before the first, neighbours are those on the map.
    """

    learning_rate: float = 1e-4
    method: str = "sample4geo"
    surroundings: float = 4.0
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
        if not 1 <= self.surroundings <= 64 or not self.temperature > 0:
            raise ConfigError("retriever.surroundings must be 1..64 cells and retriever.temperature more than 0")
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
