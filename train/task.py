"""What a training run has to provide for the training loop to run it.

What is random is seeded by the task, once an epoch or once a step, so that a run that was stopped resumes exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn

from jzi.train.config import TrainingConfig
from jzi.train.run import Metrics


@dataclass(frozen=True)
class Batch:
    """A step's photos.

    Attributes:
        parts: of this process, which go through one after the other; in the form that the task's `loss` takes.
        sizes: photos in each part.
        photos: of all processes together.
    """

    parts: list[Any]
    sizes: list[int]
    photos: int


class Task(ABC):
    """What a training run trains, on what, and how it is validated and kept; all but the loop."""

    #: Of the progress bar.
    label: str
    #: Steps between two checks of the losses, the clock and interrupts, each of which waits for the device. None, for
    #: short epochs: losses are checked once an epoch, and a state is written after an epoch where it is due.
    check_every: int | None = None
    #: Whether AdamW is torch's fused one.
    fused = True

    accelerator: Accelerator
    network: nn.Module
    config: TrainingConfig

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer updates; empty groups are left out."""

    @abstractmethod
    def steps(self) -> int:
        """Of an epoch."""

    @abstractmethod
    def batches(self, epoch: int, first: int) -> Iterator[Batch]:
        """An epoch's batches from step `first` on; called before the network is put into training mode."""

    @abstractmethod
    def loss(self, model: nn.Module, part: Any) -> Tensor:
        """Mean loss of a part of a batch; `model` is the network as Accelerate wraps it."""

    @abstractmethod
    def validate(self) -> Metrics:
        """Metrics of the validation photos, on the main process."""

    @abstractmethod
    def keep(self) -> None:
        """Make the network as it is now the one that the run results in."""

    def write_kept(self) -> None:
        """Write to disk what `keep` has only remembered; called before each state is written."""
        return

    def epoch_loss(self, losses: list[float]) -> float:
        """Mean of the losses of an epoch's steps."""
        return float(np.mean(losses))

    def extra_state(self) -> dict[str, Any]:
        """What a state must hold beside weights, optimizer and schedule."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """The inverse of `extra_state`."""
        return
